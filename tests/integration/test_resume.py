"""Stopping and going on: a resumed run equals one that was never stopped, bit for bit."""

import copy
import random
import signal
import time

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lit.cli.train_overrides import prepare_train_overrides
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.resume import check_continuation
from diffusion_lit.runs.run_dir import append_command, read_result
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.system.errors import UserError
from diffusion_lit.training import train_rank
from tests.cases import each
from tests.equal_runs import SETTINGS, assert_equal_runs, last_checkpoint
from tests.runs import last_step, run, signal_at_step, start, trace
from tests.trained import train


@pytest.mark.parametrize(
    ("accumulate", "words"),
    [
        pytest.param(1, [], marks=pytest.mark.slow),  # as tests/chaos/test_kills.py
        pytest.param(1, ["strategy.compile=true", "strategy.channels_last=true"], marks=pytest.mark.slow),  # minutes
        (3, ["ema=rising", "ema.decay=0.5", "ema.update_every=3", "strategy.channels_last=true"]),
    ],
)
def test_a_run_killed_at_random_steps_equals_one_that_was_not(tmp_path, accumulate, words):
    settings = [*SETTINGS, *words, f"strategy.accumulate={accumulate}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *settings, f"run_dir={whole}", cwd=tmp_path)
    dice = random.Random(accumulate)
    process = start("train", *settings, f"run_dir={broken}", cwd=tmp_path)
    assert signal_at_step(dice.randint(5, 11), process, broken) == -signal.SIGKILL
    process = start("train", f"resume={broken}", cwd=tmp_path)
    assert signal_at_step(dice.randint(13, 21), process, broken) == -signal.SIGKILL
    assert "finished" not in (broken / "train.log").read_text()
    run("train", f"resume={broken}", cwd=tmp_path)
    assert_equal_runs(whole, broken)


def test_a_signal_between_two_rows_changes_no_row(tmp_path):
    settings = [*SETTINGS, "max_steps=56", "log_every=20", "checkpoint_every=40", "val_every=0", "sample_every=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *settings, f"run_dir={whole}", cwd=tmp_path)
    process = start("train", *settings, f"run_dir={broken}", cwd=tmp_path)
    assert signal_at_step(20, process, broken, signal.SIGTERM, delay=0.05) == 143
    assert checkpoints.list_steps(broken)[-1] % 20  # stopped between two rows
    run("train", f"resume={broken}", cwd=tmp_path)
    assert trace(whole) == trace(broken)


def test_a_run_that_is_killed_while_it_measures_class_accuracy_is_measured_when_it_is_resumed(tmp_path, monkeypatch):
    words = ["metrics_every=4", "metrics=[kid]", "metrics_images=40", "metrics_steps=1", "data.classifier_images=40"]

    def kill(*parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_rank, "measure_class_accuracy", kill)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *words)
    before = read_result(tmp_path)
    assert before["status"] == "unfinished"
    train(tmp_path, *words, f"resume={tmp_path}")
    after = read_result(tmp_path)
    assert after["status"] == "finished"
    assert after["classified_images"] == 40
    names = ["steps", "checkpoint", "val/loss", *[key for key in before if key.startswith("kid")]]
    assert len(names) > 3
    assert [after[name] for name in names] == [before[name] for name in names]


def test_another_accumulation_after_a_resume_sees_the_same_images_and_noise(tmp_path):
    settings = [*SETTINGS, "model.dropout=0", "val_every=0", "sample_every=0", "checkpoint_every=4"]
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    run("train", *settings, "max_steps=10", "lr_schedule=constant", f"run_dir={whole}", cwd=tmp_path)
    run("train", *settings, "max_steps=4", "lr_schedule=constant", f"run_dir={changed}", cwd=tmp_path)
    run("train", f"resume={changed}", "max_steps=10", "strategy.accumulate=3", cwd=tmp_path)
    for a, b in zip(trace(whole), trace(changed), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), abs=1e-5)


def test_an_extended_run_goes_on_at_the_rate_of_its_new_schedule(tmp_path):
    settings = [*SETTINGS, "lr_schedule=cosine", "lr_schedule.warmup_steps=0", "checkpoint_every=4"]
    folder, long = tmp_path / "run", tmp_path / "long"
    run("train", *settings, "max_steps=4", f"run_dir={folder}", cwd=tmp_path)
    run("train", f"resume={folder}", "max_steps=8", cwd=tmp_path)
    run("train", *settings, "max_steps=8", f"run_dir={long}", cwd=tmp_path)
    assert [row["train/lr"] for row in trace(folder)][4:] == [row["train/lr"] for row in trace(long)][4:]
    assert float(trace(folder)[4]["train/lr"]) > 0


