"""Averages of any length from snapshots of two, against averages that were tracked directly."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lit.runs import checkpoints, posthoc_ema
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.posthoc_ema import LENGTHS, compute_decay, solve_coefficients, solve_gamma
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.training.build_run import make_module
from diffusion_lit.training.checkpoint_files import checkpoint_bytes, snapshot_bytes
from tests.cases import each
from tests.equal_runs import SETTINGS, assert_equal_runs, last_checkpoint
from tests.runs import run, signal_at_step, start

EVERY_LENGTH = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.28)


def tracked(weights: np.ndarray, length: float) -> np.ndarray:
    """The average after every step (T, N), by the update of training alone."""
    average, averages = np.zeros_like(weights[0]), []
    for step, now in enumerate(weights, start=1):
        average = compute_decay(length, step) * average + (1 - compute_decay(length, step)) * now
        averages.append(average)
    return np.array(averages)


def wandering(steps: int, size: int = 300) -> np.ndarray:
    """Weights (T, N) that begin somewhere, drift away and shake on the way."""
    dice = np.random.default_rng(0)
    drift = np.cumsum(dice.normal(size=(steps, size)), axis=0) * steps**-0.5
    return dice.normal(size=size) + drift + 0.05 * dice.normal(size=(steps, size))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ------------------------------------------------------------------------------------------------------- profiles


def test_a_length_is_the_spread_of_its_profile():
    place = (np.arange(10**6) + 0.5) / 10**6
    for length in EVERY_LENGTH:
        weight = place ** solve_gamma(length)
        weight /= weight.sum()
        mean = (weight * place).sum()
        assert np.sqrt((weight * (place - mean) ** 2).sum()) == pytest.approx(length, rel=1e-4)
    assert [solve_gamma(length) for length in LENGTHS] == pytest.approx([16.97, 6.94], abs=0.005)  # of the paper


def test_the_update_makes_the_power_profile():
    """The weights of each step are the area of the profile over it, so all that is said of profiles is exact."""
    steps = 40
    for length in (0.05, 0.2):
        share = tracked(np.eye(steps), length)[-1]
        area = np.diff((np.arange(steps + 1) / steps) ** (solve_gamma(length) + 1))
        np.testing.assert_allclose(share, area, rtol=0, atol=1e-14)
    assert compute_decay(0.05, 1) == 0  # the first update copies: nothing is left of the untrained network


# ------------------------------------------------------------------------------------------------------- mixing


@each("length", EVERY_LENGTH)
def test_dense_snapshots_make_the_tracked_average_exactly(length):
    weights = wandering(300)
    have = {each: tracked(weights, each) for each in LENGTHS}
    snapshots = [(each, step) for step in range(1, 301) for each in LENGTHS]
    shares, misfit = solve_coefficients(snapshots, length, 300)
    made = shares @ np.array([have[each][step - 1] for each, step in snapshots])
    assert distance(made, tracked(weights, length)[-1]) < 1e-12
    assert misfit < 1e-6
    for step in (7, 100):  # and at any earlier step
        earlier = [(each, s) for each, s in snapshots if s <= step]
        shares, _ = solve_coefficients(earlier, length, step)
        made = shares @ np.array([have[each][s - 1] for each, s in earlier])
        assert distance(made, tracked(weights, length)[step - 1]) < 1e-12


@each("length", [0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
@each("last", [1000, 970], ids=["at a snapshot", "between two"])
def test_twenty_snapshots_in_half_precision_make_it_within_a_hundredth(length, last):
    weights = wandering(1000)
    steps = [step for step in range(50, 1001, 50) if step < last] + [last]
    snapshots = [(each, step) for step in steps for each in LENGTHS]
    have = {each: tracked(weights, each) for each in LENGTHS}
    stored = np.array([have[each][step - 1] for each, step in snapshots]).astype(np.float16).astype(np.float64)
    shares, misfit = solve_coefficients(snapshots, length, last)
    wanted = tracked(weights, length)[last - 1]
    assert distance(shares @ stored, wanted) < 1e-2
    assert distance(have[0.1][last - 1], wanted) > 2e-2 or length == 0.1  # the nearest tracked one is no such answer
    assert shares.sum() == pytest.approx(1, abs=1e-9)
    assert misfit < 0.07


def test_the_misfit_is_the_distance_of_the_profiles():
    steps = 500
    profile = {each: tracked(np.eye(steps), each) for each in (*LENGTHS, 0.01, 0.03, 0.28)}
    for every in (10, 50, 125):
        snapshots = [(each, step) for step in range(every, steps + 1, every) for each in LENGTHS]
        for length in (0.01, 0.03, 0.28):
            shares, misfit = solve_coefficients(snapshots, length, steps)
            made = shares @ np.array([profile[each][step - 1] for each, step in snapshots])
            assert misfit == pytest.approx(distance(made, profile[length][-1]), rel=1e-3)
            other = shares + 1e-3 * np.random.default_rng(every).normal(size=len(shares))
            other += (1 - other.sum()) / len(other)  # no other shares that sum to 1 come nearer
            worse = other @ np.array([profile[each][step - 1] for each, step in snapshots])
            assert distance(worse, profile[length][-1]) > misfit


def test_a_tracked_length_is_taken_as_it_is():
    snapshots = [(each, step) for step in range(100, 1001, 100) for each in LENGTHS]
    for k, length in enumerate(LENGTHS):
        shares, misfit = solve_coefficients(snapshots, length, 1000)
        np.testing.assert_allclose(shares, np.eye(20)[18 + k], rtol=0, atol=1e-9)
        assert misfit < 1e-6


# ------------------------------------------------------------------------------------------------------- real runs

DENSE = [*SETTINGS, "max_steps=12", "ema_snapshot_every=1", "checkpoint_every=1", "keep_checkpoints=12"]
DENSE += ["sample_every=0", "val_every=0", "optimizer.lr=0.03", "lr_schedule.warmup_steps=0"]
DENSE += ["lr_schedule=constant"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A run with a checkpoint and a snapshot of every step: what was averaged is all there."""
    folder = tmp_path_factory.mktemp("lengths") / "run"
    printed = run("train", *DENSE, f"run_dir={folder}", cwd=folder.parent)
    assert "MiB of snapshots for ema_length" in printed
    return folder


