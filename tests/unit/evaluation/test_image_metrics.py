"""The metrics as `torchmetrics.Metric`s: alone, in a collection, in batches, and against torchmetrics' own."""

import pytest
import torch
from torchmetrics import MetricCollection

from diffusion_lit.evaluation.distances import frechet_distance, kernel_distance
from diffusion_lit.evaluation.features import FeatureExtractor
from diffusion_lit.evaluation.image_metrics import (
    ClassAccuracy,
    Copies,
    FrechetDistance,
    FrechetDistance64,
    KernelDistance,
    PrecisionRecall,
)


def draw(n: int, seed: int, high: int = 256) -> torch.Tensor:
    return torch.randint(high, (n, 3, 2, 2), generator=torch.Generator().manual_seed(seed)).byte()


def flatten(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).float() / 255


def fill(metric, real, generated, batch: int = 64):
    for images, is_real in ((real, True), (generated, False)):
        for part in images.split(batch):
            metric.update(part, real=is_real)
    return metric


def test_distances_in_batches_are_those_of_the_whole_sets_and_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, generated = draw(300, 0), draw(300, 1, 200)
    x, y = flatten(generated), flatten(real)
    kid = fill(KernelDistance(flatten), real, generated)
    fd = fill(FrechetDistance(flatten), real, generated, batch=100)
    assert kid.compute() == pytest.approx(kernel_distance(x, y).value)
    assert kid.measure().interval() == pytest.approx(kernel_distance(x, y).interval())
    feature = torch.nn.Identity()
    feature.num_features = 12
    theirs = FrechetInceptionDistance(feature=feature).set_dtype(torch.double)
    theirs.update(x.double(), real=False)
    theirs.update(y.double(), real=True)
    assert fd.compute() == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_the_kernel_distance_is_that_of_torchmetrics_on_one_subset_of_all_images():
    from torchmetrics.image.kid import KernelInceptionDistance

    real, generated = draw(120, 0), draw(120, 1, 200)
    feature = torch.nn.Flatten()
    feature.num_features = 12
    theirs = KernelInceptionDistance(feature=feature, subsets=1, subset_size=120)
    theirs.update(flatten(real).double(), real=True)
    theirs.update(flatten(generated).double(), real=False)
    mean, _ = theirs.compute()
    assert fill(KernelDistance(flatten), real, generated).compute() == pytest.approx(mean.item(), rel=1e-6)


def test_a_frechet_distance_of_too_few_images_is_refused_and_that_of_components_is_not():
    """400 images are enough for 64 components of 100 features, and too few for all of them."""
    x, y = (torch.randn(n, 100, generator=torch.Generator().manual_seed(n)) for n in (400, 450))
    with pytest.raises(ValueError, match="400 generated and 450 real images, but 100 features need 500"):
        fill(FrechetDistance(), y, x).compute()
    found = fill(FrechetDistance64(), y, x).compute()
    basis = torch.linalg.eigh(torch.cov(y.T.double())).eigenvectors[:, -64:]
    assert found == pytest.approx(frechet_distance(x.double() @ basis, y.double() @ basis).value)


def test_a_collection_shares_features_and_passes_each_metric_what_it_takes():
    def classify(images):
        return (images[:, 0, 0, 0] > 127).long()

    real, generated, labels = draw(400, 0), draw(400, 1), torch.arange(400) % 2
    metrics = [KernelDistance(flatten), FrechetDistance(flatten), PrecisionRecall(flatten), Copies(flatten)]
    collection = MetricCollection([*metrics, ClassAccuracy(classify)])
    for images, is_real in ((real, True), (generated, False)):
        for part, part_labels in zip(images.split(100), labels.split(100), strict=True):
            collection.update(images=part, real=is_real, labels=part_labels)
    found = collection.compute()
    assert found["KernelDistance"] == pytest.approx(kernel_distance(flatten(generated), flatten(real)).value)
    assert found["ClassAccuracy"] == (classify(generated) == labels).double().mean()
    assert {"precision", "recall", "density", "coverage", "Copies", "FrechetDistance"} <= found.keys()


def test_reset_keeps_real_images_where_it_should():
    real, generated = draw(100, 0), draw(80, 1)
    metric = fill(KernelDistance(flatten, reset_real_features=False), real, generated)
    before = metric.compute()
    metric.reset()
    metric.update(generated, real=False)
    assert metric.compute() == before
    metric = fill(Copies(flatten, reset_real_features=False), real, generated)
    metric.update(draw(50, 2), real=True, validation=True)
    metric.reset()
    assert not metric.generated
    assert len(metric.real) == 2
    assert len(metric.validation) == 1


def test_planted_copies_are_found():
    real, new = draw(300, 0), draw(100, 1)
    metric = fill(Copies(flatten), real, torch.cat([real[:20], new]))
    metric.update(draw(200, 2), real=True, validation=True)
    is_copy, threshold, neighbors = metric.measure()
    assert is_copy[:20].all()
    assert is_copy[20:].double().mean() <= 0.05
    assert 0 < threshold <= 1 / 3
    assert neighbors.index[:20, 0].tolist() == [*range(20)]
    assert metric.compute() == is_copy.double().mean()


@pytest.mark.parametrize("repeated", [0, 4, 40])
def test_a_generator_that_only_copies_has_copies_alone_also_where_validation_images_repeat_training_images(repeated):
    """From 1 % of them on the threshold is 0, up to which are exact copies."""
    real, new = draw(300, 0), draw(200, 2)
    metric = fill(Copies(flatten), real, torch.cat([real[:90], draw(10, 1)]))
    metric.update(torch.cat([real[:repeated], new[repeated:]]), real=True, validation=True)
    is_copy, threshold, _ = metric.measure()
    assert (threshold == 0) == (repeated > 0)
    assert is_copy[:90].all()
    assert not is_copy[90:].any()


def test_an_extractor_takes_tensors_where_they_are():
    """On a GPU; without one, on the device without numbers."""
    meta = torch.device("meta")
    extractor = FeatureExtractor("means", lambda images: torch.zeros(len(images), 5), "0", meta)
    metric = KernelDistance(extractor)
    metric.update(torch.zeros(300, 3, 2, 2, dtype=torch.uint8, device=meta), real=True)
    assert metric.real[0].shape == (300, 5)
    assert FeatureExtractor("sums", flatten, "0", torch.device("cpu"))(draw(300, 0).numpy()).shape == (300, 12)
