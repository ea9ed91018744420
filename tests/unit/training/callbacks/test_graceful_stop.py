"""Signals of several ranks: all act on the same step, and between rows none waits for another."""

import signal
from types import SimpleNamespace

import pytest

from diffusion_lit.distributed import collectives
from diffusion_lit.training.callbacks.graceful_stop import GracefulStop


class Ranks:
    """Ranks of one process, one after the other, and what they exchange."""

    def __init__(self, count: int):
        self.numbers: list[list[int]] = []  # of each exchange
        self.started, self.current = [0] * count, 0
        self.waits: list[int] = []  # ranks that had started an exchange when somebody waited for it

    def start_all_reduce_max(self, number: int):
        k = self.started[self.current]
        self.started[self.current] += 1
        if k == len(self.numbers):
            self.numbers.append([])
        self.numbers[k].append(number)

        def wait() -> int:
            self.waits.append(len(self.numbers[k]))
            return max(self.numbers[k])

        return wait


class Checkpoints:
    def __init__(self):
        self.saved_step, self.saves = -1, []

    def save(self, trainer, module, is_needed):
        self.saves.append(self.step)


def make_ranks(monkeypatch, count: int, log_every: int = 1000):
    ranks = Ranks(count)
    monkeypatch.setattr(collectives, "world_size", lambda: count)
    monkeypatch.setattr(collectives, "start_all_reduce_max", ranks.start_all_reduce_max)
    monkeypatch.setattr(collectives, "broadcast_from_rank_zero", lambda value: value)
    stops = []
    for _ in range(count):
        milestones = SimpleNamespace(is_due=lambda: stops[0].step % log_every == 0)
        clock = SimpleNamespace(resume=lambda: None)
        stops.append(GracefulStop(None, {}, milestones, clock, checkpoints=Checkpoints()))
    return ranks, stops


def run_steps(ranks: Ranks, stops: list[GracefulStop], steps: int, signals: dict[int, tuple[int, int]]) -> list:
    """Run steps, with signals {step: (rank, number)} that arrive during it; return the Trainer of each rank."""
    trainers = [SimpleNamespace(should_stop=False, limit_val_batches=1) for _ in stops]
    for step in range(1, steps + 1):
        if step in signals:
            rank, number = signals[step]
            stops[rank].signal = number
        for ranks.current, (stop, trainer) in enumerate(zip(stops, trainers, strict=True)):
            if not trainer.should_stop:
                stop.step = stop.checkpoints.step = step
                stop.after_step(trainer, None)
    return trainers


def test_a_signal_of_one_rank_ends_all_one_step_later(monkeypatch):
    ranks, stops = make_ranks(monkeypatch, count=3)
    trainers = run_steps(ranks, stops, 9, {4: (1, signal.SIGTERM)})
    assert [stop.checkpoints.saves for stop in stops] == [[5]] * 3
    assert [stop.ended_by for stop in stops] == [signal.SIGTERM] * 3
    assert all(trainer.should_stop and trainer.limit_val_batches == 0 for trainer in trainers)
    assert set(ranks.waits) == {3}  # every rank had left the step whose signals were read
    assert len(set(ranks.started)) == 1


def test_a_signal_that_saves_does_so_once(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    ranks, stops = make_ranks(monkeypatch, count=2)
    trainers = run_steps(ranks, stops, 9, {3: (0, signal.SIGUSR1), 6: (1, signal.SIGUSR1)})
    assert [stop.checkpoints.saves for stop in stops] == [[4, 7]] * 2
    assert not any(trainer.should_stop for trainer in trainers)


@pytest.mark.parametrize("log_every", [1000, 4])
def test_one_process_acts_at_once(monkeypatch, log_every):
    ranks, stops = make_ranks(monkeypatch, 1, log_every)
    run_steps(ranks, stops, 9, {4: (0, signal.SIGTERM)})
    assert stops[0].checkpoints.saves == [4]


def test_at_a_row_the_ranks_wait_for_each_other(monkeypatch):
    ranks, stops = make_ranks(monkeypatch, count=2, log_every=4)
    stops[0].signal, ranks.current = signal.SIGTERM, 0
    trainer = SimpleNamespace(should_stop=False, limit_val_batches=1)
    stops[0].step = stops[0].checkpoints.step = 4
    stops[0].after_step(trainer, None)
    assert stops[0].checkpoints.saves == [4]
    assert stops[0].ended_by == signal.SIGTERM
