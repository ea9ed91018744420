"""Checkpoint files of a run: writing one so that it is whole or absent, choosing one by its step, reading it safely."""

import os
import re
import shutil
import zipfile
from pathlib import Path

from diffusion_lit.errors import Exit, UserError


def path_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.ckpt"


def steps_of(run: Path) -> list[int]:
    """Steps with a checkpoint, ascending; the name counts, never the clock."""
    files = (run / "checkpoints").glob("step-*.ckpt")
    return sorted(int(match[1]) for file in files if (match := re.fullmatch(r"step-(\d+)\.ckpt", file.name)))


def write(checkpoint: dict, path: Path) -> None:
    """Beside its place, synced to disk, then moved in place: a kill or a full disk leaves the old file as it was."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # on a full disk torch.save raises a RuntimeError about positions
        free = shutil.disk_usage(path.parent).free / 2**20
        raise UserError(
            Exit.INTERRUPTED,
            f"{path} cannot be written ({free:,.1f} MiB free on its disk): {str(error).splitlines()[0]}; "
            "earlier checkpoints are whole: make room, then resume",
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def link(path: Path, name: str) -> None:
    """Point `name` (last.ckpt, best.ckpt) at a checkpoint by a relative link, so that a moved run still works."""
    beside = path.with_name(f".{name}.tmp")
    beside.unlink(missing_ok=True)
    beside.symlink_to(path.name)
    os.replace(beside, path.with_name(name))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fault(path: Path) -> str | None:
    """Why a checkpoint cannot be used, by the checksums that torch.save writes; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # a damaged header raises anything: BadZipFile, UnicodeDecodeError, RuntimeError...
        return str(error) or type(error).__name__
    return f"{broken} does not match its checksum" if broken else None


def choose(run: Path, which: str = "last", warn=print) -> Path:
    """The checkpoint to use: "last" (newest whole one by step), "best" (lowest held-out loss) or a step number.

    Raises:
        UserError: exit 4 if there is none, naming every broken file; `warn` is told of broken ones passed over.
    """
    if which == "last":
        faults = []
        for step in reversed(steps_of(run)):
            path = path_of(run, step)
            why = fault(path)
            if why is None:
                if faults:
                    warn(f"using {path.name} instead of " + "; ".join(faults))
                return path
            faults.append(f"{path} (broken: {why})")
        if faults:
            raise UserError(Exit.CHECKPOINT, "no checkpoint of this run can be used:\n  " + "\n  ".join(faults))
        raise UserError(Exit.CHECKPOINT, f"{run} has no checkpoint yet; train resume={run} starts it again")
    path = run / "checkpoints" / "best.ckpt" if which == "best" else path_of(run, int(which))
    if not path.exists():
        have = ", ".join(map(str, steps_of(run))) or "none"
        raise UserError(Exit.CHECKPOINT, f"{run} has no checkpoint {which!r}; there are last, best and steps {have}")
    why = fault(path)
    if why:
        raise UserError(Exit.CHECKPOINT, f"{path} is broken: {why}")
    return path


def read(path: Path, device: str = "cpu") -> dict:
    """The checkpoint as plain data; nothing in it is ever executed. Raises UserError (exit 4) if it is damaged."""
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # as in `fault`
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(Exit.CHECKPOINT, f"{path} cannot be read: {why}") from None


def load_network(path: Path, which: str, net):
    """Put the weights of "ema" or "net" from a checkpoint into a network, in evaluation mode."""
    state = read(path)["state_dict"]
    net.load_state_dict({key.removeprefix(f"{which}."): v for key, v in state.items() if key.startswith(f"{which}.")})
    return net.eval()
