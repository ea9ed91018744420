"""plan=true says how long a run would take and leaves nothing behind; its numbers fit each other, its words work."""

import re
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.training import benchmark
from tests.runs import TINY, run, start

# the real thing, with so little time for each way that the numbers say nothing
QUICK = """
import diffusion_lit.training.benchmark as bench, diffusion_lit.training.plan as plan
bench.MIN_SECONDS, plan.MAX_SMALLER_BATCHES = 0.05, 1
"""
LENGTH = ["max_steps=40", "val_every=10", "sample_every=20", "checkpoint_every=10"]
UNITS = {"s": 1, "min": 60, "h": 3600, "days": 86400}


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def seconds(text: str) -> float:
    """'3 h 20 min' in seconds."""
    return sum(float(value) * UNITS[unit] for value, unit in re.findall(r"([\d.]+) (days|h|min|s)\b", text))


def proposed(printed: str) -> list[str]:
    """The words of the command line that a plan ends with."""
    (line,) = re.findall(r"^train with: (.*)$", printed, re.MULTILINE)
    return shlex.split(line)[3:]


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in re.findall(r"^ +\d+ +\d+ +(?:32-true|bf16-mixed).*$", printed, re.MULTILINE)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[str, Path]:
    """What a plan printed, and the folder it ran in."""
    here = tmp_path_factory.mktemp("plan")
    (here / "kept.txt").write_text("")
    words = ["--config-dir", ".", *TINY, *LENGTH, "name=a b", "plan=true"]
    return run("train", *words, cwd=here, prelude=QUICK), here


def test_nothing_is_left_behind(planned):
    assert tree(planned[1]) == ["kept.txt"]


def test_the_whole_is_the_sum_of_its_parts(planned):
    """But for what rounding takes from each, and parts of less than half a second, which are not told."""
    (whole, parts), *_ = re.findall(r"^run time   about (.*?) \((.*)\)$", planned[0], re.MULTILINE)
    assert seconds(whole) > 0
    assert seconds(whole) == pytest.approx(seconds(parts), abs=4 * 0.5 + 0.5)


def test_every_way_has_a_speed_and_the_global_batch_stays(planned):
    found = rows(planned[0])
    assert len(found) >= 3
    assert {int(row[0]) * int(row[1]) for row in found} == {12}
    assert all(float(row[5].replace(",", "")) > 0 for row in found)
    assert "as configured" in planned[0]


def test_the_words_it_ends_with_are_a_command_line_of_the_same_training(planned):
    option, folder, *words = proposed(planned[0])
    assert (option, folder) == ("--config-dir", ".")
    assert not [word for word in words if word.startswith("plan")]
    (before,) = compose_configs("train", expand_overrides([*TINY, *LENGTH, "name=a b"], None))
    (after,) = compose_configs("train", expand_overrides(words, None))
    for config in (before, after):
        OmegaConf.set_struct(config, False)
        del config["run_dir"], config["strategy"]
    assert after == before


FITS = """
import torch
from diffusion_lit.training.module import DiffusionModule
real_step = DiffusionModule.training_step
def step(self, batch, *rest):
    if len(batch["index"]) > {most}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return real_step(self, batch, *rest)
DiffusionModule.training_step = step
"""


def test_what_does_not_fit_is_a_row_and_what_fits_is_proposed(tmp_path):
    printed = run("train", *TINY, "plan=true", cwd=tmp_path, prelude=QUICK + FITS.format(most=6))
    assert re.search(r"^ +1 +12 +32-true .* - .*as configured, out of memory$", printed, re.MULTILINE)
    assert "run time   does not fit into memory as configured" in printed
    assert {"strategy.accumulate=2", "strategy.accumulate=4"} & set(proposed(printed))


@pytest.mark.parametrize(("wait", "which"), [(0, "network"), (2, "loader")])
def test_the_bottleneck(tmp_path, monkeypatch, wait, which):
    from diffusion_lit.data import batches
    from diffusion_lit.training import benchmark, build_run, plan

    real = batches.random_crops
    monkeypatch.setattr(batches, "random_crops", lambda *given: time.sleep(wait) or real(*given))
    monkeypatch.setattr(benchmark, "MIN_SECONDS", 0.05)
    config, source = resolve_training_config(compose_configs("train", TINY)[0])
    measuring = benchmark.TrainingBenchmark(config, build_run.load_data(config, source, tmp_path), tmp_path, tmp_path)
    measuring.device = torch.device("cpu")
    row = benchmark.Measurement(config["strategy"], micro_batch=12, measured_batch=12, speed=1.0, memory=1.0)
    assert f"the {which} is the bottleneck" in plan.describe_bottleneck(measuring, row, world=1)


def test_a_network_that_does_not_fit_at_all(tmp_path):
    printed = run("train", *TINY, "plan=true", cwd=tmp_path, prelude=FITS.format(most=0), code=75)
    assert "error: out of memory with 4 images at a time" in printed
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=-1"],
        ["global_batch_size=12", "strategy.accumulate=5"],
        ["init_from=nothing"],
        ["run_dir=taken"],
    ],
)
def test_what_a_run_would_end_with(tmp_path, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thing").write_text("")
    told = []
    for more in (["plan=true"], []):
        process = start("train", *words, *more, cwd=tmp_path)
        output = process.communicate(timeout=300)[0]
        told.append((process.returncode, output[output.index("error:") :]))
        assert tree(tmp_path) == ["taken", "taken/thing"] or not more
    assert told[0] == told[1]
    assert told[0][0] > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(tmp_path, number):
    scratch_here = "import os\nos.environ['TMPDIR'] = os.getcwd()\n"
    process = start("train", *TINY, "plan=true", cwd=tmp_path, prelude=scratch_here)
    while "network" not in process.so_far():
        assert process.poll() is None, process.so_far()
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, printed
    assert "Traceback" not in printed
    assert "nothing is left behind" in printed
    assert "saved" not in printed
    assert tree(tmp_path) == []


def test_one_run_in_one_process(tmp_path):
    printed = run("train", "--multirun", "seed=0,1", "plan=true", cwd=tmp_path, code=2)
    assert "plan=true measures one run in one process" in printed
    assert tree(tmp_path) == []


def test_what_is_left_of_a_run_that_goes_on(tmp_path):
    run("train", *TINY, "max_steps=2", "sample_every=0", "run_dir=r", cwd=tmp_path)
    before = tree(tmp_path)
    assert "run already complete" in run("train", "resume=r", "plan=true", cwd=tmp_path, prelude=QUICK)
    printed = run("train", "resume=r", "max_steps=60", "plan=true", cwd=tmp_path, prelude=QUICK)
    words = proposed(printed)
    assert "resume=r" in words
    assert not [word for word in words if word.startswith(("strategy.precision", "strategy.channels_last"))]
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("compiles", "steps", "rate"), [(True, 32, 10), (False, 1, 1 / 30)])
def test_the_time_of_compiling_is_not_taken_for_that_of_a_step(monkeypatch, compiles, steps, rate):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    trainer, module = SimpleNamespace(global_step=0, should_stop=False), SimpleNamespace(device=torch.device("cpu"))
    watch = benchmark.Stopwatch(2.0, compiles=compiles)
    watch.on_train_start(trainer, module)
    while not trainer.should_stop:
        clock[0] += 0.1 if trainer.global_step else 30
        trainer.global_step += 1
        watch.on_train_batch_end(trainer, module)
    assert trainer.global_step == steps
    assert watch.rate == pytest.approx(rate)
