"""From a run's configuration (plain data) to its objects; training and sampling build the same ones."""

import inspect

from torch import nn

from diffusion_lit.classes import build, locate
from diffusion_lit.diffusion.continuous import PROCESSES
from diffusion_lit.diffusion.process import Diffusion
from diffusion_lit.sampling.guidance import classifier_free
from diffusion_lit.sampling.samplers import Sampler, make_sampler


def make_network(config: dict) -> nn.Module:
    return build(config["model"])


def make_diffusion(config: dict) -> Diffusion:
    settings = dict(config["diffusion"])
    prediction_type, loss = settings.pop("prediction_type"), settings.pop("loss")
    process = PROCESSES[settings.pop("process", "discrete")](**settings)
    return Diffusion(process, prediction_type, build(config["weighting"]), loss)


def make_sampler_of(config: dict) -> Sampler:
    return make_sampler(config["sampler"], locate(config["sampler"].get("_target_")))


def guided(net: nn.Module, config: dict):
    """The network with the run's guidance; without classes there is nothing to guide by."""
    num_classes = config["data"]["num_classes"]
    return classifier_free(net, num_classes, config["guidance_scale"]) if num_classes else net


def make_decay(config: dict):
    """The EMA's decay, or None for `ema=none`. One that follows the length of the run is told it as `max_steps`."""
    ema = config["ema"]
    if "max_steps" in inspect.signature(locate(ema["_target_"])).parameters:
        ema = ema | {"max_steps": config["max_steps"]}
    decay = build(ema)
    return decay if callable(decay) else None
