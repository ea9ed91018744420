"""`python -m benchmarks bakeoff`: trials, equal parameters, and finished parts that are not repeated.

The programs themselves are external; here two of them draw digits with noise instead.
"""

import json
from argparse import Namespace
from math import comb

import numpy as np
import pytest
from PIL import Image

from benchmarks import bakeoff, bakeoff_programs
from benchmarks.bakeoff_programs import PROGRAMS, TRIALS, parse_trial
from benchmarks.measure import MissingRequirement, compose_config, median_interval
from diffusion_lit.data.store import load_splits

STEP = 0.5  # seconds
TEXTS = ("objective", "precond", "mixed_precision_type")  # settings that are no numbers


class NoisyDigits:
    """A program that trains nothing and draws training digits with noise."""

    overrides = ("data=digits", "experiment=none")
    extra_steps = 0

    def __init__(self, levels: int):
        self.levels, self.sampled, self.fails = levels, 0, False

    def command(self, training):
        return (self,)

    def sample(self, training, file, count):
        if self.fails:
            raise KeyboardInterrupt
        self.sampled += 1
        config, source = compose_config(*self.overrides)
        images, random = load_splits(source, config["data"])[0].images[:count], np.random.default_rng(training.seed)
        noisy = images + random.normal(0, self.levels, images.shape)
        np.save(file, noisy.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


@pytest.fixture
def contest(tmp_path, monkeypatch):
    """A function that opens the contest of the folder again, with the number of trainings so far."""
    trained = []

    def time_steps(last, program, then="stop"):
        trained.append((program, last))
        return [STEP * k for k in range(last + 1)]

    monkeypatch.setattr(bakeoff, "time_steps", time_steps)
    monkeypatch.setattr(bakeoff, "FEATURES", "pixels")
    programs = {"diffusion_lit": NoisyDigits(10), "edm": NoisyDigits(80), "ddp": NoisyDigits(120)}

    def start(minutes=0.5):
        return bakeoff.Contest(programs, "digits", tmp_path, minutes, 400), programs, trained

    return start


def test_every_program_has_six_trials_that_can_be_read():
    assert list(TRIALS) == list(PROGRAMS)
    for trials in TRIALS.values():
        assert len(set(trials)) == 6
    for name in ("ddp", "edm"):
        for settings in map(parse_trial, TRIALS[name]):
            assert all(isinstance(value, float | bool) or key in TEXTS for key, value in settings.items())
    for trial in TRIALS["diffusion_lit"]:
        compose_config("data=digits", "experiment=none", *trial.split())


def test_values_of_a_trial_have_their_types():
    expected = {"lr": 0.001, "precond": "vp", "amp": True}
    assert parse_trial("lr=0.001 precond=vp amp=true") == expected


def test_more_than_a_tenth_more_or_fewer_parameters_are_refused():
    bakeoff.check_parameters({"diffusion_lit": 1000, "edm": 1100, "ddp": 900})
    for count in (1101, 899):
        with pytest.raises(SystemExit, match="edm: parameters differ by more than 10%"):
            bakeoff.check_parameters({"diffusion_lit": 1000, "edm": count})


def test_steps_fill_the_time_and_finished_parts_are_not_repeated(contest):
    first, programs, trained = contest()
    rows = [*first.tune(2), *first.compete(2, 2), *first.subtract_all(2, 2)]
    assert {last for _, last in trained} == {bakeoff.TIMED, 30, 60, 20}  # a trial, all of the time, a third of it
    assert len(trained) == 6 + 6 + 2 + 6  # timings, trials, thirds, full lengths
    before = len(trained), [program.sampled for program in programs.values()]
    again = contest()[0]
    assert [*again.tune(2), *again.compete(2, 2), *again.subtract_all(2, 2)] == rows
    assert (len(trained), [program.sampled for program in programs.values()]) == before
    [*again.compete(2, 3)]
    assert len(trained) == before[0] + 4  # only the third seed


def test_less_noise_is_better(contest):
    first = contest()[0]
    [*first.tune(1), *first.compete(1, 2)]
    for difference in first.subtract("third", "edm", 1, 2).values():
        assert difference.verdict(higher_is_better=False) == "better"
        assert difference.training is not None  # the interval is over seeds
    assert bakeoff.find_best_rival(first, 1, 2) == "edm"  # less noise than the other
    assert bakeoff.judge_aim(first, 1, 2).endswith("is met.")


def test_weights_outlast_a_stop_while_images_are_drawn(contest):
    first, programs, trained = contest()
    programs["edm"].fails = True
    with pytest.raises(KeyboardInterrupt):
        [*first.tune(1)]
    programs["edm"].fails, count = False, len(trained)
    assert len([*contest()[0].tune(1)]) == 3
    assert len(trained) == count + 2  # timing and training of the last program


def test_another_length_needs_another_folder(contest):
    contest()
    with pytest.raises(SystemExit, match="Choose another folder"):
        contest(minutes=1)


def test_arguments_of_the_script_end_with_the_budget(tmp_path, monkeypatch):
    """Epochs hold one step more than the budget, after which its last checkpoint is there."""
    images, script = tmp_path / "images", tmp_path / "train_unconditional.py"
    images.mkdir()
    script.touch()
    for k in range(130):
        Image.new("RGB", (32, 32)).save(images / f"{k}.png")
    monkeypatch.setattr(bakeoff_programs, "require_script", str)
    program = bakeoff_programs.Diffusers(images, Namespace(out=tmp_path, script=script))
    training = bakeoff_programs.Training(tmp_path, "--learning_rate 0.0003", 5, 9)
    kind, _, function, words = program.command(training)
    settings = json.loads(words)
    assert (kind, function, settings["seed"], settings["steps"]) == ("file", "run_script", 5, 9)
    arguments = settings["arguments"]
    pairs = dict(zip(arguments, arguments[1:], strict=False))
    assert int(pairs["--num_epochs"]) * 3 >= 10
    assert (pairs["--checkpointing_steps"], pairs["--learning_rate"]) == ("9", "0.0003")


def test_too_few_images_for_the_table_are_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(bakeoff, "require_packages", lambda name: None)
    with pytest.raises(MissingRequirement, match="--images 319: FD-64 needs 320 or more"):
        bakeoff.main(Namespace(data=["a"], out="b", images=319, minutes=1, trials=1, seeds=1))


def test_the_interval_of_a_median_covers_as_often_as_it_says():
    for n in range(1, 40):
        _, low, high = median_interval(range(n))
        inside = sum(comb(n, k) for k in range(low + 1, high + 1)) / 2**n  # k values lie below the median
        assert inside >= 0.95 if n >= 6 else inside == 1 - 2 / 2**n
