"""Layout of a run folder, and the output folders of the commands.

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
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import YAMLError

from diffusion_lit.config.overrides import split_commands
from diffusion_lit.config.paths import relocate
from diffusion_lit.config.plain_yaml import MAX_BYTES, parse_plain_yaml
from diffusion_lit.config.value_types import MAX_NAME_BYTES
from diffusion_lit.system.errors import CheckpointError, ConfigError, OutputError
from diffusion_lit.system.files import is_unlocked, write_text_atomically

# what a folder may hold before its config.yaml, which makes it a run
BEFORE_TRAINING = (".lock", "train.log", "versions.txt", "command.txt", "cache")
PACKAGES = ("diffusion_lit", "torch", "lightning", "torchvision", "diffusers", "hydra-core", "omegaconf", "numpy")


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
        raise CheckpointError(f"{folder}: no such folder")
    if not is_run_dir(path) and not is_diffusers_folder(path):
        newest = find_newest_run(path) or find_newest_run(path, "*/*")
        hint = f". The newest run in it is {newest}" if newest else ""
        raise CheckpointError(f"{folder} is not a run folder: it has no config.yaml{hint}")
    return path


def find_newest_run(
    folder: Path, pattern: str = "*", contents: str = "*", accepts: Callable[[Path], bool] = lambda run: True
) -> Path | None:
    """Return the run below a folder that was started last, by the time of its command.txt.

    Args:
        folder: where to look.
        pattern: of the run folders in it.
        contents: pattern of a file that the run must have.
        accepts: whether a run may be returned.
    """
    started = [path for path in folder.glob(pattern) if is_run_dir(path) and (path / "command.txt").exists()]
    runs = [path for path in started if any(path.glob(contents)) and accepts(path)]
    return max(runs, default=None, key=lambda path: ((path / "command.txt").stat().st_mtime_ns, path.name))


def display_path(path: Path) -> Path:
    """Return a path relative to the working directory if it lies in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def name_run(run: Path) -> str:
    """Return the path of a run in the working directory, of another run its name, of a job that of its sweep too."""
    path = display_path(run)
    if not path.is_absolute():
        return str(path)
    return "/".join(path.parts[-2:]) if path.name.isdigit() else path.name


# ------------------------------------------------------------------------------------------ new folders


def is_unused(run: Path) -> bool:
    """Return whether a run can start in this folder: it is missing, or a process was killed in it before training."""
    return not run.is_dir() or holds_only(run, BEFORE_TRAINING)


