"""Start training from existing weights: `init_from=`, a teacher, or `model=pretrained` with its architecture."""

import re
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.config.compose import resolve_data
from diffusion_lit.runs import checkpoints, pretrained
from diffusion_lit.runs.resume import flatten_config
from diffusion_lit.runs.run_dir import read_run_config
from diffusion_lit.runs.stored_values import check_architecture
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import CheckpointError, ConfigError

PREFIXES = r"((module|_orig_mod|model|net|ema|unet)\.)+"  # of a network that is part of another module
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention in older diffusers
NOT_COMPARED = {f"model.{key}" for key in (  # may differ, or follow from the data or from shapes
    "dropout", "image_size", "sample_size", "channels", "in_channels", "out_channels", "num_classes",
    "num_class_embeds", "class_embed_type", "num_train_timesteps", "path", "take", "architecture",
)}  # fmt: skip
NOT_ARCHITECTURE = {  # follow from data and process, or are written into config.json by diffusers' EMAModel
    "sample_size", "in_channels", "out_channels", "num_class_embeds", "class_embed_type", "num_train_timesteps",
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
}  # fmt: skip
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # that `strategy.precision=auto` of a resumed run may keep
NUM_COLORS = {1: 1, 3: 3, 4: 3}  # channels of an image to the number of those that are colors


# ------------------------------------------------------------------------------------------ architecture


def resolve_training_config(config: DictConfig) -> tuple[dict, object]:
    """Return the resolved configuration and the data source.

    The configuration includes what follows from the data and from a pretrained
    network, and of a resumed run the range of values, the precision and the memory format that
    it found.
    """
    stored = read_run_config(Path(config.resume)) if config.get("resume") else {"data": {}}
    resolved, source = resolve_data(config, stored["data"].get("class_names"))
    if config.get("resume"):
        before, strategy = flatten_config(stored), resolved["strategy"]
        if resolved["data"].get("value_range") == "auto":
            resolved["data"]["value_range"] = stored["data"]["value_range"]
        if strategy["precision"] == "auto" and before.get("strategy.precision") in PRECISIONS:
            strategy["precision"] = before["strategy.precision"]
        if strategy["channels_last"] == "auto":
            strategy["channels_last"] = before.get("strategy.channels_last", "auto")
    return resolve_architecture(resolved), source


def resolve_architecture(config: dict) -> dict:
    """Return the configuration with the architecture of the network at `model.path`, for `model=pretrained`.

    The run no longer needs that path. Runs without torch.

    Raises:
        UserError: exit 2 for a network that does not fit the data; exit 4 if there
            is none.
    """
    model = config["model"]
    if "take" not in model:
        return config
    stored = read_run_config(Path(config["resume"]))["model"] if config.get("resume") else {}
    if stored.get("path") == model["path"] and "architecture" in stored:
        architecture = stored["architecture"]
    else:
        architecture = _read_architecture(model["path"], config["data"]["num_classes"])
        architecture |= {"num_train_timesteps": config.get("diffusion", {}).get("num_train_timesteps")}
        if model["take"] == "narrow":
            from diffusion_lit.networks.unet import UNet2D

            architecture |= UNet2D.debug_arguments(architecture)
    return config | {"model": model | {"architecture": architecture}}


def _read_architecture(path: str, num_classes: int) -> dict:
    """Return the arguments of UNet2D that do not follow from the data."""
    unet = pretrained.read_unet_config(path, "model.path")
    kind = unet.get("class_embed_type") or "table"
    inputs, outputs = unet.get("in_channels", 3), unet.get("out_channels", 3)
    fault = None
    if inputs != outputs:
        fault = f"has {inputs} input and {outputs} output channels, which must be equal"
    elif unet.get("time_embedding_type") == "fourier":
        fault = "is conditioned on noise levels (time_embedding_type=fourier), not on timesteps"
    elif num_classes and kind not in ("table", "timestep"):
        fault = f"has class_embed_type={kind}, which takes vectors, not class labels"
    if fault:
        raise ConfigError(f"model.path={path}: its network {fault}. Choose another one")
    kept = {key: value for key, value in unet.items() if key not in NOT_ARCHITECTURE and not key.startswith("_")}
    check_architecture({"class_embed_type": kind} | kept, f"model.path={path}")
    return {"class_embed_type": kind} | kept


# ------------------------------------------------------------------------------------------ weights


def find_weights_source(config: dict) -> tuple[str, str] | None:
    """Return key and path of the weights that training starts from; None for new weights."""
    if config.get("init_from"):
        return "init_from", config["init_from"]
    if config.get("distill"):
        return "distill.teacher", config["distill"]["teacher"]
    return ("model.path", config["model"]["path"]) if config["model"].get("take") == "weights" else None


def check_initial_weights(config: dict) -> None:
    """Raise UserError (exit 4) if the weights to start from do not exist, without torch.

    Weights on the hub are downloaded.
    """
    if source := find_weights_source(config):
        key, path = source
        pretrained.find_weights_file(path, key, warn=lambda message: None)


