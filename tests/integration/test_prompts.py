"""Prompts from training to images: previews, resume, sample, interpolation, export, and messages."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.value_types import format_value
from diffusion_lit.data.batches import Batches, ValidationBatches
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.export import check_export, export
from diffusion_lit.figures.noising import draw_forward, draw_panels
from diffusion_lit.figures.samples import sample_rows
from diffusion_lit.figures.subject import Subject
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.pipeline import Pipeline
from diffusion_lit.runs.run_dir import read_run_config
from diffusion_lit.runs.sample_request import check_sampling, insert_stored_sampler
from diffusion_lit.sample import sample
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.launch_run import fit
from diffusion_lit.web.session import ImageSession, Request
from tests.cases import each
from tests.text_models import save_clip
from tests.trained import SHORT

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = ["text_encoder=words", "text_encoder.min_count=1", *[word for word in SHORT if not word.startswith("model.")]]
NETWORKS = {
    "dit": ["model=dit", "model.width=16", "model.depth=1", "model.heads=2"],
    "unet_text": [
        "model=unet_text",
        "model.block_out_channels=[8,8]",
        "model.norm_num_groups=4",
        "model.text_channels=8",
        "model.heads=2",
        "model.attention_levels=[1]",
    ],
}


def caption_of(labels: torch.Tensor) -> list[str]:
    return [f"a handwritten {NUMBERS[int(label)]}" if label else "" for label in labels]


@pytest.fixture(scope="module", autouse=True)
def _captions():
    """Captions of the digits."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Batches, ValidationBatches):
            plain = kind.__iter__

            def captioned(self, plain=plain):
                for batch in plain(self):
                    yield batch | {"caption": caption_of(batch["y"])}

            patch.setattr(kind, "__iter__", captioned)
        captions = sorted({*caption_of(torch.arange(10))} - {""})
        patch.setattr(ImageDataModule, "captions", property(lambda self: captions), raising=False)
        yield


def train_prompts(run: Path, network: str, *overrides: str) -> None:
    words = [*WORDS, *NETWORKS[network], *overrides]
    config, source = resolve_data(compose_configs("train", words)[0])
    run.mkdir(parents=True, exist_ok=True)
    fit(config, source, run, words)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prompts") / "run"
    train_prompts(folder, "dit", "sample_every=4")
    return folder


def sample_run(run: Path, out: Path, *overrides: str) -> dict:
    words = insert_stored_sampler([f"run={run}", f"out={out}", "num_images=4", *overrides], None)
    (config,) = compose_configs("sample", words)
    check_sampling(config)
    sample(config)
    return json.loads((out / "manifest.json").read_text())


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("0*.png"))])


def test_a_run_stores_its_vocabulary_and_draws_prompts(run):
    config = read_run_config(run)
    assert config["text_encoder"]["words"] == sorted(["a", "handwritten", *NUMBERS[1:]])
    assert len(config["preview_prompts"]) == 8
    assert (run / "samples" / "step-00000004.png").exists()


def test_images_of_a_prompt_are_the_same_alone_in_a_list_and_by_the_pipeline(run, tmp_path):
    both = sample_run(run, tmp_path / "both", "prompt=[a handwritten one,a handwritten two]", "guidance_scale=2")
    assert [image["prompt"] for image in both["images"]] == ["a handwritten one"] * 2 + ["a handwritten two"] * 2
    sample_run(run, tmp_path / "one", "prompt=a handwritten one", "guidance_scale=2")
    np.testing.assert_array_equal(pixels(tmp_path / "both")[:2], pixels(tmp_path / "one")[:2])
    images = Pipeline.from_pretrained(run, guidance_scale=2.0)("a handwritten one", num_images=4, output_type="np")
    np.testing.assert_array_equal((images * 255).round().astype(np.uint8)[..., 0], pixels(tmp_path / "one"))


