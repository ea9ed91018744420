"""What values of a configuration mean together."""

import math
from collections.abc import Iterator
from contextlib import suppress

from diffusion_lit.config.schema import METRIC_COLUMNS
from diffusion_lit.config.value_types import format_value


def find_conflicts(values: dict[str, object]) -> list[str]:
    """What cannot work together, one line each.

    Args:
        values: dotted key to value, without keys that are faulty by themselves. A check of keys that are not there (a
            network without levels, a faulty number) is left out.
    """
    faults = []
    for check in CHECKS:
        with suppress(KeyError):
            faults += check(values)
    return faults


def noise(v: dict) -> Iterator[str]:
    if v["diffusion.prediction_type"] == "epsilon" and _ends_in_pure_noise(v):
        yield (
            f"diffusion.prediction_type=epsilon with {_ends_in_pure_noise(v)}: the last timestep is pure noise "
            "and says nothing of x0; predict v_prediction, velocity or sample"
        )


def betas(v: dict) -> Iterator[str]:
    start, end = v["diffusion.beta_start"], v["diffusion.beta_end"]
    if start > end:
        yield f"diffusion.beta_start={start} is more than diffusion.beta_end={end}"


def _ends_in_pure_noise(v: dict) -> str:
    """The word that makes it so."""
    if v.get("diffusion.process") == "flow":
        return "diffusion=flow"
    return "diffusion.zero_terminal_snr=true" if v.get("diffusion.zero_terminal_snr") else ""


def sigmas(v: dict) -> Iterator[str]:
    low, high = v["diffusion.sigma_min"], v["diffusion.sigma_max"]
    if low >= high:
        yield f"diffusion.sigma_min={low} must be less than diffusion.sigma_max={high}"


def handed_over(v: dict) -> Iterator[str]:
    form = v["sampler.prediction_type"]
    if form == "epsilon" and _ends_in_pure_noise(v):
        yield f"sampler.prediction_type=epsilon cannot be said at {_ends_in_pure_noise(v)}: leave it at sample"
    if form == "sample" and v["sampler._target_"] == "diffusers.EulerAncestralDiscreteScheduler":
        yield "sampler.prediction_type=sample is not taken by this scheduler: leave it at v_prediction"


def sampler_steps(v: dict) -> Iterator[str]:
    steps, discrete = v["sampler.steps"], v.get("diffusion.process", "discrete") == "discrete"
    timesteps = v["diffusion.num_train_timesteps"] if discrete else 1000
    if steps is not None and steps > timesteps:
        told = f"diffusion.num_train_timesteps={timesteps}" if discrete else f"{timesteps}, the levels there are"
        yield f"sampler.steps={steps} is more than {told}"


def learned_times(v: dict) -> Iterator[str]:
    if v["model.time_embedding_type"] == "learned" and v["diffusion.process"] != "discrete":
        yield "model.time_embedding_type=learned has a row for each timestep, and here time is a number: use positional"


def guidance(v: dict) -> Iterator[str]:
    if v["label_dropout"] == 0 and v["guidance_scale"] != 1:
        yield (
            f"guidance_scale={v['guidance_scale']} with label_dropout=0: guidance needs the unconditional model, "
            "which is trained by dropping labels; set label_dropout=0.1 or guidance_scale=1"
        )


def guidance_details(v: dict) -> Iterator[str]:
    low, high = v.get("guidance_interval") or (0, 1)
    if low > high:
        yield f"guidance_interval=[{low}, {high}]: the cleaner end comes first, [{high}, {low}]"
    for key in ("guidance_interval", "guidance_rescale", "guide"):
        if v.get(key) and v["guidance_scale"] == 1:
            yield f"{key}={format_value(v[key])} has no effect at guidance_scale=1. Set another guidance_scale too"


def averaging(v: dict) -> Iterator[str]:
    every, steps = v["ema.update_every"], v["max_steps"]
    if every > steps and v["max_epochs"] is None:
        yield f"ema.update_every={every} is more than max_steps={steps}: the untrained network would be sampled"


def stairs(v: dict) -> Iterator[str]:
    if v["lr_schedule.name"] == "staircase" and v["lr_schedule.cycles"] == 1:
        yield "lr_schedule.cycles=1: the learning rate of lr_schedule=staircase never falls. Set the number of steps"


