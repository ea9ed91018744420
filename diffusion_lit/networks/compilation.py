"""Compile the network of a run, and leave compilation aside where it would start again."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def compile_network(net: nn.Module, cuda_graphs: bool = False) -> None:
    """Apply `torch.compile` in place, so that names in checkpoints do not change.

    Kernels are chosen by rule and not by timing them, so that a resumed run sums in the same
    order as an unbroken one. Where compilation fails, the network runs as it is and PyTorch
    warns.

    Args:
        net: the network.
        cuda_graphs: launch all kernels of the network at once, on a GPU.
    """
    from torch import _dynamo, _inductor  # takes a second

    _dynamo.config.suppress_errors = True
    options = {"deterministic": True, "triton.cudagraphs": cuda_graphs}
    net.compile(options={key: options[key] for key in options.keys() & set(_inductor.list_options())})


def run_eagerly(*nets: nn.Module) -> AbstractContextManager:
    """Return a context in which compiled networks run as they are.

    Evaluation mode and other batch sizes would compile them again.
    """
    is_compiled = any(net._compiled_call_impl is not None for net in nets)
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
