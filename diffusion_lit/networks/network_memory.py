"""The memory that a network takes, counted before it is built."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

MAX_TENSORS = 10_000  # the largest networks of diffusers have about 2,000


def count_bytes(build: Callable[[], nn.Module]) -> int | None:
    """Return the bytes of parameters and buffers of a network, of which none is allocated.

    Args:
        build: called once, on the meta device.

    Returns:
        None for a constructor that reads values of tensors, which meta tensors
        lack.

    Raises:
        ValueError: if the network has more than `MAX_TENSORS` tensors, or `build`
            raises it.
    """
    sizes: list[int] = []

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        sizes.append(tensor.numel() * tensor.element_size() if torch.is_tensor(tensor) else 0)
        if len(sizes) > MAX_TENSORS:
            raise ValueError(f"it has more than {MAX_TENSORS:,} tensors. Choose fewer layers")

    handles = [hooks.register_module_parameter_registration_hook(count)]
    handles += [hooks.register_module_buffer_registration_hook(count)]
    try:
        with torch.device("meta"):
            build()
    except (RuntimeError, TypeError) as error:
        if "meta" not in str(error):
            raise
        return None
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)
