"""`plan=true`: how long a run would take, in what memory, and which overrides make it faster. Nothing is trained."""

import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from diffusion_lit.config.overrides import format_override
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.store import ImageStore
from diffusion_lit.distributed import process_group
from diffusion_lit.runs import checkpoints, resume
from diffusion_lit.runs.build import make_configured_sampler
from diffusion_lit.system.console import format_duration, progress_bar
from diffusion_lit.training import run_messages
from diffusion_lit.training import trainer as run_trainer
from diffusion_lit.training.benchmark import Bench, Row
from diffusion_lit.training.callbacks.sample_metrics import metrics_of
from diffusion_lit.training.module import checkpoint_bytes, snapshot_bytes

log = logging.getLogger(__name__)

BETTER = 1.1  # times as fast: less is within what a machine varies by
PARTS = 2  # smaller parts of a batch that are tried, not counting those that do not fit


def plan(config: dict, source, words: list[str]) -> None:
    """Measure and print.

    Args:
        config: resolved, as a run has it.
        words: of the command line, for the one that is proposed.

    Raises:
        UserError: what the run itself would end with before its first step.
    """
    asked, world = config["strategy"], devices_of(config["strategy"])
    run_trainer.require_even_shares(config, world)
    share = config | {
        "global_batch_size": config["global_batch_size"] // world,
        "strategy": asked | {"name": "single", "devices": 1},
    }
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        data = run_trainer.load_data(share, source, Path(scratch))
        decoding = time.perf_counter() - begun
        share["max_steps"] = config["max_steps"] = run_trainer.total_steps(config, len(data.train))
        told(config, data, decoding)
        if not steps_left(config):
            log.info("it is as long as it should be already; raise max_steps or max_epochs to go on")
            return
        bench = Bench(share, data, Path(scratch), existing(config), compiles=asked["name"] != "dp")
        with progress_bar("measuring", transient=True) as bar:
            task = bar.add_task("a first look", total=None)
            bench.look()
            rows = []
            for row in tried(bench, share["strategy"], lambda told: bar.update(task, description=told)):
                rows.append(row)
                bar.advance(task)
            rows = confirmed(bench, rows)
            bar.update(task, description="loader and network apart")
            apart = bottleneck(bench, fastest(rows), world)
    log.info("\n%s\n%s\n%s", table(rows, world), apart, conclusion(bench, config, rows, world, words))


def devices_of(strategy: dict) -> int:
    """Devices among which a batch is shared out."""
    if strategy["name"] == "ddp":
        return process_group.resolve_processes(strategy)[0]
    return process_group.count_local_devices(strategy) if strategy["name"] == "dp" else 1


def existing(config: dict) -> Path:
    """The folder in which the run's own would be made."""
    run = Path(config["run_dir"]).absolute()
    return next(folder for folder in [run, *run.parents] if folder.is_dir())


def steps_left(config: dict) -> range:
    """Steps that are still to be done, of a resumed run from its last checkpoint on."""
    done = checkpoints.list_steps(Path(config["resume"])) if config["resume"] else []
    return range((done[-1] if done else 0) + 1, config["max_steps"] + 1)


def told(config: dict, data: ImageDataModule, decoding: float) -> None:
    """Say what would be trained, as a run does.

    Raises:
        UserError: exit 4 for weights of `init_from` that do not fit, exit 5 if the disk has no room.
    """
    run = Path(config["run_dir"])
    module = run_trainer.make_module(config)
    begun_from = None if config["resume"] else run_trainer.begin(module, config)
    log.info("%s", run_messages.summary(config, data, module, run, None).partition("\n")[2])
    stores = [store for store in (data.train, data.val) if store is not None]
    kept = [store for store in stores if isinstance(store, ImageStore)]  # not those that are read in every epoch
    count, size = sum(map(len, kept)), sum(store.images.nbytes for store in kept)
    where = "in memory" if data.config["cache_dir"] is None else f"in {data.config['cache_dir']}"
    if kept:
        log.info(
            "decoded    %s pictures in %s, %s img/s; %s %s",
            f"{count:,}", format_duration(decoding), number(count / decoding), mib(size), where,
        )  # fmt: skip
    if begun_from:
        log.info("%s", begun_from)
    one, snapshots = checkpoint_bytes(module), snapshot_bytes(module, config)
    most = (config["keep_checkpoints"] + 2) * one + snapshots  # the best besides, and the one that is written
    log.info("%s", f"disk       {mib(most)} at the most, besides grids and metrics")
    checkpoints.require_disk_space(run, 3 * one + snapshots)


