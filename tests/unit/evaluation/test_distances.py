"""The metrics of `evaluate` on sets whose true values are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lit.evaluation.colors import color_statistics
from diffusion_lit.evaluation.distances import (
    extrapolated_frechet_distance,
    find_principal_components,
    frechet_distance,
    kernel_distance,
    project,
    subset_kernel_distance,
)
from diffusion_lit.evaluation.intervals import Measurement, measure_mean, proportion_interval
from diffusion_lit.evaluation.manifold import precision_recall
from diffusion_lit.evaluation.memorization import MAX_RATIO, NeighborSearch, choose_threshold


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


def value_of(number) -> float:
    return getattr(number, "value", number)


def covers(estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


# ------------------------------------------------------------------------------------------ intervals


def test_the_interval_of_a_share_is_wilsons():
    from scipy.stats import binomtest

    for hits, n in [(0, 10), (3, 10), (500, 500), (497, 500)]:
        interval = binomtest(hits, n).proportion_ci(0.95, "wilson")
        found = proportion_interval(torch.arange(n) < hits)
        assert found == pytest.approx((hits / n, interval.low, interval.high), abs=1e-7)


def test_the_interval_of_a_mean_is_students():
    from scipy import stats

    numbers = normal(7, 1, 0)[:, 0]
    interval = stats.t.interval(0.95, 6, loc=numbers.mean().item(), scale=stats.sem(numbers.numpy()))
    assert measure_mean(numbers).interval()[1:] == pytest.approx(interval, rel=1e-5)


def test_a_difference_leaves_out_what_both_have_in_common():
    shared, own = normal(50, 1, 0)[:, 0].double() * 10, normal(50, 1, 1)[:, 0].double()
    a, b = measure_mean(shared + own + 0.5), measure_mean(shared)
    difference = a - b
    assert difference.value == pytest.approx(own.mean().item() + 0.5)
    assert difference.interval() == pytest.approx(measure_mean(own + 0.5).interval())
    assert difference.interval().low > 0
    assert covers(a.interval(), b.value)  # the two intervals overlap


def test_with_a_fixed_number_of_images_of_each_class_only_the_spread_inside_a_class_counts():
    """Repeated draws of ten classes, 0 to 90, of 20 images each: the mean varies by 1 / sqrt(200)."""
    labels = torch.arange(10).repeat_interleave(20)
    draws = [measure_mean(normal(200, 1, seed)[:, 0].double() + 10 * labels) for seed in range(300)]
    truth = 45.0
    found = [one.stratify(labels).interval() for one in draws]
    assert np.std([one.value for one in draws]) == pytest.approx(200**-0.5, rel=0.1)
    assert np.mean([one.high - one.low for one in found]) / 2 == pytest.approx(1.97 * 200**-0.5, rel=0.03)
    assert 0.92 <= np.mean([covers(one, truth) for one in found]) <= 0.98
    assert draws[0].interval().high - draws[0].interval().low > 5  # as if the classes were drawn too
    single = torch.arange(200)  # the spread inside a class of one image is unknown
    assert draws[0].stratify(single).interval() == draws[0].interval()


def test_the_images_needed_put_a_difference_at_2_8_standard_errors():
    numbers = normal(100, 1, 0)[:, 0].double()
    numbers = (numbers - numbers.mean()) / numbers.std() + 0.1
    assert measure_mean(numbers).images_needed() == pytest.approx(28**2, abs=1)
    assert Measurement(0.0, numbers).images_needed() is None


# ------------------------------------------------------------------------------------------ distances


def test_the_frechet_distance_of_two_sets_is_that_of_their_gaussians():
    from torchmetrics.image.fid import FrechetInceptionDistance

    x = normal(300, 6, 0) @ normal(6, 6, 1)
    y = normal(500, 6, 2) @ normal(6, 6, 3) + 100  # far from 0, where single precision would lose its digits
    feature = torch.nn.Identity()
    feature.num_features = 6
    theirs = FrechetInceptionDistance(feature=feature).set_dtype(torch.double)
    theirs.update(x.double(), real=False)
    theirs.update(y.double(), real=True)
    assert frechet_distance(x, y).value == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_the_frechet_distance_of_fewer_images_than_features_is_that_of_their_gaussians():
    from torchmetrics.image.fid import _compute_fid

    x, y = normal(20, 30, 0, 1.3).double(), normal(25, 30, 1, 1.0, 0.2).double()  # both covariances are singular
    theirs = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y).value == pytest.approx(theirs.item(), abs=1e-6)


def test_distances_are_the_same_whatever_fits_into_memory_at_a_time(monkeypatch):
    x, y = normal(90, 4, 0, 1.5) + 5, normal(70, 4, 1)
    expected = [distance(x, y) for distance in (frechet_distance, kernel_distance)]
    monkeypatch.setattr("diffusion_lit.evaluation.distances.ROWS", 7)
    for measured, distance in zip(expected, (frechet_distance, kernel_distance), strict=True):
        found = distance(x, y)
        assert found.value == pytest.approx(measured.value, rel=1e-12)
        torch.testing.assert_close(found.generated, measured.generated, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.real, measured.real, rtol=1e-9, atol=1e-12)
    basis = normal(4, 2, 3).double()
    torch.testing.assert_close(project(x, x.double().mean(0), basis), (x.double() - x.double().mean(0)) @ basis)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_same_numbers():
    x, y = normal(400, 16, 0, 1.2), normal(300, 16, 1)
    for distance in (frechet_distance, kernel_distance):
        here, there = distance(x, y), distance(x.cuda(), y.cuda())
        assert there.value == pytest.approx(here.value, rel=1e-9)
        torch.testing.assert_close((there.generated, there.real), (here.generated, here.real))
    assert precision_recall(x.double().cuda(), y.double().cuda()) == precision_recall(x.double(), y.double())
    here, there = NeighborSearch(y)(x), NeighborSearch(y.cuda())(x.cuda())
    assert torch.equal(there.index, here.index)


def weigh(x: Tensor, k: int, eps: float) -> Tensor:
    """Return many copies of x, in which image k has the weight (1 + eps N) / (1 + eps) of the others."""
    copies = round(1 / eps)
    return torch.cat([x.repeat(copies, 1), x[k : k + 1].repeat(len(x), 1)])


def test_an_influence_on_the_frechet_distance_is_its_change_by_the_weight_of_an_image():
    x, y = normal(60, 3, 0, 1.5, 0.3), normal(80, 3, 1)
    found, eps = frechet_distance(x, y), 1e-2
    for k in (0, 7):
        change = (frechet_distance(weigh(x, k, eps), y).value - frechet_distance(x.repeat(100, 1), y).value) / eps
        assert change == pytest.approx(found.generated[k].item(), rel=0.08, abs=0.02 * found.generated.std().item())
        change = (frechet_distance(x, weigh(y, k, eps)).value - frechet_distance(x, y.repeat(100, 1)).value) / eps
        assert change == pytest.approx(found.real[k].item(), rel=0.08, abs=0.02 * found.real.std().item())


def test_an_influence_on_the_kernel_distance_is_that_of_the_jackknife():
    x, y = normal(60, 3, 0, 1.5, 0.3), normal(80, 3, 1)
    found = kernel_distance(x, y)
    for k in (0, 7):
        left_out = kernel_distance(torch.cat([x[:k], x[k + 1 :]]), y)
        assert 59 * (found.value - left_out.value) == pytest.approx(found.generated[k].item(), rel=0.05, abs=0.05)


def test_the_extrapolated_frechet_distance_of_known_gaussians_has_no_bias():
    """d^2 = D (shift^2 + (s - 1)^2) for N(shift, s^2 I) and N(0, I); the plain number is too large by O(1/n)."""
    d, shift, scale = 8, 0.5, 1.5
    truth = d * (shift**2 + (scale - 1) ** 2)
    sets = [(normal(200, d, 2 * seed, scale, shift), normal(300, d, 2 * seed + 1)) for seed in range(100)]
    plain = np.array([frechet_distance(x, y).value for x, y in sets])
    extrapolated = np.array([extrapolated_frechet_distance(x, y) for x, y in sets])
    error = extrapolated.std() / 10  # standard error of a mean of 100
    assert plain.mean() > truth + 3 * error
    assert abs(extrapolated.mean() - truth) < 2.5 * error
    (x, y), known = sets[0], frechet_distance(*sets[0]).value
    assert extrapolated_frechet_distance(x, y, known) == pytest.approx(extrapolated[0], rel=1e-9)


def test_the_extrapolated_frechet_distance_has_no_bias_where_the_numbers_of_each_class_are_fixed():
    """As `evaluate` draws images: halves at random differ in their classes, as the whole sets do not."""
    centers, values, plain = normal(10, 4, 0) * 2, [], []
    for seed in range(150):
        labels = torch.arange(100) % 10
        others = torch.randint(10, (200,), generator=torch.Generator().manual_seed(seed))
        x, y = (centers[own] + normal(len(own), 4, 2 * seed + k) for k, own in enumerate((labels, others)))
        values.append(extrapolated_frechet_distance(x, y, labels=labels))
        plain.append(extrapolated_frechet_distance(x, y))
    error = np.std(values) / math.sqrt(150)
    assert abs(np.mean(values)) < 2.5 * error
    assert np.mean(plain) < -3 * error


def test_the_frechet_distance_of_equal_sets_is_nothing_whatever_their_order():
    x = normal(400, 5, 0)
    assert frechet_distance(x, x.flip(0)).value == pytest.approx(0, abs=1e-9)


def test_features_without_variance_change_neither_distance_nor_influence():
    x, y = normal(100, 3, 0, 1.2), normal(120, 3, 1)
    with_constant = [torch.cat([z, torch.full((len(z), 2), 7.0)], 1) for z in (x, y)]
    plain, padded = frechet_distance(x, y), frechet_distance(*with_constant)
    assert padded.value == pytest.approx(plain.value, abs=1e-6)
    torch.testing.assert_close(padded.generated, plain.generated, rtol=1e-4, atol=1e-4)


def test_principal_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    real = normal(200, 10, 0) @ normal(10, 10, 1)
    mean, basis = find_principal_components(real, 4)
    expected = PCA(4).fit(real.double().numpy())
    ours = ((real.double() - mean) @ basis).numpy()
    np.testing.assert_allclose(abs(ours), abs(expected.transform(real.double().numpy())), atol=1e-8)


def test_the_kernel_distance_of_equally_many_images_is_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(40, 5, 0, 2.0).double(), normal(40, 5, 1).double()
    assert kernel_distance(x, y).value == pytest.approx(poly_mmd(x, y).item(), rel=1e-10)


def test_a_choice_of_real_images_has_its_own_standard_error(monkeypatch):
    x, y = normal(100, 4, 0, 1.5), normal(900, 4, 1)
    everything = kernel_distance(x, y)
    monkeypatch.setattr("diffusion_lit.evaluation.distances.KERNEL_IMAGES", 300)
    chosen = kernel_distance(x, y)
    assert chosen.real.shape == everything.real.shape
    assert chosen.reference_error() == pytest.approx(3**0.5 * everything.reference_error(), rel=0.2)


def test_the_kernel_distance_of_subsets_is_torchmetrics_and_has_the_mean_of_all_images(monkeypatch):
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(400, 8, 0, 1.2), normal(300, 8, 1)
    monkeypatch.setattr("diffusion_lit.evaluation.distances.SUBSET_IMAGES", 300)
    mean, std = subset_kernel_distance(x[:300], y)  # each subset is all images
    assert (mean, std) == pytest.approx((poly_mmd(x[:300].double(), y.double()).item(), 0), rel=1e-9, abs=1e-9)
    monkeypatch.setattr("diffusion_lit.evaluation.distances.SUBSET_IMAGES", 50)
    mean, std = subset_kernel_distance(x, y)
    assert mean == pytest.approx(kernel_distance(x, y).value, abs=3 * std / math.sqrt(100))
    all_images = kernel_distance(x, y).interval()
    assert std > 1.5 * (all_images.high - all_images.value)  # a subset says less than all images


@pytest.mark.parametrize("n", [20, 33])
def test_the_kernel_distance_has_no_bias_where_the_numbers_of_each_class_are_fixed(n):
    """As `evaluate` draws images."""
    centers, values, plain = normal(10, 4, 0) * 2, [], []
    for seed in range(200):
        labels = torch.arange(n) % 10
        others = torch.randint(10, (60,), generator=torch.Generator().manual_seed(seed))
        x, y = (centers[own] + normal(len(own), 4, 2 * seed + k) * 0.1 for k, own in enumerate((labels, others)))
        values.append(kernel_distance(x, y, labels).value)
        plain.append(kernel_distance(x, y).value)
    error = np.std(values) / math.sqrt(200)
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(plain) < -8 * error


def test_the_kernel_distance_of_one_class_is_that_without_classes():
    x, y = normal(20, 3, 0), normal(30, 3, 1)
    plain, one = kernel_distance(x, y), kernel_distance(x, y, torch.full((20,), 7))
    assert one.value == pytest.approx(plain.value)
    torch.testing.assert_close(one.generated, plain.generated)
    assert kernel_distance(x, y, torch.arange(20)).value == pytest.approx(plain.value)  # no class has a second image


def test_the_kernel_distance_of_equal_distributions_has_mean_zero():
    values = [kernel_distance(normal(200, 8, 2 * seed), normal(150, 8, 2 * seed + 1)).value for seed in range(100)]
    assert abs(np.mean(values)) < 2.5 * np.std(values) / 10


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5)])
def test_a_kernel_distance_of_one_image_is_refused(n, m):
    with pytest.raises(ValueError, match=f"^{n} generated and {m} real images: a kernel distance needs at least 2"):
        kernel_distance(normal(n, 3, 0), normal(m, 3, 1))


def test_the_kernel_distance_of_points_has_no_interval():
    """Of two point masses a and b at one place each it is k(a, a) + k(b, b) - 2 k(a, b), without any spread."""
    a, b = torch.full((50, 4), 1.0), torch.full((60, 4), 0.5)
    truth = (1 + 1) ** 3 + (0.25 + 1) ** 3 - 2 * (0.5 + 1) ** 3
    assert kernel_distance(a, b).interval() == pytest.approx((truth, truth, truth))


# ------------------------------------------------------------------------------------------ manifold


def clouds(*centres: float, n: int, seed: int) -> Tensor:
    """n points around each centre, within 0.01."""
    return torch.cat([normal(n, 2, seed + k, 0.003) + centre for k, centre in enumerate(centres)])


def test_a_generator_that_forgets_a_mode_has_precision_without_recall():
    found = precision_recall(clouds(0, 0, n=100, seed=0), clouds(0, 1, n=100, seed=5))
    assert found["precision"].value > 0.9
    assert found["recall"] == pytest.approx(0.5, abs=0.03)
    assert found["coverage"] == pytest.approx(0.5, abs=0.03)


def test_a_generator_that_invents_a_mode_has_recall_without_precision():
    found = precision_recall(clouds(0, 1, 2, 3, n=50, seed=0), clouds(0, 1, n=100, seed=5))
    assert found["precision"].value == pytest.approx(0.5, abs=0.05)
    assert found["density"].value < 0.6
    assert found["recall"] > 0.8
    assert covers(found["precision"], 0.5)


def test_far_away_there_is_neither():
    found = precision_recall(clouds(5, n=100, seed=0), clouds(0, n=100, seed=5))
    assert [value_of(found[name]) for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_density_and_coverage_of_equal_distributions_are_known():
    """E[density] = 1 and E[coverage] = 1 - prod_{j=1..k} (n - j) / (2n - j) (Naeem et al. 2020, section 3.3)."""
    n, k = 200, 5
    expected = 1 - math.prod((n - j) / (2 * n - j) for j in range(1, k + 1))
    found = [precision_recall(normal(n, 4, 2 * seed), normal(n, 4, 2 * seed + 1)) for seed in range(20)]
    coverage = np.array([estimates["coverage"] for estimates in found])
    density = np.array([estimates["density"].value for estimates in found])
    assert abs(coverage.mean() - expected) < 3 * coverage.std() / math.sqrt(20)
    assert abs(density.mean() - 1) < 3 * density.std() / math.sqrt(20)


def test_the_manifolds_are_those_of_the_definitions_point_by_point(monkeypatch):
    monkeypatch.setattr("diffusion_lit.evaluation.manifold.DISTANCES", 7 * 30)  # several parts
    x, y = normal(30, 3, 0).double(), normal(30, 3, 1, 1.3).double()

    def radius(points, k):
        return [sorted(math.dist(a, b) for b in points)[k] for a in points]

    a, b = x.tolist(), y.tolist()
    r3, g3, r5 = radius(b, 3), radius(a, 3), radius(b, 5)
    found = precision_recall(x, y)
    expected = {
        "precision": np.mean([any(math.dist(p, q) <= r for q, r in zip(b, r3, strict=True)) for p in a]),
        "recall": np.mean([any(math.dist(p, q) <= r for q, r in zip(a, g3, strict=True)) for p in b]),
        "density": np.mean([sum(math.dist(p, q) <= r for q, r in zip(b, r5, strict=True)) / 5 for p in a]),
        "coverage": np.mean([any(math.dist(p, q) <= r for p in a) for q, r in zip(b, r5, strict=True)]),
    }
    assert {name: value_of(number) for name, number in found.items()} == pytest.approx(expected)


def test_features_far_from_0_keep_the_digits_of_their_distances():
    """Squared norms of 100 times the distances: their differences lose those digits in single precision."""
    x, y = normal(400, 64, 0, 0.1) + 30, normal(400, 64, 1, 0.1) + 30
    assert precision_recall(x, y) == precision_recall(x.double(), y.double())


# ------------------------------------------------------------------------------------------ memorization


@pytest.mark.parametrize("copies", [0, 3, 40])
def test_a_generator_that_replays_k_of_n_has_k_copies(copies):
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(0, 256, (200, 48), generator=generator)
    fresh = torch.randint(0, 256, (40 - copies, 48), generator=generator)
    replayed = training[torch.randperm(200, generator=generator)[:copies]]
    found = NeighborSearch(training)(torch.cat([replayed, fresh]))
    assert (found.ratio < MAX_RATIO).tolist() == [True] * copies + [False] * (40 - copies)
    assert (found.distance[:copies, 0] == 0).all()
    assert torch.equal(training[found.index[:copies, 0]], replayed)


def test_a_copy_with_a_little_noise_is_one_and_a_mean_of_two_is_none():
    training = normal(300, 64, 0)
    noisy, mixed = training[:20] + normal(20, 64, 1, 0.1), (training[:20] + training[20:40]) / 2
    assert (NeighborSearch(training)(noisy).ratio < MAX_RATIO).all()
    assert not (NeighborSearch(training)(mixed).ratio < MAX_RATIO).any()


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_copies_of_an_image_that_is_in_the_training_set_twenty_times_are_found(noise):
    """With the mean of all neighbors as the scale such a copy was no copy."""
    training = normal(300, 64, 0)
    repeated = training[:1] + normal(20, 64, 2, noise)
    copies = training[:1] + normal(5, 64, 1, 0.25)
    assert (NeighborSearch(torch.cat([training, repeated]))(copies).ratio < MAX_RATIO).all()


def test_neighbors_are_distinct_training_images():
    training = torch.cat([normal(60, 4, 0), normal(60, 4, 0)[:30]])
    found = NeighborSearch(training)(training[:5])
    assert (found.index < 60).all()
    assert (found.distance[:, 1] > 0).all()


def test_one_percent_of_new_images_are_below_the_threshold():
    """In two dimensions a third of new points would be copies by the fixed threshold of 1/3."""
    training, validation, new = normal(2000, 2, 0), normal(1000, 2, 1), normal(4000, 2, 2)
    assert choose_threshold(None) == MAX_RATIO
    threshold = choose_threshold(NeighborSearch(training)(validation))
    ratio = NeighborSearch(training)(new).ratio
    assert (ratio < MAX_RATIO).double().mean() > 0.3
    assert (ratio < threshold).double().mean() == pytest.approx(0.01, abs=0.006)
    assert (NeighborSearch(training)(training[:50] + 1e-5).ratio < threshold).double().mean() > 0.9


def test_neighbours_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    images, training = normal(700, 5, 0), normal(90, 5, 1)
    distance, index = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(training).kneighbors(images)
    found = NeighborSearch(training)(images)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)
    assert (found.index.numpy() == index).mean() > 0.999  # but for ties
    assert torch.equal(NeighborSearch(training)(images, k=7).index, found.index[:, :7])


# ------------------------------------------------------------------------------------------ colours


def test_a_shift_of_a_channel_is_its_distance():
    real = torch.randint(0, 200, (30, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    moved = real.clone()
    moved[:, 1] += 20
    found = color_statistics(moved, real)
    assert [found[name]["distance"] for name in ("red", "green", "blue")] == pytest.approx([0, 20, 0])
    assert found["green"]["mean"] - found["green"]["mean_real"] == pytest.approx(20)
    assert found["red"]["std"] == pytest.approx(real[:, 0].double().std(correction=0).item())


def test_colors_of_transparent_pixels_do_not_count():
    images = torch.randint(0, 256, (30, 4, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 3, :2], images[:, 3, 2:] = 0, 255
    other = images.clone()
    other[:, :3, :2] = 255 - other[:, :3, :2]
    found = color_statistics(images, other)
    assert [row["distance"] for row in found.values()] == [0, 0, 0, 0]
    assert found["red"]["mean"] == pytest.approx(images[:, 0, 2:].double().mean().item() / 2)
