"""Check that the weights of a file fit a network: names, shapes, types and finite values."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import CheckpointError


def load_weights(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a network.

    Raises:
        UserError: exit 4 if it does not fit the network, with `path` in the
            message.
    """
    require_fitting_weights(state, net.state_dict(), path)
    net.load_state_dict(state)


def require_fitting_weights(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise UserError (exit 4) unless a file has the tensors of a network and no others.

    Args:
        state: tensors of the file.
        own: tensors of the network.
        path: of the file, for the message.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (own, state)]
    if mismatch := describe_mismatch(*shapes):
        raise CheckpointError(f"{path} cannot be used: weights of another network: {'. '.join(mismatch)}")
    require_numbers(state, own, path)


def require_resumable(checkpoint: dict, own: Mapping[str, Tensor]) -> None:
    """Raise UserError (exit 4) unless a checkpoint has the weights of a module, `own`, and finite optimizer states."""
    name = f"the checkpoint of step {checkpoint['global_step']}"
    require_fitting_weights(checkpoint["state_dict"], own, name)
    for optimizer in checkpoint.get("optimizer_states", ()):
        for state in optimizer["state"].values():
            moments = {name: value for name, value in state.items() if torch.is_tensor(value)}
            require_numbers(moments, moments, f"the optimizer state of {name}")


def require_numbers(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise UserError (exit 4) if tensors of a file, under the names of a network, are no finite numbers.

    PyTorch would cast integers and complex numbers to weights without a word, and a
    network with a NaN draws black images.

    Args:
        state: tensors of the file.
        own: tensors of the network.
        path: of the file, for the message.
    """
    faults: dict[str, list[str]] = {}
    for name in sorted(state.keys() & own.keys()):
        if fault := _find_fault(state[name], own[name].dtype):
            faults.setdefault(fault, []).append(name)
    if faults:
        listed = [f"{len(names)} of {len(own)} tensors {why}: {join_names(names, 3)}" for why, names in faults.items()]
        raise CheckpointError(f"{path} cannot be used: {'. '.join(listed)}")


def _find_fault(tensor: Tensor, dtype: torch.dtype) -> str | None:
    """Return why a tensor cannot be one of a network, where it has the type `dtype`."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "are sparse, quantized or have no values"
    if tensor.dtype != dtype and not (dtype.is_floating_point and tensor.is_floating_point()):
        kind = "a floating-point type" if dtype.is_floating_point else str(dtype).removeprefix("torch.")
        return f"have type {str(tensor.dtype).removeprefix('torch.')}, not {kind}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "are larger than their data"
    is_finite = not dtype.is_floating_point or tensor.float().isfinite().all()
    return None if is_finite else "have values that are not finite (NaN or infinite)"


def describe_mismatch(here: Mapping[str, tuple], there: Mapping[str, tuple]) -> list[str]:
    """Return a line each for missing tensors, unknown ones, and ones of another shape.

    Args:
        here: names and shapes of the network.
        there: names and shapes of the file.
    """
    other = sorted(name for name in here.keys() & there.keys() if here[name] != there[name])
    faults = {
        "missing there": sorted(here.keys() - there.keys()),
        "unknown here": sorted(there.keys() - here.keys()),
        "other shapes": [f"{name} {_format(here[name])} here, {_format(there[name])} there" for name in other],
    }
    return [f"{fault} ({len(names)}): {join_names(names, 5)}" for fault, names in faults.items() if names]


def _format(shape: tuple) -> str:
    return "x".join(map(str, shape)) or "scalar"