def weights_over_time(folder, steps: int) -> tuple[list[str], np.ndarray]:
    """Names, and the trained weights (T, N) after every step."""
    states = [
        checkpoints.load_checkpoint(checkpoints.checkpoint_path(folder, step))["state_dict"]
        for step in range(1, steps + 1)
    ]
    names = [name.removeprefix("net.") for name in states[0] if name.startswith("net.")]
    return names, np.array([flat([f"net.{name}" for name in names], state) for state in states])


def flat(names: list[str], state: dict) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in names])


@pytest.mark.parametrize("steps", [12, 9])
def test_a_run_makes_the_averages_of_its_own_weights(dense, steps):
    names, weights = weights_over_time(dense, steps)
    checkpoint = checkpoints.checkpoint_path(dense, steps)
    held = checkpoints.load_checkpoint(checkpoint)["state_dict"]
    for k, length in enumerate(LENGTHS):  # tracked in float32, by the network's own update
        own = flat(names, {name: held[f"tracked_emas.{k}.{name}"] for name in names})
        assert distance(own, tracked(weights, length)[-1]) < 1e-6
    told = []
    for length in (0.07, 0.15, 0.28):
        made = posthoc_ema.reconstruct_ema(dense, checkpoint, length, told.append)
        wanted = tracked(weights, length)[-1]
        error = distance(flat(names, made), wanted)
        assert error < 5e-4  # what half precision leaves
        assert error < 0.1 * distance(weights[-1], wanted)
        assert {value.dtype for value in made.values()} == {torch.float32}
    assert told == []


def test_a_snapshot_is_plain_data_in_half_precision(dense):
    held = checkpoints.load_checkpoint(checkpoints.checkpoint_path(dense, 6))["state_dict"]
    snapshot = checkpoints.load_checkpoint(posthoc_ema.snapshot_path(dense, 6))
    for k, state in enumerate(snapshot["tracked_emas"]):
        for name, value in state.items():
            assert value.dtype == torch.float16
            assert torch.equal(value, held[f"tracked_emas.{k}.{name}"].half())
    config = read_model_config(dense)
    module = make_module(config)
    size = sum(posthoc_ema.snapshot_path(dense, step).stat().st_size for step in posthoc_ema.list_snapshot_steps(dense))
    assert snapshot_bytes(module, config) == pytest.approx(size, rel=0.5)  # of a tiny network names are a good part
    assert checkpoint_bytes(module) == pytest.approx(checkpoints.checkpoint_path(dense, 12).stat().st_size, rel=0.5)


