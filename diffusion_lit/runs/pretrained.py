"""Find weights on disk or on the Hugging Face hub, and read them as plain data.

Nothing in a file is executed: safetensors, or `torch.load` with
`weights_only=True`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffusion_lit.config.plain_yaml import MAX_BYTES, parse_plain_yaml
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import is_run_dir
from diffusion_lit.system.errors import CheckpointError, ConfigError

WEIGHT_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".bin")
DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the first is preferred
CONFIG_FILES = ("config.json", "scheduler_config.json", "scheduler/scheduler_config.json")
BETA_SCHEDULES = {  # name in diffusers to name here
    "linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine",
}  # fmt: skip
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # those of diffusers
WRAPPERS = (  # keys under which other projects store a state dict; EMA weights are preferred
    "ema_model_state", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model_state", "model",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ finding


def find_weights_file(path: str, key: str, warn: Callable[[str], None] = print) -> Path:
    """Return the file of weights that `key=path` names.

    Args:
        path: a file; a run (its newest intact checkpoint); a diffusers model or
            pipeline; or a model on the hub, which is downloaded unless it is in the
            cache.
        key: for messages.
        warn: called with a message if damaged checkpoints are skipped.

    Raises:
        UserError: exit 4 if there is none.
    """
    local = _locate(path, key, (*CONFIG_FILES, *DIFFUSERS_WEIGHTS))
    if local.is_file():
        if local.suffix not in WEIGHT_SUFFIXES:
            raise CheckpointError(f"{key}={path}: must end in {', '.join(WEIGHT_SUFFIXES)}")
        return local
    if is_run_dir(local):
        return checkpoints.select_checkpoint(local, warn=warn)
    folder = _find_unet_folder(local, f"{key}={path}")
    for name in DIFFUSERS_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    example = f"{folder.name}/{DIFFUSERS_WEIGHTS[0]}"
    raise CheckpointError(f"{key}={path}: no weights in it, such as {example}")


def read_unet_config(path: str, key: str) -> dict:
    """Return config.json of the UNet2DModel that `key=path` names.

    Raises:
        UserError: exit 4 if it is missing or damaged; exit 2 if it is of another
            class.
    """
    config = read_json(_find_unet_folder(_locate(path, key, CONFIG_FILES), f"{key}={path}") / "config.json")
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise ConfigError(f"{key}={path}: is a {kind or 'model of an unknown class'}, not a UNet2DModel")
    return config


def _locate(path: str, key: str, files: Sequence[str]) -> Path:
    """Return a local path, after downloading `files` of a model on the hub."""
    local = Path(path).expanduser()
    if local.exists():
        return local
    if not is_hub_id(path):
        raise CheckpointError(f"{key}={path}: no such file or folder")
    return download_from_hub(path, key, [folder + name for folder in ("", "unet/") for name in files])


def _find_unet_folder(folder: Path, override: str) -> Path:
    for path in (folder / "unet", folder):
        if (path / "config.json").is_file():
            return path
    raise CheckpointError(f"{override}: neither a run nor a diffusers model, it has no config.json")


def is_hub_id(path: str) -> bool:
    """Return whether a path could be the id of a model on the hub, such as me/digits."""
    is_id = re.fullmatch(r"(?!outputs/)[\w.-]+/[\w.-]+", path)
    return bool(is_id) and path[0] not in "./~" and not path.endswith(WEIGHT_SUFFIXES)


def download_from_hub(path: str, key: str, files: Sequence[str]) -> Path:
    """Download those of `files` that a model on the hub has, and return their folder.

    If there are weights in two formats, only safetensors are downloaded.

    Raises:
        UserError: exit 4 if there is no such model or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    from diffusion_lit.data.sources.hf_tables import shorten_error

    try:
        try:
            available = {file.rfilename for file in HfApi().model_info(path, timeout=10).siblings}
        except OfflineModeIsEnabled:
            available = set()  # the files may be in the cache
        if any(name.endswith(".safetensors") and name in available for name in files):
            files = [name for name in files if not name.endswith(".bin")]
        return Path(snapshot_download(path, allow_patterns=list(files)))
    except RepositoryNotFoundError:
        reason = "no such model on the hub (for a private one log in with `hf auth login`)"
    except LocalEntryNotFoundError:
        reason = "HF_HUB_OFFLINE is set and it was never downloaded"
    except Exception as error:  # requests, the hub and the disk have no common class of errors
        reason = f"the Hugging Face hub cannot be reached ({shorten_error(error)}). "
        reason += "HF_HUB_OFFLINE=1 uses what was downloaded"
    hint = f"Download it on another machine and set {key}=<folder>"
    raise CheckpointError(f"{key}={path}: no such file or folder, and {reason}. {hint}")


def read_json(file: Path) -> dict:
    """Return the object of a JSON file.

    Raises:
        UserError: exit 4 if it is missing or damaged.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.loads(stream.read(MAX_BYTES))
        if not isinstance(content, dict):
            raise ValueError("it must be a JSON object")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    return content


# ------------------------------------------------------------------------------------------ reading


def read_weights(file: Path) -> tuple[dict, dict]:
    """Return a state dict, and the settings of its training as far as they are known.

    Settings have dotted keys such as `diffusion.prediction_type`.

    Raises:
        UserError: exit 4 for a file that is damaged, needs code to be read, or has
            no named tensors.
    """
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _unpickle(file)
    tensors = _unwrap(content)
    if not tensors:
        raise CheckpointError(f"{file} holds no weights by name: save a state_dict()")
    ema = {name: value for name, value in tensors.items() if name.startswith("ema.")}  # of a run
    return ema or tensors, _settings_of_run(content) or _settings_of_diffusers(file)


def _read_safetensors(file: Path) -> dict:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # SafetensorError or OSError
        raise CheckpointError(f"{file} is damaged: {error}") from None


def _unpickle(file: Path) -> object:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "is damaged, or was not written by torch.save"
        if needed:
            reason = f"needs {needed[1]}, which is not loaded. Where it was made, save the state_dict() alone"
        raise CheckpointError(f"{file} {reason}") from None


def _unwrap(content: object) -> dict:
    import torch

    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return {name: x for name, x in content.items() if isinstance(name, str) and torch.is_tensor(x)}
        content = inner
    return {}


def _settings_of_run(content: object) -> dict:
    """Return the settings in a checkpoint of a run, which holds config.yaml as text."""
    try:
        config = parse_plain_yaml(str(content["config"]))
        model = config["model"] | config["model"].get("architecture", {})
        groups = {"model": model, "diffusion": config["diffusion"]}
    except Exception:  # the file of another project
        return {}
    return {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}


def _settings_of_diffusers(file: Path) -> dict:
    """Return the settings in the config.json and scheduler_config.json of a diffusers folder."""
    settings = {}
    if (file.parent / "config.json").is_file():
        settings |= {f"model.{key}": value for key, value in read_json(file.parent / "config.json").items()}
    for path in (file.parent / CONFIG_FILES[1], file.parent.parent / CONFIG_FILES[2]):
        if file.name in DIFFUSERS_WEIGHTS and path.is_file():
            scheduler = read_json(path)
            for key in {"prediction_type", "beta_schedule", "num_train_timesteps"} & scheduler.keys():
                settings[f"diffusion.{key}"] = BETA_SCHEDULES.get(scheduler[key], scheduler[key])
    return settings
