"""Resume a run: merge its stored overrides with new ones, and refuse a configuration that describes another run."""

import os
from pathlib import Path

from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.paths import PATH_KEYS, make_absolute
from diffusion_lit.runs import checkpoints, run_dir
from diffusion_lit.runs.run_dir import find_newest_run, read_overrides, read_run_config, require_writable
from diffusion_lit.runs.run_lock import RunLock
from diffusion_lit.system.errors import CheckpointError

# keys that a resumed run may change; any other change makes it another run
CHANGEABLE = {
    "run_dir", "resume", "accept", "max_steps", "max_epochs", "log_every", "val_every", "sample_every",
    "checkpoint_every", "metrics_every", "metrics", "keep_checkpoints", "max_skipped_steps", "guidance_scale",
    "guidance_interval", "guidance_rescale", "logger", "sampler", "name", "strategy.name", "strategy.accelerator",
    "strategy.devices", "strategy.num_nodes", "strategy.accumulate", "strategy.compile", "data.root", "data.exclude",
    "data.cache_dir", "data.classifier_images", "data.render", "metric", "plan", "callbacks", "trainer.fast_dev_run",
    "preview_prompts",
    *[f"text_encoder.{key}" for key in ("fitted", "words", "rare_words", "commit", "digest", "width")],
    "trainer.limit_val_batches", "trainer.max_time", "trainer.deterministic", "trainer.benchmark",
    "trainer.detect_anomaly", "trainer.profiler",
}  # fmt: skip


def require_newest_run(folder: Path, command: str) -> Path:
    """Return the newest run below a folder.

    Raises:
        UserError: exit 4 with the command that makes one.
    """
    if run := find_newest_run(folder):
        return run
    raise CheckpointError(f"{folder}: there are no runs in it yet. Make one first: {command}")


def merge_resume_overrides(run: Path, overrides: list[str]) -> list[str]:
    """Return the overrides that continue a run: its merged ones, and its folder as `resume` and `run_dir`."""
    return [*merge_overrides(run, overrides), *[format_override(key, run) for key in ("resume", "run_dir")]]


def merge_overrides(run: Path, overrides: list[str]) -> list[str]:
    """Return the stored overrides of a run with the new ones.

    A new choice of a group drops the stored keys of the group (`sampler=dpmpp_2m`
    drops `sampler.eta=0.5`), and a new length in steps one in epochs and the other
    way round. An interpolation keeps the value that it had when the run started.
    """
    new = {_key(override): override for override in overrides if _key(override) != "resume"}
    stored = _locate_paths(run, {_key(override): override for override in read_overrides(run)}, new)
    changed = {key for key in new if new[key] != stored.get(key)} | {"resume", "run_dir", "accept"}
    changed |= {"max_epochs"} if "max_steps" in new else set()
    changed |= {"max_steps"} if read_override("max_epochs", overrides) is not None else set()
    kept = {key: old for key, old in stored.items() if key not in new and key.split(".")[0] not in changed}
    if interpolated := [key for key, old in kept.items() if "${" in old]:
        values = flatten_config(read_run_config(run))
        kept |= {key: format_override(kept[key].partition("=")[0], values.get(key)) for key in interpolated}
    return [*kept.values(), *new.values()]


def _locate_paths(run: Path, stored: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """Return stored overrides with the paths of the data where they are now, unless `new` chooses other data."""
    if "data" in new or "data" not in run_dir.read_yaml(run / "config.yaml"):
        return stored
    moved = {}
    for key, value in flatten_config(read_run_config(run)["data"]).items():
        name, texts = key.rpartition(".")[2], value if isinstance(value, list) else [value]
        if name in PATH_KEYS and any(os.path.isabs(str(text)) for text in texts):
            typed = make_absolute({name: read_override(f"data.{key}", [*stored.values()])})
            moved |= {} if typed[name] == value else {f"data.{key}": format_override(f"data.{key}", value)}
    return stored | moved


def check_continuation(run: Path, config: dict) -> None:
    """Check that a run can be resumed with a configuration.

    Raises:
        UserError: exit 4 with the keys that differ, or if every checkpoint is
            damaged; exit 5 if the run is in use or cannot be written to.
    """
    require_writable(run)
    RunLock(run).release()
    if checkpoints.list_steps(run):
        checkpoints.select_checkpoint(run, warn=lambda message: None)
    before, now = flatten_config(read_run_config(run)), flatten_config(config)
    fixed = {"max_steps", "max_epochs"} if config.get("distill") else set()  # which divide a run into stages
    changed = [key for key in before | now if before.get(key) != now.get(key)]
    differing = sorted(key for key in changed if key in fixed or not _is_changeable(key))
    if differing and "config" not in config["accept"]:
        lines = [f"{key}: {before.get(key)} in the run, {now.get(key)} now" for key in differing[:5]]
        lines += [f"and {len(differing) - 5} more"] if len(differing) > 5 else []
        raise CheckpointError(
            f"{run} was trained with another configuration:\n  " + "\n  ".join(lines) + "\n"
            "Restore these values, start a new run without resume=, or add accept=[config] to resume with the new ones"
        )


def read_vocabulary(config: dict, run: Path) -> dict:
    """Return the configuration of a run to resume, with the vocabulary that it started with."""
    if not config.get("text_encoder"):
        return config
    stored = read_run_config(run).get("text_encoder") or {}
    return config | {"text_encoder": stored | config["text_encoder"]}


def _is_changeable(key: str) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in CHANGEABLE)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def flatten_config(config: dict, prefix: str = "") -> dict:
    """Return the values of a nested configuration by dotted keys."""
    values = {}
    for key, value in config.items():
        values |= flatten_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values
