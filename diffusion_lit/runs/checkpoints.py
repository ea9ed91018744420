"""Checkpoint files of a run: atomic writing, selection by step, safe reading.

A file with its final name is complete: it is written to a temporary file, synced,
read back and renamed. Files are loaded with `weights_only=True`, so nothing in them
is executed.
"""

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from diffusion_lit.config.overrides import format_command, format_override
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import CheckpointError, Exit, OutputError, UserError
from diffusion_lit.system.files import write_atomically
from diffusion_lit.system.platform import sync_folder

T = TypeVar("T")
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"  # of a published UNet2DModel
NETWORK_WEIGHTS = "network.safetensors"  # of any other published network


# ------------------------------------------------------------------------------------------ files


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the path of the checkpoint of an optimizer step."""
    return run / "checkpoints" / f"step-{step:08d}.ckpt"


def list_steps(run: Path) -> list[int]:
    """Return the steps that have a checkpoint, ascending, by the names of the files."""
    files = (run / "checkpoints").glob("step-*.ckpt")
    return sorted(int(match[1]) for file in files if (match := re.fullmatch(r"step-(\d+)\.ckpt", file.name)))


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: exit 75 if the disk is full or read-only, or what was read back
            is damaged. The previous file of this name stays as it was.
    """
    import torch

    try:
        path.parent.mkdir(exist_ok=True)  # never the run folder, which somebody may have moved
        with write_atomically(path) as beside:
            with open(beside, "wb") as file:
                torch.save(checkpoint, file)
            if damage := find_damage(beside):
                raise OSError(f"read back, {damage}")
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # on a full disk torch.save raises RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            Exit.INTERRUPTED,
            f"{path} cannot be written ({_free_bytes(path) / 2**20:,.1f} MiB free on its disk): {reason}. "
            "Earlier checkpoints are intact: free some space, then resume",
        ) from None


def require_disk_space(run: Path, size: int) -> None:
    """Raise UserError (exit 5) if the disk of a run has less than `size` bytes free."""
    free = _free_bytes(run)
    if free < size:
        raise OutputError(
            f"{run}: its checkpoints need {size / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are free on its disk. "
            "Free some space, choose another run_dir, or lower keep_checkpoints"
        )


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(next(folder for folder in [path, *path.absolute().parents] if folder.exists())).free


def remove_partial_files(run: Path) -> None:
    """Remove files that killed processes left half-written.

    Requires the lock of the run.
    """
    for file in [*run.glob("checkpoints/.*.tmp"), *run.glob("snapshots/.*.tmp")]:
        with suppress(OSError):
            file.unlink()


def rename_corrupt(run: Path, used: Path) -> None:
    """Rename the damaged checkpoints that are newer than the one that is `used` to *.corrupt.

    The run will write files of their names.
    """
    for step in list_steps(run):
        path = checkpoint_path(run, step)
        if path.name > used.name:
            os.replace(path, path.with_suffix(".ckpt.corrupt"))


