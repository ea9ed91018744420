"""The model card: README.md of a published folder."""

import json

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffusion_lit.imaging.sizes import size_text

METRIC_NAMES = {
    "fd": "Fréchet distance", "kid": "kernel distance", "precision": "precision", "recall": "recall",
    "class_accuracy": "class accuracy", "copied_pixels": "copies of training images, by pixels",
    "copied_features": "copies of training images, by features",
}  # fmt: skip
CHANNEL_NAMES = {1: "grayscale", 3: "RGB", 4: "RGBA"}


def render_model_card(config: dict, measured: dict, license: str | None, name: str, by_diffusers: bool) -> str:
    """Return the card as Markdown, with the metadata in front that the Hugging Face hub reads.

    Args:
        config: config.yaml of the folder.
        measured: a result of `evaluate` for these weights and settings; empty if there is none.
        license: of the weights; None if it is not known.
        name: of the folder, or of the model on the hub.
        by_diffusers: whether diffusers alone can load it.
    """
    data, exported, sampler = config["data"], config["exported"], config["sampler"]
    names = data["class_names"]
    task = "class-conditional-image-generation" if names else "unconditional-image-generation"
    head = {"library_name": "diffusers", "tags": ["diffusion", "diffusion_lit", task]}
    weights = f"average of length {exported['ema_length']}" if exported["ema_length"] else exported["weights"]
    recipe = {
        "images": f"fingerprint `{exported['data']}`",
        "classes": ", ".join(names) or "none",
        "null label": len(names) if names and config["label_dropout"] else "none",
        "network": _describe(config["model"]),
        "diffusion": _describe(config["diffusion"]),
        "weighting": _describe(config["weighting"]),
        "optimizer": _describe(config.get("optimizer") or {}),
        "weights": f"{weights}, {exported['checkpoint']}",
        "sampler": _describe({key: sampler[key] for key in ("name", "steps", "clip_x0") if key in sampler}),
        "guidance scale": config["guidance_scale"] if names else "none",
        "versions": ", ".join(f"{key} {value}" for key, value in exported["versions"].items()),
        "license": license or "not stated",
    }
    rows = [
        (METRIC_NAMES[key], measured[key], measured.get(f"{key}_low"), measured.get(f"{key}_high"))
        for key in METRIC_NAMES
        if key in measured
    ]
    environment = Environment(
        loader=PackageLoader("diffusion_lit", "runs"), trim_blocks=True, keep_trailing_newline=True,
        undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"json": json.dumps, "repr": repr}
    return environment.get_template("model_card.md").render(
        head=head | ({"license": license} if license else {}),
        size=size_text(data["image_size"]),
        channels=CHANNEL_NAMES.get(data["channels"], f"{data['channels']}-channel"),
        metrics=rows,
        settings=measured.get("settings"),
        **{"name": name, "names": names, "config": config, "data": data, "exported": exported},
        **{"recipe": recipe, "measured": measured, "by_diffusers": by_diffusers},
    )


def _describe(group: dict) -> str:
    """Return the keys of a group in one line, its class by its own name."""
    name = [str(group["_target_"]).rpartition(".")[2]] if "_target_" in group else []
    return ", ".join(name + [f"{key} {value}" for key, value in group.items() if key != "_target_" and value != []])
