"""What users of Lightning expect on the command line: Trainer arguments, callbacks, loggers, optimizers, transforms."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lit.runs import checkpoints, run_dir
from tests.cases import each
from tests.equal_runs import assert_equal_training, last_checkpoint
from tests.runs import TINY, run, trace

SHORT = [*TINY, "max_steps=4", "checkpoint_every=4", "val_every=2", "sample_every=0"]
STOP = ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.monitor=val/loss"]


def test_a_fast_dev_run_makes_one_step_and_leaves_no_folder(tmp_path):
    printed = run("train", *SHORT, "trainer.fast_dev_run=true", cwd=tmp_path)
    assert "fast_dev_run: 1 step(s) | train/loss " in printed
    assert "val/loss " in printed
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_a_profiler_is_printed(tmp_path):
    printed = run("train", *SHORT, "trainer.profiler=simple", "run_dir=run", cwd=tmp_path)
    assert "Profiler Report" in printed
    assert "run_training_batch" in printed


def test_a_limited_epoch_ends_and_the_steps_rule(tmp_path):
    """Three batches an epoch, and still the images of an unlimited run, step by step."""
    run("train", *SHORT, "max_steps=7", "run_dir=free", cwd=tmp_path)
    run("train", *SHORT, "max_steps=7", "trainer.limit_train_batches=3", "run_dir=limited", cwd=tmp_path)
    assert_equal_training(tmp_path / "free", tmp_path / "limited")
    epochs = [last_checkpoint(tmp_path / name)["epoch"] for name in ("free", "limited")]
    assert epochs[1] > epochs[0]
    words = ["trainer.limit_train_batches=3", "strategy.accumulate=2", "run_dir=odd"]
    assert "multiple of strategy.accumulate=2" in run("train", *SHORT, *words, cwd=tmp_path, code=2)


def test_a_stopped_and_resumed_run_of_limited_epochs_equals_an_unbroken_one(tmp_path):
    words = [*SHORT, "trainer.limit_train_batches=3", "checkpoint_every=2", "val_every=1"]
    for name, stops in {"b": (3,), "c": (2, 6)}.items():  # at the end of an epoch, in the middle
        run("train", *words, "lr_schedule=constant", f"max_steps={stops[0]}", f"run_dir={name}", cwd=tmp_path)
        for stop in (*stops[1:], 8):
            run("train", f"resume={name}", f"max_steps={stop}", cwd=tmp_path)
    assert trace(tmp_path / "b") == trace(tmp_path / "c")
    b, c = (last_checkpoint(tmp_path / name)["state_dict"] for name in "bc")
    assert all(torch.equal(b[key], c[key]) for key in b)


def test_early_stopping_ends_a_run_for_good(tmp_path):
    words = [*SHORT, "max_steps=40", "val_every=2", "checkpoint_every=40", "optimizer.lr=1.0", *STOP]
    run("train", *words, "+callbacks.stop.patience=1", "run_dir=run", cwd=tmp_path)
    result = run_dir.read_result(tmp_path / "run")
    assert (result["status"], result["exit_code"]) == ("stopped early", 0)
    assert result["steps"] < 40
    assert checkpoints.list_steps(tmp_path / "run") == [result["steps"]]
    printed = run("train", "resume=run", cwd=tmp_path)
    assert "was stopped by a callback" in printed
    assert "leave out that callback (callbacks=none: all)" in printed
    assert result["stopped_by"] == "callbacks"
    assert checkpoints.list_steps(tmp_path / "run") == [result["steps"]]
    run("train", "resume=run", "callbacks=none", f"max_steps={result['steps'] + 1}", cwd=tmp_path)
    continued = run_dir.read_result(tmp_path / "run")
    assert (continued["status"], continued["steps"]) == ("finished", result["steps"] + 1)


def test_a_run_that_max_time_stopped_can_be_resumed_also_with_callbacks(tmp_path):
    long = [*SHORT, "max_steps=100000", "checkpoint_every=100000", "val_every=0", "lr_schedule=constant"]
    words = ["trainer.max_time=00:00:00:01", *STOP, "+callbacks.stop.patience=100", "run_dir=run"]
    printed = run("train", *long, *words, cwd=tmp_path)
    result = run_dir.read_result(tmp_path / "run")
    assert (result["status"], result["stopped_by"], result["exit_code"]) == ("stopped early", "trainer.max_time", 0)
    assert "resume=run trainer.max_time=null" in printed
    run("train", "resume=run", cwd=tmp_path)  # the time is used up: it stops at once, and nothing changes
    again = run_dir.read_result(tmp_path / "run")
    assert [again[key] for key in ("stopped_by", "steps")] == ["trainer.max_time", result["steps"]]
    run("train", "resume=run", "trainer.max_time=null", f"max_steps={result['steps'] + 2}", cwd=tmp_path)
    ended = run_dir.read_result(tmp_path / "run")
    assert [ended[key] for key in ("status", "stopped_by", "steps")] == ["finished", None, result["steps"] + 2]


@pytest.mark.slow
def test_early_stopping_of_a_killed_run_stops_where_the_unbroken_one_does(tmp_path):
    words = [*SHORT, "val_every=2", "checkpoint_every=2", "optimizer.lr=1.0", *STOP, "+callbacks.stop.patience=2"]
    run("train", *words, "max_steps=40", "run_dir=whole", cwd=tmp_path)
    run("train", *words, "max_steps=40", "run_dir=part", cwd=tmp_path, code=-9, prelude=KILLED)
    run("train", "resume=part", cwd=tmp_path)
    assert trace(tmp_path / "whole") == trace(tmp_path / "part")
    assert [run_dir.read_result(tmp_path / name)["steps"] for name in ("whole", "part")][0] > 4


KILLED = """
import os
from diffusion_lit.training.callbacks.graceful_stop import GracefulStop
def killed(self, trainer, module):
    if self.step == 4:
        os.kill(os.getpid(), 9)
