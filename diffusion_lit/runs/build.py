"""From a run's configuration (plain data) to its objects; training and sampling build the same ones."""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from diffusion_lit.config.targets import build, locate
from diffusion_lit.diffusion.codecs import Codec, Pixels
from diffusion_lit.diffusion.conditions import ClassCondition, Condition
from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.processes import PROCESSES
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.sampling.guidance import Within, autoguided, classifier_free
from diffusion_lit.sampling.samplers import Sampler, make_sampler
from diffusion_lit.system.errors import Exit, UserError


def make_network(config: dict) -> nn.Module:
    """Return the network of a configuration, with new weights.

    Raises:
        UserError: exit 2 for arguments that the network cannot be built from.
    """
    try:
        return build(config["model"])
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(Exit.CONFIG, f"model: {error}") from error


def check_network(config: dict) -> None:
    """Raise UserError (exit 2) if the network cannot be built; without memory for its weights."""
    try:
        with torch.device("meta"):
            build(config["model"])
    except (ValueError, ArithmeticError) as error:
        raise UserError(Exit.CONFIG, f"model: {error}") from error
    except (RuntimeError, TypeError):  # constructors that read values of tensors have none here
        return


def make_condition(config: dict, net: nn.Module | None = None) -> ClassCondition:
    """Return what y of a run is; requests are checked against the network if it is given."""
    takes_blends = net is None or getattr(net, "takes_blends", False)
    fault = None if takes_blends else f"{type(net).__name__} takes one class at a time, not blends of them"
    return ClassCondition(config["data"]["num_classes"], fault)


def make_codec(config: dict) -> Codec:
    data = config["data"]
    return Pixels((data["channels"], *height_width(data["image_size"])))


def make_diffusion(config: dict) -> Diffusion:
    settings = dict(config["diffusion"])
    prediction_type, loss = settings.pop("prediction_type"), settings.pop("loss")
    process = PROCESSES[settings.pop("process", "discrete")](**settings)
    return Diffusion(process, prediction_type, build(config["weighting"]), loss)


def make_configured_sampler(config: dict) -> Sampler:
    return make_sampler(config["sampler"], locate(config["sampler"].get("_target_")))


def guide_network(
    net: Network,
    condition: Condition,
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float = 0.0,
    guide: Network | None = None,
) -> Network | Within:
    """Return the network with guidance: away from `guide` if there is one, else classifier-free.

    Without a guide and without anything to condition on there is no guidance, and `net` is returned.
    """
    if guide is not None:
        model = autoguided(net, guide, guidance_scale, guidance_rescale)
    elif condition.has_null:
        model = classifier_free(net, condition, guidance_scale, guidance_rescale)
    else:
        return net
    return model if guidance_interval is None or model is net else Within(model, net, tuple(guidance_interval))


def make_ema_decay(config: dict):
    """The EMA's decay, or None for `ema=none`. One that follows the length of the run is told it as `max_steps`."""
    ema = config["ema"]
    if "max_steps" in inspect.signature(locate(ema["_target_"])).parameters:
        ema = ema | {"max_steps": config["max_steps"]}
    decay = build(ema)
    return decay if callable(decay) else None
