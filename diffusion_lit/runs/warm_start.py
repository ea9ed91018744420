"""Starting from weights that exist: `init_from=`, and `model=pretrained` with the architecture that comes with them."""

import re
from collections.abc import Iterable
from pathlib import Path

from diffusion_lit.data.sources.tables import listed
from diffusion_lit.runs import pretrained
from diffusion_lit.runs.run_dir import read_run_config
from diffusion_lit.system.errors import Exit, UserError

PREFIXES = r"((module|_orig_mod|model|net|ema|unet)\.)+"  # what a network is called where it is a part of something
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention in older diffusers
NOT_COMPARED = {f"model.{key}" for key in (  # may differ, or follow from the data, or are seen by their shapes
    "dropout", "image_size", "sample_size", "channels", "in_channels", "out_channels", "num_classes",
    "num_class_embeds", "class_embed_type", "num_train_timesteps", "path", "take", "architecture",
)}  # fmt: skip
EMA_MODEL_KEYS = {  # what diffusers' EMAModel writes into the config.json of the network that it averages
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
}  # fmt: skip
COLOR_CHANNELS = {1: 1, 3: 3, 4: 3}  # channels of pictures to those of them that are colours


# ------------------------------------------------------------------------------------------ architecture


def resolve_architecture(config: dict) -> dict:
    """The resolved configuration; with `model=pretrained` also what the network at `model.path` is made of, so that a
    run needs that place no more. A run that goes on keeps what it has. No torch.

    Raises:
        UserError: exit 2 for a network that cannot be taken or does not go with the data; exit 4 if there is none.
    """
    model = config["model"]
    if "take" not in model:
        return config
    stored = read_run_config(Path(config["resume"]))["model"] if config.get("resume") else {}
    if stored.get("path") == model["path"] and "architecture" in stored:
        architecture = stored["architecture"]
    else:
        architecture = _architecture(model["path"], config["data"]["num_classes"])
        architecture |= {"num_train_timesteps": config.get("diffusion", {}).get("num_train_timesteps")}
        if model["take"] == "narrow":
            from diffusion_lit.networks.unet import UNet2D

            architecture |= UNet2D.small(architecture)
    return config | {"model": model | {"architecture": architecture}}


def _architecture(path: str, num_classes: int) -> dict:
    """Arguments of UNet2D, without those that follow from the data."""
    found = pretrained.read_unet_config(path, "model.path")
    kind = found.get("class_embed_type") or "table"
    entering, leaving = found.get("in_channels", 3), found.get("out_channels", 3)
    fault = None
    if entering != leaving:
        fault = f"has {entering} channels in and {leaving} out, and here they are the same"
    elif found.get("time_embedding_type") == "fourier":
        fault = "is told noise levels, and here it is told timesteps"
    elif num_classes and kind not in ("table", "timestep"):
        fault = f"has class_embed_type={kind}, which takes vectors, and here classes are numbers"
    if fault:
        raise UserError(Exit.CONFIG, f"model.path={path}: its network {fault}: it cannot be taken")
    ours = {"sample_size", "in_channels", "out_channels", "num_class_embeds", "class_embed_type"}
    kept = {key: value for key, value in found.items() if key not in ours | EMA_MODEL_KEYS and not key.startswith("_")}
    return {"class_embed_type": kind} | kept


# ------------------------------------------------------------------------------------------ weights


def weights_source(config: dict) -> tuple[str, str] | None:
    """Key and path of the weights that training starts from; None: new ones."""
    if config.get("init_from"):
        return "init_from", config["init_from"]
    return ("model.path", config["model"]["path"]) if config["model"].get("take") == "weights" else None


def check_initial_weights(config: dict) -> None:
    """Refuse weights that are nowhere, without torch. Of the hub they are then on this machine."""
    if weights_source(config):
        key, path = weights_source(config)
        pretrained.find_weights_file(path, key, warn=lambda message: None)


