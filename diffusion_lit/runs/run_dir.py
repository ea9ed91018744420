"""Layout of a run folder, its lock, and the output folders of the commands.

config.yaml  command.txt  versions.txt  train.log  metrics.csv  result.json  palette.hex
checkpoints/step-*.ckpt + last.ckpt + best.ckpt   samples/step-*.png   .lock
"""

import json
import os
import platform
import re
import secrets
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import YAMLError

from diffusion_lit.config.plain_yaml import MAX_BYTES, parse_plain_yaml
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_text_atomically
from diffusion_lit.system.platform import lock

PACKAGES = ("diffusion_lit", "torch", "lightning", "torchvision", "diffusers", "hydra-core", "omegaconf", "numpy")


# ------------------------------------------------------------------------------------------ which folder is a run


def is_run_dir(folder: Path) -> bool:
    """Return whether a folder is a run or a published model."""
    return (folder / "config.yaml").is_file()


def is_diffusers_folder(folder: Path) -> bool:
    """Return whether a folder is a diffusers pipeline that was not published by `export`, which adds config.yaml."""
    return (folder / "model_index.json").is_file() and not is_run_dir(folder)


def require_run_dir(folder: str | Path) -> Path:
    """Return the folder of a run. Raises UserError (exit 4) if it is not one."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(Exit.CHECKPOINT, f"{folder}: no such folder")
    if not is_run_dir(path) and not is_diffusers_folder(path):
        newest = find_newest_run(path) or find_newest_run(path, "*/*")
        hint = f". The newest run in it is {newest}" if newest else ""
        raise UserError(Exit.CHECKPOINT, f"{folder} is not a run folder: it has no config.yaml{hint}")
    return path


def find_newest_run(folder: Path, pattern: str = "*", contents: str = "*") -> Path | None:
    """Return the run below a folder that was started last, by the time of its command.txt.

    Args:
        folder: where to look.
        pattern: of the run folders in it.
        contents: pattern of a file that the run must have.
    """
    started = [path for path in folder.glob(pattern) if is_run_dir(path) and (path / "command.txt").exists()]
    runs = [path for path in started if any(path.glob(contents))]
    return max(runs, default=None, key=lambda path: ((path / "command.txt").stat().st_mtime_ns, path.name))


def display_path(path: Path) -> Path:
    """Return a path relative to the working directory if it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# ------------------------------------------------------------------------------------------ new folders


def is_unused(run: Path) -> bool:
    """Return whether a run can start in this folder: it is missing or holds only a log and a lock."""
    return not run.is_dir() or {path.name for path in run.iterdir()} <= {"train.log", ".lock"}


