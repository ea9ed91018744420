"""Weights that exist: where they are, and reading them as plain data. Nothing in a file is ever executed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import is_run_dir
from diffusion_lit.system.errors import Exit, UserError

WEIGHT_SUFFIXES = (".ckpt", ".safetensors", ".pth", ".pt", ".bin")
DIFFUSERS_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)  # of diffusers, the first counts
CONFIG_FILES = ("config.json", "scheduler_config.json", "scheduler/scheduler_config.json")
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}  # theirs to ours
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # that diffusers names as we do
HUB_ID = r"[\w.-]+/[\w.-]+"
WRAPPERS = (  # what a file of weights and more calls them; an average before the raw ones
    "ema_model_state", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model_state", "model",
)  # fmt: skip


def find_weights_file(path: str, key: str, warn=print) -> Path:
    """The file of weights that `key=path` means: of a run its newest whole checkpoint, of a diffusers folder or an id
    of the hub (then downloaded, or from the cache) its UNet2DModel.

    Raises:
        UserError: exit 4 if there is none.
    """
    here = _here(path, key, weights=True)
    if here.is_file():
        if here.suffix not in WEIGHT_SUFFIXES:
            raise UserError(Exit.CHECKPOINT, f"{key}={path}: must end in {', '.join(WEIGHT_SUFFIXES)}")
        return here
    if is_run_dir(here):
        return checkpoints.select_checkpoint(here, warn=warn)
    folder = _unet_folder(here, f"{key}={path}")
    file = next((folder / name for name in DIFFUSERS_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            Exit.CHECKPOINT, f"{key}={path}: no weights in it, such as {folder.name}/{DIFFUSERS_WEIGHTS[0]}"
        )
    return file


def read_unet_config(path: str, key: str) -> dict:
    """config.json of a UNet2DModel: of a folder, of a pipeline's folder or of an id of the hub.

    Raises:
        UserError: exit 4 if there is none or it is damaged; exit 2 if it is of another class.
    """
    folder = _unet_folder(_here(path, key, weights=False), f"{key}={path}")
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        raise UserError(Exit.CONFIG, f"{key}={path}: is a {kind or 'model of an unknown class'}, not a UNet2DModel")
    return config


def _here(path: str, key: str, weights: bool) -> Path:
    here = Path(path).expanduser()
    if here.exists():
        return here
    if not is_hub_id(path):
        raise UserError(Exit.CHECKPOINT, f"{key}={path}: no such file or folder")
    wanted = [
        f"{folder}{name}"
        for folder in ("", "unet/")
        for name in (*CONFIG_FILES, *(DIFFUSERS_WEIGHTS if weights else ()))
    ]
    return download_from_hub(path, key, wanted)


def is_hub_id(path: str) -> bool:
    return (
        path[:1] not in ("", ".", "/", "~") and bool(re.fullmatch(HUB_ID, path)) and not path.endswith(WEIGHT_SUFFIXES)
    )


def download_from_hub(path: str, key: str, wanted: Sequence[str]) -> Path:
    """The folder of a model of the hub, with no more in it than is `wanted` of it and there. Of weights in two formats
    the first. Asked once, before anything is tried.

    Raises:
        UserError: exit 4 if there is no such model or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    from diffusion_lit.data.sources.tables import short

    elsewhere = f"download it elsewhere and give {key}=<folder>"
    try:
        try:
            there = {file.rfilename for file in HfApi().model_info(path, timeout=10).siblings}
        except OfflineModeIsEnabled:
            there = set()  # what was downloaded before may do
        if any(name.endswith(".safetensors") and name in there for name in wanted):
            wanted = [name for name in wanted if not name.endswith(".bin")]
        return Path(snapshot_download(path, allow_patterns=list(wanted)))
    except RepositoryNotFoundError:
        why = "no such model on the hub (for a private one log in with `hf auth login`)"
    except LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set and it was never downloaded"
    except Exception as error:  # requests, the hub and the disk raise each their own
        why = f"the Hugging Face hub cannot be reached ({short(error)}); HF_HUB_OFFLINE=1 uses what was downloaded"
    raise UserError(Exit.CHECKPOINT, f"{key}={path}: no such file or folder, and {why}; {elsewhere}")


def _unet_folder(here: Path, said: str) -> Path:
    """The folder with config.json: the folder itself, or unet/ of a pipeline."""
    for folder in (here / "unet", here):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(Exit.CHECKPOINT, f"{said}: neither a run folder nor one of diffusers, it has no config.json")


def read_json(file: Path) -> dict:
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(Exit.CHECKPOINT, f"{file} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise UserError(Exit.CHECKPOINT, f"{file} is damaged: it holds no keys")
    return config


# ------------------------------------------------------------------------------------------ reading


def read_weights(file: Path) -> tuple[dict, dict]:
    """Name to tensor, without what only wraps them; and what they were made with, as far as it is known: dotted keys
    of a configuration of ours.

    Raises:
        UserError: exit 4 for a file that is damaged, needs code to be read or holds no tensors by name.
    """
    held = _safetensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    tensors = _tensors(held)
    if not tensors:
        raise UserError(Exit.CHECKPOINT, f"{file} holds no weights by name: save a state_dict()")
    averaged = {name: value for name, value in tensors.items() if name.startswith("ema.")}  # of a run
    return averaged or tensors, _made_by_us(held) or _made_by_diffusers(file)


def _safetensors(file: Path) -> dict:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # SafetensorError, or of the disk
        raise UserError(Exit.CHECKPOINT, f"{file} is damaged: {error}") from None


def _tensors(held: object) -> dict:
    import torch

    while isinstance(held, Mapping):
        inner = next((held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if inner is None:
            return {name: value for name, value in held.items() if isinstance(name, str) and torch.is_tensor(value)}
        held = inner
    return {}


def _unpickled(file: Path) -> object:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = (
            f"needs {needed[1]} to be read, and nothing but tensors and plain values is; "
            "where it was made, save the state_dict() alone"
            if needed
            else "is damaged, or no file of torch.save"
        )
        raise UserError(Exit.CHECKPOINT, f"{file} {why}") from None


def _made_by_us(held: object) -> dict:
    """Of a checkpoint of a run: it carries its configuration as text."""
    text = held.get("config") if isinstance(held, Mapping) else None
    if not isinstance(text, str):
        return {}
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(OmegaConf.create(text))
        parts = {"model": config["model"] | config["model"].get("architecture", {}), "diffusion": config["diffusion"]}
    except Exception:  # the text of another project is anything
        return {}
    return {f"{group}.{key}": value for group, part in parts.items() for key, value in part.items()}


def _made_by_diffusers(file: Path) -> dict:
    """Of weights in a folder of diffusers: config.json beside them, the scheduler of their pipeline."""
    made = {}
    if (file.parent / "config.json").is_file():
        made |= {f"model.{key}": value for key, value in read_json(file.parent / "config.json").items()}
    for beside in (file.parent / CONFIG_FILES[1], file.parent.parent / CONFIG_FILES[2]):
        if file.name in DIFFUSERS_WEIGHTS and beside.is_file():
            scheduler = read_json(beside)
            made |= {
                f"diffusion.{key}": SCHEDULES.get(scheduler[key], scheduler[key])
                for key in ("prediction_type", "beta_schedule", "num_train_timesteps")
                if key in scheduler
            }
    return made
