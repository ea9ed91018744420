"""Equal time: FD-64 and KID of images by four programs that train for as long on the same images, each tuned by trials.

BENCHMARKS.md registers sets, budgets and metric. Every finished part stays in --out, and the same command continues.
"""

import json
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.bakeoff_programs import PROGRAMS, TRIALS, Training
from benchmarks.measure import MissingRequirement, compose_config, print_table, require_packages
from benchmarks.peers import FIRST, time_steps
from diffusion_lit.data.store import load_splits
from diffusion_lit.evaluation.comparison import (
    INDISTINGUISHABLE,
    Difference,
    Evaluation,
    compare,
    load_evaluation,
    save_measurements,
)
from diffusion_lit.evaluation.distances import IMAGES_PER_FEATURE
from diffusion_lit.evaluation.features import collect_real_images
from diffusion_lit.evaluation.image_metrics import COMPONENTS
from diffusion_lit.evaluation.image_sets import Reference, make_reference
from diffusion_lit.evaluation.metrics import Comparison, compute_metric
from diffusion_lit.system.files import write_atomically

TIMED = 20  # last step of a timing
TRIAL_IMAGES, FEATURES = 1_000, "efficientnet_lite0"
TOLERANCE = 0.1  # of the number of parameters
OURS, METRICS, SHARES = "diffusion_lit", ("fd64", "kid"), {"full": 1, "third": 1 / 3}  # shares of the time
AIM = {"better": "met", "worse": "missed", INDISTINGUISHABLE: "open"}


def load_or_measure(file: Path, measure: Callable[[], object]):
    """Return what a finished part wrote, or measure it now."""
    if not file.exists():
        result = measure()
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as unfinished:
            unfinished.write_text(json.dumps(result), encoding="utf-8")
    return json.loads(file.read_bytes())


def check_parameters(counts: dict[str, int]) -> None:
    ours = next(iter(counts.values()))
    if others := [name for name, count in counts.items() if abs(count - ours) > TOLERANCE * ours]:
        sys.exit(f"{', '.join(others)}: parameters differ by more than {TOLERANCE:.0%} from {ours:,}")


class Contest:
    """The parts of the contest in the folder `out`, each of which is measured once.

    Args:
        programs: adapters by name.
        data: where the training images are.
        out: folder of the results.
        minutes: of training, which a quiet timing turns into steps.
        count: images of a training that is no trial.
    """

    def __init__(self, programs: dict, data: str, out: Path, minutes: float, count: int):
        self.programs, self.data, self.out, self.minutes, self.count = programs, data, out, minutes, count
        settings = {"data": data, "minutes": minutes, "images": count, "threads": torch.get_num_threads()}
        if (stored := load_or_measure(out / "settings.json", lambda: settings)) != settings:
            sys.exit(f"--out {out} has results of {stored}, not of {settings}. Choose another folder")

    def time_step(self, name: str, k: int) -> float:
        """Return seconds of a step of a program with the settings of its trial k."""

        def measure() -> float:
            report(f"{name}: the time of a step of {TRIALS[name][k]}")
            shutil.rmtree(folder := self.out / name / f"timing-{k}", ignore_errors=True)
            folder.mkdir(parents=True)
            command = self.programs[name].command(Training(folder, TRIALS[name][k], 0, TIMED + 1))
            times = time_steps(TIMED, *command)
            shutil.rmtree(folder)
            return (times[TIMED] - times[FIRST]) / (TIMED - FIRST)

        return load_or_measure(self.out / name / f"timing-{k}.json", measure)

    @cached_property
    def reference(self) -> Reference:
        config, source = compose_config(*self.programs[OURS].overrides)
        real = collect_real_images(*load_splits(source, config["data"]), config["data"], torch.device("cpu"))
        return make_reference(real, FEATURES, [])

    def measure(self, name: str, part: str, k: int, share: float, seed: int) -> dict:
        """Train a share of the time with trial k, draw images and measure them; return result.json of the part."""
        steps = max(2, int(share * 60 * self.minutes / self.time_step(name, k)))
        training = Training(self.out / name / part, TRIALS[name][k], seed, steps)
        seconds = load_or_measure(training.folder / "training.json", lambda: self.train(name, training))
        return load_or_measure(training.folder / "result.json", lambda: self.evaluate(name, part, training, seconds))

    def train(self, name: str, training: Training) -> float:
        """Return seconds from the first step to the last; the weights stay in the folder."""
        report(f"{training.folder}: {training.steps} steps of {training.trial}")
        shutil.rmtree(training.folder, ignore_errors=True)
        training.folder.mkdir(parents=True)
        program = self.programs[name]
        last, then = training.steps + program.extra_steps, "stop" if program.extra_steps else "go on"
        times = time_steps(last, *program.command(training), then=then)
        return times[training.steps] - times[1]

    def evaluate(self, name: str, part: str, training: Training, seconds: float) -> dict:
        is_trial = part.startswith("trial")
        if not (file := training.folder / "images.npy").exists():
            unfinished = training.folder / "unfinished.npy"
            report(f"{training.folder}: images")
            self.programs[name].sample(training, unfinished, min(TRIAL_IMAGES, self.count) if is_trial else self.count)
            unfinished.rename(file)
        images = torch.from_numpy(np.load(file)).permute(0, 3, 1, 2)
        comparison = Comparison(self.reference, images, [0] * len(images), compare_real=False)
        result = {"run": f"{name} {part}", "steps": training.steps, "seconds": seconds}
        for metric in METRICS[:1] if is_trial else METRICS:
            result |= compute_metric(metric, comparison)
        features = {"name": FEATURES, "digest": self.reference.extractor.digest}
        settings = {"seed": training.seed, "reference": self.data, "features": features}
        save_measurements(training.folder, comparison, result | {"settings": settings})
        return result

    def tune(self, trials: int) -> Iterator[list[object]]:
        """Yield a row for each trial of half of the time."""
        for name, k in ((name, k) for k in range(trials) for name in self.programs):
            result = self.measure(name, f"trial-{k}", k, 0.5, seed=0)
            yield [name, *describe(name, k, result, METRICS[:1])]

    def best_trial(self, name: str, trials: int) -> int:
        """Return the trial of the lowest FD-64."""
        return min(range(trials), key=lambda k: self.measure(name, f"trial-{k}", k, 0.5, seed=0)["fd64"])

    def compete(self, trials: int, seeds: int) -> Iterator[list[object]]:
        """Yield a row for each program and seed; those of a seed one after the other."""
        for seed in range(1, seeds + 1):
            for name, share in [(OURS, "third"), *((name, "full") for name in self.programs)]:
                k = self.best_trial(name, trials)
                result = self.measure(name, f"{share}-{k}-seed-{seed}", k, SHARES[share], seed)
                yield [f"{name}, {share}", seed, *describe(name, k, result, METRICS)]

    def subtract(self, share: str, rival: str, trials: int, seeds: int) -> dict[str, Difference]:
        """Return each metric of ours after a share of the time less that of a rival after all of it, over the seeds."""

        def load(name: str, share: str, metric: str) -> list[Evaluation]:
            k = self.best_trial(name, trials)
            folders = [self.out / name / f"{share}-{k}-seed-{seed}" for seed in range(1, seeds + 1)]
            return [load_evaluation(folder, metric) for folder in folders]

        return {metric: compare(load(OURS, share, metric), load(rival, "full", metric)) for metric in METRICS}

    def subtract_all(self, trials: int, seeds: int) -> Iterator[list[object]]:
        for share in SHARES:
            for rival in [name for name in self.programs if name != OURS]:
                differences = self.subtract(share, rival, trials, seeds).values()
                cells = [f"{format_values(d.estimate)}, {d.verdict(higher_is_better=False)}" for d in differences]
                yield [f"{OURS}, {share}, less {rival}", *cells]


