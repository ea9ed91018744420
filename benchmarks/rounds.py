"""Time to quality: what in the recipe of `train data=image_folder` gives better images after equal time on one machine.

Each candidate changes one thing and is trained with three learning rates, for as many steps as fit into --minutes. The
time of a step is measured first, on an idle machine. Quality depends on the number of steps alone, so the trainings may
share the machine. Every finished part stays in --out, and the same command continues.
"""

import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bakeoff import TIMED, format_values, load_or_measure, report
from benchmarks.measure import MissingRequirement, print_table, run_command
from benchmarks.peers import FIRST, time_steps
from diffusion_lit.config.overrides import format_override
from diffusion_lit.evaluation.comparison import compare, load_evaluation
from diffusion_lit.runs.run_dir import is_run_dir, read_result

DEFAULT = "default"
CANDIDATES = {
    DEFAULT: (),
    "predict x0": ("diffusion.prediction_type=sample", "weighting=uniform"),
    "flow": ("diffusion=flow",),
    "flow, predict x0": ("diffusion=flow", "diffusion.prediction_type=sample", "weighting=velocity"),
    "pixel unshuffle": ("model=unshuffled",),
    "Muon": ("optimizer=muon",),
}
MINUTES, RATES = 5, (0.0005, 0.0015, 0.0045)
PARTS = (
    "--config-dir",
    str(Path(__file__).parent / "candidates" / "conf"),
)  # config groups of the classes in benchmarks/candidates
SAMPLER = ("sampler=dpmpp_2m", "sampler.steps=20", "precision=auto")  # for every process
SHORT = ("experiment=none", "val_every=0", "sample_every=0", "logger=none")
IMAGES, METRICS = 1_000, ("kid", "fd64")


class Round:
    """The parts of a round in the folder `out`, each of which is measured once.

    Args:
        data: overrides of the training images.
        out: folder of the results.
        minutes: of training; the measured time of a step turns them into steps.
    """

    def __init__(self, data: str, out: Path, minutes: float):
        self.data, self.out, self.minutes = shlex.split(data), out, minutes
        settings = {"data": data, "minutes": minutes}
        if (stored := load_or_measure(out / "settings.json", lambda: settings)) != settings:
            sys.exit(f"--out {out} has results of {stored}, not of {settings}. Choose another folder")

    def overrides(self, name: str, rate: float) -> list[str]:
        return [*self.data, *SHORT, *CANDIDATES[name], f"optimizer.lr={rate}"]

    def time_step(self, name: str) -> float:
        """Return seconds of a step of a candidate."""

        def measure() -> float:
            report(f"{name}: the time of a step")
            with tempfile.TemporaryDirectory() as home:
                length = [f"max_steps={TIMED + 1}", f"run_dir={home}/run"]
                words = [*PARTS, *self.overrides(name, RATES[0]), *length]
                times = time_steps(TIMED, "module", "diffusion_lit.train", *words)
            return (times[TIMED] - times[FIRST]) / (TIMED - FIRST)

        return load_or_measure(self.out / "timings" / f"{name}.json", measure)

    def steps(self, name: str) -> int:
        return max(2, int(60 * self.minutes / self.time_step(name)))

    def measure(self, name: str, rate: float, weights: str = "ema") -> Path:
        """Train a candidate and measure its images; return the folder of the evaluation."""
        run = self.out / f"{name} {rate}"
        if read_result(run).get("status") != "finished":
            report(f"{name}, rate {rate}: {self.steps(name)} steps")
            place = format_override("resume" if is_run_dir(run) else "run_dir", run)  # a killed training continues
            run_command("train", *PARTS, *self.overrides(name, rate), f"max_steps={self.steps(name)}", place)
        folder = self.out / f"{name} {rate} {weights}"
        if not (folder / "result.json").exists():
            settings = [f"num_images={IMAGES}", f"weights={weights}", f"metrics=[{','.join(METRICS)},class_accuracy]"]
            run_command("evaluate", *PARTS, f'run="{run}"', f'out="{folder}"', *settings, *SAMPLER)
        return folder

    def fd64(self, name: str, rate: float) -> float:
        return read_result(self.measure(name, rate))["fd64"]

    def best_rate(self, name: str) -> float:
        """Return the learning rate of the lowest FD-64."""
        return min(RATES, key=lambda rate: self.fd64(name, rate))

    def time_all(self) -> Iterator[list[object]]:
        for name, overrides in CANDIDATES.items():
            yield [name, f"`{' '.join(overrides)}`", f"{self.time_step(name):.2f} s", self.steps(name)]

    def measure_all(self) -> Iterator[list[object]]:
        for name, rate in ((name, rate) for rate in RATES for name in CANDIDATES):
            result = read_result(self.measure(name, rate))
            values = [format_values([result[key] for key in (m, f"{m}_low", f"{m}_high")]) for m in METRICS]
            yield [name, rate, *values, f"{result['class_accuracy']:.1%}"]

    def subtract_all(self) -> Iterator[list[object]]:
        """Yield the differences of each candidate from the default, both with their best rates."""
        rate = self.best_rate(DEFAULT)
        default = self.measure(DEFAULT, rate)
        others = {name: self.measure(name, self.best_rate(name)) for name in CANDIDATES if name != DEFAULT}
        for name, folder in {"raw weights": self.measure(DEFAULT, rate, "net"), **others}.items():
            differences = [compare([load_evaluation(folder, m)], [load_evaluation(default, m)]) for m in METRICS]
            cells = [f"{format_values(d.estimate)}, {d.verdict(higher_is_better=False)}" for d in differences]
            yield [name, *cells]


def main(arguments: Namespace) -> None:
    if not (arguments.data and arguments.out):
        raise MissingRequirement("add --data <overrides of a data set with classes> and --out <folder>")
    minutes = arguments.minutes or MINUTES
    found = Round(arguments.data[0], arguments.out, minutes)
    print("Steps in equal time:\n", flush=True)
    print_table(["", "overrides", "a step", "steps"], found.time_all())
    print(f"\nEach after {minutes:g} minutes:\n", flush=True)
    print_table(["", "learning rate", "KID", "FD-64", "class accuracy"], found.measure_all())
    print("\nDifferences from the default, each with its best rate; below 0 the candidate is better:\n", flush=True)
    print_table(["", "KID", "FD-64"], found.subtract_all())