# ------------------------------------------------------------------------------------------------ what is tried


def tried(bench: Bench, asked: dict, tell: Callable[[str], None]) -> Iterator[Row]:
    """The way that is asked for, then others, one key after the other, each beside the fastest so far.

    Of a run that goes on only keys are changed that it may change.
    """
    rows = []

    def measured(strategy: dict) -> Row:
        tell(f"{strategy['precision']}, {bench.share // strategy['accumulate']} images at a time")
        rows.append(bench.measured(strategy))
        return rows[-1]

    yield measured(asked)
    device = bench.device
    keys = {"precision": precisions(device), "channels_last": [not asked["channels_last"]]}
    for key, values in keys.items():
        for value in values:
            base = fastest(rows) or rows[-1]
            if value != base.strategy[key] and (not bench.config["resume"] or f"strategy.{key}" in resume.CHANGEABLE):
                yield measured(base.strategy | {key: value})
    base, smaller = fastest(rows) or rows[-1], 0
    for accumulate in parts(asked["accumulate"], bench.share):
        strategy = base.strategy | {"accumulate": accumulate}
        if smaller == PARTS or any(bench.alike(strategy, row.strategy) for row in rows):
            continue
        row = measured(strategy)
        smaller += row.speed is not None and accumulate > asked["accumulate"]
        yield row
    base = fastest(rows)
    if device.type == "cuda" and base and not base.strategy["compile"] and bench.compiles:
        yield measured(base.strategy | {"compile": True})


def precisions(device: torch.device) -> list[str]:
    """Those that a device computes with in hardware; elsewhere a step in bf16 can take minutes."""
    if device.type == "cuda":
        return ["32-true", "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"]
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    return ["32-true"] + ["bf16-mixed"] * (device.type == "cpu" and any(f in flags for f in ("_bf16", " bf16")))


