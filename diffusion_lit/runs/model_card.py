"""Model card: README.md of a published folder, with the metadata that the Hugging Face hub reads."""

import json
import re
import shlex
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffusion_lit.config.metric_columns import COLUMNS
from diffusion_lit.config.overrides import format_override
from diffusion_lit.imaging.sizes import format_size
from diffusion_lit.runs.student import describe_teacher
from diffusion_lit.system.console import escape_controls

CHANNEL_NAMES = {1: "grayscale", 3: "RGB", 4: "RGBA"}
WEIGHT_NAMES = {"ema": "EMA weights", "net": "raw weights"}


def render_model_card(
    config: dict, result: dict, license: str | None, data_license: str | None, name: str, has_pipeline: bool
) -> str:
    """Return the card as Markdown.

    Args:
        config: config.yaml of the folder.
        result: of `evaluate` for these weights and settings; {} if there is none.
        license: of the weights; None if it is not known.
        data_license: of the training images; None if it is not known.
        name: of the folder, or of the model on the hub.
        has_pipeline: whether diffusers alone can load it.
    """
    data, exported, sampler = config["data"], config["exported"], config["sampler"]
    names, length = data["class_names"], exported["ema_length"]
    encoder, prompts = config.get("text_encoder"), config.get("preview_prompts") or []
    kind = "text-conditional" if prompts else "class-conditional" if names else "unconditional"
    task = "text-to-image" if prompts else f"{kind}-image-generation"
    weights = WEIGHT_NAMES[exported["weights"]] + (f" of length {length}" if length else "")
    training = {
        "data": f"fingerprint `{exported['data']}`",
        "license of the data": escape_markdown(data_license or "not stated"),
        "classes": ", ".join(map(escape_markdown, names)) or "none",
        "prompts": _describe_prompts(encoder) if encoder else "none",
        "null label": _describe_null(names, encoder) if config["label_dropout"] else "none",
        "network": _describe(config["model"]),
        "diffusion": _describe(config["diffusion"]),
        "loss weighting": _describe(config["weighting"]),
        "optimizer": _describe(config.get("optimizer") or {}),
        "command": format_code(command) if (command := exported.get("command")) else "not recorded",
        "seed": config["seed"] if config.get("seed") is not None else "not recorded",
        "cost": f"{exported['seconds']:,.0f} s" if exported.get("seconds") else "not recorded",
        "weights": f"{weights}, {exported['checkpoint']}",
        "sampler": _describe({key: sampler[key] for key in ("name", "steps", "clip_x0") if key in sampler}),
        **{key: _describe(value) for key, value in describe_teacher(config).items()},
        "guidance scale": config["guidance_scale"] if names or prompts else "none",
        "versions": ", ".join(f"{package} {version}" for package, version in exported["versions"].items()),
        "license": escape_markdown(license or "not stated"),
    }
    library = "diffusers" if has_pipeline else "diffusion_lit"
    header = {"library_name": library, "tags": ["diffusion", "diffusion_lit", task]}
    header |= {"license": license} if license else {}
    loader = PackageLoader("diffusion_lit", "runs")
    environment = Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    environment.filters |= {"json": partial(json.dumps, ensure_ascii=False), "repr": repr, "text": escape_markdown}
    return environment.get_template("model_card.md").render(
        header=header, name=name, run=shlex.quote(format_override("run", name)), names=names,
        prompts=prompts, kind=kind, config=config,
        exported=exported, training=training, result=result,
        has_pipeline=has_pipeline, size=format_size(data["image_size"]), columns=COLUMNS,
        channels=CHANNEL_NAMES.get(data["channels"], f"{data['channels']}-channel"),
    )  # fmt: skip


def escape_markdown(text: object) -> str:
    """Return text in which nothing is markup, a formula, a cell of a table or a line of its own."""
    line = escape_controls(" ".join(str(text).splitlines()))
    escaped = re.sub(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def format_code(text: str) -> str:
    """Return text as code in a cell of a table."""
    runs = re.findall("`+", text)
    fence = "`" * (1 + max(map(len, runs), default=0))
    padding = " " if runs else ""  # between the fence and a backtick
    cell = escape_controls(text).replace("|", "\\|")
    return f"{fence}{padding}{cell}{padding}{fence}"


def _describe_null(names: list[str], encoder: dict | None) -> str:
    if encoder:
        return "the empty prompt"
    return str(len(names)) if names else "none"


def _describe_prompts(encoder: dict) -> str:
    """Return what kind of text encoder a model has."""
    words = [*encoder.get("words", ()), *encoder.get("rare_words", ())]
    kind = f"{len(words):,} words of the training captions"
    if not words:
        kind = f"{encoder.get('path')}, {encoder.get('commit')}"
    return escape_markdown(f"{kind}, at most {encoder['max_tokens']} tokens")


def _describe(group: dict) -> str:
    """Return the class and the keys of a config group in one line."""
    name = [str(group["_target_"]).rpartition(".")[2]] if "_target_" in group else []
    settings = [f"{key} {value}" for key, value in group.items() if key != "_target_" and value != []]
    return escape_markdown(", ".join(name + settings))
