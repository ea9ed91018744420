"""Check the values of a stored configuration, which a stranger may have written, by the types in `conf/`."""

from collections.abc import Iterator

from diffusion_lit.config.groups import CONF, list_option_keys, list_options
from diffusion_lit.config.schema import read_keys
from diffusion_lit.config.value_types import describe_type, format_value, matches
from diffusion_lit.system.console import CONTROLS
from diffusion_lit.system.errors import raise_faults

# what a trained model is loaded with; other keys are those of the class, or of training
REQUIRED = {
    "": ("name", "label_dropout", "guidance_scale", "guidance_interval", "guidance_rescale"),
    "data": ("image_size", "channels", "num_classes", "class_names"),
    "model": ("_target_",),
    "diffusion": ("prediction_type", "loss"),
    "weighting": ("_target_",),
    "sampler": ("_target_", "name", "steps", "batch_size", "clip_x0"),
    "distill": ("name", "teacher", "stages"),
}
UNET2D = "diffusion_lit.networks.unet.UNet2D"
DATA_KEYS = ("resample", "fit", "background", "alpha", "render")  # how images are decoded and drawn
SHARED = ("image_size", "channels", "num_classes")  # of `data` and `model`


def check_values(config: dict, where: object) -> None:
    """Raise UserError (exit 2) if a stored configuration lacks a key or has a value of another type or range."""
    groups = [group for group in REQUIRED if group != "distill" or config.get("distill")]  # it is empty in most runs
    faults = [fault for group in groups for fault in _find_group_faults(config, group)] or list(_find_misfits(config))
    raise_faults(f"{where}: its configuration cannot be used:", faults, most=5)


def check_architecture(architecture: dict, where: object) -> None:
    """Raise UserError (exit 2) if arguments of a UNet2DModel, from a config.json, have another type or range."""
    faults = list(_find_group_faults({"model": {"_target_": UNET2D} | architecture}, "model"))
    raise_faults(f"{where}: its config.json cannot be used:", faults, most=5)


def _find_group_faults(config: dict, group: str) -> Iterator[str]:
    settings, prefix = (config.get(group), f"{group}.") if group else (config, "")
    if not isinstance(settings, dict):
        yield f"{group}: must be a mapping of keys to values"
        return
    yield from (f"{prefix}{key}: missing" for key in REQUIRED[group] if key not in settings)
    types = _read_types(group, settings.get("_target_"))
    for key in types:
        if types[key] and key in settings and not matches(types[key], settings[key]):
            yield f"{prefix}{key}={format_value(settings[key])[:80]}: must be {describe_type(types[key])}"
    if group == "model" and isinstance(settings.get("architecture"), dict):  # of a pretrained UNet2DModel
        yield from _find_group_faults({"model": {"_target_": UNET2D} | settings["architecture"]}, group)


def _read_types(group: str, target: object) -> dict[str, str]:
    """Return the types of the keys of a group, of those options that have the class `target`."""
    if not group:
        return {key: value.type for key, value in read_keys(CONF / "train.yaml").items() if key in REQUIRED[""]}
    if group == "data":
        keys = list_option_keys("data", "image_folder")
        types = {key: keys[key].type for key in (*SHARED, *DATA_KEYS)}
        return types | {"num_classes": "int >= 0", "class_names": "list[str]"}
    types: dict[str, str] = dict.fromkeys(SHARED if group == "model" else (), "")  # those of `data` are checked
    for name in list_options(group):
        keys = list_option_keys(group, name)
        if target is None or "_target_" not in keys or keys["_target_"].default == target:
            types = {key: value.type for key, value in keys.items()} | types
    return types


def _find_misfits(config: dict) -> Iterator[str]:
    data, model, names = config["data"], config["model"], config["data"]["class_names"]
    if len(names) != data["num_classes"] or len(set(names)) != len(names):
        yield f"data.class_names: has {len(set(names))} different names, and data.num_classes={data['num_classes']}"
    if any(map(CONTROLS.search, names)):
        yield "data.class_names: has line breaks or control characters"
    for key in SHARED:
        if model.get(key, data[key]) != data[key]:
            yield f"model.{key}={format_value(model[key])}: must equal data.{key}={format_value(data[key])}"
