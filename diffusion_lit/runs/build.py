"""Build the objects of a run from its configuration, for training and sampling alike."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import nn

from diffusion_lit.config.targets import build, locate
from diffusion_lit.diffusion.codecs import Pixels
from diffusion_lit.diffusion.conditions import ClassCondition, Condition
from diffusion_lit.diffusion.loss import Diffusion, Network
from diffusion_lit.diffusion.processes import PROCESSES
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.networks.network_memory import count_bytes
from diffusion_lit.sampling.guidance import GuidanceInterval, add_autoguidance, add_classifier_free_guidance
from diffusion_lit.sampling.samplers import Sampler, make_sampler
from diffusion_lit.system.errors import ConfigError, UserError
from diffusion_lit.system.memory import free_bytes, is_out_of_memory
from diffusion_lit.text.prompt_condition import PromptCondition, TextEncoder


def make_network(config: dict) -> nn.Module:
    """Return the network of a configuration, with new weights.

    Raises:
        UserError: exit 2 for arguments that the network cannot be built from, and
            for one that is larger than the free memory.
    """
    check_network(config)
    return _build_network(config)


def check_network(config: dict) -> None:
    """Raise UserError (exit 2) if the network cannot be built or is larger than the free memory.

    Its weights take no memory.
    """
    size = count_bytes(partial(_build_network, config))
    with suppress(OSError):
        if size and size > (free := free_bytes()):
            fault = f"its weights take {size / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free"
            raise ConfigError(f"model: {fault}. Choose a smaller network")


def _build_network(config: dict) -> nn.Module:
    try:
        net = build(config["model"] | text_arguments(config))
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a constructor may raise anything for arguments of a stranger
        if "meta tensor" in str(error) or is_out_of_memory(error):
            raise
        raise ConfigError(f"model: {str(error).partition(chr(10))[0] or repr(error)}") from error
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model._target_={config['model'].get('_target_')}: not a network")
    return net


def make_text_encoder(config: dict) -> TextEncoder | None:
    """Return the text encoder of a run, None for `text_encoder=none`."""
    group, others = config.get("text_encoder") or {}, ("word_dropout", "fitted")  # not of the encoder
    settings = {key: value for key, value in group.items() if key not in others}
    try:
        return build(settings) if settings else None
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"text_encoder: {error}") from None


def text_arguments(config: dict) -> dict:
    """Return the arguments of a network for the text encoder of a run.

    Raises:
        UserError: exit 2 if the network does not take prompts.
    """
    encoder = make_text_encoder(config)
    if encoder is None:
        return {}
    if not getattr(locate(config["model"].get("_target_")), "supports_prompts", False):
        fault = f"{config['model']['_target_'].rpartition('.')[2]} takes no prompts"
        raise ConfigError(f"text_encoder: {fault}. Use model=dit or unet_text, or text_encoder=none")
    return {"text_tokens": encoder.num_tokens, "text_width": encoder.width}


def make_condition(config: dict, net: nn.Module | None = None) -> ClassCondition | PromptCondition:
    """Return the condition y of a run.

    With `net`, blends of classes are refused if it does not take them.
    """
    if encoder := make_text_encoder(config):
        return PromptCondition(encoder, config["text_encoder"]["word_dropout"])
    supports_blends = net is None or getattr(net, "supports_blends", False)
    fault = None if supports_blends else f"{type(net).__name__} takes one class at a time, not blends of them"
    return ClassCondition(config["data"]["num_classes"], fault)


def make_codec(config: dict) -> Pixels:
    """Return the codec between images uint8 and what the network sees."""
    data = config["data"]
    return Pixels((data["channels"], *height_width(data["image_size"])), data.get("alpha") == "hard")


def make_diffusion(config: dict) -> Diffusion:
    """Return process, prediction type, weighting and loss of a configuration.

    Raises:
        UserError: exit 2 for settings that do not fit together.
    """
    settings = dict(config["diffusion"])
    try:
        prediction_type, loss = settings.pop("prediction_type"), settings.pop("loss")
        process = PROCESSES[settings.pop("process", "discrete")](**settings)
        return Diffusion(process, prediction_type, build(config["weighting"]), loss)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"diffusion: {error}") from error


def make_configured_sampler(config: dict) -> Sampler:
    """Return the sampler of a configuration.

    Raises:
        UserError: exit 2 if its class is not a scheduler.
    """
    scheduler = locate(config["sampler"].get("_target_"))
    if not hasattr(scheduler, "set_timesteps"):
        raise ConfigError(f"sampler._target_={config['sampler']['_target_']}: not a scheduler of diffusers")
    return make_sampler(config["sampler"], scheduler)


def make_ema_decay(config: dict) -> Callable[[int], float] | None:
    """Return the decay of the EMA update after n earlier ones, or None for `ema=none`."""
    ema = config["ema"]
    if "max_steps" in inspect.signature(locate(ema["_target_"])).parameters:  # a decay that depends on the length
        ema = ema | {"max_steps": config["max_steps"]}
    decay = build(ema)
    return decay if callable(decay) else None


def guide_network(
    net: Network,
    condition: Condition,
    guidance_scale: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float = 0.0,
    guide: Network | None = None,
) -> Network | GuidanceInterval:
    """Return the network with guidance.

    That is autoguidance if `guide` is given, else classifier-free guidance if the
    condition has a null label, else none.
    """
    if guide is not None:
        model = add_autoguidance(net, guide, guidance_scale, guidance_rescale)
    elif condition.has_null:
        model = add_classifier_free_guidance(net, condition, guidance_scale, guidance_rescale)
    else:
        return net
    if guidance_interval is None or model is net:
        return model
    return GuidanceInterval(model, net, tuple(guidance_interval))