def load_initial_weights(net, config: dict, warn: Callable[[str], None] = print) -> str | None:
    """Load the weights that a new run starts from into its network.

    Args:
        net: its own weights stay where `accept=[weights]` allows that some are
            missing.
        config: of the run.
        warn: called with a message if damaged checkpoints are skipped.

    Returns:
        Log lines about what was loaded; None for a run with new weights.

    Raises:
        UserError: exit 4 for weights that cannot be read or do not fit.
    """
    if not (source := find_weights_source(config)):
        return None
    key, path = source
    from diffusion_lit.runs import weights

    file, (tensors, settings) = checkpoints.read_selected(
        lambda: pretrained.find_weights_file(path, key, warn), pretrained.read_weights
    )
    names = {_normalize(name): name for name in net.state_dict()}
    state = {_normalize(name): tensor for name, tensor in tensors.items()}
    shapes = {name: tuple(net.state_dict()[full].shape) for name, full in names.items()}
    weights.require_numbers(state, {name: net.state_dict()[full] for name, full in names.items()}, file)
    if key == "model.path":
        state = adapt_unet_weights(state, shapes)
    fitting = {name for name in names.keys() & state.keys() if tuple(state[name].shape) == shapes[name]}
    mismatch = weights.describe_mismatch(shapes, {name: tuple(tensor.shape) for name, tensor in state.items()})
    if mismatch and ("weights" not in config["accept"] or not fitting):
        hint = "choose the model that it was made with" + ", or load the rest with accept=[weights]" * bool(fitting)
        fault = f"{key}={path}: weights of another network ({len(fitting)} of {len(names)} tensors fit):"
        raise CheckpointError("\n  ".join([fault, *mismatch]) + f"\n{hint}")
    net.load_state_dict({names[name]: state[name] for name in fitting}, strict=False)
    lines = [f"weights    {len(fitting)} of {len(names)} tensors from {file}"]
    if mismatch:
        lines += ["accepted   tensors that do not fit are ignored or new:", *[f"           {x}" for x in mismatch]]
    return "\n".join(lines + _compare_settings(net, config, settings))


def adapt_unet_weights(state: dict, shapes: dict[str, tuple]) -> dict:
    """Return the weights of a UNet2DModel for other numbers of channels and classes.

    Colors: from RGB to gray the input weights of R, G and B are summed, so that a
        gray image
    gives the same output, and the output weights are averaged; from gray to RGB the
    other way round. A new alpha channel has zero weights; one that is gone is left
    out.

    Classes: without a class embedding in the file every class starts as the zero
        vector. A
    missing null label starts as the mean of the classes. Without classes in the run
    the embedding is left out.

    Args:
        state: tensors of the file by diffusers' names.
        shapes: shapes of the network by the same names.
    """
    import torch

    state = dict(state)
    for name, axis in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        if name in state and state[name].ndim == len(shapes[name]):
            here, there = shapes[name][axis], state[name].shape[axis]
            if here != there and {here, there} <= NUM_COLORS.keys():
                state[name] = _mix_channels(state[name], here, there, axis)
    if not any(name.startswith("class_embedding.") for name in shapes):
        return {name: tensor for name, tensor in state.items() if not name.startswith("class_embedding.")}
    table, shape = "class_embedding.weight", shapes.get("class_embedding.weight")
    if shape and not any(name.startswith("class_embedding.") for name in state):
        state[table] = torch.zeros(shape)
    elif shape and table in state and len(state[table]) == shape[0] - 1:
        state[table] = torch.cat([state[table], state[table].mean(0, keepdim=True)])
    return state


def _mix_channels(weight, here: int, there: int, axis: int):
    """Return a weight with `here` instead of `there` channels along an axis, 1 for inputs."""
    import torch

    colors, before = NUM_COLORS[here], NUM_COLORS[there]
    matrix = torch.zeros(here, there)
    share = 1 / (colors if axis else before)  # sum inputs, average outputs
    matrix[:colors, :before] = torch.eye(colors) if colors == before else share
    matrix[colors:, before:] = 1
    return torch.tensordot(matrix, weight.float(), dims=([1], [axis])).movedim(0, axis)


def _compare_settings(net, config: dict, settings: dict) -> list[str]:
    """Return a warning if the weights were trained with other settings, though all tensors fit."""
    here = {f"model.{key}": value for key, value in config["model"].items()}
    here |= {f"model.{key}": value for key, value in getattr(getattr(net, "unet", None), "config", {}).items()}
    here |= {f"diffusion.{key}": value for key, value in config["diffusion"].items()}
    common = {key for key in (here.keys() & settings.keys()) - NOT_COMPARED if "._" not in key}
    differing = sorted(key for key in common if _to_list(here[key]) != _to_list(settings[key]))
    values = [f"{key}={settings[key]} (here {here[key]})" for key in differing]
    return [f"warning    they were made with {join_names(values, 5)}"] if values else []


def _normalize(name: str) -> str:
    name = re.sub(f"^{PREFIXES}", "", name)
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}.", name)


def _to_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
