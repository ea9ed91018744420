"""Checks of values that must fit each other."""

import math
from collections.abc import Iterator
from contextlib import suppress

from diffusion_lit.config import caption_keys
from diffusion_lit.config.few_steps import check_lcm_steps, check_stages, check_student_sampler, check_teacher_guidance
from diffusion_lit.config.metric_columns import COLUMNS, METRIC_COLUMNS
from diffusion_lit.config.value_types import format_value

RUN_METRICS = (
    "val/loss", "val/loss_raw", "val/error", "val/bits_per_dim", *COLUMNS, "class_accuracy_real", "images_per_second",
    "seconds",
)  # fmt: skip
LIMITS = {  # key -> largest value that any machine can serve
    "global_batch_size": 1_000_000, "sampler.batch_size": 1_000_000, "strategy.devices": 10_000,
    "strategy.num_nodes": 10_000, "data.image_size": 16_384, "data.num_classes": 1_000_000, "data.random_crop": 16_384,
    "model.layers_per_block": 1_000, "model.depth": 1_000,
    "lr_schedule.cycles": 1_000_000, "metrics_images": 10_000_000, "num_images": 100_000_000,
    "images_per_class": 100_000_000, "reference_images": 100_000_000, "repaint_repeats": 10_000, "shards": 100_000,
    "columns": 1_000, "grids": 10_000, "largest": 16_384,
}  # fmt: skip

SYNC_BATCHNORM_FAULT = (
    "trainer.sync_batchnorm=true: PyTorch's SyncBatchNorm joins processes on GPUs only. Use strategy=ddp on GPUs, or a "
    "network with group normalization"
)


def find_conflicts(values: dict[str, object]) -> list[str]:
    """Return one line for each pair of values that do not fit.

    Args:
        values: dotted key -> value, without keys that are faulty by themselves. A
            check whose keys are not all there is left out.
    """
    faults = []
    for check in CHECKS:
        with suppress(KeyError):
            faults += check(values)
    return faults


def check_limits(v: dict) -> Iterator[str]:
    """Refuse numbers that fit no memory or disk."""
    for key in [key for key in LIMITS if key in v]:
        numbers = v[key] if isinstance(v[key], list) else [v[key]]
        if any(isinstance(number, int) and number > LIMITS[key] for number in numbers):
            yield f"{key}={format_value(v[key])}: too large, at most {LIMITS[key]} is possible"


def check_metric(v: dict) -> Iterator[str]:
    """Refuse a metric that no run has."""
    if v["metric"] and v["metric"] not in RUN_METRICS and not v["metric"].startswith("val/"):
        yield f"metric={v['metric']}: no such number in result.json. Use one of {', '.join(RUN_METRICS)}"


def check_project(v: dict) -> Iterator[str]:
    """Refuse a project name that W&B refuses when the run has begun."""
    if isinstance(v["logger.project"], str) and (odd := set(v["logger.project"]) & set("/\\#?%:")):
        yield f"logger.project={v['logger.project']}: must not contain {' '.join(sorted(odd))}"


def check_prediction_type(v: dict) -> Iterator[str]:
    """Refuse epsilon where the last timestep is pure noise: x0 does not follow from it there."""
    if v["diffusion.prediction_type"] == "epsilon" and (cause := _find_pure_noise(v)):
        yield (
            f"diffusion.prediction_type=epsilon: with {cause} the last timestep is pure noise, from which epsilon "
            "gives no x0. Use v_prediction, velocity or sample"
        )


def check_betas(v: dict) -> Iterator[str]:
    """Refuse betas that fall."""
    start, end = v["diffusion.beta_start"], v["diffusion.beta_end"]
    if start > end:
        yield f"diffusion.beta_start={start}: must be at most diffusion.beta_end={end}"


def _find_pure_noise(v: dict) -> str:
    """Return the override that makes the last timestep pure noise, or an empty text."""
    if v.get("diffusion.process") == "flow":
        return "diffusion=flow"
    return "diffusion.zero_terminal_snr=true" if v.get("diffusion.zero_terminal_snr") else ""


def check_sigmas(v: dict) -> Iterator[str]:
    """Refuse an empty range of sigmas."""
    low, high = v["diffusion.sigma_min"], v["diffusion.sigma_max"]
    if low >= high:
        yield f"diffusion.sigma_min={low}: must be less than diffusion.sigma_max={high}"


def check_scheduler_prediction(v: dict) -> Iterator[str]:
    """Refuse a scheduler that receives epsilon where the last timestep is pure noise."""
    if v["sampler.prediction_type"] == "epsilon" and (cause := _find_pure_noise(v)):
        yield f"sampler.prediction_type=epsilon: not possible with {cause}. Use v_prediction"