def require_unused(run: Path) -> None:
    """Raise UserError (exit 5) if a run folder is in use already or cannot be made."""
    if len(run.name) > 255:
        raise UserError(Exit.OUTPUT, f"run_dir={run} cannot be made: the name is too long")
    if not is_unused(run):
        hint = f"Choose a new folder, or continue its run with resume={run}"
        raise UserError(Exit.OUTPUT, f"run_dir={run} is not empty. {hint}")
    parent = next(path for path in [run, *run.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(Exit.OUTPUT, f"run_dir={run} cannot be made: {parent} is not a writable folder")


def make_folder(out: Path) -> Path:
    """Make a folder if it is missing and return it. Raises UserError (exit 5) if it cannot."""
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"out={out} cannot be made: {error.strerror}") from None
    return out


def make_timestamp() -> str:
    """Return the time and four random digits, for the name of a new folder."""
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"


def make_output_dir(out: str | None, run: Path, kind: str) -> Path:
    """Make the folder for the output of a command.

    Args:
        out: the folder to make. If None: a new one in `run`/`kind`, or in outputs/`kind`
            if `run` is a published model, which is not changed.
        run: the run that the command reads.
        kind: name of the subfolder.

    Raises:
        UserError: exit 5 if `out` is not empty or cannot be made.
    """
    home = run if (run / "checkpoints").is_dir() else Path("outputs")
    path = Path(out).expanduser() if out else home / kind / make_timestamp()
    if path.is_dir() and any(path.iterdir()):
        raise UserError(Exit.OUTPUT, f"out={path} is not empty. Choose a new folder")
    return make_folder(path)


@contextmanager
def fill_atomically(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which replaces an empty one when it is complete.

    If anything is raised, both are removed.
    """
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        os.replace(building, folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()
        raise


def require_writable(run: Path) -> None:
    """Raise UserError (exit 5) if no file can be written to a run folder.

    A file is written to find out: permissions do not tell of a disk that is read-only or
    over its quota.
    """
    for folder in filter(Path.is_dir, (run, run / "checkpoints")):
        probe = folder / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        except OSError as error:
            raise UserError(Exit.OUTPUT, f"{folder} cannot be written to: {error.strerror}") from None
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ files of a run


def read_yaml(path: Path) -> dict:
    """Return a YAML file as plain data. Raises UserError (exit 4) if it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse_plain_yaml(file.read(MAX_BYTES + 1))
    except (OSError, ValueError, YAMLError) as error:
        raise UserError(Exit.CHECKPOINT, f"{path} is damaged: {error}") from None


def read_run_config(run: Path) -> dict:
    """Return config.yaml of a run. Raises UserError (exit 4) if it is damaged."""
    config = read_yaml(run / "config.yaml")
    missing = {"data", "model", "diffusion", "sampler"} - config.keys()
    if missing:
        raise UserError(Exit.CHECKPOINT, f"{run / 'config.yaml'} is damaged: it has no {', '.join(sorted(missing))}")
    return config


def read_overrides(run: Path) -> list[str]:
    """Return the command-line overrides of the last start of a run, from command.txt.

    Raises:
        UserError: exit 4 if the file is missing or damaged, or if it overrides Hydra's own
            keys. Those can call anything, and no run writes them there.
    """
    try:
        lines = (run / "command.txt").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        overrides = shlex.split(lines[-1])[3:]  # python -m diffusion_lit.train ...
        parsed = OverridesParser.create().parse_overrides(overrides)
    except (OSError, ValueError, IndexError, HydraException) as error:
        raise UserError(Exit.CHECKPOINT, f"{run / 'command.txt'} is damaged: {error}") from None
    for override in parsed:
        if any(re.match(r"hydra\b", key or "") for key in (override.key_or_group, override.package)):
            fault = f"{override.input_line}: a run cannot override Hydra's own keys. Remove it"
            raise UserError(Exit.CHECKPOINT, f"{run / 'command.txt'}: {fault}")
    return overrides


def record_start(run: Path, config: dict, overrides: list[str]) -> None:
    """Write config.yaml and versions.txt, and append to command.txt."""
    run.mkdir(parents=True, exist_ok=True)
    versions = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    versions += [f"{package} {version(package)}" for package in PACKAGES]
    write_text_atomically(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    write_text_atomically(run / "versions.txt", "\n".join(versions) + "\n")
    append_command(run, overrides)


def append_command(run: Path, overrides: list[str], verb: str = "train") -> None:
    """Append a command line to command.txt, which has a line for each start."""
    with open(run / "command.txt", "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(shlex.join(["python", "-m", f"diffusion_lit.{verb}", *overrides]) + "\n")


def write_result(run: Path, result: dict) -> None:
    """Write result.json."""
    write_text_atomically(run / "result.json", json.dumps(result, indent=2) + "\n")


def read_result(run: Path) -> dict:
    """Return result.json, or {} for a run that has not ended."""
    try:
        return json.loads((run / "result.json").read_bytes())
    except (OSError, ValueError):
        return {}


class RunLock:
    """Lock of a run folder. The operating system releases it when the process ends.

    Raises:
        UserError: exit 5 if another process holds it.
    """

    def __init__(self, run: Path):
        self.file = open(run / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 open as long as the lock is held
        try:
            lock(self.file.fileno(), wait=False)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise UserError(Exit.OUTPUT, f"{run} is in use by {holder}. Wait for it, or stop it first") from None
        except OSError:  # a file system without locks: nothing keeps two processes apart
            pass
        self.file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M")
        self.file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self.file.flush()

    def release(self) -> None:
        """Release the lock."""
        self.file.truncate(0)
        self.file.close()
