"""Runs that must be equal bit for bit, with everything random switched on."""

from pathlib import Path

import torch

from diffusion_lit.runs import checkpoints
from tests.runs import TINY, trace

# everything random is switched on: dropout in the network, flips, label drops, clipping, a moving learning rate
SETTINGS = [*TINY, "max_steps=24", "checkpoint_every=4", "val_every=6", "sample_every=10", "model.dropout=0.1"]
SETTINGS += ["data.flip=0.5", "label_dropout=0.2", "lr_schedule.warmup_steps=5"]
SETTINGS += ["trainer.gradient_clip_val=0.5", "seed=3"]


def last_checkpoint(folder: Path) -> dict:
    return checkpoints.load_checkpoint(checkpoints.select_checkpoint(folder))


def flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {k: v for key, node in tree.items() for k, v in flat(node, f"{prefix}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, node in enumerate(tree) for k, v in flat(node, f"{prefix}/{i}").items()}
    return {prefix: tree}


def assert_equal_training(one: Path, other: Path) -> None:
    """Weights, EMA, optimizer, schedule and loss trace: not one bit differs."""
    a, b = last_checkpoint(one), last_checkpoint(other)
    assert a["global_step"] == b["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        left, right = flat(a[part]), flat(b[part])
        assert left.keys() == right.keys()
        for key, value in left.items():
            same = torch.equal(value, right[key]) if torch.is_tensor(value) else value == right[key]
            assert same, f"{part}{key} differs"
    assert trace(one) == trace(other)


def assert_equal_runs(one: Path, other: Path) -> None:
    """And every sample grid."""
    assert_equal_training(one, other)
    grids = sorted(path.name for path in (one / "samples").iterdir())
    assert grids == sorted(path.name for path in (other / "samples").iterdir())
    for name in grids:
        assert (one / "samples" / name).read_bytes() == (other / "samples" / name).read_bytes(), name