def load_initial_weights(net, config: dict, warn=print) -> str | None:
    """Put the weights that a new run starts from into its network.

    Args:
        net: with new weights, which stay where `accept=[weights]` lets some be missing.
        warn: is told of a damaged checkpoint that was passed over.

    Returns:
        Lines that say what was loaded; None for a run with new weights.

    Raises:
        UserError: exit 4 for weights that cannot be read or do not fit.
    """
    if not weights_source(config):
        return None
    key, path = weights_source(config)
    file = pretrained.find_weights_file(path, key, warn)
    found, made_with = pretrained.read_weights(file)
    own = {_core(name): name for name in net.state_dict()}
    state = {_core(name): tensor for name, tensor in found.items()}
    shapes = {name: tuple(net.state_dict()[full].shape) for name, full in own.items()}
    if key == "model.path":
        state = adapt_unet_weights(state, shapes)
    fitting = {name for name in own.keys() & state.keys() if tuple(state[name].shape) == shapes[name]}
    lines = describe_mismatch(shapes, {name: tuple(tensor.shape) for name, tensor in state.items()})
    if lines and ("weights" not in config["accept"] or not fitting):
        hint = "choose the model that it was made with" + ", or load the rest with accept=[weights]" * bool(fitting)
        told = [f"{key}={path}: weights of another network ({len(fitting)} of {len(own)} tensors fit):", *lines]
        raise UserError(Exit.CHECKPOINT, "\n  ".join(told) + f"\n{hint}")
    net.load_state_dict({own[name]: state[name] for name in fitting}, strict=False)
    told = [f"weights    {len(fitting)} of {len(own)} tensors from {file}"]
    if lines:
        told += ["accepted   what does not fit is left out or new:", *[f"           {line}" for line in lines]]
    return "\n".join(told + _notes(net, config, made_with))


def describe_mismatch(here: dict[str, tuple], there: dict[str, tuple]) -> list[str]:
    """What keeps weights from fitting, names to shapes: a line each for missing, unknown and of another shape."""
    other = sorted(name for name in here.keys() & there.keys() if here[name] != there[name])
    found = {
        "missing there": sorted(here.keys() - there.keys()),
        "unknown here": sorted(there.keys() - here.keys()),
        "other shapes": [f"{name} {_shape(here[name])} here, {_shape(there[name])} there" for name in other],
    }
    return [f"{what} ({len(names)}): {listed(names, 5)}" for what, names in found.items() if names]


def adapt_unet_weights(state: dict, shapes: dict[str, tuple]) -> dict:
    """Weights of a UNet2DModel for other channels and classes, as far as there is an obvious way.

    Colours: into grey the input weights of R, G and B are summed, so that a grey picture is seen as it was, and the
    output is their mean; from grey the other way round. A new alpha channel is not seen at first and predicted 0; one
    that is gone is left out. Classes, in their order: where there were none each begins as the zero vector, so that
    the network is what it was; where there is no null label that begins as their mean; where there are none here they
    are left out.

    Args:
        state: of the file, diffusers' names.
        shapes: of the network, by the same names.
    """
    import torch

    state = dict(state)
    for name, axis in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        if name in state and state[name].ndim == len(shapes[name]):
            here, there = shapes[name][axis], state[name].shape[axis]
            if here != there and {here, there} <= COLOR_CHANNELS.keys():
                share = 1 / (COLOR_CHANNELS[here] if axis else COLOR_CHANNELS[there])
                state[name] = _mixed(state[name], here, there, share, axis)
    if not any(name.startswith("class_embedding.") for name in shapes):
        return {name: tensor for name, tensor in state.items() if not name.startswith("class_embedding.")}
    table, shape = "class_embedding.weight", shapes.get("class_embedding.weight")
    if shape and not any(name.startswith("class_embedding.") for name in state):
        state[table] = torch.zeros(shape)
    elif shape and table in state and len(state[table]) == shape[0] - 1:
        state[table] = torch.cat([state[table], state[table].mean(0, keepdim=True)])
    return state


def _mixed(weight, here: int, there: int, share: float, axis: int):
    """Another number of channels along an axis: colours as they are or each a share of all, alpha as it is or 0."""
    import torch

    colours, before = COLOR_CHANNELS[here], COLOR_CHANNELS[there]
    matrix = torch.zeros(here, there)
    matrix[:colours, :before] = torch.eye(colours) if colours == before else share
    matrix[colours:, before:] = 1
    return torch.tensordot(matrix, weight.float(), dims=([1], [axis])).movedim(0, axis)


def _notes(net, config: dict, made_with: dict) -> list[str]:
    """What fits, and yet made another network or another task of the same weights."""
    here = {f"model.{key}": value for key, value in config["model"].items()}
    here |= {f"model.{key}": value for key, value in getattr(getattr(net, "unet", None), "config", {}).items()}
    here |= {f"diffusion.{key}": value for key, value in config["diffusion"].items()}
    common = {key for key in (here.keys() & made_with.keys()) - NOT_COMPARED if "._" not in key}
    other = sorted(key for key in common if _plain(here[key]) != _plain(made_with[key]))
    settings = [f"{key}={made_with[key]} (here {here[key]})" for key in other]
    return [f"warning    they were made with {listed(settings, 5)}"] if other else []


def _core(name: str) -> str:
    name = re.sub(f"^{PREFIXES}", "", name)
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}.", name)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
