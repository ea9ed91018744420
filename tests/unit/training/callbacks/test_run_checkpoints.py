"""Counters of epochs and batches follow from the step alone; the best checkpoint; milestones and clock of callbacks."""

import copy

import lightning as L
import pytest
import torch

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.callbacks.run_checkpoints import RunCheckpoints, realign_progress
from diffusion_lit.training.callbacks.step_callback import Clock, Milestones
from tests.trained import train

STEPS = 3  # of an epoch


class Sized(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(10**6))

    def __len__(self):
        return 10**6


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight, self.epochs = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, batch_idx):
        return self.weight * 1.0

    def on_train_epoch_start(self):
        self.epochs.append((self.current_epoch, self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Saves(L.Callback):
    """Keeps the checkpoint of every step, taken where a run takes it."""

    def __init__(self):
        self.kept, self.step = {}, 0

    def on_train_start(self, trainer, module):
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.kept[self.step] = copy.deepcopy(trainer._checkpoint_connector.dump_checkpoint())


def fit(folder, steps: int, accumulate: int, checkpoint: dict | None = None) -> tuple[Net, Saves]:
    saves, module, path = Saves(), Net(), None
    if checkpoint:
        path = folder / "start.ckpt"
        torch.save(checkpoint, path)
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accumulate_grad_batches=accumulate, callbacks=[saves], accelerator="cpu",
        limit_train_batches=STEPS * accumulate, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(Sized(), batch_size=1), ckpt_path=path)
    return module, saves


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_at_any_step_has_the_epochs_of_an_unbroken_one(tmp_path, accumulate):
    whole, saves = fit(tmp_path, 10, accumulate)
    for step in range(1, 10):
        for other in (accumulate, 3 - accumulate):  # resumed with other micro-batches too
            start = copy.deepcopy(saves.kept[step])
            realign_progress(start, STEPS, other)
            resumed, again = fit(tmp_path, 10, other, start)
            assert resumed.epochs == [pair for pair in whole.epochs if pair[1] >= step], (step, other)
            assert sorted(again.kept) == list(range(step + 1, 11))
            if other == accumulate:
                for k in range(step + 1, 11):  # and the counters of every later checkpoint
                    one, two = (found.kept[k]["loops"]["fit_loop"] for found in (saves, again))
                    assert one["epoch_loop.batch_progress"] == two["epoch_loop.batch_progress"], (step, k)
                    assert one["epoch_progress"] == two["epoch_progress"], (step, k)


def test_a_checkpoint_that_cannot_be_saved_costs_no_other_one(tmp_path, monkeypatch):
    scores, save, act = [0.1, 0.05, 0.3, 0.4], checkpoints.save_checkpoint, RunCheckpoints.after_step

    def fail_once(checkpoint, path):
        if checkpoint.get("global_step") == 2:
            raise UserError(Exit.INTERRUPTED, "no space left")
        save(checkpoint, path)

    def act_with_score(self, trainer, module):
        self.metrics.row["val/loss"] = scores[self.step - 1]
        act(self, trainer, module)

    monkeypatch.setattr(checkpoints, "save_checkpoint", fail_once)
    monkeypatch.setattr(RunCheckpoints, "after_step", act_with_score)
    train(tmp_path, "checkpoint_every=1", "best_by=val/loss")
    assert checkpoints.list_steps(tmp_path) == [1, 4]
    assert checkpoints.select_checkpoint(tmp_path, "best").name == "step-00000001.ckpt"


def test_milestones_are_multiples_and_the_last_step():
    config = {"log_every": 5, "val_every": 0, "sample_every": 0, "checkpoint_every": 10, "metrics_every": 0}
    milestones = Milestones(config)
    due = {}
    for milestones.step in range(1, 11):
        due[milestones.step] = [name for name in config if milestones.is_due(name)]
    assert {step: names for step, names in due.items() if names} == {
        5: ["log_every"],
        10: ["log_every", "checkpoint_every"],
    }
    milestones.step, milestones.is_last = 7, True
    assert [name for name in config if milestones.is_due(name)] == list(config)[:-1]  # metrics only where they are on
    assert milestones.is_due()


def test_a_clock_counts_only_between_resume_and_pause(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("diffusion_lit.training.callbacks.step_callback.time.perf_counter", lambda: float(next(now)))
    clock = Clock()
    clock.resume()  # 0
    clock.resume()
    clock.pause()  # 1
    clock.pause()
    clock.resume()  # 2
    clock.pause()  # 3
    assert clock.seconds == 2
