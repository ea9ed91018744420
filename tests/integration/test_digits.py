"""The first five minutes: the bare command, what it leaves behind, and images from it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

from benchmarks import digits_classifier
from diffusion_lit.cli import train_overrides
from diffusion_lit.config.compose import compose_configs
from diffusion_lit.data.datamodule import datamodule_from_config
from diffusion_lit.data.sources.digits import Digits
from diffusion_lit.evaluation.classifier import Classifier
from diffusion_lit.evaluation.digits_classifier import load_digits_classifier
from diffusion_lit.evaluation.features import collect_real_images, make_classifier
from diffusion_lit.evaluation.metrics import score_class_accuracy
from diffusion_lit.runs import checkpoints, run_dir, stored_config
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.runs.sample_request import parse_labels
from diffusion_lit.training.build_run import make_module
from diffusion_lit.training.noise_levels import BINS
from tests.conftest import WHOLE_VALIDATION
from tests.probe import Probe
from tests.runs import run


def test_nine_of_ten_digits_are_what_they_were_asked_to_be(digits_run):
    result = json.loads((digits_run / "result.json").read_text())
    assert result["classified_images"] == 500
    assert result["class_accuracy"] >= 0.93
    assert 0.94 < result["class_accuracy_real"] < 0.98  # the judge on real digits it has not seen


def test_the_last_lines_name_the_run_the_grid_and_the_verdict(digits_run):
    printed = (digits_run / "printed.txt").read_text()
    result = json.loads((digits_run / "result.json").read_text())
    assert digits_run.name in printed
    assert result["grid"] in printed
    assert f"{result['class_accuracy']:.1%} of 500 generated images" in printed
    assert f"real images {result['class_accuracy_real']:.1%}" in printed


def test_a_run_folder_holds_what_the_contract_says(digits_run):
    files = {path.relative_to(digits_run).as_posix() for path in digits_run.rglob("*")}
    expected = {"config.yaml", "command.txt", "versions.txt", "train.log", "metrics.csv", "result.json"}
    expected |= {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/step-00000400.ckpt"}
    expected |= {"samples/step-00000200.png", "samples/step-00000400.png"}
    assert expected <= files
    assert len([name for name in files if name.startswith("checkpoints/step-")]) <= 3
    assert not [name for name in files if name.endswith(".tmp")]
    result = json.loads((digits_run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["steps"] == 400
    assert (digits_run / result["grid"]).exists()
    assert (digits_run / result["checkpoint"]).exists()
    assert not (digits_run / "checkpoints" / "last.ckpt").readlink().is_absolute()


def test_checkpoints_are_plain_data_with_the_configuration_as_text(digits_run):
    checkpoint = checkpoints.load_checkpoint(digits_run / "checkpoints" / "last.ckpt")  # weights_only
    stored = stored_config.read_model_config(digits_run)  # whose run_dir is absolute; this is a copy of the folder
    assert yaml.safe_load(checkpoint["config"]) | {"run_dir": stored["run_dir"]} == stored
    names = {key.split(".")[0] for key in checkpoint["state_dict"]}
    assert names == {"net", "ema"}
    assert "hyper_parameters" not in checkpoint


@pytest.fixture
def untrained_losses() -> Callable[[Path], tuple[float, list[float], float]]:
    """Return a function from a run folder to what its untrained network gives in a validation on all noise levels."""

    def measure(run_folder: Path) -> tuple[float, list[float], float]:
        config = stored_config.read_model_config(run_folder)
        data = datamodule_from_config(Digits(), config["data"], 0, 1)
        data.setup()
        module = make_module(config)
        return Probe(data.val, module.diffusion).losses(module.ema)

    return measure


def test_validation_loss_is_below_an_untrained_networks_at_every_noise_level(digits_run, untrained_losses):
    rows = [row for row in read_metrics(digits_run / "metrics.csv") if row["val/loss"]]
    assert [int(row["step"]) for row in rows] == [200, 400]
    assert float(rows[-1]["val/loss"]) < float(rows[0]["val/loss"])
    untrained, bins, noise = untrained_losses(digits_run)
    assert float(rows[-1]["val/loss"]) < untrained / 3.8  # a third of the training; in full it is below a fourth
    assert float(rows[-1]["val/error"]) < 0.65 * noise  # in full it is below 0.6
    for name, loss in zip(BINS, bins, strict=True):
        assert float(rows[-1][f"val/ema_log_snr/{name}"]) < loss, name
        assert float(rows[-1][f"val/raw_log_snr/{name}"]) < loss, name


def test_one_command_line_in_one_line(digits_run):
    command = (digits_run / "command.txt").read_text()
    overrides = run_dir.read_overrides(digits_run)
    assert command == f"python -m diffusion_lit.train {' '.join(overrides)}\n"
    assert overrides[0] == "max_steps=400"


def test_the_bare_command_composes_the_recipe_of_the_digits():
    (config,), (recipe,) = compose_configs("train", []), compose_configs("train", ["experiment=digits"])
    assert {key: config[key] for key in config if key != "run_dir"} == {
        key: recipe[key] for key in recipe if key != "run_dir"
    }
    assert (config.name, config.max_steps) == ("digits", 1200)


@pytest.mark.slow
def test_the_bare_command(tmp_path, untrained_losses):
    run("train", cwd=tmp_path, prelude=WHOLE_VALIDATION)
    (folder,) = (tmp_path / "outputs" / "digits").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("finished", 1200)
    assert result["class_accuracy"] >= 0.97
    untrained, _, noise = untrained_losses(folder)
    assert result["val/loss"] < untrained / 4
    assert result["val/error"] < 0.6 * noise
    assert (folder / "command.txt").read_text() == "python -m diffusion_lit.train\n"
    assert run_dir.read_overrides(folder) == []


@pytest.mark.slow
def test_the_classifier_that_comes_with_the_package_is_that_of_its_command():
    """Another processor rounds otherwise, so the weights may differ; the number of errors hardly does."""
    train, val = digits_classifier.load_digits()
    trained, shipped = digits_classifier.train(train), Classifier(1, 10).eval()
    shipped.load_state_dict(load_digits_classifier(train.fingerprint, 10, False))
    for digits in (train, val):
        errors = [digits_classifier.count_errors(net, digits) for net in (trained, shipped)]
        assert abs(errors[0] - errors[1]) <= max(1, len(digits) // 200)


def tiles(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_sample_has_the_bytes_of_the_preview_also_after_the_run_has_moved(digits_run, tmp_path):
    run("sample", f"run={digits_run}", "num_images=80", f"out={tmp_path / 'a'}", cwd=tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(digits_run, moved, symlinks=True)
    run("sample", f"run={moved}", "num_images=80", f"out={tmp_path / 'b'}", "npy=true", cwd=tmp_path)
    a, b = tmp_path / "a", tmp_path / "b"
    for k in range(80):
        assert (a / f"{k:05d}.png").read_bytes() == (b / f"{k:05d}.png").read_bytes()
    grid, preview = tiles(a / "grid.png"), tiles(digits_run / "samples" / "step-00000400.png")
    title = 20  # px above the average's half of a preview
    np.testing.assert_array_equal(preview[title : title + grid.shape[0], : grid.shape[1]], grid)
    images = np.load(b / "images.npy")
    assert images.shape == (80, 8, 8, 1)
    np.testing.assert_array_equal(images[17, :, :, 0], tiles(b / "00017.png"))


def test_sample_takes_classes_sampler_guidance_and_seed(digits_run, tmp_path):
    words = ["classes=[3,8]", "num_images=10", "sampler=ddim", "sampler.steps=5", "guidance_scale=2", "seed=7"]
    printed = run("sample", f"run={digits_run}", *words, "gif=true", f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert "img/s" in printed
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [image["label"] for image in manifest["images"]] == [3] * 5 + [8] * 5
    assert len({image["seed"] for image in manifest["images"]}) == 10
    assert manifest["sampler"]["steps"] == 5
    assert manifest["guidance_scale"] == 2
    assert manifest["checkpoint"] == "step-00000400.ckpt"
    with Image.open(tmp_path / "out" / "denoising.gif") as film:
        assert film.n_frames == 5


def test_sample_uses_the_sampler_of_the_run_and_changes_one_key_of_it(digits_run, tmp_path):
    run("sample", f"run={digits_run}", "sampler.steps=3", "num_images=2", f"out={tmp_path / 'out'}", cwd=tmp_path)
    sampler = json.loads((tmp_path / "out" / "manifest.json").read_text())["sampler"]
    assert sampler == stored_config.read_model_config(digits_run)["sampler"] | {"steps": 3}


def test_folder_names_that_are_numbers_are_meant_as_names():
    names = ["1", "10", "2"]
    for asked, labels in (("[1]", [0]), ("[10]", [1]), ("[2,1]", [2, 0]), ("[0]", [0])):
        config = OmegaConf.create({"classes": yaml.safe_load(asked), "context": None})
        assert parse_labels(config, names) == labels


def test_guidance_needs_a_network_that_was_trained_for_it(digits_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(digits_run, copy, symlinks=True)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("label_dropout: 0.1", "label_dropout: 0"))
    printed = run("sample", f"run={copy}", "guidance_scale=3", cwd=tmp_path, code=2)
    assert "guidance needs the unconditional model" in printed


def test_an_image_depends_on_its_seed_and_label_alone(digits_run, tmp_path):
    words = [f"run={digits_run}", "classes=[5]", "sampler.batch_size=16"]
    run("sample", *words, "num_images=3", f"out={tmp_path / 'few'}", cwd=tmp_path)
    run("sample", *words, "num_images=70", f"out={tmp_path / 'many'}", cwd=tmp_path)
    for k in range(3):
        assert (tmp_path / "few" / f"{k:05d}.png").read_bytes() == (tmp_path / "many" / f"{k:05d}.png").read_bytes()


def test_a_finished_run_says_so_and_can_be_extended(digits_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(digits_run, copy, symlinks=True)
    assert "is complete at step 400 of 400" in run("train", f"resume={copy}", cwd=tmp_path)
    run("train", f"resume={copy}", "max_steps=405", "data.classifier_images=0", cwd=tmp_path)
    assert json.loads((copy / "result.json").read_text())["steps"] == 405
    assert [int(row["step"]) for row in read_metrics(copy / "metrics.csv")][-2:] == [400, 405]


def test_resume_auto_takes_the_newest_run_of_the_name(tmp_path):
    words = ["max_steps=2", "data.classifier_images=0", "sampler.steps=1", "name=mine"]
    printed = run("train", "resume=auto", *words, cwd=tmp_path, code=2)
    assert "no run in outputs/mine. No other name has runs. Add experiment= or data= to start a new run" in printed
    assert not (tmp_path / "outputs").exists()
    words = ["experiment=digits", *words]
    assert "starting a new one" in run("train", "resume=auto", *words, cwd=tmp_path)
    assert "is complete at step 2" in run("train", "resume=auto", *words, cwd=tmp_path)
    assert len(list((tmp_path / "outputs" / "mine").iterdir())) == 1
    printed = run("train", "resume=auto", "name=minee", cwd=tmp_path, code=2)
    assert "no run in outputs/minee. Add one of these names, or experiment= or data= to start a new run:" in printed
    (first,) = (tmp_path / "outputs" / "mine").iterdir()
    assert f"name=mine: outputs/mine/{first.name}, step 2, finished" in printed
    newer = shutil.copytree(first, first.with_name("newer"), symlinks=True)
    for folder, status in ((first, "interrupted"), (newer, "finished")):
        result = json.loads((folder / "result.json").read_text()) | {"status": status}
        (folder / "result.json").write_text(json.dumps(result))
    os.utime(newer / "command.txt")
    assert train_overrides.find_run_to_resume(first.parent) == first  # the newest is complete
    text = (newer / "config.yaml").read_text()
    (newer / "config.yaml").write_text(text.replace("max_steps: 2\n", "max_steps: 9\n"))  # extended, and killed at once
    assert train_overrides.find_run_to_resume(first.parent) == newer
    (newer / "config.yaml").write_text(text)
    (newer / "result.json").unlink()  # killed
    assert train_overrides.find_run_to_resume(first.parent) == newer


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_every_sampler_makes_digits(digits_run, tmp_path, sampler):
    """The judge of the run, on the samples of another sampler than the run's."""
    words = [f"sampler={sampler}", "sampler.steps=50", "num_images=100", "npy=true"]
    run("sample", f"run={digits_run}", *words, f"out={tmp_path / 'out'}", cwd=tmp_path)
    config = stored_config.read_model_config(digits_run)
    data = datamodule_from_config(Digits(), config["data"], 0, 1)
    data.setup()
    images = torch.from_numpy(np.load(tmp_path / "out" / "images.npy")).permute(0, 3, 1, 2)
    judge = make_classifier(collect_real_images(data.train, data.val, config["data"], torch.device("cpu")))
    assert score_class_accuracy(judge, images, [k // 10 for k in range(100)])["class_accuracy"] >= 0.85