def train_batches(v: dict) -> Iterator[str]:
    limit, accumulate = v["trainer.limit_train_batches"], v["strategy.accumulate"]
    if isinstance(limit, int) and limit % accumulate:
        yield f"trainer.limit_train_batches={limit} must be a multiple of strategy.accumulate={accumulate}"


def conditions(v: dict) -> Iterator[str]:
    if v["classes"] is not None and v["context"] is not None:
        classes, context = format_value(v["classes"]), format_value(v["context"])
        yield f"classes={classes} and context={context}: leave one out. context={{a: 1}} is the class a"


def editing(v: dict) -> Iterator[str]:
    for key, needs in {"mask": "init", "strength": "init", "resample": "mask"}.items():
        if v[key] not in (None, 1) and v[needs] is None:
            yield f"{key}={v[key]} without {needs}=<picture>: there is nothing to edit"


def shards(v: dict) -> Iterator[str]:
    if v["shards"] is None:
        return
    told = f"shards={v['shards']}"
    if v["out"] is None:
        yield f"{told}: name the folder where all processes meet, by out="
    for key in ("init", "seeds", "interpolate", "gif", "per_class"):  # `evaluate` has none of them
        if v.get(key):
            yield f"{told} and {key}={format_value(v[key])}: leave one out, shards are for many images of a kind"


def pictures(v: dict) -> Iterator[str]:
    for of, keys in {"data": ("image_size", "channels", "num_classes"), "diffusion": ("num_train_timesteps",)}.items():
        for key in keys:
            here, there = f"model.{key}", f"{of}.{key}"
            if here in v and there in v and v[here] != v[there]:
                yield f"{here}={format_value(v[here])} follows from {there}: set that instead"


def streaming(v: dict) -> Iterator[str]:
    for key in ("metrics_every", "data.classifier_images"):
        if v["data.streaming"] == "every_epoch" and v[key]:
            yield (
                f"{key}={v[key]} compares with all training pictures, and data.streaming=every_epoch keeps none: "
                f"set {key}=0"
            )


def alpha(v: dict) -> Iterator[str]:
    if v["data.alpha"] == "zero" and v["data.channels"] != 4:
        yield (
            f"data.alpha=zero with data.channels={v['data.channels']}: without a channel for it alpha is laid on "
            "data.background; set data.channels=4"
        )


def best(v: dict) -> Iterator[str]:
    name, metrics, every, saved = (v[k] for k in ("best_by", "metrics", "metrics_every", "checkpoint_every"))
    owner = next((metric for metric, columns in METRIC_COLUMNS.items() if name in columns), None)
    if owner and not (every and owner in metrics):
        yield f"best_by={name} is not measured: add metrics_every={saved} 'metrics=[{owner}]'"
    elif owner and every % saved and saved % every:
        yield f"best_by={name}: one of metrics_every={every} and checkpoint_every={saved} must divide the other"


def strategies(v: dict) -> Iterator[str]:
    name, devices, nodes = v["strategy.name"], v["strategy.devices"], v["strategy.num_nodes"]
    if name == "single" and devices != 1:
        yield f"strategy.devices={devices}: strategy=single trains on one device, use strategy=ddp"
    if name != "ddp" and nodes > 1:
        yield f"strategy.num_nodes={nodes}: strategy={name} trains on one machine, use strategy=ddp"
    if name == "dp" and v["strategy.compile"]:
        yield "strategy.compile=true: strategy=dp copies the network anew for every batch, use strategy=ddp"


def batch(v: dict) -> Iterator[str]:
    keys = ("strategy.devices", "strategy.num_nodes", "strategy.accumulate")
    keys = [key for key in keys if v[key] not in (1, "auto")]
    size, parts = v["global_batch_size"], math.prod(v[key] for key in keys)
    if size % parts:
        yield f"global_batch_size={size} must be a multiple of {' x '.join(f'{key}={v[key]}' for key in keys)}"


def skins(v: dict) -> Iterator[str]:
    if v["data.render"] == "skin" and (v["data.channels"], v["data.image_size"]) != (4, 64):
        yield "data.render=skin shows skins of 64x64 px with alpha: set data.channels=4 data.image_size=64"


CHECKS = (
    noise, betas, sigmas, handed_over, sampler_steps, learned_times, guidance, guidance_details, averaging, stairs,
    train_batches, conditions, editing, shards, pictures, streaming, alpha, best, skins, strategies, batch,
)  # fmt: skip
