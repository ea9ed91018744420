"""Reference statistics as files: those of here, of EDM and of pytorch-fid, and what a comparison with them gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from diffusion_lit.config.metric_columns import METRIC_COLUMNS
from diffusion_lit.evaluation.distances import kernel_distance
from diffusion_lit.evaluation.features import FeatureExtractor
from diffusion_lit.evaluation.image_metrics import FrechetDistance, FrechetDistance64, KernelDistance
from diffusion_lit.evaluation.image_sets import ImageSet, Reference, compute_statistics, describe_resize
from diffusion_lit.evaluation.metrics import Comparison, compute_metric, compute_per_class
from diffusion_lit.evaluation.reference_statistics import check_statistics, load_statistics, save_statistics
from diffusion_lit.evaluation.results import format_evaluation
from diffusion_lit.system.errors import UserError
from tests.unit.evaluation.test_metrics import SETTINGS

FEATURES = 70
EXTRACTOR = FeatureExtractor("flat", lambda images: images.flatten(1).float() / 255, "abc", torch.device("cpu"))
RESIZE = describe_resize(EXTRACTOR, 7, 10, "bicubic")


def make_set(n: int, seed: int) -> ImageSet:
    images = torch.randint(256, (n, 1, 7, 10), generator=torch.Generator().manual_seed(seed)).byte()
    return ImageSet(images, EXTRACTOR(images), torch.arange(n) % 2)


REAL, GENERATED = make_set(500, 0), make_set(400, 1)
STATISTICS = compute_statistics(REAL, EXTRACTOR, RESIZE, "f00d")


def compare(statistics=None, n: int = 400) -> Comparison:
    reference = Reference(EXTRACTOR, None, None if statistics else REAL, None, ["a", "b"], statistics=statistics)
    return Comparison(reference, GENERATED.images[:n], GENERATED.labels[:n].tolist())


def test_a_file_holds_what_was_written(tmp_path):
    path = tmp_path / "folder" / "flat.npz"
    save_statistics(STATISTICS, path)
    found = load_statistics(path)
    for x, y in zip(found.moments, STATISTICS.moments, strict=True):
        assert torch.equal(x, y)
    assert replace(found, moments=STATISTICS.moments, file="") == STATISTICS
    assert found.unknown == []
    assert (found.num_images, found.features, found.resize) == (500, "flat", "7x10, bicubic; flat: not resized")


def test_a_file_is_what_pytorch_fid_and_edm_read(tmp_path):
    """Both take `mu` and `sigma`, the mean and `numpy.cov` of the features, in double precision."""
    save_statistics(STATISTICS, tmp_path / "flat.npz")
    x = REAL.features.double().numpy()
    with np.load(tmp_path / "flat.npz") as file:  # without pickles
        assert {"mu", "sigma", "N", "features", "digest", "resize", "fingerprint"} == {*file.files}
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        np.testing.assert_allclose(file["mu"], x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(x, rowvar=False), rtol=1e-9, atol=1e-15)


def test_the_frechet_distance_to_a_file_is_that_to_the_images_bit_for_bit(tmp_path):
    save_statistics(STATISTICS, tmp_path / "flat.npz")
    statistics = load_statistics(tmp_path / "flat.npz")
    to_images, to_file = compare(), compare(statistics)
    expected, found = (compute_metric("fd", c) for c in (to_images, to_file))
    assert found == {name: expected[name] for name in ("fd", "fd_low", "fd_high")}
    expected, found = (compute_metric("fd64", c) for c in (to_images, to_file))
    assert found["fd64"] == pytest.approx(expected["fd64"], rel=1e-9)
    assert found["fd64_low"] == pytest.approx(expected["fd64_low"], rel=1e-6)
    for metric, measured in ((FrechetDistance, "fd"), (FrechetDistance64, "fd64")):
        alone = metric(EXTRACTOR, statistics=statistics)
        alone.update(GENERATED.images, real=False)
        alone.update(GENERATED.images, real=True)  # does not count
        assert alone.compute() == pytest.approx(to_file.measurements[measured].value)


@pytest.mark.parametrize("is_real_first", [True, False])
def test_statistics_change_no_other_metric_of_a_collection(is_real_first):
    """Metrics of a collection share the features of one of them."""
    collection = MetricCollection([FrechetDistance(statistics=STATISTICS), KernelDistance()])
    for is_real in (is_real_first, not is_real_first):
        for part in (REAL if is_real else GENERATED).features.split(200):
            collection.update(part, real=is_real)
    found = collection.compute()
    assert found["KernelDistance"] == pytest.approx(kernel_distance(GENERATED.features, REAL.features).value)
    assert found["FrechetDistance"] == pytest.approx(compute_metric("fd", compare(STATISTICS))["fd"])


def test_a_file_with_mu_and_sigma_alone_serves_and_what_it_does_not_say_is_printed(tmp_path):
    x = REAL.features.double().numpy()
    np.savez_compressed(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    statistics = load_statistics(tmp_path / "theirs.npz")
    check_statistics(statistics, "flat", "abc", RESIZE, FEATURES)
    c = compare(statistics)
    assert compute_metric("fd", c)["fd"] == pytest.approx(compute_metric("fd", compare())["fd"], rel=1e-9)
    reference = {"split": None, **statistics.describe()}
    result = {"settings": SETTINGS | {"reference": reference}, "num_images": 400, "nfe": 1}
    for name in METRIC_COLUMNS:
        result |= compute_metric(name, c)
    lines = format_evaluation(result, compute_per_class(c))
    unknown = "unknown, since the file does not say: number of images, features, resize, images"
    assert lines[2] == f"reference  theirs.npz, {unknown}"
    (withheld,) = [line for line in lines if "theirs.npz has their mean and covariance only" in line]
    assert withheld.startswith("KID, precision, recall, density, coverage, copied, colors withheld: needs images")
    assert "accuracy   withheld: no images to train a classifier on. Add reference_data=" in lines
    assert not {"class_accuracy", "kid", "precision"} & result.keys()


@pytest.mark.parametrize(("num_images", "reason"), [
    (500, "300 generated and 500 real images, but 70 features need 350 of both"),
    (None, "300 generated images, but 70 features need 350"),
])  # fmt: skip
def test_few_images_are_still_too_few(num_images, reason):
    c = compare(replace(STATISTICS, num_images=num_images), n=300)
    assert compute_metric("fd", c) == {"fd_withheld": reason}


FEWER = STATISTICS.moments.project(torch.zeros(70).double(), torch.eye(70).double()[:, :9])


@pytest.mark.parametrize(("change", "message"), [
    ({"features": "inception"}, "of features inception, not flat. Add features=inception"),
    ({"resize": "8x8, area; flat: not resized"}, "resized to 8x8, area; flat: not resized, but here to 7x10"),
    ({"digest": "other"}, "of flat with weights other, but here abc. Write it again with save_statistics="),
    ({"moments": FEWER}, "of 9 features, but features=flat gives 70. Add the features that it was made with"),
])  # fmt: skip
def test_statistics_of_other_features_are_refused(change, message):
    check_statistics(STATISTICS, "flat", "abc", RESIZE, FEATURES)
    with pytest.raises(UserError) as caught:
        check_statistics(replace(STATISTICS, **change, file="x.npz"), "flat", "abc", RESIZE, FEATURES)
    assert str(caught.value).startswith(f"reference_statistics=x.npz: {message}")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("arrays", "message"), [
    (None, "not an .npz file"),
    ({"mu": np.zeros(3)}, "has no mu and sigma"),
    ({"mu": np.zeros(3), "sigma": np.eye(4)}, "mu (3,) and sigma (4, 4) are not (D,) and (D, D)"),
    ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu or sigma is not finite"),
    ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "not an .npz file"),
    ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [-0.5, 1.0]])}, "sigma is not a covariance"),
    ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "sigma is not a covariance"),
    (np.zeros(3), "not an .npz file of statistics"),
    ({"mu": np.zeros(2), "sigma": np.eye(2), "N": np.array([5, 6])}, "not an .npz file of statistics ("),
    ({"mu": np.zeros(2), "sigma": np.eye(2), "N": np.array("many")}, "not an .npz file of statistics ("),
    ({"mu": np.zeros(2), "sigma": np.eye(2), "N": np.array(np.nan)}, "not an .npz file of statistics ("),
])  # fmt: skip
def test_files_without_statistics_are_refused(tmp_path, arrays, message):
    path = tmp_path / "x.npz"
    if isinstance(arrays, np.ndarray):  # an .npy file of this name
        with open(path, "wb") as file:
            np.save(file, arrays)
    else:
        path.write_bytes(b"no archive") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(UserError) as caught:
        load_statistics(path)
    assert str(caught.value).startswith(f"reference_statistics={path}: {message}")
    assert caught.value.exit_code == 3
