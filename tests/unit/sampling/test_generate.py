"""The sampling loop on a device without double precision, such as MPS: float64 numbers stay on the CPU."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_lit.diffusion import processes
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.sampling import generate
from diffusion_lit.sampling.editing import Edit
from tests.cases import each
from tests.sampled import ALL, sampler_of

PREDICTIONS = {"discrete": "v_prediction", "flow": "velocity", "edm": "edm"}
SHAPE = (2, 1, 4, 4)


class NoFloat64(TorchDispatchMode):
    """Raises TypeError, as MPS does, if an operation makes a float64 tensor on the device, here "meta"."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.is_meta and x.dtype == torch.float64:
                raise TypeError(f"{func}: float64")
        return out


def denoise(name: str, kind: str, edit: Edit | None = None) -> Tensor:
    diffusion = Diffusion(processes.PROCESSES[kind](), PREDICTIONS[kind], Uniform()).to("meta")
    generators = [torch.Generator().manual_seed(k) for k in range(SHAPE[0])]
    x, y, sampler = torch.zeros(SHAPE, device="meta"), torch.zeros(SHAPE[0], device="meta"), sampler_of(name, steps=3)
    with NoFloat64():
        return generate._denoise(
            lambda x, t, y: x, diffusion, sampler, y, x, generators=generators, edit=edit, on_step=lambda k, x: None
        )


@pytest.fixture(autouse=True)
def meta_is_like_mps(monkeypatch):
    monkeypatch.setattr(processes, "_to_float64", lambda t: t if t.is_meta else t.double())


@each(("name", "kind"), [(name, kind) for name, config in ALL.items() for kind in config["serves"]])
def test_no_sampler_makes_float64_on_the_device(name, kind):
    assert denoise(name, kind).dtype == torch.float32
    if ALL[name]["starts_anywhere"]:
        mask = torch.ones(SHAPE[2:], dtype=torch.bool, device="meta")
        edit = Edit(torch.zeros(SHAPE, device="meta"), strength=0.8, mask=mask, repaint_repeats=2)
        assert denoise(name, kind, edit).dtype == torch.float32


def test_float64_on_the_device_is_noticed(monkeypatch):
    level = generate.scheduler_times
    monkeypatch.setattr(generate, "scheduler_times", lambda *arguments: level(*arguments).double())
    with pytest.raises(TypeError, match="float64"):
        denoise("euler_a", "edm")