def test_an_interpolation_ends_at_its_prompts(run, tmp_path):
    prompts = "prompt=[a handwritten one,a handwritten two]"
    manifest = sample_run(run, tmp_path / "path", prompts, "interpolate=true")
    assert manifest["images"][0]["prompt"] == "a handwritten one"
    middle = manifest["images"][1]["prompts"]
    assert middle == pytest.approx({"a handwritten one": 2 / 3, "a handwritten two": 1 / 3})
    sample_run(run, tmp_path / "ends", prompts, "same_noise=true")
    ends = pixels(tmp_path / "ends")[[0, 2]].astype(int)
    assert np.abs(pixels(tmp_path / "path")[[0, 3]].astype(int) - ends).max() <= 1


def test_a_negative_prompt_changes_the_image_and_is_recorded(run, tmp_path):
    words = ["prompt=a handwritten one", "guidance_scale=3"]
    plain = sample_run(run, tmp_path / "plain", *words)
    away = sample_run(run, tmp_path / "away", *words, "negative_prompt=two")
    assert (away["negative_prompt"], "negative_prompt" in plain) == ("two", False)
    same = sample_run(run, tmp_path / "same", *words, "negative_prompt=a handwritten one")
    cond = sample_run(run, tmp_path / "cond", words[0], "guidance_scale=1")
    assert same["images"] == cond["images"]
    assert np.abs(pixels(tmp_path / "same").astype(int) - pixels(tmp_path / "cond").astype(int)).max() <= 1


def test_a_resumed_run_is_the_uninterrupted_one(run, tmp_path):
    train_prompts(tmp_path / "run", "dit", "max_steps=2", "checkpoint_every=2", "sample_every=0")
    words = ["max_steps=4", f"resume={tmp_path / 'run'}", "checkpoint_every=4", "sample_every=0"]
    train_prompts(tmp_path / "run", "dit", *words)
    first, second = (checkpoints.load_checkpoint(checkpoints.select_checkpoint(r)) for r in (run, tmp_path / "run"))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


