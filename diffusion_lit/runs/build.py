"""From a run's configuration (plain data) to its objects; training and sampling build the same ones."""

import inspect

from torch import nn

from diffusion_lit.config.targets import build, locate
from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.processes import PROCESSES
from diffusion_lit.sampling.guidance import Within, autoguided, classifier_free
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


def guided(net: Network, config: dict, guide: Network | None = None) -> Network | Within:
    """The network with the run's guidance, away from `guide` or, without one, from the network without the label; if
    there are no classes either there is nothing to guide by."""
    num_classes, scale = config["data"]["num_classes"], config["guidance_scale"]
    rescale, interval = config.get("guidance_rescale") or 0.0, config.get("guidance_interval")  # older runs have none
    if guide is not None:
        model = autoguided(net, guide, scale, rescale)
    else:
        model = classifier_free(net, num_classes, scale, rescale) if num_classes else net
    return model if interval is None or model is net else Within(model, net, tuple(interval))


def make_decay(config: dict):
    """The EMA's decay, or None for `ema=none`. One that follows the length of the run is told it as `max_steps`."""
    ema = config["ema"]
    if "max_steps" in inspect.signature(locate(ema["_target_"])).parameters:
        ema = ema | {"max_steps": config["max_steps"]}
    decay = build(ema)
    return decay if callable(decay) else None
