"""Sampling in half precision, compiled, and in large batches."""

import logging
import threading

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from diffusion_lit.config.groups import read_option
from diffusion_lit.diffusion.codecs import Pixels
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.diffusion.weighting import MinSNR
from diffusion_lit.runs import fast_sampling
from diffusion_lit.runs.build import make_configured_sampler
from diffusion_lit.runs.fast_sampling import choose_batch_size, speed_up
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.generate import map_ahead
from diffusion_lit.system.bfloat16 import DeviceFacts
from tests.structure import ROOT


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x_t, t, y):
        return self.second(torch.tanh(self.first(x_t)))


def make_model(batch_size: int | None = 4) -> TrainedModel:
    config = {"sampler": read_option("sampler", "ddpm") | {"steps": 3, "batch_size": batch_size}}
    diffusion = Diffusion(DiscreteProcess(100), "v_prediction", MinSNR())
    return TrainedModel(Net(), diffusion, Pixels((1, 8, 8)), [], make_configured_sampler(config), config=config)


def sample(model: TrainedModel, precision: str = "32-true", compile: bool = False) -> torch.Tensor:
    model = speed_up(model, OmegaConf.create({"precision": precision, "compile": compile}), num_images=6)
    return model.generate([0] * 6, range(6), decode=False)


def test_half_precision_is_for_the_network_alone():
    exact, model = sample(make_model()), make_model()
    names, types = list(model.net.state_dict()), set()
    model.net.first.register_forward_hook(lambda layer, inputs, out: types.add(out.dtype))
    half = sample(model, precision="bf16-mixed")
    assert types == {torch.bfloat16}
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0, atol=0.05)
    assert list(model.net.state_dict()) == names
    assert {value.dtype for value in model.net.state_dict().values()} == {torch.float32}


def test_images_in_half_precision_are_within_a_few_gray_levels():
    def make(precision: str) -> torch.Tensor:
        model = TrainedModel.from_run(
            ROOT / "models" / "mnist", device="cpu", sampler=read_option("sampler", "ddim") | {"steps": 2}
        )
        model = speed_up(model, OmegaConf.create({"precision": precision}), num_images=4)
        return model.generate([0, 3, 6, 9], image_seeds(0, 4)).int()

    difference = (make("bf16-mixed") - make("32-true")).abs().float()
    assert 0 < difference.mean() < 1
    assert difference.quantile(0.99) <= 4


def test_auto_is_fixed_and_logged_with_its_reason(monkeypatch, caplog):
    for flag, expected in (("avx512_bf16", "bf16-mixed"), ("avx2", "32-true")):
        facts = DeviceFacts("cpu", flags=frozenset({flag}))
        monkeypatch.setattr(fast_sampling, "inspect_device", lambda kind, facts=facts: facts)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            model = speed_up(make_model(), OmegaConf.create({"precision": "auto"}), num_images=6)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"precision  {expected}: this CPU has ")
        assert "avx512_bf16" in line
        assert model.speed == {"precision": expected, "compile": False}  # of the manifest
        images = model.generate([0] * 6, range(6), decode=False)
        assert torch.equal(images, sample(make_model(), precision=expected))


def test_a_compiled_network_makes_the_same_images(graphs):
    assert torch.equal(sample(make_model(), compile=True), sample(make_model()))
    assert len(graphs) == 1  # the last batch is filled up
    half = sample(make_model(), precision="bf16-mixed", compile=True)
    assert torch.equal(half, sample(make_model(), precision="bf16-mixed"))
    assert len(graphs) == 2  # with autocast inside, and no break


@pytest.mark.parametrize(("images", "pixels", "size"), [
    (255, 32 * 32, 64), (256, 32 * 32, 256), (10_000, 8 * 8, 256), (256, 45 * 45, 129), (256, 256 * 256, 64),
])  # fmt: skip
def test_many_images_are_made_in_larger_batches_on_a_gpu(images, pixels, size):
    assert choose_batch_size(images, pixels) == size


def test_a_cpu_and_a_batch_size_that_was_set_stay_as_they_are(monkeypatch):
    settings = OmegaConf.create({"precision": "32-true", "compile": False})
    assert speed_up(make_model(None), settings, 1000).sampler.batch_size == make_model(None).sampler.batch_size
    monkeypatch.setattr(TrainedModel, "device", torch.device("cuda"))
    assert speed_up(make_model(7), settings, 1000).sampler.batch_size == 7
    assert speed_up(make_model(None), settings, 1000).sampler.batch_size == 256


def test_noise_that_is_drawn_ahead_keeps_its_order():
    threads = []

    def draw(k: int) -> int:
        threads.append(threading.current_thread())
        return k * k

    for count in (0, 1, 2, 7):
        assert [*map_ahead(draw, range(count), is_threaded=True)] == [k * k for k in range(count)]
    assert threading.main_thread() not in threads
    results = map_ahead(draw, range(3), is_threaded=True)
    next(results)
    results.close()  # as after an error, it ends without waiting for more


def test_a_failure_ahead_is_raised_where_its_turn_comes():
    results = map_ahead(lambda k: 1 // (1 - k), range(3), is_threaded=True)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
