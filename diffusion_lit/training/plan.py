"""`plan=true`: measure how long a run takes, in what memory, and which overrides make it faster. Nothing is trained."""

import itertools
import logging
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diffusion_lit.config.overrides import format_override
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.store import ImageStore
from diffusion_lit.distributed import process_group
from diffusion_lit.runs import checkpoints, resume
from diffusion_lit.system.bfloat16 import BF16_FLAGS
from diffusion_lit.system.console import format_duration, progress_bar
from diffusion_lit.system.platform import cpu_flags
from diffusion_lit.training import build_run
from diffusion_lit.training.automatic_keys import resolve_strategy
from diffusion_lit.training.benchmark import Measurement, TrainingBenchmark
from diffusion_lit.training.captions_of_run import add_caption_settings
from diffusion_lit.training.checkpoint_files import required_bytes
from diffusion_lit.training.run_summary import format_run_summary
from diffusion_lit.training.time_estimate import (
    change_config,
    estimate_seconds,
    format_run_time,
    remaining_steps,
    shorten_parts,
)

log = logging.getLogger(__name__)

MIN_SPEEDUP = 1.1  # smaller ones are within the variation of a machine
MAX_SMALLER_BATCHES = 2  # smaller micro-batches to measure, besides those that do not fit into memory


def plan(config: dict, source, overrides: list[str]) -> None:
    """Measure training settings and log a table, the time of the run and the fastest command line.

    Args:
        config: resolved configuration of a run.
        source: data source, or None to make it from the configuration.
        overrides: of the command line.

    Raises:
        UserError: as the run itself before its first step.
    """
    strategy, world = config["strategy"], count_processes(config["strategy"])
    build_run.check_even_shares(config, world)
    share = config | {"global_batch_size": config["global_batch_size"] // world}
    share["strategy"] = strategy | {"name": "single", "devices": 1}
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        data = build_run.load_data(share, source, Path(scratch))
        decoding_seconds = time.perf_counter() - begun
        share, config = add_caption_settings(share, data), add_caption_settings(config, data)
        share["max_steps"] = config["max_steps"] = build_run.total_steps(config, len(data.train))
        config = config | {"strategy": resolve_strategy(config)}
        share["strategy"] = config["strategy"] | {"name": "single", "devices": 1}
        log_run_summary(config, data, decoding_seconds)
        if not remaining_steps(config):
            log.info("run already complete. To continue, raise max_steps or max_epochs.")
            return
        benchmark = TrainingBenchmark(share, data, Path(scratch), existing_folder(Path(config["run_dir"])))
        with progress_bar("measuring", transient=True) as bar:
            task = bar.add_task("validation, sampling and checkpoints", total=None)

            def measure(setting: dict) -> Measurement:
                batch = benchmark.share // setting["accumulate"]
                bar.update(task, description=f"{setting['precision']}, {batch} images at a time")
                bar.advance(task)
                return benchmark.measure(setting)

            benchmark.measure_costs()
            settings = measure_alternatives(benchmark, measure, can_compile=strategy["name"] != "dp")
            bar.update(task, description="loader and network separately")
            bottleneck = describe_bottleneck(benchmark, fastest(settings), world)
        lines = [format_table(settings, world), bottleneck]
        lines += recommend(benchmark, config, settings, world, overrides)
        log.info("\n%s", "\n".join(lines))


def count_processes(strategy: dict) -> int:
    """Return the number of devices that share a batch."""
    if strategy["name"] == "ddp":
        return process_group.resolve_processes(strategy)[0]
    return process_group.count_local_devices(strategy) if strategy["name"] == "dp" else 1


def existing_folder(run: Path) -> Path:
    """Return the run folder, or the nearest of its parents that exists."""
    run = run.absolute()
    return next(folder for folder in [run, *run.parents] if folder.is_dir())


def log_run_summary(config: dict, data: ImageDataModule, decoding_seconds: float) -> None:
    """Log the summary of a run, and the memory and disk space that it needs.

    Raises:
        UserError: exit 4 for weights of `init_from` that do not fit, exit 5 if the disk has
            no room.
    """
    run, module = Path(config["run_dir"]), build_run.make_module(config)
    init_message = None if config["resume"] else build_run.initialize_weights(module, config)
    log.info("%s", format_run_summary(config, data, module, run, None).partition("\n")[2])
    stores = [store for store in (data.train, data.val) if isinstance(store, ImageStore)]  # of decoded images
    if stores:
        count, size = sum(map(len, stores)), sum(store.images.nbytes for store in stores)
        where, seconds = data.config["cache_dir"] or "memory", format_duration(decoding_seconds)
        log.info("decoded    %s images in %s, %.1f MiB in %s", f"{count:,}", seconds, size / 2**20, where)
    if init_message:
        log.info("%s", init_message)
    checkpoints.require_disk_space(run, required_bytes(module, config))


# ------------------------------------------------------------------------------------------------ measurements


def measure_alternatives(
    benchmark: TrainingBenchmark, measure: Callable[[dict], Measurement], can_compile: bool
) -> list[Measurement]:
    """Measure the configured setting, then others: one key after the other, starting from the fastest so far.

    A resumed run changes only keys that may differ from the start of the run. If another
    setting is faster, both are measured again, because other work of the machine makes a
    setting look slow, never fast.
    """
    configured = benchmark.config["strategy"]
    settings = [measure(configured)]
    alternatives = {"precision": supported_precisions(benchmark.device), "channels_last": [True, False]}
    for key, values in alternatives.items():
        for value in values:
            base = (fastest(settings) or settings[-1]).strategy
            is_changeable = not benchmark.config["resume"] or f"strategy.{key}" in resume.CHANGEABLE
            if value != base[key] and value != configured[key] and is_changeable:
                settings.append(measure(base | {key: value}))
    base, smaller = (fastest(settings) or settings[-1]).strategy, 0
    for accumulate in accumulation_options(configured["accumulate"], benchmark.share):
        strategy = base | {"accumulate": accumulate}
        is_known = any(benchmark.is_same_measurement(strategy, other.strategy) for other in settings)
        if smaller < MAX_SMALLER_BATCHES and not is_known:
            settings.append(measure(strategy))
            smaller += settings[-1].speed is not None and accumulate > configured["accumulate"]
    best = fastest(settings)
    if benchmark.device.type == "cuda" and best and not best.strategy["compile"] and can_compile:
        settings.append(measure(best.strategy | {"compile": True}))
        best = fastest(settings)
    if best not in (None, settings[0]):
        for k in {0, settings.index(best)}:
            if settings[k].speed:
                settings[k] = max(settings[k], measure(settings[k].strategy), key=lambda one: one.speed or 0)
    return settings


def supported_precisions(device: torch.device) -> list[str]:
    """Return the precisions that a device computes in hardware; without it a step in bf16 can take minutes."""
    if device.type == "cuda":
        return ["32-true", "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"]
    return ["32-true"] + ["bf16-mixed"] * (device.type == "cpu" and bool(cpu_flags() & BF16_FLAGS))


def accumulation_options(accumulate: int, share: int) -> list[int]:
    """Return other numbers of micro-batches for a batch of `share` images: fewer ones, then more and more."""
    fewer = sorted({1, max(1, accumulate // 2)} - {accumulate})
    more = [accumulate << k for k in range(1, share.bit_length())]
    return [k for k in fewer + more if k <= share and share % k == 0]


def fastest(settings: list[Measurement]) -> Measurement | None:
    """Return the first setting that fits into memory, or a later one that is clearly faster; None if none fits."""
    best = None
    for setting in settings:
        if setting.speed and (best is None or setting.speed > MIN_SPEEDUP * best.speed):
            best = setting
    return best


# ------------------------------------------------------------------------------------------------ report


def describe_bottleneck(benchmark: TrainingBenchmark, best: Measurement | None, world: int) -> str:
    """Return the line on whether the loader or the network is slower."""
    if best is None:
        return "no setting fits into memory. Choose a smaller network or image size."
    loader = benchmark.measure_loader(best.measured_batch) * world
    network = benchmark.measure_network(best) * world
    verdict = "the network is the bottleneck"
    if loader <= network:
        verdict = "the loader is the bottleneck. Try data.random_crop=0, and data.cache_dir=null or on a faster disk."
    return f"separately loader {format_number(loader)} img/s, network {format_number(network)} img/s; {verdict}"


def format_table(settings: list[Measurement], world: int) -> str:
    """Return a line for each measured setting."""
    best = fastest(settings)
    lines = ["accumulate  micro-batch  precision   channels_last  compile      img/s     memory"]
    for setting in settings:
        strategy, is_partial = setting.strategy, setting.measured_batch < setting.micro_batch
        speed = format_number(setting.speed * world) if setting.speed else "-"
        memory = ("> " if is_partial else "") + f"{setting.memory:.2f} GiB" if setting.memory else "-"
        notes = {
            "as configured": setting is settings[0],
            "best": setting is best and setting is not settings[0],
            "out of memory": setting.speed is None,
            f"measured with {setting.measured_batch} images": is_partial,
            f"after compiling for {format_duration(setting.compile_seconds)}": bool(setting.compile_seconds),
        }
        note = ", ".join(text for text, applies in notes.items() if applies)
        layout, compiled = (str(strategy[key]).lower() for key in ("channels_last", "compile"))
        line = f"{strategy['accumulate']:10}  {setting.micro_batch:11}  {strategy['precision']:<10}  {layout:<13}"
        lines.append(f"{line}  {compiled:<7}  {speed:>9}  {memory:>9}  {note}".rstrip())
    return "\n".join(lines)


def recommend(
    benchmark: TrainingBenchmark, config: dict, settings: list[Measurement], world: int, overrides: list[str]
) -> list[str]:
    """Return the lines on the time of the run, as configured and as fast as possible, and the command line for it."""
    configured, best = settings[0], fastest(settings)
    if best is None:
        return []
    lines = []
    if world > 1:
        lines.append(f"note       one process of {world} was measured alone: communication and shared cores add to it")
    as_configured = "does not fit into memory as configured"
    if configured.speed:
        as_configured = format_run_time(estimate_seconds(benchmark, config, configured, world))
    lines.append(f"run time   {as_configured}")
    if len(supported_precisions(benchmark.device)) == 1:
        lines.append("note       half precision was not measured: this device does not support it in hardware")
    changes = {key: value for key, value in best.strategy.items() if value != configured.strategy[key]}
    changes = {f"strategy.{key}": value for key, value in changes.items()}
    if changes:
        run_time = format_run_time(estimate_seconds(benchmark, config, best, world))
        lines.append(f"faster     {' '.join(itertools.starmap(format_override, changes.items()))}: {run_time}")
    shorter, intervals = shorten_parts(benchmark, config, best, world)
    if shorter:
        changes |= intervals
        lines += shorter
        run_time = format_run_time(estimate_seconds(benchmark, change_config(config, intervals), best, world))
        lines.append(f"together   {run_time}")
    elif not changes and len(settings) > 1:
        lines.append("faster     no other setting is clearly faster here")
    changed = list(itertools.starmap(format_override, changes.items()))
    keys = {*changes, "plan"}
    kept = [override for override in overrides if override.partition("=")[0] not in keys]
    return [*lines, "", f"train with: {shlex.join(['python', '-m', 'diffusion_lit.train', *kept, *changed])}"]


def format_number(value: float) -> str:
    """Return a number with two digits, as more are noise: 1234 is 1,200 and 4.56 is 4.6."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