GracefulStop.after_step = killed
"""


@each("logger", ["CSVLogger", "TensorBoardLogger"])
def test_any_logger_of_lightning(tmp_path, logger):
    words = [f"logger._target_=lightning.pytorch.loggers.{logger}", "+logger.save_dir=logs", "run_dir=run"]
    run("train", *SHORT, *words, cwd=tmp_path)
    if logger == "CSVLogger":
        (file,) = (tmp_path / "logs").rglob("metrics.csv")
        with open(file, newline="") as text:
            rows = {int(row["step"]): row for row in csv.DictReader(text) if row["train/loss"]}
        own = {int(row["step"]): row for row in trace(tmp_path / "run")}
        assert float(rows[2]["val/loss"]) == float(own[2]["val/loss"])
        assert float(rows[4]["train/loss"]) == float(own[4]["train/loss"])
    else:
        assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_a_logger_that_cannot_be_created_is_refused(tmp_path):
    words = ["logger._target_=lightning.pytorch.loggers.CSVLogger", "+logger.save_dir=logs", "run_dir=run"]
    prelude = "from lightning.pytorch.loggers import CSVLogger\n"
    prelude += "def refuse(self, *args, **keys): raise ModuleNotFoundError('no backend')\nCSVLogger.__init__ = refuse\n"
    printed = run("train", *SHORT, *words, cwd=tmp_path, code=2, prelude=prelude)
    assert "lightning.pytorch.loggers.CSVLogger cannot be created: ModuleNotFoundError: no backend" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_any_optimizer_of_torch_resumes_exactly(tmp_path):
    words = ["optimizer._target_=torch.optim.RAdam", "lr_schedule=constant"]
    run("train", *SHORT, *words, "max_steps=6", "run_dir=whole", cwd=tmp_path)
    run("train", *SHORT, *words, "run_dir=part", cwd=tmp_path)
    run("train", "resume=part", "max_steps=6", cwd=tmp_path)
    whole, part = (last_checkpoint(tmp_path / run)["state_dict"] for run in ("whole", "part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)


def test_transforms_agree_over_micro_batches_and_a_resume(tmp_path):
    words = [*SHORT, "data.transforms=[{_target_: torchvision.transforms.v2.RandomRotation, degrees: 30}]"]
    words += ["lr_schedule=constant", "model.dropout=0"]
    run("train", *words, "max_steps=6", "run_dir=whole", cwd=tmp_path)
    run("train", *words, "run_dir=part", cwd=tmp_path)
    run("train", "resume=part", "max_steps=6", cwd=tmp_path)
    run("train", *words, "max_steps=6", "strategy.accumulate=2", "run_dir=halves", cwd=tmp_path)
    run("train", *SHORT, "lr_schedule=constant", "model.dropout=0", "max_steps=6", "run_dir=plain", cwd=tmp_path)
    losses = {
        name: [float(row["train/loss"]) for row in trace(tmp_path / name)]
        for name in ("whole", "part", "halves", "plain")
    }
    assert losses["whole"] == losses["part"]
    np.testing.assert_allclose(losses["whole"], losses["halves"], atol=1e-5)
    assert losses["whole"] != losses["plain"]


def test_a_dataset_of_ones_own_in_a_config_dir(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Noise(torch.utils.data.Dataset):\n"
        "    def __init__(self, count): self.count = count\n"
        "    def __len__(self): return self.count\n"
        "    def __getitem__(self, k): return torch.full((1, 8, 8), 5 * (k % 40), dtype=torch.uint8), k % 3\n"
    )
    (tmp_path / "conf" / "data").mkdir(parents=True)
    leaf = (Path(__file__).parents[2] / "conf" / "data" / "dataset.yaml").read_text()
    leaf = leaf.replace("dataset: ???", "dataset: {_target_: mine.Noise, count: 60}")
    leaf = leaf.replace("val_dataset: null", "val_dataset: {_target_: mine.Noise, count: 20}")
    leaf = leaf.replace("channels: 3", "channels: 1")
    (tmp_path / "conf" / "data" / "noise.yaml").write_text(leaf.replace("image_size: 32", "image_size: 8"))
    words = ["--config-dir", "conf", "data=noise", "model=unet_digits", *SHORT, "run_dir=run"]
    printed = run("train", *words, cwd=tmp_path)
    assert "3 classes" in printed
    assert "--config-dir conf" in printed  # the command that is proposed next
    run("train", "--config-dir", "conf", "resume=run", "max_steps=5", cwd=tmp_path)
    assert "data=noise: not found" in run("train", "resume=run", "max_steps=6", cwd=tmp_path, code=2)
