"""Captions from a folder to an image: two steps on file names and text files, a prompt, and changed captions."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation.metrics import draw_prompts
from diffusion_lit.runs.evaluate_request import check_evaluation, prepare_evaluate_overrides
from diffusion_lit.runs.evaluate_run import load_evaluation_task, measure
from diffusion_lit.runs.load import load_requested_model
from diffusion_lit.runs.run_dir import read_result, read_run_config
from diffusion_lit.runs.sample_request import check_sampling, insert_stored_sampler
from diffusion_lit.sample import sample
from diffusion_lit.system.errors import DataError, UserError
from diffusion_lit.train import check_train
from tests.runs import run as run_command

COLORS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}
SHORT = [
    "experiment=none", "data=image_folder", "data.captions=auto", "data.labels=none", "data.image_size=8",
    "text_encoder=words", "model=dit", "model.width=16", "model.depth=1", "model.heads=2", "global_batch_size=4",
    "sampler=ddim", "sampler.steps=2",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for kind in ("swords", "shields"):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for k in range(12):
            color = [*COLORS][k % 3]
            pixels = np.full((8, 8, 3), COLORS[color], np.uint8) + np.uint8(k)
            Image.fromarray(pixels).save(tmp_path / "in" / kind / f"{color}_{k}.png")
    return tmp_path / "in"


def test_images_without_captions_are_refused_before_anything_is_built(folder, tmp_path):
    for k, path in enumerate(sorted(folder.glob("*/*.png"))):
        path.rename(folder / f"{k}.png")
    for name in ("swords", "shields"):
        (folder / name).rmdir()
    (config,) = compose_configs("train", [*SHORT, f"data.root={folder}", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(DataError, match="text_encoder: the training images have no captions. Set data.captions"):
        check_train(config)
    config.data.caption_colors = True
    check_train(config)


def test_few_prompts_are_spread_over_all_captions():
    captions = [(f"{k:03}", "other") for k in range(1000)] + [()]
    store = ImageStore(np.zeros((1001, 1, 1, 1), np.uint8), np.arange(1001), captions=captions)
    labels, many = draw_prompts(store, 500)
    assert draw_prompts(store, 20) == (labels[:20], many[:20])
    assert [f"{label:03}" for label in labels] == many
    counts, _ = np.histogram([int(text) for text in many[:20]], 4, (0, 1000))
    assert counts.min() >= 4
    assert len({*many}) == 500


def evaluate_prompts(run: Path, wanted: Counter, *overrides: str) -> dict:
    """Evaluate 30 images and return the result; their prompts are those wanted, but for one image of each."""
    overrides = [f"run={run}", "num_images=30", "metrics=[kid,class_accuracy]", "features=pixels", *overrides]
    (config,) = compose_configs("evaluate", prepare_evaluate_overrides(overrides, None))
    check_evaluation(config)
    task = load_evaluation_task(config, load_requested_model(config, print))
    prompts = Counter(task.requests)
    assert prompts.keys() == wanted.keys()
    assert all(abs(prompts[text] - count) <= 1 for text, count in wanted.items())
    return measure(task, lambda result, comparison: None)


def test_a_folder_of_named_images_becomes_a_model_of_prompts(folder, tmp_path):
    run, words = tmp_path / "run", [*SHORT, f"data.root={folder}"]
    measured = ["metrics_every=2", "metrics=[kid]", "metrics_images=20"]
    run_command("train", *words, *measured, "max_steps=2", "checkpoint_every=2", f"run_dir={run}", cwd=tmp_path)
    assert np.isfinite(read_result(run)["kid"])
    assert read_run_config(run)["text_encoder"]["words"] == ["blue", "green", "red", "shields", "swords"]
    overrides = insert_stored_sampler([f"run={run}", f"out={tmp_path / 'out'}", "prompt=red swords"], None)
    (config,) = compose_configs("sample", overrides)
    check_sampling(config)
    sample(config)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert {image["prompt"] for image in manifest["images"]} == {"red swords"}

    # the prompts of an evaluation are captions in the proportions of the images; an export finds the same in a folder
    captions = [f"{kind} {color}" for kind in ("shields", "swords") for color in sorted(COLORS)]
    wanted = Counter(captions * 5)
    results = [evaluate_prompts(run, wanted)]
    run_command("export", f"run={run}", f"out={tmp_path / 'export'}", cwd=tmp_path)
    results.append(evaluate_prompts(tmp_path / "export", wanted, f"reference_data={folder}"))
    assert results[0]["kid"] == pytest.approx(results[1]["kid"], abs=1e-6)
    with pytest.raises(UserError, match="the prompts are captions of real images. Add reference_data="):
        evaluate_prompts(tmp_path / "export", wanted)

    (folder / "swords" / "red_0.txt").write_text("an old sword", encoding="utf-8")
    more = [f"resume={run}", "max_steps=3"]
    printed = run_command("train", *more, "data.captions=auto", cwd=tmp_path, code=4)
    assert "the training images have changed since the checkpoint" in printed
    assert "step 3/3" in run_command("train", *more, "accept=[data]", cwd=tmp_path)


def test_classes_are_words_of_captions_and_measured(folder, tmp_path):
    """Of text files that do not name the class: prompts may name it, and class accuracy is that of their images."""
    for path in folder.glob("*/*.png"):
        path.with_suffix(".txt").write_text(path.stem.partition("_")[0], encoding="utf-8")
    run, words = tmp_path / "run", ["data=image_folder", "data.captions=sidecar", f"data.root={folder}"]
    printed = run_command("audit", *words, f"out={tmp_path / 'audit'}", cwd=tmp_path)
    for line in ("classes    2: training, validation", "captions   24 (6 different) of 2 to 2 words, 0 images without"):
        assert line in printed
    words = [*SHORT, "data.labels=auto", "data.captions=sidecar", f"data.root={folder}"]
    words += ["metrics_every=2", "metrics=[kid,class_accuracy]", "metrics_images=20", "best_by=class_accuracy"]
    words += ["data.classifier_images=20", "max_steps=2", "checkpoint_every=2", f"run_dir={run}"]
    assert ", 2 classes, 6 captions, " in run_command("train", *words, cwd=tmp_path)
    assert read_run_config(run)["text_encoder"]["words"] == ["blue", "green", "red", "shields", "swords"]
    assert len(read_run_config(run)["preview_prompts"]) == 6
    assert read_result(run)["classified_images"] == 20
    assert 0 <= read_result(run)["class_accuracy"] <= 1
    run_command("sample", f"run={run}", "prompt=[swords,red shields]", "num_images=2", cwd=tmp_path)

    wanted = Counter([f"{kind} {color}" for kind in ("shields", "swords") for color in sorted(COLORS)] * 5)
    results = [evaluate_prompts(run, wanted)]
    run_command("export", f"run={run}", f"out={tmp_path / 'export'}", cwd=tmp_path)
    results.append(evaluate_prompts(tmp_path / "export", wanted, f"reference_data={folder}"))
    for key in ("kid", "class_accuracy"):
        assert results[0][key] == pytest.approx(results[1][key], abs=1e-6)
    assert [row["images"] for row in results[0]["per_class"]] == [15, 15]

    assert "step 3/3" in run_command("train", f"resume={run}", "max_steps=3", cwd=tmp_path)
