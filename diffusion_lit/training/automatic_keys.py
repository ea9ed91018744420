"""Replace `auto` in the `strategy` group by what this run should use on this machine.

The choice is printed, and stored in the run. A resumed run keeps its memory format.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lit.distributed import collectives
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.runs.build import make_condition, make_network
from diffusion_lit.system.errors import UserError

LONG_RUN = 10_000  # steps from which compiling, which takes a minute or two, pays off
MIN_CAPABILITY = (7, 0)  # of a GPU for which Triton compiles


def resolve_strategy(config: dict) -> dict:
    """Return the `strategy` group of a run without `auto` in `channels_last` and `compile`, the same on every rank.

    Both are off on a CPU, where they gain nothing.

    Args:
        config: configuration of the run, with the final `max_steps`.
    """
    strategy = config["strategy"]
    has_cuda = uses_cuda(strategy)
    choices: dict[str, Callable[[], bool]] = {
        "channels_last": lambda: has_cuda and supports_channels_last(config),
        "compile": lambda: has_cuda and can_compile(strategy) and config["max_steps"] >= LONG_RUN,
    }
    chosen = {key: choose() for key, choose in choices.items() if strategy[key] == "auto"}
    return strategy | collectives.broadcast_from_rank_zero(chosen)


def uses_cuda(strategy: dict) -> bool:
    """Return whether a `strategy` group trains on CUDA devices."""
    return strategy["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def can_compile(strategy: dict) -> bool:
    """Return whether `torch.compile` has what it needs on this GPU. DataParallel copies the network for each batch."""
    has_triton = find_spec("triton") is not None
    return strategy["name"] != "dp" and has_triton and torch.cuda.get_device_capability() >= MIN_CAPABILITY


def supports_channels_last(config: dict) -> bool:
    """Return whether most weights of the network are convolutions, and it runs in this memory format.

    A network that flattens its features with `view` does not. It is tried on
    the meta device, without memory; one that cannot be built there stays as it
    is.
    """
    data = config["data"]
    try:
        y = make_condition(config).read_batch({"image": torch.empty(2)}).to("meta")
        with torch.device("meta"), torch.no_grad(), _ChannelsLast():
            net = make_network(config).to(memory_format=torch.channels_last)
            x = torch.empty(2, data["channels"], *height_width(data["image_size"]))
            net(x.to(memory_format=torch.channels_last), torch.zeros(2), y)
    except UserError:
        raise
    except Exception:  # anything, because the network may be a class of the user
        return False
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    weights = sum(p.numel() for module in convolutions for p in module.parameters())
    return 2 * weights >= sum(p.numel() for p in net.parameters())


class _ChannelsLast(TorchDispatchMode):
    """Gives the outputs of convolutions the format that they have on a GPU; on the meta device they are contiguous."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        is_convolution = func is torch.ops.aten.convolution.default and out.ndim == 4
        return out.to(memory_format=torch.channels_last) if is_convolution else out
