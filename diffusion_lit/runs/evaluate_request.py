"""What `evaluate` is to measure, by keys of `conf/evaluate.yaml`, checked without torch."""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import build_source
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.schema import format_value
from diffusion_lit.runs import run_dir, stored_config, sweeps
from diffusion_lit.runs.sample_request import check_sampling, insert_stored_sampler, raise_faults
from diffusion_lit.system.errors import Exit, UserError

ONLY_OF_SAMPLE = dict.fromkeys(
    ("classes", "context", "images_per_class", "per_class", "interpolate", "init", "mask")
)  # keys that `check_sampling` reads besides
NOT_CACHED = {"flip": 0.0, "val_fraction": 0.05, "random_crop": 0, "cache_dir": None}


def expand_runs(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides with the run's sampler; `run=<sweep>` becomes a sweep over its finished runs.

    Raises:
        UserError: exit 4 if none has finished; exit 2 if their samplers differ.
    """
    run = read_override("run", overrides)
    sweep = Path(run).expanduser() if isinstance(run, str) else None
    if not sweep or run_dir.is_run_dir(sweep) or not (jobs := sweeps.list_jobs(sweep)):
        return insert_stored_sampler(overrides, config_dir)
    runs = [format_override("run", job.folder) for job in jobs if job.status == "finished"]
    if not runs:
        raise UserError(Exit.CHECKPOINT, f"run={run}: no run of this sweep has finished")
    if read_override("set_default", overrides):
        raise UserError(Exit.CONFIG, "set_default: one run at a time")
    rest = [word for word in overrides if not word.startswith("run=")]
    samplers = {tuple(insert_stored_sampler([*rest, word], config_dir)[:-1]): word for word in runs}
    if len(samplers) > 1:
        differing = " and ".join(list(samplers.values())[:2])
        raise UserError(Exit.CONFIG, f"{differing} have other samplers: name one for all, such as sampler=ddim")
    out = sweep / "evaluations" / f"sweep-{run_dir.make_timestamp()}"
    every = "run=" + ",".join(word.partition("=")[2] for word in runs)
    return ["hydra.mode=MULTIRUN", format_override("hydra.sweep.dir", out), *next(iter(samplers)), every]


def check_evaluation(config: DictConfig) -> None:
    """Raise UserError (exit 2) if the run cannot be measured by the keys of `conf/evaluate.yaml`."""
    check_sampling(OmegaConf.merge(ONLY_OF_SAMPLE, config))
    run_config = stored_config.read_model_config(Path(config.run).expanduser())
    data, faults = reference_data_config(config, run_config["data"]), []
    if config.features == "inception" and not find_spec("torch_fidelity"):
        faults.append('features=inception needs torch-fidelity: pip install "diffusion_lit[inception]"')
    if config.features == "classifier" and not data["class_names"]:
        faults.append("features=classifier: this run has no classes; take features=pixels, or inception (a download)")
    if config.num_images < 20:
        faults.append(f"num_images={config.num_images}: no distance can be measured, take 20 or more")
    if "_target_" not in data:
        why = "a published model does not say where its training pictures are"
        faults.append(f"{why}: add pictures=<a folder, .npy, .npz, .csv, .tsv or .parquet>")
    elif config.pictures is None and data.get("streaming") == "every_epoch":
        why = "data.streaming=every_epoch keeps no training pictures"
        faults.append(f"{why}: add pictures=<a folder, .npy, .npz, .csv or .tsv> with enough of them")
    else:
        source = build_source(data)
        if list(source.class_names) != data["class_names"]:
            names = format_value(list(source.class_names))
            faults.append(f"pictures={config.pictures}: its classes are {names}, not the model's")
        if config.reference == "val" and "val" not in source.splits() and not data["val_fraction"]:
            faults.append("reference=val: this run holds nothing out")
    raise_faults(faults, "measured")


def reference_data_config(config: DictConfig, data: dict) -> dict:
    """Return the `data` group of the run, or that of `pictures`, decoded as the run's were."""
    if config.pictures is None:
        return data
    source = {"sources": [config.pictures], "labels": "auto" if data["class_names"] else "none"}
    return NOT_CACHED | data | {"_target_": "diffusion_lit.data.sources.concat.Concat"} | source


def make_evaluation_dir(config: DictConfig) -> Path:
    """Return a new folder; in a sweep that of the job."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        if config.shards:
            raise UserError(Exit.CONFIG, f"shards={config.shards} and --multirun: one evaluation at a time")
        out = Path(job.runtime.output_dir)
        run_dir.append_command(out, list(job.overrides.task), "evaluate")
        return out
    run = Path(config.run).expanduser()
    return Path(config.out).expanduser() if config.shards else run_dir.make_output_dir(config.out, run, "evaluations")
