"""How well numbers that are cheap to measure rank runs: losses of validation, and KID and class accuracy of 100 images.

The target is KID or FD-64 of more images, of other seeds, against real images that training has not seen. Each number
has a Spearman correlation with the target over short runs of differing quality, whose 95 % interval is a bootstrap over
runs: a run is drawn with its checkpoints. Runs are kept in --out, where the same command continues.
"""

import csv
import json
import shlex
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from benchmarks.measure import compose_config, print_table
from diffusion_lit.data.store import load_splits
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation.features import collect_real_images
from diffusion_lit.evaluation.image_sets import Reference, make_reference
from diffusion_lit.evaluation.metrics import Comparison, compute_metric, labels_in_proportion
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.run_dir import read_result
from diffusion_lit.runs.sweeps import HIGHER_IS_BETTER
from diffusion_lit.training.launch_run import fit

DIGITS = "data=digits"
STEPS = (120, 240)  # checkpoints of each run
LOSSES = ("val/loss", "val/error", "val/bits_per_dim")
FEW, MANY = ("kid", "class_accuracy"), ("kid", "fd64")  # metrics of few images, and of the target
FEW_IMAGES, MANY_IMAGES, RESAMPLES = 100, 600, 2_000
RECIPE = (
    "experiment=none", "model=unet_digits", "optimizer.lr=0.003", "optimizer.betas=[0.9,0.99]",
    "lr_schedule.warmup_steps=30", "sampler.steps=10", f"max_steps={STEPS[-1]}", f"checkpoint_every={STEPS[0]}",
    "keep_checkpoints=99", f"log_every={STEPS[0]}", "val_every=0", "sample_every=0", "data.classifier_images=0",
)  # fmt: skip
SIZES = [
    (f"model.block_out_channels=[{width},{width}]", f"optimizer.lr={rate}")
    for width in (16, 32)
    for rate in (0.0003, 0.001, 0.003, 0.01)
]
DEFAULT = SIZES[6]  # v, min_snr
LOSS_SETTINGS = [
    (f"diffusion.prediction_type={prediction}", f"weighting={weighting}", "seed=0")
    for prediction, other in (("epsilon", "min_snr"), ("v_prediction", "x0"), ("sample", "snr"))
    for weighting in ("uniform", other)
]
PROCESSES = [("diffusion=flow", "seed=0"), ("diffusion=edm", "seed=0")]
GROUPS = {  # name: overrides of its runs, whether their first checkpoints count
    "one recipe: widths, learning rates, steps": (SIZES, True),
    "prediction types and weightings": (LOSS_SETTINGS + [DEFAULT], False),
    "these and processes": (LOSS_SETTINGS + PROCESSES + [DEFAULT], False),
    "all runs": (SIZES + LOSS_SETTINGS + PROCESSES, False),
}
Numbers = dict[str, float]  # of a checkpoint; those of the target begin with "target/"


def train(folder: Path, overrides: tuple[str, ...], steps: Sequence[int]) -> Iterator[tuple[TrainedModel, Numbers]]:
    """Train a run unless it is finished, and yield the model of each of its checkpoints with its losses."""
    if read_result(folder).get("status") != "finished":
        config, source = compose_config(*RECIPE, *overrides)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fit(config, source, folder, list(overrides))
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    for step in steps:
        yield TrainedModel.from_run(folder, str(step)), {name: float(rows[step][name]) for name in LOSSES}


def measure(model: TrainedModel, reference: Reference) -> Numbers:
    """Return the metrics of few images against the training split, and those of the target against the other one."""
    found = {}
    for seed, count, split, names, prefix in (
        (0, FEW_IMAGES, "train", FEW, ""),
        (1, MANY_IMAGES, "val", MANY, "target/"),
    ):
        labels = labels_in_proportion(reference.training.labels, count)
        images = model.generate(labels, image_seeds(seed, count))
        comparison = Comparison(reference, images, labels, split, compare_real=False)
        found |= {f"{prefix}{name}": compute_metric(name, comparison)[name] for name in names}
    return found


def measure_runs(data: str, out: Path) -> dict[tuple[str, ...], list[Numbers]]:
    """Return the numbers of the checkpoints of each run by its overrides; those of finished runs are read."""
    config, source = compose_config(*shlex.split(data), "experiment=none")
    real = collect_real_images(*load_splits(source, config["data"]), config["data"], torch.device("cpu"))
    reference = make_reference(real, "classifier", config["data"]["class_names"])
    found = {}
    for overrides in tqdm(GROUPS["all runs"][0], desc=data, unit="run"):
        folder = out / "_".join(override.partition("=")[2].strip("[]").replace(",", "-") for override in overrides)
        if not (file := folder / "numbers.json").exists():
            steps = STEPS if overrides in SIZES else STEPS[-1:]
            runs = train(folder, (*shlex.split(data), *overrides), steps)
            numbers = [losses | measure(model, reference) for model, losses in runs]
            file.write_text(json.dumps(numbers), encoding="utf-8")
        found[overrides] = json.loads(file.read_bytes())
    return found


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation over all axes but the first."""
    x, y = (rankdata(z.reshape(len(z), -1), axis=1) for z in (x, y))
    x, y = (z - z.mean(1, keepdims=True) for z in (x, y))
    with np.errstate(invalid="ignore"):  # a draw of one run only
        return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def format_correlation(x: np.ndarray, y: np.ndarray) -> str:
    """Return Spearman's correlation of (runs, checkpoints) with the percentile interval over runs (Efron 1979)."""
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.nanpercentile(rank_correlation(x[draws], y[draws]), (2.5, 97.5))
    return f"{rank_correlation(x[None], y[None])[0]:.2f} ({low:.2f} to {high:.2f})"


def compare_orders(measured: dict[tuple[str, ...], list[Numbers]], target: str) -> Iterator[list[object]]:
    for group, (settings, has_first) in GROUPS.items():
        runs = [measured[overrides] if has_first else measured[overrides][-1:] for overrides in settings]
        values = {name: np.array([[point[name] for point in run] for run in runs]) for name in (*LOSSES, *FEW, target)}
        signs = {name: -1 if name in HIGHER_IS_BETTER else 1 for name in (*LOSSES, *FEW)}
        cells = [format_correlation(sign * values[name], values[target]) for name, sign in signs.items()]
        yield [group, values[target].size, *cells]


def main(arguments: Namespace) -> None:
    for k, data in enumerate([DIGITS, *(arguments.data or [])]):
        measured = measure_runs(data, (arguments.out or Path("outputs/ranking")) / str(k))
        names = [*LOSSES, *(f"{name} of {FEW_IMAGES}" for name in FEW)]
        for target in MANY:
            print_table(
                [f"`{data}`, correlation with {target} of {MANY_IMAGES}", "n", *names],
                compare_orders(measured, f"target/{target}"),
            )
            print(flush=True)