def parts(accumulate: int, share: int) -> list[int]:
    """Micro-batches that a batch may be cut into instead: fewer, then more and more."""
    more = [accumulate << k for k in range(1, share.bit_length())]
    return [k for k in sorted({1, max(1, accumulate // 2)} - {accumulate}) + more if k <= share and share % k == 0]


def confirmed(bench: Bench, rows: list[Row]) -> list[Row]:
    """The rows, with a faster way than the one that was asked for measured once more, and that one too: other work of
    the machine makes a way look slow, never fast.
    """
    if fastest(rows) in (None, rows[0]):
        return rows
    again = [bench.measured(row.strategy) if row in (rows[0], fastest(rows)) and row.speed else row for row in rows]
    return [max(pair, key=lambda row: row.speed or 0) for pair in zip(rows, again, strict=True)]


def fastest(rows: list[Row]) -> Row | None:
    """The first row that fits into memory, or a later one that is clearly faster; None if nothing fits."""
    best = None
    for row in rows:
        if row.speed and (best is None or row.speed > BETTER * best.speed):
            best = row
    return best


# ------------------------------------------------------------------------------------------------ what is said


def bottleneck(bench: Bench, best: Row | None, world: int) -> str:
    """Whether bringing the pictures or the network takes longer."""
    if best is None:
        return "nothing fits into memory: a smaller network or image needs less"
    loader = bench.loader_alone(best.at_a_time) * world
    network = bench.network_alone(best) * world
    if loader > network:
        verdict = "the network is the bottleneck"
    else:
        verdict = "the loader is the bottleneck; data.random_crop=0 and no data.cache_dir, or one on a fast disk, help"
    return f"apart      loader about {number(loader)} img/s, network about {number(network)} img/s; {verdict}"


def table(rows: list[Row], world: int) -> str:
    """A line for each way that was measured."""
    best = fastest(rows)
    lines = ["accumulate  at a time  precision   channels_last  compile      img/s     memory"]
    for row in rows:
        strategy = row.strategy
        speed = number(row.speed * world) if row.speed else "-"
        part = row.at_a_time < row.whole
        memory = ("> " if part else "") + f"{row.memory:.2f} GiB" if row.memory else "-"
        notes = ["as asked"] * (row is rows[0]) + ["best"] * (row is best and row is not rows[0])
        notes += ["out of memory"] * (row.speed is None)
        notes += [f"measured with {row.at_a_time} at a time"] * part
        notes += [f"after {format_duration(row.compiling)} of compiling"] * bool(row.compiling)
        layout, compiled = ("true" if strategy[key] else "false" for key in ("channels_last", "compile"))
        line = f"{strategy['accumulate']:10}  {row.whole:9}  {strategy['precision']:<10}  {layout:<13}  {compiled:<7}"
        lines.append(f"{line}  {speed:>9}  {memory:>9}  {', '.join(notes)}".rstrip())
    return "\n".join(lines)


def conclusion(bench: Bench, config: dict, rows: list[Row], world: int, words: list[str]) -> str:
    """Time of the whole run, as it is asked for and with other words, and those words."""
    asked, best = rows[0], fastest(rows)
    if best is None:
        return ""
    lines = []
    if world > 1:
        lines.append(
            f"note       one process of {world} was measured, alone; what they tell each other takes time besides, "
            "and on a CPU they share its cores"
        )
    if asked.speed:
        lines.append(f"the whole run: {whole(bench, config, asked, world)}")
    else:
        lines.append("the whole run: does not fit into memory as it is asked for")
    if len(precisions(bench.device)) == 1:
        lines.append("note       half precision is not tried: this device has no instructions for it")
    other = {key: value for key, value in best.strategy.items() if value != asked.strategy[key]}
    changed = [format_override(f"strategy.{key}", value) for key, value in other.items()]
    if changed:
        lines.append(f"with {' '.join(changed)}: {whole(bench, config, best, world)}")
    elif len(rows) > 1:
        lines.append("no other way is clearly faster here")
    keys = {word.partition("=")[0] for word in changed} | {"plan"}
    kept = [word for word in words if word.partition("=")[0] not in keys]
    lines += ["", f"train with: {shlex.join(['python', '-m', 'diffusion_lit.train', *kept, *changed])}"]
    return "\n".join(lines)


def whole(bench: Bench, config: dict, row: Row, world: int) -> str:
    """Time in all, and of what: training, and what comes every so many steps or at the end."""
    spans = spans_of(bench, config, row, world)
    told = ", ".join(f"{what} {format_duration(seconds)}" for what, seconds in spans.items() if seconds >= 0.5)
    return f"about {format_duration(sum(spans.values()))} ({told})"


def spans_of(bench: Bench, config: dict, row: Row, world: int) -> dict[str, float]:
    """Seconds by what they are for."""
    left, costs, sampler = steps_left(config), bench.costs, make_configured_sampler(config)

    def times(*names: str) -> int:
        every = [config[name] for name in names if config[name]]
        return sum(step == left[-1] or any(step % k == 0 for k in every) for step in left)

    def sampling(images: int) -> float:
        return -(-images // sampler.batch_size) * costs.sampled / world

    steps = len(sampler.build_scheduler(bench.table).timesteps)
    few = min(1, config["metrics_steps"] / steps)
    measuring = times("metrics_every") * sampling(config["metrics_images"]) * few if metrics_of(config) else 0
    judged = config["data"]["classifier_images"] if config["data"]["class_names"] else 0
    return {
        "training": row.compiling + len(left) * config["global_batch_size"] / (row.speed * world),
        "previews": times("sample_every") * costs.preview / world,
        "held-out losses": times("val_every", "checkpoint_every") * costs.held_out / world,
        "checkpoints": times("checkpoint_every") * costs.checkpoint,
        "metrics": measuring,
        "judging": sampling(judged),
    }


def number(value: float) -> str:
    """Two digits, the rest is noise of the machine: 1234 is 1,200 and 4.56 is 4.6."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
