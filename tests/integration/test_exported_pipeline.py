"""Exports work elsewhere: pipeline.py makes the images of `sample` in a process without this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit.config.groups import read_option
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs import publish
from diffusion_lit.runs.load import TrainedModel
from tests.cases import each
from tests.runs import run

DIGITS = Path(__file__).parents[2] / "models" / "digits"


def load(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def load_model(tiny_run: Path, folder: Path, diffusion: dict, sampler: dict, guidance: dict) -> TrainedModel:
    """The network of a tiny run as if it had been trained with other settings."""
    config = OmegaConf.to_container(OmegaConf.load(tiny_run / "config.yaml")) | guidance
    config["diffusion"] = read_option("diffusion", diffusion.pop("name")) | diffusion
    config["sampler"] = read_option("sampler", sampler.pop("name")) | {"batch_size": 3, "steps": 4} | sampler
    config["weighting"] = read_option("weighting", "uniform")
    folder.mkdir()
    (folder / "checkpoints").symlink_to(tiny_run / "checkpoints")
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return TrainedModel.from_run(folder, device="cpu")


GUIDED = {"guidance_scale": 2.5, "guidance_interval": [0.2, 0.8], "guidance_rescale": 0.7}


@each(
    ("diffusion", "sampler", "guidance"),
    [
        ({"name": "cosine"}, {"name": "dpmpp_sde"}, GUIDED),
        ({"name": "ddpm"}, {"name": "ddim", "eta": 0.5}, {}),
        ({"name": "ddpm", "num_train_timesteps": 40}, {"name": "ddpm", "steps": None, "clip_x0": False}, {}),
        ({"name": "cosine", "zero_terminal_snr": True, "prediction_type": "sample"}, {"name": "unipc"}, GUIDED),
        ({"name": "cosine_clipped", "prediction_type": "velocity"}, {"name": "euler_a", "steps": 61}, {}),
        ({"name": "sprites", "prediction_type": "edm"}, {"name": "dpmpp_2m", "use_karras_sigmas": True}, {}),
        ({"name": "flow"}, {"name": "flow_euler", "shift": 2.0}, GUIDED),
        ({"name": "flow"}, {"name": "flow_heun"}, {}),
        ({"name": "flow"}, {"name": "deis"}, {}),
        ({"name": "edm"}, {"name": "heun"}, GUIDED),
        ({"name": "edm"}, {"name": "euler"}, {"guidance_scale": 0.0}),
    ],
)
def test_the_pipeline_file_makes_the_images_of_sample(tiny_run, tmp_path, own_modules, diffusion, sampler, guidance):
    model = load_model(tiny_run, tmp_path / "run", diffusion, sampler, guidance)
    (tmp_path / "out").mkdir()
    publish.write_network(tmp_path / "out", model)
    labels = [3, 3, 8, 8]
    ours = model.generate(labels, image_seeds(5, 4)).permute(0, 2, 3, 1).numpy()
    theirs = load(tmp_path / "out")(classes=["3", 8], num_images=4, seed=5, output_type="np").images
    assert np.array_equal(ours, (theirs * 255).round())


def test_two_models_in_one_process_keep_their_settings(tiny_run, tmp_path, own_modules):
    pipelines = []
    for k, diffusion in enumerate(("cosine", "flow")):
        model = load_model(tiny_run, tmp_path / f"run{k}", {"name": diffusion}, {"name": "ddim"}, {})
        (tmp_path / f"out{k}").mkdir()
        publish.write_network(tmp_path / f"out{k}", model)
        pipelines.append((model, load(tmp_path / f"out{k}")))
    for model, pipeline in pipelines:
        image = pipeline(classes=1, num_images=1, output_type="np").images[0]
        assert np.array_equal(model.generate([1], image_seeds(0, 1))[0, 0].numpy(), (image[..., 0] * 255).round())
    for classes, message in (
        (["eleven"], "eleven: not a class of this model"),
        ([10], "10: not a class"),
        (-1, "-1: not"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(classes=classes)


def test_classes_of_a_pipeline_may_be_any_sequence_and_images_tensors(own_modules):
    """And what it cannot do is refused."""
    pipeline = load(DIGITS)
    expected = pipeline(classes=["3", "8"], num_images=2, output_type="np").images
    for classes in (("3", 8), np.array([3, 8]), [np.int64(3), np.int64(8)]):
        assert np.array_equal(pipeline(classes=classes, num_images=2, output_type="np").images, expected)
    images = pipeline(classes=[3, 8], num_images=2, output_type="pt").images
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    for request, message in (
        ({"classes": []}, r"classes=\[\]: has no class"),
        ({"num_images": 0}, "num_images=0: must be 1 or more"),
        ({"output_type": "latent"}, "output_type='latent': must be one of pil, np, pt"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            pipeline(**request)


def test_the_lines_of_the_card_work_without_this_package(tiny_run, tmp_path):
    """As a stranger runs them, with files that others of the machine can read as the umask says."""
    prelude = "import os; os.umask(0o027)"
    run("export", f"run={tiny_run}", "out=out", cwd=tmp_path, prelude=prelude)
    run("sample", "run=out", "classes=[0]", "num_images=8", "out=ours", cwd=tmp_path, prelude=prelude)
    for folder in ("out", "ours"):
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / folder).rglob("*") if path.is_file()}
        assert modes == {0o640}
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o750
    index = json.loads((tmp_path / "out" / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == ["pipeline", "DiffusionLitPipeline"]  # DDPMPipeline passes no labels
    (code,) = re.findall(
        r"```python\n(from diffusers .*?)```", (tmp_path / "out" / "README.md").read_text("utf-8"), re.S
    )
    assert code.count("\n") <= 11
    code = f"import sys; sys.modules['diffusion_lit'] = None\n{code}"
    code += "for k, image in enumerate(images): image.save(f'{k:05d}.png')\n"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=300)
    for k in range(8):
        name = f"{k:05d}.png"
        assert np.array_equal(np.array(Image.open(tmp_path / name)), np.array(Image.open(tmp_path / "ours" / name)))


def test_files_of_a_run_have_the_mode_of_the_umask(tiny_run):
    umask = os.umask(0)
    os.umask(umask)
    odd = {path for path in tiny_run.rglob("*") if path.is_file() and path.stat().st_mode & 0o777 != 0o666 & ~umask}
    assert odd == set()
