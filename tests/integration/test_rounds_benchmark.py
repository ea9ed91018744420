"""`python -m benchmarks rounds`: its candidates, and finished parts that are not repeated."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import rounds
from benchmarks.candidates import MuonAdamW, UnshuffledUNet, orthogonalize
from diffusion_lit.networks.unet import UNet
from tests.cases import each

SIZES = {"block_out_channels": [8, 8], "attention_levels": [], "norm_num_groups": 4, "attention_head_dim": 8}
STEP = 0.5  # seconds


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A function that opens the round of the folder again, with the commands so far. FD-64 is the learning rate."""
    commands = []

    def run_command(command, *words):
        commands.append((command, words))
        keys = dict(word.split("=", 1) for word in words if "=" in word)
        place = next(key for key in ("run_dir", "resume", "out") if key in keys)
        folder = tmp_path / keys[place].strip('"')
        folder.mkdir(parents=True, exist_ok=place == "resume")
        result = {"status": "finished"}
        if command == "evaluate":
            rate = float(re.search(r"[\d.]+(?= \w+$)", folder.name)[0])
            result = {"kid": 0, "kid_low": 0, "kid_high": 0, "class_accuracy": 1}
            result |= {"fd64": rate, "fd64_low": rate, "fd64_high": rate}
            arrays = {"run": np.array(folder.name), "pairing": np.array("same")}
            for name in rounds.METRICS:
                spread = np.linspace(-1, 1, 8)
                arrays |= {f"{name}/value": np.array(rate), f"{name}/generated": spread}
            np.savez(folder / "influences.npz", **arrays)
        (folder / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(rounds, "run_command", run_command)
    monkeypatch.setattr(rounds, "time_steps", lambda last, *words: [STEP * k for k in range(last + 1)])
    return lambda minutes=1: (rounds.Round("data=digits", tmp_path, minutes), commands)


def test_steps_fill_the_time_and_finished_parts_are_not_repeated(started):
    found, commands = started()
    assert [row[-1] for row in found.time_all()] == [120] * len(rounds.CANDIDATES)
    rows = [*found.measure_all()], [*found.subtract_all()]
    trainings = [words for command, words in commands if command == "train"]
    assert len(trainings) == len(rounds.CANDIDATES) * len(rounds.RATES)
    assert all("max_steps=120" in words for words in trainings)
    count = len(commands)
    again = started()[0]
    assert ([*again.measure_all()], [*again.subtract_all()]) == rows
    assert len(commands) == count
    with pytest.raises(SystemExit, match="Choose another folder"):
        started(minutes=2)


def test_a_killed_training_is_resumed(started, tmp_path):
    found, commands = started()
    run = tmp_path / "default 0.0005"
    run.mkdir()
    (run / "config.yaml").touch()
    found.measure("default", 0.0005)
    (command, overrides), _ = commands
    assert command == "train"
    assert [text for text in overrides if text.startswith(("resume=", "run_dir="))] == [f'resume="{run}"']


def test_the_best_rate_of_each_is_compared(started):
    found, _ = started()
    assert {found.best_rate(name) for name in rounds.CANDIDATES} == {min(rounds.RATES)}
    names = [row[0] for row in found.subtract_all()]
    assert names == ["raw weights", *list(rounds.CANDIDATES)[1:]]
    assert all("cannot be distinguished" in cell for row in found.subtract_all() for cell in row[1:])


def test_blocks_of_one_pixel_are_the_unet():
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 2])
    torch.manual_seed(0)
    plain = UNet(8, 3, 2, **SIZES)
    torch.manual_seed(0)
    blocks = UnshuffledUNet(8, 3, 2, block=1, **SIZES)
    torch.testing.assert_close(blocks(x, t, y), plain(x, t, y), rtol=0, atol=0)


def test_blocks_that_do_not_divide_the_image_are_refused():
    with pytest.raises(ValueError, match="no multiple of block=3"):
        UnshuffledUNet(8, 3, 2, block=3, **SIZES)


@each("shape", [(24, 24), (16, 40), (40, 16)])
def test_orthogonalize_keeps_the_directions_and_levels_the_singular_values(shape):
    u, s, vh = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    s = s.clamp(min=0.1 * s.max())
    inside = u.T @ orthogonalize(u @ torch.diag(s) @ vh) @ vh.T
    values = inside.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(inside, torch.diag(values), rtol=0, atol=1e-4)


def step_both(ours: MuonAdamW, make_theirs, model: nn.Module, steps: int = 3) -> tuple[list, list]:
    """Return the parameters after some steps of our optimizer, and of another one on the same gradients."""
    copy = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    theirs = make_theirs(copy)
    for k in range(steps):
        for p, q in zip(model.parameters(), copy, strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    return [p.detach() for p in model.parameters()], [p.detach() for p in copy]


def test_small_parameters_follow_adamw():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32))  # 3 x 9 columns, but vectors beside it
    ours = MuonAdamW(model.parameters(), 0.01, smallest=64)
    got, expected = step_both(ours, lambda copy: torch.optim.AdamW(copy, 0.01, weight_decay=0), model)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_matrices_follow_muon_of_pytorch():
    """PyTorch iterates in bfloat16, which keeps two to three digits."""
    model = nn.Linear(48, 32, bias=False)
    ours = MuonAdamW(model.parameters(), 0.01)
    before = model.weight.detach().clone()
    got, expected = step_both(
        ours,
        lambda copy: torch.optim.Muon(copy, 0.01, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
        model,
    )
    assert (got[0] - expected[0]).norm() < 0.02 * (expected[0] - before).norm()


def test_a_convolution_is_stepped_as_a_matrix():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(16, 32, 3, bias=False), nn.Linear(144, 32, bias=False)
    linear.weight.data.copy_(conv.weight.data.flatten(1))
    for layer in (conv, linear):
        layer.weight.grad = torch.randn(32, 144, generator=torch.Generator().manual_seed(1)).view(layer.weight.shape)
        MuonAdamW(layer.parameters(), 0.01).step()
    torch.testing.assert_close(conv.weight.flatten(1), linear.weight, rtol=0, atol=0)