def check_sampler_steps(v: dict) -> Iterator[str]:
    """Refuse more steps than there are timesteps.

    Continuous processes are sampled at 1000 levels.
    """
    steps, is_discrete = v["sampler.steps"], v.get("diffusion.process", "discrete") == "discrete"
    limit = v["diffusion.num_train_timesteps"] if is_discrete else 1000
    if steps is not None and steps > limit:
        source = f"diffusion.num_train_timesteps={limit}" if is_discrete else f"{limit}, the number of noise levels"
        yield f"sampler.steps={steps}: must be at most {source}"


def check_time_embedding(v: dict) -> Iterator[str]:
    """Refuse a learned row per timestep where time is continuous."""
    if v["model.time_embedding_type"] == "learned" and v["diffusion.process"] != "discrete":
        yield "model.time_embedding_type=learned: needs discrete timesteps. Use positional"


def check_guidance(v: dict) -> Iterator[str]:
    """Refuse guidance without label dropout."""
    if v["label_dropout"] == 0 and v["guidance_scale"] != 1:
        yield (
            f"guidance_scale={v['guidance_scale']}: guidance needs the unconditional model, which is not trained with "
            "label_dropout=0. Set label_dropout=0.1 or guidance_scale=1"
        )


def check_guidance_details(v: dict) -> Iterator[str]:
    """Refuse a reversed interval, and details of a guidance that is off."""
    low, high = v.get("guidance_interval") or (0, 1)
    if low > high:
        yield f"guidance_interval=[{low}, {high}]: the lower noise level comes first. Write [{high}, {low}]"
    for key in ("guidance_interval", "guidance_rescale", "guide"):
        if v.get(key) and v["guidance_scale"] == 1:
            yield f"{key}={format_value(v[key])}: has no effect at guidance_scale=1. Set another guidance_scale too"


def check_ema_interval(v: dict) -> Iterator[str]:
    """Refuse an EMA that is never updated, for a student in a stage."""
    stages = len(v.get("distill.stages", [1]))
    every, steps = v["ema.update_every"], v["max_steps"] // stages
    if every > steps and v["max_epochs"] is None:
        limit = f"{'the steps of a stage, ' if stages > 1 else 'max_steps='}{steps}"
        yield f"ema.update_every={every}: must be at most {limit}, or the EMA stays untrained"


def check_staircase(v: dict) -> Iterator[str]:
    """Refuse a staircase with one step."""
    if v["lr_schedule.name"] == "staircase" and v["lr_schedule.cycles"] == 1:
        yield "lr_schedule.cycles=1: the learning rate of lr_schedule=staircase never falls. Set the number of steps"


def check_train_batches(v: dict) -> Iterator[str]:
    """Refuse an epoch of so many batches that it ends inside a step.

    A share of them is checked with the data.
    """
    limit, accumulate = v["trainer.limit_train_batches"], v["strategy.accumulate"]
    if isinstance(limit, int) and limit % accumulate:
        yield f"trainer.limit_train_batches={limit}: must be a multiple of strategy.accumulate={accumulate}"


def check_condition(v: dict) -> Iterator[str]:
    """Refuse classes and blends at once."""
    if v["classes"] is not None and v["context"] is not None:
        classes, context = format_value(v["classes"]), format_value(v["context"])
        yield f"classes={classes} and context={context}: use one of the two. context={{a: 1}} is class a"


def check_distinct(v: dict) -> Iterator[str]:
    """Refuse lists with a value twice."""
    for key in ("seeds", "data.classes"):
        values = v.get(key) or ()
        if len(set(values)) < len(values):
            yield f"{key}={format_value(values)}: the values must differ"


def check_editing(v: dict) -> Iterator[str]:
    """Refuse editing options without an image or a mask."""
    for key, needs in {"mask": "init", "strength": "init", "repaint_repeats": "mask"}.items():
        if v[key] not in (None, 1) and v[needs] is None:
            yield f"{key}={v[key]}: has no effect without {needs}. Add {needs}=<image>"


def check_shards(v: dict) -> Iterator[str]:
    """Refuse shards without a common folder, or with options of a single grid."""
    if v["shards"] is None:
        return
    if v["out"] is None:
        yield f"shards={v['shards']}: the processes need a common folder. Add out=<folder>"
    if v.get("format", "png") != "png":
        yield f"shards={v['shards']} and format={v['format']}: use one of the two"
    for key in ("init", "seeds", "seed_mix", "interpolate", "gif", "per_class"):  # `evaluate` has none of them
        if v.get(key):
            yield f"shards={v['shards']} and {key}={format_value(v[key])}: use one of the two"


def check_format(v: dict) -> Iterator[str]:
    """Refuse two arrays of one name."""
    if v["format"] == "npy_float" and v["npy"]:
        yield "format=npy_float and npy=true: both write images.npy. Use one of the two"


def check_model_interpolations(v: dict) -> Iterator[str]:
    """Refuse another image size, number of channels, classes or timesteps for the model."""
    sources = {"data": ("image_size", "channels", "num_classes"), "diffusion": ("num_train_timesteps",)}
    for group, keys in sources.items():
        for key in keys:
            model, source = f"model.{key}", f"{group}.{key}"
            if model in v and source in v and v[model] != v[source]:
                yield f"{model}={format_value(v[model])}: follows {source}. Set that instead"