def test_another_rate_that_was_accepted_is_used(tmp_path):
    folder = tmp_path / "run"
    run("train", *SETTINGS, "max_steps=4", f"run_dir={folder}", cwd=tmp_path)
    words = ["optimizer.lr=1.0e-5", "lr_schedule=constant", "lr_schedule.warmup_steps=0", "max_steps=6"]
    words += ["accept=[config]"]
    run("train", f"resume={folder}", *words, cwd=tmp_path)
    assert [float(row["train/lr"]) for row in trace(folder)][4:] == [1e-5, 1e-5]


def test_a_signal_during_a_preview_cuts_it_short_and_the_resumed_run_draws_it(tmp_path):
    settings = [*SETTINGS, "max_steps=6", "sample_every=4", "sampler=ddpm", "sampler.steps=null"]
    folder = tmp_path / "run"
    process = start("train", *settings, f"run_dir={folder}", cwd=tmp_path)
    while last_step(folder) != 4:  # the row is written before the preview of a thousand steps begins
        time.sleep(0.01)
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert checkpoints.list_steps(folder) == [4]
    assert not (folder / "samples").exists()
    run("train", f"resume={folder}", "sampler.steps=2", cwd=tmp_path)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step-0000000{step}.{kind}" for step in (4, 6) for kind in ("gif", "png")
    ]


def test_accumulated_micro_batches_train_as_one_batch(tmp_path):
    """Same images, noise and learning rate, so the same losses up to the order of additions (no dropout here)."""
    settings = [*SETTINGS, "model.dropout=0", "max_steps=8"]
    run("train", *settings, f"run_dir={tmp_path / 'one'}", cwd=tmp_path)
    run("train", *settings, "strategy.accumulate=4", f"run_dir={tmp_path / 'four'}", cwd=tmp_path)
    for a, b in zip(trace(tmp_path / "one"), trace(tmp_path / "four"), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), abs=1e-5)
        assert a["train/lr"] == b["train/lr"]


def test_a_signal_saves_and_names_the_way_on(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run("train", *SETTINGS, f"run_dir={whole}", cwd=tmp_path)
    process = start("train", *SETTINGS, f"run_dir={broken}", cwd=tmp_path)
    assert signal_at_step(7, process, broken, signal.SIGTERM) == 143
    saved = checkpoints.list_steps(broken)[-1]
    assert saved >= 7
    moved = tmp_path / "moved"  # a run folder may be moved before it goes on
    broken.rename(moved)
    run("train", f"resume={moved}", cwd=tmp_path)
    assert torch.equal(
        last_checkpoint(whole)["state_dict"]["net.unet.conv_in.weight"],
        last_checkpoint(moved)["state_dict"]["net.unet.conv_in.weight"],
    )
    assert trace(whole) == trace(moved)


@each(
    ("stored", "new", "then"),
    [
        (["max_steps=4"], ["max_epochs=2"], ["max_epochs=2"]),
        (["max_epochs=2"], ["max_steps=4"], ["max_steps=4"]),
        (["max_epochs=2"], ["max_epochs=3"], ["max_epochs=3"]),
        (["max_epochs=2"], ["seed=1"], ["max_epochs=2"]),
        # an experiment may count in epochs
        (["experiment=x"], ["max_steps=4"], ["max_steps=4", "max_epochs=null"]),
        (["experiment=x", "max_steps=4", "max_epochs=null"], ["seed=1"], ["max_steps=4", "max_epochs=null"]),
        (["experiment=x", "max_steps=4", "max_epochs=null"], ["max_epochs=2"], ["max_epochs=2"]),
        (["experiment=x", "max_steps=4"], ["max_epochs=null"], ["max_steps=4", "max_epochs=null"]),
    ],
)
def test_the_last_word_on_the_length_counts(tmp_path, stored, new, then):
    (tmp_path / "config.yaml").write_text("{}\n")
    append_command(tmp_path, stored)
    words = prepare_train_overrides([f"resume={tmp_path}", *new], None)
    assert [word for word in words if word.startswith("max_")] == then


def test_any_key_that_differs_makes_another_run(tiny_run, tmp_path):
    config = read_model_config(tiny_run)
    stored = copy.deepcopy(config)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(stored)))
    check_continuation(tmp_path, config | {"accept": []})
    config["model"]["dropout"] = 0.5
    with pytest.raises(UserError, match="model.dropout: 0.0 in the run, 0.5 now"):
        check_continuation(tmp_path, config | {"accept": []})
    del stored["model"]["dropout"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(stored)))
    with pytest.raises(UserError, match="model.dropout: None in the run, 0.5 now"):
        check_continuation(tmp_path, config | {"accept": []})