def link_checkpoint(path: Path, name: str) -> None:
    """Point `name` (last.ckpt, best.ckpt) at a checkpoint.

    The link is relative, so that a moved run still works.
    """
    beside = path.with_name(f".{name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(path.name)
    except OSError:  # Windows needs a privilege for symbolic links
        beside.hardlink_to(path)
    os.replace(beside, path.with_name(name))


# ------------------------------------------------------------------------------------------ selection


def find_damage(path: Path) -> str | None:
    """Return why a checkpoint cannot be used, by the checksums that `torch.save` writes; None if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except PermissionError as error:  # an older one would be used in its place
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except Exception as error:  # a damaged header raises BadZipFile, UnicodeDecodeError, RuntimeError, ...
        return str(error) or type(error).__name__
    return f"{entry} does not match its checksum" if entry else None


def select_checkpoint(
    run: Path, which: str = "last", warn: Callable[[str], None] = print, weights: str = "ema"
) -> Path:
    """Return the path of the checkpoint to use.

    Args:
        run: a run folder or a published model.
        which: "last" (the newest intact one), "best" (by `best_by`), or a step. A
            published model has one set of weights, which is "last".
        warn: called with a message if damaged checkpoints are skipped.
        weights: that will be read of it; those of a published model are "ema".

    Raises:
        UserError: exit 4 if there is no such checkpoint or it is damaged.
    """
    published = next((run / name for name in (UNET_WEIGHTS, NETWORK_WEIGHTS) if (run / name).is_file()), None)
    if published:
        if (which, weights) == ("last", "ema"):
            return published
        override = f"weights={weights}" if which == "last" else f"checkpoint={which}"
        raise CheckpointError(f"{override}: {run} is a published model, with one set of weights. Leave it out")
    if which == "last":
        return _select_newest(run, warn)
    path = run / "checkpoints" / "best.ckpt" if which == "best" else checkpoint_path(run, int(which))
    if not path.exists():
        steps = ", ".join(map(str, list_steps(run))) or "none"
        raise CheckpointError(f"{run} has no checkpoint {which!r}. Choose last, best, or a step of: {steps}")
    damage = find_damage(path)
    if damage:
        raise CheckpointError(f"{path} is damaged: {damage}")
    return path.with_name(path.readlink().name) if path.is_symlink() else path  # training moves best.ckpt


def _select_newest(run: Path, warn: Callable[[str], None]) -> Path:
    damaged = []
    for step in reversed(list_steps(run)):
        path = checkpoint_path(run, step)
        damage = find_damage(path)
        if damage is None:
            if damaged:
                warn(f"using {path.name} instead of {', '.join(damaged)}")
            return path
        if not os.path.lexists(path):  # a training run has deleted it, and there are newer ones
            return _select_newest(run, warn)
        damaged.append(f"{path} (damaged: {damage})")
    if damaged:
        raise CheckpointError("all checkpoints of this run are damaged:\n  " + "\n  ".join(damaged))
    if (run / "model_index.json").exists():
        others = sorted(path.name for path in run.glob("unet/*") if path.name != "config.json")
        held = f", only {join_names(others, 3)}" if others else ""
        hint = "In diffusers, save_pretrained(folder) of the loaded pipeline writes this file"
        raise CheckpointError(f"{run} has no {UNET_WEIGHTS}{held}. {hint}")
    command = format_command("train", format_override("resume", run))
    raise CheckpointError(f"{run} has no checkpoint yet. To start it again: {command}")


# ------------------------------------------------------------------------------------------ reading


def read_selected(select: Callable[[], Path], read: Callable[[Path], T]) -> tuple[Path, T]:
    """Return a path from `select` and what `read` makes of it.

    Both are called again if a training run deletes the file in between: then there
        is a newer one.
    """
    while True:
        path = select()
        target = path.resolve()  # of the link best.ckpt
        try:
            return path, read(path)
        except UserError:
            if target.exists():
                raise


def read_facts(checkpoint: dict) -> dict:
    """Return step, seconds of training and fingerprint of the data of a checkpoint, as `load_checkpoint` returns it."""
    clock, images = checkpoint.get("callbacks", {}).get("MetricsLog", {}), checkpoint.get("ImageDataModule", {})
    return {"step": checkpoint.get("global_step"), "seconds": clock.get("seconds"), "data": images.get("fingerprint")}


def load_checkpoint(path: Path, device: str = "cpu", mmap: bool = False) -> dict:
    """Return a checkpoint as plain data. Raises UserError (exit 4) if it is damaged.

    With `mmap` tensors are read from the file when they are used.
    """
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}") from None


def load_network_weights(path: Path, which: str, net) -> dict:
    """Load the weights of a checkpoint or of a published model into a network, and put it in evaluation mode.

    Args:
        path: a checkpoint, or the safetensors file of a published model.
        which: "ema" or "net" of a checkpoint.
        net: the network.

    Returns:
        What `read_facts` finds in the checkpoint; {} for a published model.

    Raises:
        UserError: exit 4 if the file is damaged or of another network.
    """
    import torch
    from safetensors.torch import load_file

    from diffusion_lit.runs.weights import load_weights

    is_published, table = path.suffix == ".safetensors", "class_embedding.weight"
    try:
        checkpoint = {} if is_published else load_checkpoint(path)
        state = load_file(path) if is_published else extract_network_state(checkpoint, which)
        part = net.unet if is_published and path.name != NETWORK_WEIGHTS else net
        # a pipeline of another project has no null label: it gets the mean of all classes
        if is_published and table in state and len(state[table]) == len(part.state_dict()[table]) - 1:
            state[table] = torch.cat([state[table], state[table].mean(0, keepdim=True)])
        load_weights(part, state, path)
        net.eval()
        return {} if is_published else read_facts(checkpoint)
    except UserError:
        raise
    except Exception as error:  # SafetensorError, OSError, or no state dict
        raise CheckpointError(f"{path} cannot be used: {str(error).splitlines()[0]}") from None


def extract_network_state(checkpoint: dict, which: str) -> dict:
    """Return the state dict of one network in a checkpoint, {} if it has no such network.

    Args:
        checkpoint: as `load_checkpoint` returns it.
        which: "ema", "net" or "tracked_emas.0".
    """
    state = checkpoint["state_dict"]
    return {key.removeprefix(f"{which}."): value for key, value in state.items() if key.startswith(f"{which}.")}
