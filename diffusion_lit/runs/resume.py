"""Going on with a run: its stored command line first, then the new words; refused where they describe another run."""

from pathlib import Path

from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import RunLock, read_overrides, read_run_config, require_writable
from diffusion_lit.system.errors import Exit, UserError

# What may differ between a run and its continuation; everything else makes it another run.
CHANGEABLE = {
    "run_dir", "resume", "accept", "max_steps", "max_epochs", "log_every", "val_every", "sample_every",
    "checkpoint_every", "metrics_every", "metrics", "keep_checkpoints", "max_skipped_steps", "guidance_scale",
    "guidance_interval", "guidance_rescale", "logger", "sampler", "name",
    "strategy.name", "strategy.accelerator", "strategy.devices", "strategy.num_nodes", "strategy.accumulate",
    "strategy.compile", "data.root", "data.cache_dir", "data.judge_images", "data.render", "metric", "plan",
    "callbacks", "trainer.fast_dev_run", "trainer.limit_val_batches", "trainer.max_time", "trainer.deterministic",
    "trainer.benchmark", "trainer.detect_anomaly", "trainer.profiler",
}  # fmt: skip


def merge_resume_overrides(run: Path, overrides: list[str]) -> list[str]:
    """The run's stored overrides, the new ones over them, and the run folder itself to go on in.

    A new choice in a group drops what was said of the old choice (`sampler=dpmpp_2m` drops `sampler.eta=0.5`), a new
    length in steps the one in epochs and the other way round.
    """
    new = {_key(word): word for word in overrides if _key(word) != "resume"}
    old = {_key(word): word for word in read_overrides(run) if _key(word) not in ("resume", "run_dir", "accept")}
    changed = {key for key in new if new[key] != old.get(key)}
    changed |= {"max_epochs"} if "max_steps" in new else set()
    changed |= {"max_steps"} if read_override("max_epochs", overrides) is not None else set()
    kept = [word for key, word in old.items() if key not in new and key.split(".")[0] not in changed]
    return [*kept, *new.values(), format_override("resume", run), format_override("run_dir", run)]


def check_continuation(run: Path, config: dict) -> None:
    """Refuse to go on with another configuration than the run's, or in a folder that another process works in.

    Raises:
        UserError: exit 4 with the keys that differ, or if every checkpoint is broken; exit 5 if the run is in use or
            cannot be written to.
    """
    require_writable(run)
    RunLock(run).release()
    if checkpoints.list_steps(run):
        checkpoints.select_checkpoint(run, warn=lambda message: None)
    before, now = flatten_config(read_run_config(run)), flatten_config(config)
    free = {key for key in before | now if any(key == word or key.startswith(f"{word}.") for word in CHANGEABLE)}
    differing = sorted(key for key in (before | now).keys() - free if before.get(key) != now.get(key))
    if differing and "config" not in config["accept"]:
        lines = [f"{key}: {before.get(key)} in the run, {now.get(key)} now" for key in differing[:5]]
        more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            Exit.CHECKPOINT,
            f"{run} was trained with another configuration:\n  " + "\n  ".join(lines) + more + "\n"
            "leave these as they were, start a new run without resume=, or add accept=[config] to go on all the same",
        )


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def flatten_config(config: dict, prefix: str = "") -> dict:
    """The values of a tree by their dotted keys."""
    values = {}
    for key, value in config.items():
        values |= flatten_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values