def find_best_rival(contest: Contest, trials: int, seeds: int) -> str:
    """Return the program other than ours with the lowest mean FD-64 over the seeds."""
    rivals = [name for name in contest.programs if name != OURS]
    differences = {name: contest.subtract("full", name, trials, seeds)["fd64"] for name in rivals}
    return max(rivals, key=lambda name: differences[name].estimate.value)  # ours less theirs


def judge_aim(contest: Contest, trials: int, seeds: int) -> str:
    rival = find_best_rival(contest, trials, seeds)
    verdict = contest.subtract("third", rival, trials, seeds)["fd64"].verdict(higher_is_better=False)
    return f"The aim, a third of the time of {rival}, is {AIM[verdict]}."


def report(line: str) -> None:
    """Print progress, which is no part of the tables."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def describe(name: str, k: int, result: dict, metrics: Sequence[str]) -> list[object]:
    """Return trial, steps, seconds and metrics of a training."""
    values = [tuple(result[key] for key in (metric, f"{metric}_low", f"{metric}_high")) for metric in metrics]
    return [f"`{TRIALS[name][k]}`", result["steps"], f"{result['seconds']:.0f} s", *map(format_values, values)]


def format_values(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def main(arguments: Namespace) -> None:
    require_packages("efficientnet_lite_pytorch")
    if not (arguments.data and arguments.out):
        raise MissingRequirement("add --data <folder of CIFAR-10's training images> and --out <folder>")
    if arguments.images < IMAGES_PER_FEATURE * COMPONENTS:
        raise MissingRequirement(f"--images {arguments.images}: FD-64 needs {IMAGES_PER_FEATURE * COMPONENTS} or more")
    images, minutes, trials, seeds = arguments.data[0], arguments.minutes or 10, arguments.trials, arguments.seeds
    programs = {name: program(Path(images).resolve(), arguments) for name, program in PROGRAMS.items()}
    contest = Contest(programs, images, arguments.out, minutes, arguments.images)
    if minutes < 10 or trials < 6 or seeds < 3 or arguments.images < 5_000:
        print("a rehearsal: less than BENCHMARKS.md registers, so its numbers mean nothing\n", flush=True)
    counts = {name: program.count_parameters() for name, program in programs.items()}
    print_table(["", "parameters"], [[name, f"{count:,}"] for name, count in counts.items()])
    check_parameters(counts)
    print(f"\nTrials of {minutes / 2:g} minutes, seed 0:\n", flush=True)
    print_table(["", "trial", "steps", "training", "FD-64"], contest.tune(trials))
    print(f"\nThe best trial of each for {minutes:g} minutes, and of {OURS} for a third of them:\n", flush=True)
    header = ["", "seed", "trial", "steps", "training", "FD-64", "KID"]
    print_table(header, contest.compete(trials, seeds))
    print(f"\nPaired differences over the seeds; below 0 {OURS} is better:\n", flush=True)
    print_table(["", "FD-64", "KID"], contest.subtract_all(trials, seeds))
    print(f"\n{judge_aim(contest, trials, seeds)}", flush=True)