def test_an_exported_folder_takes_prompts(run, tmp_path):
    words = insert_stored_sampler([f"run={run}", f"out={tmp_path / 'out'}"], None)
    (config,) = compose_configs("export", words)
    check_export(config)
    export(config)
    sample_run(run, tmp_path / "run", "prompt=a handwritten six")
    sample_run(tmp_path / "out", tmp_path / "exported", "prompt=a handwritten six")
    np.testing.assert_array_equal(pixels(tmp_path / "run"), pixels(tmp_path / "exported"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    first = read_run_config(run)["preview_prompts"][0]
    for text in ('"text-to-image"', "A text-conditional diffusion model", f"pipeline(['{first}'], num_images=8"):
        assert text in card
    assert "| prompts | 11 words of the training captions, at most 16 tokens |" in card
    assert "| null label | the empty prompt |" in card


def test_figures_have_rows_of_prompts(run, tmp_path):
    """The figures of a run draw its prompts; the first prompt's samples are those of `sample`."""
    model = TrainedModel.from_run(run, device="cpu")
    subject = Subject(model.config, 0, run, model)
    assert subject.row_names == read_run_config(run)["preview_prompts"]
    assert subject.original_names == []
    images = sample_rows(subject, model, 2, lambda *_: None)
    expected = model.generate([subject.row_names[0]] * 2, image_seeds(0, 2))
    assert torch.equal(images[0], expected)
    for draw in (draw_panels, lambda subject, out: draw_forward(subject, 3, out)):
        assert [path.exists() for path in draw(subject, tmp_path / "figure.png")] == [True]


def test_an_exported_unet_text_draws_prompts_without_this_package(tmp_path, monkeypatch):
    """pipeline.py makes the images of `sample`, of known and unknown words, with guidance and a negative prompt."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    run, folder = tmp_path / "run", tmp_path / "exported"
    train_prompts(run, "unet_text", "max_steps=2", "checkpoint_every=2")
    (config,) = compose_configs("export", insert_stored_sampler([f"run={run}", f"out={folder}"], None))
    check_export(config)
    export(config)
    assert "prompt=['a handwritten " in (folder / "README.md").read_text(encoding="utf-8")
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a handwritten one", "Seven, sevenish"]
    words = [f"prompt={format_value(prompts)}", "guidance_scale=2", "negative_prompt=two"]
    for number, model in enumerate((run, folder)):
        sample_run(model, tmp_path / f"out{number}", *words)
    np.testing.assert_array_equal(pixels(tmp_path / "out0"), pixels(tmp_path / "out1"))
    images = pipeline(prompt=prompts, num_images=4, guidance_scale=2.0, negative_prompt="two", output_type="np").images
    difference = (images * 255).round()[..., 0] - pixels(tmp_path / "out0")
    assert not difference.any()
    for given in ({}, {"prompt": []}):
        assert len(pipeline(**given, num_images=9, output_type="np").images) == 9
    for given, message in ({"prompt": "xylophone"}, "no training caption"), ({"classes": 1}, "classes: the condition"):
        with pytest.raises(ValueError, match=message):
            pipeline(**given)


def test_a_pretrained_encoder_trains_from_its_cache_and_samples(tmp_path):
    pytest.importorskip("transformers")
    save_clip(tmp_path / "clip")
    words = ["text_encoder=pretrained", f"text_encoder.path={tmp_path / 'clip'}", "text_encoder.max_tokens=8"]
    words = [*[word for word in WORDS if "text_encoder" not in word], *NETWORKS["dit"], *words]
    words += ["max_steps=2", "checkpoint_every=2"]
    config, source = resolve_data(compose_configs("train", words)[0])
    (tmp_path / "run").mkdir()
    fit(config, source, tmp_path / "run", words)
    stored = read_run_config(tmp_path / "run")["text_encoder"]
    assert (stored["width"], stored["commit"], len(stored["digest"])) == (16, None, 32)
    assert len(sample_run(tmp_path / "run", tmp_path / "out", "prompt=crimson seven")["images"]) == 4


@each(
    ("overrides", "message"),
    [
        (["prompt=xylophone"], "prompt=xylophone: xylophone is in no training caption"),
        (["prompt=[one,handwriten]"], "handwriten is in no training caption, similar: handwritten"),
        (
            ["prompt=one", "negative_prompt=xylophone", "guidance_scale=3"],
            "negative_prompt=xylophone: xylophone is in no training caption",
        ),
        (["classes=3"], "classes: the condition of this run is a prompt. Use prompt="),
        (["prompt=one", "negative_prompt=two"], "negative_prompt: has no effect with guidance_scale=1"),
        (["prompt=one", "interpolate=true"], "interpolate=true: needs two or more classes, blends or prompts"),
    ],
)
def test_what_a_run_cannot_draw_is_refused(run, tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        sample_run(run, tmp_path, *overrides)
    assert message in str(error.value)


def test_unknown_words_beside_known_ones_are_a_warning(run, tmp_path, caplog):
    sample_run(run, tmp_path / "out", "prompt=a handwriten two", "negative_prompt=two", "guidance_scale=2")
    assert "prompt=a handwriten two: handwriten is in no training caption, similar: handwritten" in caplog.text
    assert "negative_prompt=" not in caplog.text
    caplog.clear()
    sample_run(run, tmp_path / "shards", "prompt=a handwriten two", "shards=1")
    assert "prompt=a handwriten two: handwriten is in no training caption" in caplog.text
    sample_run(run, tmp_path / "away", "prompt=a two", "negative_prompt=a sevn", "guidance_scale=2")
    assert "negative_prompt=a sevn: sevn is in no training caption, similar: seven" in caplog.text
    with pytest.raises(ValueError, match="xylophone: no training caption has a word of this prompt"):
        Pipeline.from_pretrained(run, guidance_scale=2.0)("two", negative_prompt="xylophone")


def test_the_app_takes_a_prompt_and_refuses_unknown_words(run):
    session = ImageSession(TrainedModel.from_run(run, device="cpu"))
    assert session.has_guidance
    assert not session.classes
    request = Request("a handwritten one", 2, 0, "ddim", 2, 2.0)
    assert session.generate(request).images.shape[0] == 2
    with pytest.raises(ValueError, match="xylophone is in no training caption"):
        session.generate(dataclasses.replace(request, label="xylophone"))
    with pytest.raises(ValueError, match="at most 500 characters"):
        session.generate(dataclasses.replace(request, label=["a"]))