def test_sample_takes_a_length_and_says_so(dense, tmp_path):
    words = [f"run={dense}", "ema_length=0.15", "num_images=4", "npy=true"]
    run("sample", *words, f"out={tmp_path / 'out'}", cwd=tmp_path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["ema_length"] == 0.15
    made = torch.from_numpy(np.load(tmp_path / "out" / "images.npy")).permute(0, 3, 1, 2)
    seeds, labels = ([image[key] for image in manifest["images"]] for key in ("seed", "label"))
    assert torch.equal(TrainedModel.from_run(dense, device="cpu", ema_length=0.15).generate(labels, seeds), made)
    assert not torch.equal(TrainedModel.from_run(dense, device="cpu").generate(labels, seeds), made)


def test_a_length_that_snapshots_cannot_tell_is_told_of_and_damaged_ones_are_passed_over(dense, tmp_path):
    copy, told = tmp_path / "run", []
    shutil.copytree(dense, copy, symlinks=True)
    for step in range(1, 12):
        if step not in (4, 8):
            posthoc_ema.snapshot_path(copy, step).unlink()
    path = posthoc_ema.snapshot_path(copy, 4)
    path.write_bytes(path.read_bytes()[:-100])
    TrainedModel.from_run(copy, device="cpu", ema_length=0.01, warn=told.append)
    assert told[0].startswith(f"{path} is skipped: ")
    assert "ema_length=0.01 is made of 2 snapshots of lengths 0.05 and 0.1. Its profile differs by" in told[1]
    names, weights = weights_over_time(copy, 12)
    made = flat(names, posthoc_ema.reconstruct_ema(copy, checkpoints.checkpoint_path(copy, 12), 0.07, told.append))
    assert distance(made, tracked(weights, 0.07)[-1]) < 1e-2


@pytest.mark.slow
def test_a_killed_run_keeps_the_same_averages_and_snapshots(tmp_path):
    settings = [*SETTINGS, "ema_snapshot_every=3", "checkpoint_every=4"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *settings, f"run_dir={whole}", cwd=tmp_path)
    process = start("train", *settings, f"run_dir={broken}", cwd=tmp_path)
    assert signal_at_step(11, process, broken) == -signal.SIGKILL
    posthoc_ema.save_snapshot(broken, 9999, [])  # of a future that the run will not have again
    run("train", f"resume={broken}", cwd=tmp_path)
    assert_equal_runs(whole, broken)
    assert any(name.startswith("tracked_emas.1.") for name in last_checkpoint(whole)["state_dict"])
    assert posthoc_ema.list_snapshot_steps(whole) == posthoc_ema.list_snapshot_steps(broken) == list(range(3, 25, 3))
    for step in posthoc_ema.list_snapshot_steps(whole):
        one, other = (
            checkpoints.load_checkpoint(posthoc_ema.snapshot_path(folder, step))["tracked_emas"]
            for folder in (whole, broken)
        )
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    made = [
        TrainedModel.from_run(folder, device="cpu", ema_length=0.15).generate([3, 8], [1, 2])
        for folder in (whole, broken)
    ]
    assert torch.equal(*made)


def test_averages_begin_with_the_run_or_never(dense, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(dense, copy, symlinks=True)
    printed = run("train", f"resume={copy}", "max_steps=14", "ema_snapshot_every=0", cwd=tmp_path, code=4)
    assert "ema_snapshot_every: 1 in the run, 0 now" in printed
    words = [f"resume={copy}", "max_steps=14", "ema_snapshot_every=0", "accept=[config]"]
    assert "from its first step on, or never" in run("train", *words, cwd=tmp_path, code=4)
    words = [f"resume={copy}", "max_steps=14", "ema_snapshot_every=7", "accept=[config]"]
    run("train", *words, cwd=tmp_path)
    assert posthoc_ema.list_snapshot_steps(copy) == [*range(1, 13), 14]


def test_runs_without_snapshots_say_what_is_missing(dense, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(dense, copy, symlinks=True)
    config = read_model_config(copy)
    del config["ema_snapshot_every"]  # a run from before the key
    (copy / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    words = [f"run={copy}", "ema_length=0.1", "weights=net", "out=out"]
    printed = run("sample", *words, cwd=tmp_path, code=2)
    assert "Train with ema_snapshot_every=<steps>" in printed
    assert "weights=net the raw ones: leave one out" in printed
    printed = run("sample", f"run={copy}", "ema_length=0.3", "out=out", cwd=tmp_path, code=2)
    assert "ema_length=0.3: must be null or float in (0, 0.28]" in printed
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_for_a_while_costs_snapshots_and_not_the_run(tmp_path):
    prelude = """
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.runs import posthoc_ema as ema_lengths
write = ema_lengths.save_snapshot
def full(run, step, averages):
    if step in (4, 6):
        raise UserError(Exit.INTERRUPTED, f"step {step} cannot be written")
    write(run, step, averages)
ema_lengths.save_snapshot = full
"""
    words = [*SETTINGS, "max_steps=10", "ema_snapshot_every=2", "sample_every=0", "run_dir=run"]
    printed = run("train", *words, cwd=tmp_path, prelude=prelude)
    assert "step 4 cannot be written" in printed
    assert posthoc_ema.list_snapshot_steps(tmp_path / "run") == [2, 8, 10]
