"""Checkpoint files of a run: writing one so that it is whole or absent, choosing one by its step, reading it safely."""

import os
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.platform import sync_folder

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"  # in a published folder; of a network that diffusers knows
NETWORK_WEIGHTS = "network.safetensors"  # of any other


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.ckpt"


def list_steps(run: Path) -> list[int]:
    """Steps with a checkpoint, ascending; the name counts, never the clock."""
    files = (run / "checkpoints").glob("step-*.ckpt")
    return sorted(int(match[1]) for file in files if (match := re.fullmatch(r"step-(\d+)\.ckpt", file.name)))


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """Beside its place, synced to disk, read back, then moved in place: a kill or a full disk leaves the old file as it
    was, and a file that has its name is whole.

    Raises:
        UserError: exit 75 if the disk is full, the folder read-only, or what was read back is not what was written.
    """
    import torch

    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        why = find_damage(beside)
        if why:
            raise OSError(f"read back, {why}")
        os.replace(beside, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # on a full disk torch.save raises a RuntimeError about positions
        with suppress(OSError):
            beside.unlink(missing_ok=True)  # its room is free again
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            Exit.INTERRUPTED,
            f"{path} cannot be written ({_free(path) / 2**20:,.1f} MiB free on its disk): {why}; "
            "earlier checkpoints are whole: make room, then resume",
        ) from None


def require_disk_space(run: Path, size: int) -> None:
    """Raises UserError (exit 5) if the disk of a run cannot hold `size` bytes, before an hour is spent on it."""
    free = _free(run)
    if free < size:
        raise UserError(
            Exit.OUTPUT,
            f"{run}: its checkpoints need {size / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free on its disk: "
            "make room, choose another run_dir, or a smaller keep_checkpoints",
        )


def remove_partial_files(run: Path) -> None:
    """Remove what killed processes left half-written. Only for the process that holds the run's lock."""
    for file in [*run.glob("checkpoints/.*.tmp"), *run.glob("snapshots/.*.tmp")]:
        with suppress(OSError):
            file.unlink()


def rename_corrupt(run: Path, used: Path) -> None:
    """Rename the damaged checkpoints that are newer than the one that is `used` to *.corrupt.

    The run will write files of their names; nothing is lost.
    """
    for step in list_steps(run):
        if checkpoint_path(run, step).name > used.name:
            os.replace(checkpoint_path(run, step), checkpoint_path(run, step).with_suffix(".ckpt.corrupt"))


def _free(path: Path) -> int:
    """Bytes that may still be written where `path` is or would be."""
    return shutil.disk_usage(next(folder for folder in [path, *path.absolute().parents] if folder.exists())).free


def link_checkpoint(path: Path, name: str) -> None:
    """Point `name` (last.ckpt, best.ckpt) at a checkpoint by a relative link, so that a moved run still works."""
    beside = path.with_name(f".{name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(path.name)
    except OSError:  # Windows, where not everybody may
        beside.hardlink_to(path)
    os.replace(beside, path.with_name(name))


def find_damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used, by the checksums that torch.save writes; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged header raises anything: BadZipFile, UnicodeDecodeError, RuntimeError...
        return str(error) or type(error).__name__
    return f"{broken} does not match its checksum" if broken else None


def select_checkpoint(run: Path, which: str = "last", warn=print) -> Path:
    """The checkpoint to use: "last" (newest whole one by step), "best" (by `best_by`) or a step number; of a published
    folder its only weights.

    Raises:
        UserError: exit 4 if there is none, naming every broken file; `warn` is told of broken ones passed over.
    """
    published = next((run / name for name in (UNET_WEIGHTS, NETWORK_WEIGHTS) if (run / name).is_file()), None)
    if published:
        if which == "last":
            return published
        raise UserError(Exit.CHECKPOINT, f"checkpoint={which}: {run} is a published model, with one set of weights")
    if which == "last":
        faults = []
        for step in reversed(list_steps(run)):
            path = checkpoint_path(run, step)
            why = find_damage(path)
            if why is None:
                if faults:
                    warn(f"using {path.name} instead of " + "; ".join(faults))
                return path
            faults.append(f"{path} (broken: {why})")
        if faults:
            raise UserError(Exit.CHECKPOINT, "no checkpoint of this run can be used:\n  " + "\n  ".join(faults))
        raise UserError(Exit.CHECKPOINT, f"{run} has no checkpoint yet; train resume={run} starts it again")
    path = run / "checkpoints" / "best.ckpt" if which == "best" else checkpoint_path(run, int(which))
    if not path.exists():
        have = ", ".join(map(str, list_steps(run))) or "none"
        raise UserError(Exit.CHECKPOINT, f"{run} has no checkpoint {which!r}; there are last, best and steps {have}")
    why = find_damage(path)
    if why:
        raise UserError(Exit.CHECKPOINT, f"{path} is broken: {why}")
    return path


def load_checkpoint(path: Path, device: str = "cpu") -> dict:
    """The checkpoint as plain data; nothing in it is ever executed. Raises UserError (exit 4) if it is damaged."""
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # as in `find_damage`
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(Exit.CHECKPOINT, f"{path} cannot be read: {why}") from None


def load_network_weights(path: Path, which: str, net):
    """Put the weights of "ema" or "net" from a checkpoint into a network, in evaluation mode; of a published folder
    those that there are.

    Raises:
        UserError: exit 4 if the file is damaged or of another network.
    """
    if path.suffix == ".safetensors":
        _load_published(path, net)
    else:
        net.load_state_dict(extract_network_state(load_checkpoint(path), which))
    return net.eval()


def _load_published(path: Path, net) -> None:
    import torch
    from safetensors.torch import load_file

    table = "class_embedding.weight"
    try:
        inner, state = net if path.name == NETWORK_WEIGHTS else net.unet, load_file(path)
        if table in state and len(state[table]) == len(inner.state_dict()[table]) - 1:  # others have no null label
            state[table] = torch.cat([state[table], state[table].mean(0, keepdim=True)])
        inner.load_state_dict(state)
    except Exception as error:  # SafetensorError, of the disk, or other names and shapes
        raise UserError(Exit.CHECKPOINT, f"{path} cannot be used: {str(error).splitlines()[0]}") from None


def extract_network_state(checkpoint: dict, which: str) -> dict:
    """The state of one network in it: "ema", "net", "tracked_emas.0", ...; empty if it is not there."""
    state = checkpoint["state_dict"]
    return {key.removeprefix(f"{which}."): value for key, value in state.items() if key.startswith(f"{which}.")}
