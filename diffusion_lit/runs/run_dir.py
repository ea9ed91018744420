"""The run folder: everything a run knows, in plain files.

config.yaml  command.txt  versions.txt  train.log  metrics.csv  result.json
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_text_atomically
from diffusion_lit.system.platform import lock

PACKAGES = ("diffusion_lit", "torch", "lightning", "torchvision", "diffusers", "hydra-core", "omegaconf", "numpy")


def is_run_dir(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def is_diffusers_folder(folder: Path) -> bool:
    """The folder of a pipeline that somebody else made (ours have config.yaml too)."""
    return (folder / "model_index.json").is_file() and not is_run_dir(folder)


def require_run_dir(folder: str | Path) -> Path:
    """The folder of a run. Raises UserError (exit 4) for a folder that is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(Exit.CHECKPOINT, f"{folder}: no such folder")
    if not is_run_dir(path) and not is_diffusers_folder(path):
        newest = find_newest_run(path) or find_newest_run(path, "*/*")
        hint = f"; the newest run in it is {newest}" if newest else ""
        raise UserError(Exit.CHECKPOINT, f"{folder} is no run folder: it has no config.yaml{hint}")
    return path


def find_newest_run(folder: Path, pattern: str = "*") -> Path | None:
    """The run in outputs/<name> that was started last, by the time of its command.txt."""
    runs = [path for path in folder.glob(pattern) if is_run_dir(path) and (path / "command.txt").exists()]
    return max(runs, default=None, key=lambda path: ((path / "command.txt").stat().st_mtime_ns, path.name))


def is_unused(run: Path) -> bool:
    return not run.is_dir() or {path.name for path in run.iterdir()} <= {"train.log", ".lock"}


def require_unused(run: Path) -> None:
    """Raises UserError (exit 5) for a folder that holds anything (nothing is ever trained over) or cannot be made."""
    if len(run.name) > 255:
        raise UserError(Exit.OUTPUT, f"run_dir={run} cannot be made: the name is too long")
    if not is_unused(run):
        raise UserError(
            Exit.OUTPUT, f"run_dir={run} is not empty: choose a new folder, or go on in it with resume={run}"
        )
    parent = next(path for path in [run, *run.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(Exit.OUTPUT, f"run_dir={run} cannot be made: {parent} is no folder that can be written to")


def make_folder(out: Path) -> Path:
    """The folder that `out` names, made if it is not there. Raises UserError (exit 5) if it cannot be."""
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Exit.OUTPUT, f"out={out} cannot be made: {error.strerror}") from None
    return out


def make_timestamp() -> str:
    """Return the time and four random digits: a name for a new folder."""
    return f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"


def make_output_dir(out: str | None, run: Path, kind: str) -> Path:
    """Make the folder for what a command makes of a run: `out`, else a new one inside the run.

    A published model stays as it is; without `out` its folder is in outputs/.

    Raises:
        UserError: exit 5 if `out` is not empty or cannot be made.
    """
    home = run if (run / "checkpoints").is_dir() else Path("outputs")
    path = Path(out).expanduser() if out else home / kind / make_timestamp()
    if path.is_dir() and any(path.iterdir()):
        raise UserError(Exit.OUTPUT, f"out={path} is not empty: choose a new folder")
    return make_folder(path)


def require_writable(run: Path) -> None:
    """Raises UserError (exit 5) for a run folder that nothing can be written to; tried, because rights say little of a
    disk that is mounted read-only or at its limit.
    """
    for folder in (run, run / "checkpoints"):
        probe = folder / f".probe-{os.getpid()}"
        try:
            if folder.is_dir():
                probe.write_bytes(b"x")
                probe.unlink()
        except OSError as error:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
            raise UserError(Exit.OUTPUT, f"{folder} cannot be written to: {error.strerror}") from None


def read_run_config(run: Path) -> dict:
    """Return config.yaml of a run folder as plain data. Raises UserError (exit 4) if it is damaged."""
    try:
        config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(Exit.CHECKPOINT, f"{run / 'config.yaml'} is damaged: {error}") from None
    missing = {"data", "model", "diffusion", "sampler"} - set(config if isinstance(config, dict) else ())
    if missing:
        raise UserError(Exit.CHECKPOINT, f"{run / 'config.yaml'} is damaged: it has no {', '.join(sorted(missing))}")
    return config


def read_overrides(run: Path) -> list[str]:
    """The command-line overrides of the run's last start, from command.txt.

    Raises:
        UserError: exit 4 without it, or if it sets Hydra itself, which can call anything and is never written there.
    """
    try:
        lines = (run / "command.txt").read_text().splitlines()
        words = shlex.split(lines[-1])[3:]  # python -m diffusion_lit.train ...
        parsed = OverridesParser.create().parse_overrides(words)
    except (OSError, ValueError, IndexError, HydraException) as error:
        raise UserError(Exit.CHECKPOINT, f"{run / 'command.txt'} is damaged: {error}") from None
    for word in parsed:
        if any(re.match(r"hydra\b", place or "") for place in (word.key_or_group, word.package)):
            raise UserError(Exit.CHECKPOINT, f"{run / 'command.txt'}: {word.input_line}: no run sets that; remove it")
    return words


def record_start(run: Path, config: dict, overrides: list[str]) -> None:
    """Write down what was started."""
    run.mkdir(parents=True, exist_ok=True)
    write_text_atomically(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    write_text_atomically(run / "versions.txt", _versions())
    append_command(run, overrides)


def append_command(run: Path, overrides: list[str], verb: str = "train") -> None:
    """Each start of a run adds a line to command.txt."""
    with open(run / "command.txt", "a") as file:
        file.write(shlex.join(["python", "-m", f"diffusion_lit.{verb}", *overrides]) + "\n")


def write_result(run: Path, result: dict) -> None:
    write_text_atomically(run / "result.json", json.dumps(result, indent=2) + "\n")


def read_result(run: Path) -> dict:
    """result.json, or nothing for a run that has not ended."""
    try:
        return json.loads((run / "result.json").read_text())
    except (OSError, ValueError):
        return {}


def display_path(path: Path) -> Path:
    """A path as a person here would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def fill_atomically(folder: Path) -> Iterator[Path]:
    """A folder beside an empty one, to fill; it takes its place when it is whole, and is gone if it never is."""
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


def _versions() -> str:
    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return "\n".join(lines) + "\n"


class RunLock:
    """Holds a run folder for one process. The lock falls with the process, however it ends."""

    def __init__(self, run: Path):
        self.path = run / ".lock"
        self.file = open(self.path, "a+")  # noqa: SIM115 held open as long as the lock
        try:
            lock(self.file.fileno(), wait=False)
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise UserError(Exit.OUTPUT, f"{run} is in use by {holder}; wait for it, or stop it first") from None
        except OSError:  # no locks here: nothing keeps two processes apart
            pass
        self.file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M")
        self.file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self.file.flush()

    def release(self) -> None:
        self.file.truncate(0)
        self.file.close()