def holds_only(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder has no entries but those of these names, and temporary files."""
    return all(path.name in names or re.fullmatch(r"\..*\.tmp", path.name) for path in folder.iterdir())


def remove_leftovers(parent: Path, names: Collection[str]) -> None:
    """Remove the folders in `parent` in which a process was killed before it wrote anything but `names`.

    Its lock is free and still says which process of this host held it.
    """
    holder = re.compile(rf"process \d+ on {re.escape(socket.gethostname())} since .*\n")
    for folder in parent.glob("*/"):
        lock_file = folder / ".lock"
        with suppress(OSError):
            is_ours = holder.fullmatch(lock_file.read_text(encoding="utf-8")) and not folder.is_symlink()
            if is_ours and holds_only(folder, names) and is_unlocked(lock_file):
                shutil.rmtree(folder)


def require_unused(run: Path) -> None:
    """Raise UserError (exit 5) if a run folder is in use already or cannot be made."""
    require_possible(run, "run_dir")
    if not is_unused(run):
        hint = f"Choose a new folder, or continue its run with resume={run}"
        raise OutputError(f"run_dir={run} is not empty. {hint}")


def require_possible(folder: Path, key: str) -> None:
    """Raise UserError if the folder of a key cannot be made: exit 2 for a name too long, else exit 5.

    A folder is made beside it, and removed, to find out: /proc has write
    permission too.
    """
    long = [name for name in folder.parts if len(os.fsencode(name)) > MAX_NAME_BYTES]
    if long:
        where = f"{long[0][:40]}... has {len(os.fsencode(long[0]))} bytes"
        raise ConfigError(f"{key}: {where}, a name has at most {MAX_NAME_BYTES}. Choose a shorter one")
    parent = next(path for path in [folder, *folder.absolute().parents] if os.path.lexists(path))
    try:
        probe = parent / f".probe-{secrets.token_hex(4)}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        fault = f"{parent} is not a {'writable ' * parent.is_dir()}folder ({error.strerror})"
        raise OutputError(f"{key}={folder} cannot be made: {fault}") from None


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
            raise OutputError(f"{folder} cannot be written to: {error.strerror}") from None
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ files of a run


def read_yaml(path: Path) -> dict:
    """Return a YAML file as plain data. Raises UserError (exit 4) if it is damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse_plain_yaml(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, YAMLError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def read_run_config(run: Path) -> dict:
    """Return config.yaml of a run, with the paths of its data where they are now.

    Raises:
        UserError: exit 4 if the file is damaged.
    """
    config = read_yaml(run / "config.yaml")
    missing = [group for group in ("data", "diffusion", "model", "sampler") if not isinstance(config.get(group), dict)]
    if missing:
        raise CheckpointError(f"{run / 'config.yaml'} is damaged: it has no {', '.join(missing)} with keys")
    return config | {"data": relocate(config["data"], str(config.get("run_dir", "")), run)}


def read_overrides(run: Path, start: int = -1) -> list[str]:
    """Return the command-line overrides of a start of a run, the last one by default.

    They are those of command.txt. A published model has one command, in its
    config.yaml.

    Raises:
        UserError: exit 4 if the command is missing or damaged, or if it overrides Hydra's own
            keys. Those can call anything, and no run writes them there.
    """
    try:
        path = run / "command.txt"
        command = None if path.exists() or not is_run_dir(run) else read_published_command(run)
        text = command or path.read_text(encoding="utf-8", errors="surrogateescape")
        overrides = shlex.split(split_commands(text)[start])[3:]  # python -m diffusion_lit.train ...
        parsed = OverridesParser.create().parse_overrides(overrides)
    except (OSError, ValueError, IndexError, HydraException) as error:
        raise CheckpointError(f"{run / 'command.txt'} is damaged: {error}") from None
    for override in parsed:
        if any(re.match(r"hydra\b", key or "") for key in (override.key_or_group, override.package)):
            fault = f"{override.input_line}: a run cannot override Hydra's own keys. Remove it"
            raise CheckpointError(f"{run / 'command.txt'}: {fault}")
    return overrides


def read_published_command(run: Path) -> str | None:
    """Return the command that trained a published model, without folders; None for a run."""
    exported = read_yaml(run / "config.yaml").get("exported")
    command = exported.get("command") if isinstance(exported, dict) else None
    return command if isinstance(command, str) else None


def list_evaluations(run: Path) -> list[Path]:
    """Return result.json of each finished evaluation of a run, the oldest first."""
    files = [file for file in run.glob("evaluations/**/result.json") if ".partial" not in file.parts]
    return sorted(files, key=lambda file: file.stat().st_mtime_ns)


def record_start(run: Path, config: dict, overrides: list[str]) -> None:
    """Write versions.txt, append to command.txt, and write config.yaml last, which makes the folder a run."""
    import torch  # only here: commands that read a run start without it

    if not is_run_dir(run):
        (run / "command.txt").unlink(missing_ok=True)  # of a process that was killed here
    config = config | {"run_dir": str(run.absolute())}  # paths of the data are found from it after a move
    versions = [f"{package} {version(package)}" for package in PACKAGES] + [f"CPU threads {torch.get_num_threads()}"]
    versions = [f"python {platform.python_version()}", f"platform {platform.platform()}", *versions, ""]
    write_text_atomically(run / "versions.txt", "\n".join(versions))
    append_command(run, overrides)
    write_text_atomically(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


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
        result = json.loads((run / "result.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return result if isinstance(result, dict) else {}
