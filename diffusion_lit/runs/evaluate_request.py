"""Check a request of `evaluate` against the run, without torch. The keys are those of `conf/evaluate.yaml`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from diffusion_lit.config.compose import build_source
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.value_types import format_value
from diffusion_lit.runs import output, run_dir, stored_config, sweeps
from diffusion_lit.runs.sample_request import check_sampling, insert_stored_sampler
from diffusion_lit.system.errors import CheckpointError, ConfigError, raise_faults

SAMPLE_KEYS = (  # not of evaluate
    "classes", "context", "images_per_class", "per_class", "interpolate", "init", "mask", "palette", "format",
    "prompt", "negative_prompt",
)  # fmt: skip
DATA_DEFAULTS = {"flip": 0.0, "val_fraction": 0.05, "random_crop": 0, "cache_dir": None}  # lacked by a published model


def prepare_evaluate_overrides(overrides: list[str], config_dir: str | None) -> list[str]:
    """Return the overrides, preceded by the run's stored sampler; `run=<sweep>` becomes a sweep over its finished runs.

    Raises:
        UserError: exit 4 if none has finished; exit 2 if their samplers differ.
    """
    run = read_override("run", overrides)
    sweep = Path(run).expanduser() if isinstance(run, str) else None
    jobs = [job for job in sweeps.list_jobs(sweep) if job.folder.name.isdigit()] if sweep else []
    if not jobs or run_dir.is_run_dir(sweep):
        return insert_stored_sampler(overrides, config_dir)
    runs = [format_override("run", job.folder) for job in jobs if job.status == "finished"]
    if not runs:
        raise CheckpointError(f"run={run}: no run of this sweep has finished")
    if read_override("set_default", overrides):
        raise ConfigError("set_default: one run at a time")
    rest = [override for override in overrides if not override.startswith("run=")]
    samplers = {tuple(insert_stored_sampler([*rest, one], config_dir)[:-1]): one for one in runs}
    if len(samplers) > 1:
        differing = " and ".join(list(samplers.values())[:2])
        raise ConfigError(f"{differing} have different samplers: choose one for all, such as sampler=ddim")
    out = sweep / "evaluations" / f"sweep-{output.make_timestamp()}"
    every = "run=" + ",".join(one.partition("=")[2] for one in runs)
    return ["hydra.mode=MULTIRUN", format_override("hydra.sweep.dir", out), *next(iter(samplers)), every]


def check_evaluation(config: DictConfig) -> None:
    """Raise UserError (exit 2) if the run cannot be evaluated as requested."""
    check_sampling(OmegaConf.merge(dict.fromkeys(SAMPLE_KEYS), config))
    run_config = stored_config.read_model_config(Path(config.run).expanduser())
    data, faults = make_reference_config(config, run_config), []
    if config.features == "inception" and not find_spec("torch_fidelity"):
        faults.append('features=inception needs torch-fidelity: pip install "diffusion_lit[inception]"')
    has_prompts = bool(run_config.get("text_encoder"))
    if config.features == "classifier" and not data["class_names"]:
        faults.append("features=classifier: the run has no classes. Choose features=pixels or inception (a download)")
    if has_prompts and not has_reference_images(config, data):
        faults.append(
            "reference_data=null: the prompts are captions of real images. Add reference_data=<a folder of them>"
        )
    faults += find_baseline_faults(config)
    if config.reference_statistics is not None:
        faults += find_statistics_faults(config)
    elif config.save_statistics:
        faults += find_save_faults(config)
    if config.reference_statistics is not None and not has_reference_images(config, data):
        pass  # no image is read
    elif "_target_" not in data:
        fault = "a published model does not say where its training images are"
        faults.append(f"{fault}: add reference_data=<a folder, .npy, .npz, .csv, .tsv or .parquet>")
    elif config.reference_data is None and data.get("streaming") == "every_epoch":
        fault = "data.streaming=every_epoch keeps no training images"
        faults.append(f"{fault}: add reference_data=<a folder, .npy, .npz, .csv or .tsv> with enough of them")
    else:
        source = build_source({key: value for key, value in data.items() if key != "class_names"})
        if sorted(source.class_names) != sorted(data["class_names"]):
            found, expected = format_value(list(source.class_names)), format_value(list(data["class_names"]))
            where = f"reference_data={config.reference_data}" if config.reference_data else "the images of the run"
            faults.append(f"{where}: their classes are {found}, the model's are {expected}")
        if config.reference_split == "val" and "val" not in source.splits() and not data["val_fraction"]:
            faults.append("reference_split=val: the run has no validation split")
    raise_faults("the run cannot be evaluated with these settings:", faults)


def make_reference_config(config: DictConfig, run_config: dict) -> dict:
    """Return the `data` group of the run, or that of `reference_data`, decoded alike, for prompts with captions."""
    data = run_config["data"]
    if config.reference_data is None:
        return data
    source = {"sources": [config.reference_data], "labels": "auto" if data["class_names"] else "none", "exclude": None}
    source |= {"value_range": data.get("value_range") or "auto", "captions": "none"}
    if run_config.get("text_encoder"):
        source["captions"] = data.get("captions") or "auto"  # a table has a column instead
    return DATA_DEFAULTS | data | {"_target_": "diffusion_lit.data.sources.concat.Concat"} | source


def has_reference_images(config: DictConfig, data: dict) -> bool:
    """Return whether there are real images: those of `reference_data`, or those that the run keeps."""
    return config.reference_data is not None or ("_target_" in data and data.get("streaming") != "every_epoch")


def find_statistics_faults(config: DictConfig) -> list[str]:
    """Return what is wrong with a request that compares with statistics instead of images."""
    where, faults = f"reference_statistics={config.reference_statistics}", []
    if not Path(config.reference_statistics).expanduser().is_file():
        faults.append(f"{where}: no such file. Write one with save_statistics=")
    if config.reference_split != "train" or config.reference_images is not None:
        faults.append(f"{where}: replaces the real images. Remove reference_split= and reference_images=")
    if config.save_statistics:
        faults.append(f"{where} and save_statistics={config.save_statistics}: choose one")
    return faults


def find_save_faults(config: DictConfig) -> list[str]:
    """Return why the file of `save_statistics` cannot be written."""
    where, path = f"save_statistics={config.save_statistics}", Path(config.save_statistics).expanduser()
    if not config.save_statistics.endswith(".npz"):
        return [f"{where}: must end in .npz"]
    is_possible = not path.is_dir() and next(parent for parent in path.absolute().parents if parent.exists()).is_dir()
    return [] if is_possible else [f"{where}: cannot be a file. Choose one in a folder"]


def find_baseline_faults(config: DictConfig) -> list[str]:
    """Return why an evaluation cannot be paired with `baseline`, as far as its result.json says."""
    if config.baseline is None:
        return []
    where, folder = f"baseline={config.baseline}", Path(config.baseline).expanduser()
    result = run_dir.read_result(folder)
    if not (folder / "influences.npz").is_file() or "settings" not in result:
        return [f"{where}: not an evaluation. Choose a folder that evaluate wrote, with result.json and influences.npz"]
    known = {"num_images": result.get("num_images"), "seed": result["settings"].get("seed")}
    return [
        f"{where} has {key}={format_value(value)}. Only equal ones are paired: add {format_override(key, value)}"
        for key, value in known.items()
        if value != config[key]
    ]


@contextmanager
def open_evaluation_folder(config: DictConfig) -> Iterator[Path]:
    """Yield the folder to write to; in a sweep that of the job, with `shards` one that processes share."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        if config.shards:
            raise ConfigError(f"shards={config.shards} and --multirun: one evaluation at a time")
        out = Path(job.runtime.output_dir)
        run_dir.append_command(out, list(job.overrides.task), "evaluate")
        yield out
        return
    run = Path(config.run).expanduser()
    if config.shards:
        yield Path(config.out).expanduser()
        return
    with output.fill_folder(output.choose_folder(config.out, run, "evaluations"), "result.json") as folder:
        yield folder
