"""How long a run takes, of what, and which intervals keep all but the training short. Computed from measurements."""

import itertools
import math
from pathlib import Path

from diffusion_lit.config.overrides import format_override
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.build import make_configured_sampler, make_ema_decay
from diffusion_lit.sampling.previews import preview_labels
from diffusion_lit.system.console import format_duration
from diffusion_lit.training.benchmark import Measurement, TrainingBenchmark
from diffusion_lit.training.callbacks.sample_metrics import metrics_of

INTERVALS = {  # part of a run -> the keys that say how often it happens
    "previews": ("sample_every",),
    "metrics": ("metrics_every",),
    "validation": ("val_every", "checkpoint_every"),
    "checkpoints": ("checkpoint_every",),
}
SHARE, MIN_GAIN = 0.1, 60  # of the training a part may take; seconds that are worth an advice
MANY_STEPS, FEW_STEPS = 100, 50  # of a sampler


def remaining_steps(config: dict) -> range:
    """Return the steps of the run; of a resumed run those after its last checkpoint."""
    saved = checkpoints.list_steps(Path(config["resume"])) if config["resume"] else []
    return range((saved[-1] if saved else 0) + 1, config["max_steps"] + 1)


def estimate_seconds(benchmark: TrainingBenchmark, config: dict, setting: Measurement, world: int) -> dict[str, float]:
    """Return the seconds of the remaining steps by what they are spent on."""
    steps, num_classes = remaining_steps(config), config["data"]["num_classes"]
    prompts = config["preview_prompts"] or ()
    sampler = make_configured_sampler(config)

    def count(*intervals: str) -> int:
        return count_multiples(steps, [config[name] for name in intervals if config[name]])

    fraction = _count_steps(benchmark, config) / _count_steps(benchmark, benchmark.config)  # of the measured steps

    def sampling(images: int) -> float:
        return -(-images // sampler.batch_size) * benchmark.sampling_seconds * fraction / world

    networks = 2 if make_ema_decay(config) else 1
    share = min(1, config["metrics_steps"] / _count_steps(benchmark, config))
    metrics = count("metrics_every") * sampling(config["metrics_images"]) * share if metrics_of(config) else 0
    training = len(steps) * config["global_batch_size"] / (setting.speed * world)
    return {
        "training": setting.compile_seconds + training,
        "previews": count("sample_every") * networks * sampling(len(preview_labels(num_classes, prompts))),
        "validation": count("val_every", "checkpoint_every") * benchmark.validation_seconds / world,
        "checkpoints": count("checkpoint_every") * benchmark.checkpoint_seconds,
        "metrics": metrics,
        "class accuracy": sampling(config["data"]["classifier_images"] if num_classes else 0),
    }


def count_multiples(steps: range, lengths: list[int]) -> int:
    """Return how many of one or more steps are the last one or a multiple of a length, by inclusion and exclusion."""
    before, last = steps.start - 1, steps.stop - 1
    count = int(all(last % length for length in lengths))
    for size in range(1, len(lengths) + 1):
        shared = (math.lcm(*chosen) for chosen in itertools.combinations(lengths, size))
        count -= (-1) ** size * sum(last // length - before // length for length in shared)
    return count


def format_run_time(seconds: dict[str, float]) -> str:
    """Return the total time, and its parts of half a second or more."""
    parts = ", ".join(f"{part} {format_duration(value)}" for part, value in seconds.items() if value >= 0.5)
    return f"about {format_duration(sum(seconds.values()))} ({parts})"


def shorten_parts(
    benchmark: TrainingBenchmark, config: dict, setting: Measurement, world: int
) -> tuple[list[str], dict[str, object]]:
    """Return lines on each part of a run that takes long beside the training, and the keys that shorten it.

    Intervals are doubled until the part takes a tenth of the training, or happens
    once. Samples of many steps take fewer of them first.
    """
    lines, changes = [], {}
    before = estimate_seconds(benchmark, config, setting, world)
    limit, total = SHARE * before["training"], format_duration(sum(before.values()))
    for part, keys in INTERVALS.items():
        if before[part] <= limit or before[part] < MIN_GAIN:
            continue

        def estimate(own: dict[str, object], part: str = part) -> float:
            return estimate_seconds(benchmark, change_config(config, own), setting, world)[part]

        own: dict[str, object] = {}
        if part == "previews" and _count_steps(benchmark, config) > MANY_STEPS:
            own["sampler.steps"] = FEW_STEPS
        for factor in (k * 10**e for e in range(8) for k in (1, 2, 5)):
            longest = {key: max(config[key], config["max_steps"]) for key in keys if config[key]}
            own |= {key: min(config[key] * factor, most) for key, most in longest.items()}
            if estimate(own) <= limit or all(config[key] * factor >= config["max_steps"] for key in keys):
                break
        own = {key: value for key, value in own.items() if value != config.get(key)}
        after = estimate(own)
        if after < 0.8 * before[part]:
            texts = " ".join(format_override(key, value) for key, value in own.items())
            took = f"{format_duration(before[part])} of {total}"
            verb = "take" if part.endswith("s") else "takes"
            lines.append(f"{part:<10} {verb} {took}. {texts} makes it {format_duration(after)}")
            changes |= own
    return lines, changes


def change_config(config: dict, own: dict[str, object]) -> dict:
    """Return a configuration with other values of dotted keys."""
    groups = {key.partition(".")[0] for key in own if "." in key}
    config = config | {group: dict(config[group]) for group in groups}
    for key, value in own.items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    return config


def _count_steps(benchmark: TrainingBenchmark, config: dict) -> int:
    return len(make_configured_sampler(config).build_scheduler(benchmark.table).timesteps)