def check_streaming(v: dict) -> Iterator[str]:
    """Refuse comparisons with the training images where a stream keeps none."""
    for key in ("metrics_every", "data.classifier_images"):
        if v["data.streaming"] == "every_epoch" and v[key]:
            yield f"{key}={v[key]}: needs the training images, and data.streaming=every_epoch keeps none. Set {key}=0"


def check_alpha(v: dict) -> Iterator[str]:
    """Refuse a treatment of alpha where images have no alpha channel."""
    if v["data.alpha"] != "keep" and v["data.channels"] != 4:
        yield (
            f"data.alpha={v['data.alpha']}: has no effect with data.channels={v['data.channels']}, which puts images "
            "on data.background. Set data.channels=4"
        )


def check_tiles(v: dict) -> Iterator[str]:
    """Refuse a margin or a spacing of tiles without tiles."""
    for key in ("data.tile_margin", "data.tile_spacing"):
        if v[key] and v["data.tile"] is None:
            yield f"{key}={v[key]}: has no effect without data.tile. Add data.tile=16"


def check_value_range(v: dict) -> Iterator[str]:
    """Refuse a range of values that is empty or reversed."""
    if isinstance(v["data.value_range"], list) and v["data.value_range"][0] >= v["data.value_range"][1]:
        yield f"data.value_range={format_value(v['data.value_range'])}: must be [low,high], low is black"


def check_best_by(v: dict) -> Iterator[str]:
    """Refuse a metric for best.ckpt that is not measured at its checkpoints."""
    name, metrics, every, saved = (v[k] for k in ("best_by", "metrics", "metrics_every", "checkpoint_every"))
    metric = next((metric for metric, columns in METRIC_COLUMNS.items() if name in columns), None)
    if metric and not (every and metric in metrics):
        yield f"best_by={name}: not measured. Add metrics_every={saved} 'metrics=[{metric}]'"
    elif metric and every % saved and saved % every:
        yield f"best_by={name}: one of metrics_every={every} and checkpoint_every={saved} must divide the other"


def check_strategy(v: dict) -> Iterator[str]:
    """Refuse devices, hosts and compilation that a strategy does not support."""
    name, devices, nodes = v["strategy.name"], v["strategy.devices"], v["strategy.num_nodes"]
    if name == "single" and devices != 1:
        yield f"strategy.devices={devices}: strategy=single trains on one device. Use strategy=ddp"
    if name != "ddp" and nodes > 1:
        yield f"strategy.num_nodes={nodes}: strategy={name} trains on one host. Use strategy=ddp"
    if name == "dp" and v["strategy.compile"] not in (False, "auto"):
        yield "strategy.compile=true: strategy=dp copies the network for every batch. Use strategy=ddp"


def check_sync_batchnorm(v: dict) -> Iterator[str]:
    """Refuse synchronized batch norms where PyTorch has none."""
    if v["trainer.sync_batchnorm"] and (v["strategy.name"] != "ddp" or v["strategy.accelerator"] in ("cpu", "mps")):
        yield SYNC_BATCHNORM_FAULT


def check_batch_size(v: dict) -> Iterator[str]:
    """Refuse a batch that cannot be divided among devices and micro-batches."""
    keys = ("strategy.devices", "strategy.num_nodes", "strategy.accumulate")
    keys = [key for key in keys if v[key] not in (1, "auto")]
    size, parts = v["global_batch_size"], math.prod(v[key] for key in keys)
    if size % parts:
        yield f"global_batch_size={size}: must be a multiple of {' x '.join(f'{key}={v[key]}' for key in keys)}"


def check_skins(v: dict) -> Iterator[str]:
    """Refuse to render images as skins that are none."""
    if v["data.render"] == "skin" and (v["data.channels"], v["data.image_size"]) != (4, 64):
        yield "data.render=skin: needs RGBA images of 64x64 px. Set data.channels=4 data.image_size=64"


CHECKS = (
    check_limits, check_metric, check_project,
    check_prediction_type, check_betas, check_sigmas, check_scheduler_prediction, check_sampler_steps,
    check_time_embedding, check_guidance, check_guidance_details, check_ema_interval, check_staircase,
    check_train_batches, check_condition, check_distinct, check_editing, check_shards, check_format,
    check_model_interpolations, check_streaming, caption_keys.check_captions,
    caption_keys.check_streamed_captions, caption_keys.check_caption_colors, caption_keys.check_preview_prompts,
    check_alpha, check_value_range, check_tiles, check_best_by, check_skins, check_strategy, check_batch_size,
    check_stages, check_teacher_guidance, check_student_sampler, check_lcm_steps, check_sync_batchnorm,
)  # fmt: skip
