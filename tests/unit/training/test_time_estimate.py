"""The plan of a run advises on whatever dominates, with overrides whose effect it computes."""

import itertools
import tracemalloc
from types import SimpleNamespace

import pytest
import torch

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.runs.build import make_diffusion
from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.training import time_estimate
from diffusion_lit.training.benchmark import Measurement
from diffusion_lit.training.plan import recommend
from diffusion_lit.training.time_estimate import change_config, estimate_seconds, shorten_parts
from tests.runs import TINY

LENGTH = ["max_steps=20000", "val_every=500", "sample_every=500", "checkpoint_every=500"]
LONG = ["diffusion.num_train_timesteps=1000", "sampler.steps=null"]
COSTS = {"sampling_seconds": 0.0, "validation_seconds": 0.0, "checkpoint_seconds": 0.0}


def make_plan(*overrides: str, **costs: float) -> tuple[SimpleNamespace, dict, Measurement]:
    """Return a benchmark of known costs, a configuration, and a measurement of one second per step."""
    composed = compose_configs("train", [*TINY, *LENGTH, "sampler=ddim", "sampler.steps=50", *overrides])[0]
    config, _ = resolve_training_config(composed)
    table = make_diffusion(config).process
    benchmark = SimpleNamespace(config=config, table=table, device=torch.device("cpu"), **COSTS | costs)
    speed = float(config["global_batch_size"])
    return benchmark, config, Measurement(config["strategy"], 12, 12, speed=speed, memory=1.0)


def test_each_part_that_dominates_has_its_override_and_its_effect():
    cases = [
        ({"sampling_seconds": 2000.0}, [], "previews", {"sample_every"}),
        ({"validation_seconds": 900.0}, [], "validation", {"val_every", "checkpoint_every"}),
        ({"checkpoint_seconds": 900.0}, [], "checkpoints", {"checkpoint_every"}),
        ({"sampling_seconds": 300.0}, ["metrics_every=100", "sample_every=0"], "metrics", {"metrics_every"}),
    ]
    for costs, overrides, part, keys in cases:
        benchmark, config, setting = make_plan(*overrides, **costs)
        before = estimate_seconds(benchmark, config, setting, 1)
        assert before[part] > before["training"], part
        lines, changes = shorten_parts(benchmark, config, setting, 1)
        assert keys == set(changes), (part, changes)
        after = estimate_seconds(benchmark, change_config(config, changes), setting, 1)
        assert after[part] < before[part] / 2, part
        assert after["training"] == before["training"]
        (line,) = [line for line in lines if line.startswith(part)]
        for key, value in changes.items():
            assert f"{key}={value}" in line
            assert value % config[key] == 0
        advice = recommend(benchmark, config, [setting, setting], 1, ["plan=true", "name=a b", "sample_every=500"])
        assert not any("no other" in text for text in advice), advice
        assert all(f"{key}={value}" in advice[-1] for key, value in changes.items())
        assert "sample_every=500" not in advice[-1] or "sample_every" not in keys
        assert "'name=a b'" in advice[-1]


def test_samples_of_a_thousand_steps_take_fewer():
    benchmark, config, setting = make_plan(
        "diffusion.num_train_timesteps=1000", "sampler.steps=null", sampling_seconds=2000.0
    )
    _, changes = shorten_parts(benchmark, config, setting, 1)
    assert changes["sampler.steps"] == 50
    before = estimate_seconds(benchmark, config, setting, 1)["previews"]
    fewer = change_config(config, {"sampler.steps": 50})
    assert estimate_seconds(benchmark, fewer, setting, 1)["previews"] == pytest.approx(before / 20)
    assert config["sampler"]["steps"] is None


def test_a_run_that_trains_most_of_its_time_is_left_alone():
    benchmark, config, setting = make_plan(sampling_seconds=5.0, validation_seconds=5.0, checkpoint_seconds=0.1)
    assert shorten_parts(benchmark, config, setting, 1) == ([], {})
    advice = recommend(benchmark, config, [setting, setting], 1, [])
    assert "faster     no other setting is clearly faster here" in advice


def test_a_part_happens_at_the_multiples_of_its_intervals_and_the_last_step(monkeypatch):
    benchmark, config, setting = make_plan(validation_seconds=1.0)
    for first, last in ((1, 24), (7, 24), (12, 12), (13, 35)):
        steps = range(first, last + 1)
        monkeypatch.setattr(time_estimate, "remaining_steps", lambda config, steps=steps: steps)
        for val, checkpoint in itertools.product((0, 1, 4, 6, 50), repeat=2):
            own = config | {"val_every": val, "checkpoint_every": checkpoint}
            expected = {k for k in steps if k == last or any(n and k % n == 0 for n in (val, checkpoint))}
            estimated = estimate_seconds(benchmark, own, setting, 1)["validation"]
            assert estimated == len(expected), (steps, val, checkpoint)


def test_the_estimate_of_a_long_run_takes_no_memory_for_its_steps():
    intervals = ["val_every=1", "sample_every=1", "checkpoint_every=1"]
    benchmark, config, setting = make_plan("max_steps=1000000", *intervals, checkpoint_seconds=1.0)
    tracemalloc.start()
    estimated = estimate_seconds(benchmark, config, setting, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert estimated["checkpoints"] == 1_000_000
    assert peak < 2**20
