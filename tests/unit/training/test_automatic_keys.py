"""Keys of `strategy` that are `auto`: what a run uses on a CPU and on a GPU, and what a resumed run keeps."""

from functools import lru_cache

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.targets import trust
from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.training.automatic_keys import LONG_RUN, resolve_strategy, supports_channels_last
from tests.cases import each
from tests.networks import small_overrides
from tests.runs import TINY


@lru_cache
def tiny() -> dict:
    return resolve_data(compose_configs("train", TINY)[0])[0]


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, as far as the choice looks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def chosen(max_steps: int = LONG_RUN, **keys: object) -> tuple[object, object]:
    strategy = resolve_strategy(tiny() | {"max_steps": max_steps, "strategy": tiny()["strategy"] | keys})
    return strategy["channels_last"], strategy["compile"]


def test_a_cpu_uses_neither_unless_requested():
    assert chosen() == (False, False)
    assert chosen(channels_last=True, compile="reduce-overhead") == (True, "reduce-overhead")


def test_a_gpu_uses_what_fits_network_strategy_and_length(gpu, monkeypatch):
    assert chosen() == chosen(name="ddp") == (True, True)
    assert chosen(max_steps=LONG_RUN - 1) == chosen(name="dp") == (True, False)
    assert chosen(accelerator="cpu") == chosen(channels_last=False, compile=False) == (False, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert chosen() == (True, False)


@each("model", ["simple_unet", "dit"])
def test_networks_of_convolutions_run_in_channels_last(model):
    config = resolve_data(compose_configs("train", small_overrides(model))[0])[0]
    assert supports_channels_last(config) == (model != "dit")


class Flattening(nn.Module):
    """A network that fails with features in channels_last."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 4, 3))

    def forward(self, x_t, t, y):
        return self.convolutions(x_t).view(len(x_t), -1)


def test_a_network_that_fails_in_channels_last_is_left_as_it_is():
    config = tiny() | {"model": {"_target_": f"{__name__}.Flattening", "channels": 1}}
    trust(config["model"])
    assert not supports_channels_last(config)


def test_a_resumed_run_keeps_its_memory_format(tmp_path, gpu):
    before = tiny() | {"strategy": tiny()["strategy"] | {"channels_last": False}}
    OmegaConf.save(OmegaConf.create(before), tmp_path / "config.yaml")
    resumed, _ = resolve_training_config(compose_configs("train", [*TINY, f"resume={tmp_path}"])[0])
    assert resolve_strategy(resumed)["channels_last"] is False
