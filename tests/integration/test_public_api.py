"""The public Python API: lazy names of the package, and a pipeline of a module in memory."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import diffusion_lit
from diffusion_lit import Pipeline
from diffusion_lit.config.groups import read_option
from diffusion_lit.diffusion.codecs import Pixels
from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.runs.build import make_diffusion
from diffusion_lit.runs.load import TrainedModel


def test_import_is_lazy_and_lists_the_public_names():
    code = (
        "import sys, diffusion_lit\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
        "assert set(diffusion_lit.__all__) == {'DiffusionModule', 'ImageDataModule', 'Pipeline'}\n"
        "assert set(diffusion_lit.__all__) < set(dir(diffusion_lit))\n"
        "assert 'torch' not in sys.modules\n"
        "from diffusion_lit import *\n"
        "assert Pipeline.__module__ == 'diffusion_lit.runs.pipeline'\n"
        "assert DiffusionModule.__module__ == 'diffusion_lit.training.module'\n"
        "assert ImageDataModule.__module__ == 'diffusion_lit.data.datamodule'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = diffusion_lit.Missing


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dropout = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Dropout(0.5)

    def forward(self, x, t, y):
        return self.dropout(self.conv(x)) + y[:, None, None, None] / 10


def module_in_memory(process: str, with_ema: bool = True) -> SimpleNamespace:
    """What `Pipeline` reads of a DiffusionModule."""
    torch.manual_seed(0)
    config = {"diffusion": read_option("diffusion", process), "weighting": read_option("weighting", "uniform")}
    net, ema = Net(), Net().eval()
    return SimpleNamespace(
        net=net,
        ema=ema if with_ema else net,
        diffusion=make_diffusion(config),
        codec=Pixels((1, 8, 8)),
        class_names=["a", "b"],
        condition=ClassCondition(2),
    )


@pytest.mark.parametrize("process", ["cosine", "flow", "edm"])
def test_pipeline_of_a_module_uses_its_ema_with_ddim(process):
    module = module_in_memory(process)
    pipeline = Pipeline(module)
    images = pipeline(num_images=4, seed=0, output_type="pt", progress=False)
    assert images.shape == (4, 1, 8, 8)
    assert torch.equal(images, Pipeline(module)(num_images=4, seed=0, output_type="pt", progress=False))
    assert pipeline.class_names == ["a", "b"]
    assert pipeline.model.net is module.ema
    assert pipeline.model.sampler.steps == 25
    assert pipeline(["b"], 1)[0].size == (8, 8)
    assert pipeline._parse("b") == pipeline._parse(["b"]) == [1]
    with pytest.raises(ValueError, match="ab"):  # one name, not two letters
        pipeline("ab", 1)


def test_pipeline_of_a_module_without_ema_leaves_training_mode_as_it_was():
    module = module_in_memory("cosine", with_ema=False)
    pipeline = Pipeline(module)
    images = pipeline(num_images=2, output_type="pt", progress=False)
    assert pipeline.model.net is module.net
    assert module.net.training
    assert torch.equal(images, pipeline(num_images=2, output_type="pt", progress=False))  # without dropout


def test_pipeline_takes_a_model_with_a_sampler_and_guidance_of_its_own():
    module = module_in_memory("cosine")
    sampler = read_option("sampler", "ddpm") | {"steps": 3}
    model = TrainedModel.from_module(module, sampler, guidance={"guidance_scale": 2.0})
    steps = []
    images = model.generate([0, 1], [1, 2], lambda first, k, x: steps.append(k))
    assert steps == [0, 1, 2]
    assert model.count_steps(2) == 3
    plain = TrainedModel.from_module(module, sampler).generate([0, 1], [1, 2])
    assert images.dtype == torch.uint8
    assert not torch.equal(images, plain)
