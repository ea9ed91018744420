"""The model card: README.md of a published folder."""

import json

ROWS = {
    "fd": "Fréchet distance", "kid": "kernel distance", "precision": "precision", "recall": "recall",
    "class_accuracy": "class accuracy", "copied_pixels": "copies of training images, by pixels",
    "copied_features": "copies of training images, by features",
}  # fmt: skip


def card(config: dict, measured: dict, license: str | None, name: str, by_diffusers: bool) -> str:
    """Markdown, with the keys in front that the Hugging Face hub reads.

    Args:
        config: config.yaml of the folder.
        measured: a result of `evaluate` for these weights and settings; empty: none.
        license: of the weights; None: the card says that it is not known.
        name: of the folder, or of the model on the hub.
        by_diffusers: whether diffusers alone can load it.
    """
    data, network, sampler, exported = config["data"], config["model"], config["sampler"], config["exported"]
    size = data["image_size"]
    kind = "class-conditional " if data["class_names"] else ""
    channels = {1: "grey", 3: "RGB", 4: "RGBA"}.get(data["channels"], f"{data['channels']}-channel")
    head = {"library_name": "diffusers", "tags": ["diffusion", "diffusion_lit", "unconditional-image-generation"]}
    if data["class_names"]:
        head["tags"][-1] = "class-conditional-image-generation"
    head |= {"license": license} if license else {}
    lines = ["---", *[f"{key}: {json.dumps(value)}" for key, value in head.items()], "---", "", f"# {name}", ""]
    steps = "" if exported["step"] is None else f", {exported['step']:,} steps of {config['global_batch_size']}"
    lines += [f"A {kind}diffusion model of {size}x{size} {channels} images{steps}.", "", "![Samples](grid.png)", ""]
    lines += ["## Use", "", *_use(config, name, by_diffusers), "", "## Recipe", "", "| | |", "|---|---|"]
    weights = f"average of length {exported['ema_length']}" if exported["ema_length"] else exported["weights"]
    recipe = {
        "pictures": f"fingerprint `{exported['data']}`",
        "classes": ", ".join(data["class_names"]) or "none",
        "null label": len(data["class_names"]) if data["class_names"] and config["label_dropout"] else "none",
        "network": _words(network),
        "diffusion": _words(config["diffusion"]),
        "weighting": _words(config["weighting"]),
        "optimizer": _words(config.get("optimizer") or {}),
        "weights": f"{weights}, {exported['checkpoint']}",
        "sampler": _words({key: sampler[key] for key in ("name", "steps", "clip_x0") if key in sampler}),
        "guidance scale": config["guidance_scale"] if data["class_names"] else "none",
        "versions": ", ".join(f"{key} {value}" for key, value in exported["versions"].items()),
        "license": license or "not stated",
    }
    lines += [f"| {key} | {value} |" for key, value in recipe.items()]
    return "\n".join([*lines, "", "## Measured", "", *_measured(measured), ""])


def _use(config: dict, name: str, by_diffusers: bool) -> list[str]:
    """How to make images of it, by diffusion_lit and, as far as that is so simple, by diffusers alone."""
    names = config["data"]["class_names"]
    asked = f"classes=[{names[0]!r}], " if names else ""
    lines = [
        "```python",
        "from diffusion_lit.runs.pipeline import Pipeline",
        "",
        f'pipeline = Pipeline.from_pretrained("{name}")',
        f"images = pipeline({asked}num_images=8, seed=0)  # PIL; also np and pt",
        "```",
        "",
        f"or `python -m diffusion_lit.sample run={name}`: the same pixels.",
    ]
    if by_diffusers:
        network = f'`UNet2DModel.from_pretrained("{name}", subfolder="unet")`, a network that takes `class_labels`'
        loaded = network if names else f'`DDPMPipeline.from_pretrained("{name}")`'
        lines += ["", f"By diffusers alone: {loaded}."]
    return lines


def _measured(result: dict) -> list[str]:
    if not result:
        return ["Nothing, with these weights and this sampler."]
    settings = result["settings"]
    features, reference = settings["features"], settings["reference"]
    lines = [
        f"{result['num_images']:,} images, seed {settings['seed']}, {result['nfe']:g} evaluations of the network each; "
        f"features `{features['name']}` ({features['digest']}), against {reference['images']:,} images of the "
        f"{reference['split']} split. 95 % intervals.",
        "",
        "| | | interval |",
        "|---|---|---|",
    ]
    for key, told in ROWS.items():
        if key in result:
            low, high = result.get(f"{key}_low"), result.get(f"{key}_high")
            interval = "" if low is None else f"{low:.4g} to {high:.4g}"
            lines.append(f"| {told} | {result[key]:.4g} | {interval} |")
    return lines


def _words(group: dict) -> str:
    """The keys of a group in a line; its class by its own name."""
    told = [str(group["_target_"]).rpartition(".")[2]] if "_target_" in group else []
    return ", ".join(told + [f"{key} {value}" for key, value in group.items() if key != "_target_" and value != []])
