"""Checkpoint files: weights of another network, damaged files, the newest intact one."""

import pytest
import torch
from torch import nn

from diffusion_lit.runs.checkpoints import (
    checkpoint_path,
    load_network_weights,
    rename_corrupt,
    save_checkpoint,
    select_checkpoint,
)
from diffusion_lit.system.errors import Exit, UserError


def save_linear(path, inputs: int) -> nn.Module:
    net = nn.Linear(inputs, 1)
    save_checkpoint({"state_dict": {f"ema.{name}": value for name, value in net.state_dict().items()}}, path)
    return net


def test_weights_are_loaded_into_the_same_network_and_refused_for_another(tmp_path):
    path = checkpoint_path(tmp_path, 3)
    saved = save_linear(path, 2)
    loaded = load_network_weights(path, "ema", nn.Linear(2, 1))
    assert torch.equal(loaded.weight, saved.weight)
    assert not loaded.training
    for which, net in (("ema", nn.Linear(3, 1)), ("net", nn.Linear(2, 1))):
        with pytest.raises(UserError, match="step-00000003.ckpt cannot be used") as raised:
            load_network_weights(path, which, net)
        assert raised.value.exit_code == Exit.CHECKPOINT


def test_the_newest_intact_checkpoint_is_selected(tmp_path):
    for step in (2, 10, 9):
        save_linear(checkpoint_path(tmp_path, step), 2)
    damaged = checkpoint_path(tmp_path, 10)
    damaged.write_bytes(damaged.read_bytes()[:-50])
    messages = []
    path = select_checkpoint(tmp_path, warn=messages.append)
    assert path == checkpoint_path(tmp_path, 9)
    assert len(messages) == 1
    assert "step-00000010.ckpt (damaged: " in messages[0]
    with pytest.raises(UserError, match=r"no checkpoint '4'. Choose last, best, or a step of: 2, 9, 10"):
        select_checkpoint(tmp_path, "4")
    rename_corrupt(tmp_path, path)
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002.ckpt",
        "step-00000009.ckpt",
        "step-00000010.ckpt.corrupt",
    ]
