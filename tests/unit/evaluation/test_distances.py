"""The metrics of `evaluate` on sets whose true values are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lit.evaluation.colors import color_statistics
from diffusion_lit.evaluation.distances import frechet_distance, kernel_distance
from diffusion_lit.evaluation.intervals import jackknife, mean_interval, proportion_interval
from diffusion_lit.evaluation.manifold import precision_recall
from diffusion_lit.evaluation.memorization import find_neighbors


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


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
    assert mean_interval(numbers)[1:] == pytest.approx(interval, rel=1e-5)


def test_a_jackknife_over_single_numbers_takes_the_bias_of_a_variance_away():
    """The variance with 1/n is biased by (n-1)/n; jackknifed it is the one with 1/(n-1) (Quenouille 1956)."""
    x = np.random.default_rng(0).normal(size=30)
    without = [np.var(np.delete(x, k)) for k in range(30)]
    assert jackknife(np.var(x), without)[1] == pytest.approx(np.var(x, ddof=1))
    means = [np.mean(np.delete(x, k)) for k in range(30)]
    assert jackknife(np.mean(x), means)[0] == pytest.approx(mean_interval(torch.tensor(x)))


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
    assert frechet_distance(x, y)[0].value == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_the_frechet_distance_of_known_gaussians_is_covered_and_without_bias():
    """d^2 = D (shift^2 + (s - 1)^2) for N(shift, s^2 I) and N(0, I); the plain number is too large by O(1/n)."""
    d, shift, scale = 8, 0.5, 1.5
    truth = d * (shift**2 + (scale - 1) ** 2)
    plain, unbiased, covered = [], [], 0
    for seed in range(100):
        x, y = normal(200, d, 2 * seed, scale, shift), normal(300, d, 2 * seed + 1)
        estimate, corrected = frechet_distance(x, y)
        plain.append(estimate.value)
        unbiased.append(corrected)
        half = estimate.high - estimate.value
        covered += abs(corrected - truth) <= half
    error = np.std(unbiased) / 10  # standard error of a mean of 100
    assert np.mean(plain) > truth + 3 * error
    assert abs(np.mean(unbiased) - truth) < 2.5 * error
    assert 88 <= covered <= 100


def test_the_frechet_distance_of_equal_sets_is_nothing_whatever_their_order():
    x = normal(400, 5, 0)
    assert frechet_distance(x, x.flip(0))[0].value == pytest.approx(0, abs=1e-9)


def test_one_block_of_the_kernel_distance_is_torchmetrics(monkeypatch):
    from torchmetrics.image.kid import poly_mmd

    monkeypatch.setattr("diffusion_lit.evaluation.distances.mean_interval", lambda blocks: blocks)
    x, y = normal(40, 5, 0, 2.0).double(), normal(40, 5, 1).double()
    monkeypatch.setattr("diffusion_lit.evaluation.distances.GROUPS", 1)
    assert kernel_distance(x, y).item() == pytest.approx(poly_mmd(x, y).item(), rel=1e-10)


def test_the_kernel_distance_of_equal_distributions_is_zero_and_covered():
    estimates = [kernel_distance(normal(200, 8, 2 * seed), normal(150, 8, 2 * seed + 1)) for seed in range(100)]
    values = np.array([estimate.value for estimate in estimates])
    assert abs(values.mean()) < 2.5 * values.std() / 10
    assert 88 <= sum(covers(estimate, 0.0) for estimate in estimates) <= 100


def test_the_kernel_distance_of_points_is_covered():
    """Of two point masses a and b at one place each it is k(a, a) + k(b, b) - 2 k(a, b), without any spread."""
    a, b = torch.full((50, 4), 1.0), torch.full((60, 4), 0.5)
    truth = (1 + 1) ** 3 + (0.25 + 1) ** 3 - 2 * (0.5 + 1) ** 3
    assert kernel_distance(a, b) == pytest.approx((truth, truth, truth))


def test_the_kernel_distance_grows_with_a_shift_and_its_interval_leaves_zero():
    near, far = (kernel_distance(normal(200, 8, 0, shift=shift), normal(200, 8, 1)) for shift in (0.2, 1.0))
    assert 0 < near.value < far.low


# ------------------------------------------------------------------------------------------ manifold


def clouds(*centres: float, n: int, seed: int) -> Tensor:
    """n points around each centre, within 0.01."""
    return torch.cat([normal(n, 2, seed + k, 0.003) + centre for k, centre in enumerate(centres)])


def test_a_generator_that_forgets_a_mode_has_precision_without_recall():
    found = precision_recall(clouds(0, 0, n=100, seed=0), clouds(0, 1, n=100, seed=5))
    assert found["precision"].value > 0.9
    assert found["recall"].value == pytest.approx(0.5, abs=0.03)
    assert found["coverage"].value == pytest.approx(0.5, abs=0.03)


def test_a_generator_that_invents_a_mode_has_recall_without_precision():
    found = precision_recall(clouds(0, 1, 2, 3, n=50, seed=0), clouds(0, 1, n=100, seed=5))
    assert found["precision"].value == pytest.approx(0.5, abs=0.05)
    assert found["density"].value < 0.6
    assert found["recall"].value > 0.8
    assert covers(found["precision"], 0.5)


def test_far_away_there_is_neither():
    found = precision_recall(clouds(5, n=100, seed=0), clouds(0, n=100, seed=5))
    assert [found[name].value for name in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_density_and_coverage_of_equal_distributions_are_known():
    """E[density] = 1 and E[coverage] = 1 - prod_{j=1..k} (n - j) / (2n - j) (Naeem et al. 2020, section 3.3)."""
    n, k = 200, 5
    expected = 1 - math.prod((n - j) / (2 * n - j) for j in range(1, k + 1))
    found = [precision_recall(normal(n, 4, 2 * seed), normal(n, 4, 2 * seed + 1)) for seed in range(20)]
    coverage = np.array([estimates["coverage"].value for estimates in found])
    density = np.array([estimates["density"].value for estimates in found])
    assert abs(coverage.mean() - expected) < 3 * coverage.std() / math.sqrt(20)
    assert abs(density.mean() - 1) < 3 * density.std() / math.sqrt(20)


def test_the_manifolds_are_those_of_the_definitions_point_by_point(monkeypatch):
    monkeypatch.setattr("diffusion_lit.evaluation.manifold.DISTANCE_ROWS", 7)  # several parts
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
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(expected)


# ------------------------------------------------------------------------------------------ memorization


@pytest.mark.parametrize("copies", [0, 3, 40])
def test_a_generator_that_replays_k_of_n_is_told_k_of_n(copies):
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(0, 256, (200, 48), generator=generator)
    fresh = torch.randint(0, 256, (40 - copies, 48), generator=generator)
    replayed = training[torch.randperm(200, generator=generator)[:copies]]
    found = find_neighbors(torch.cat([replayed, fresh]), training)
    assert found.is_copy.tolist() == [True] * copies + [False] * (40 - copies)
    assert (found.distance[:copies, 0] == 0).all()
    assert torch.equal(training[found.index[:copies, 0]], replayed)


def test_a_copy_with_a_little_noise_is_one_and_a_mean_of_two_is_none():
    training = normal(300, 64, 0)
    noisy, mixed = training[:20] + normal(20, 64, 1, 0.1), (training[:20] + training[20:40]) / 2
    assert find_neighbors(noisy, training).is_copy.all()
    assert not find_neighbors(mixed, training).is_copy.any()


def test_neighbours_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    images, training = normal(700, 5, 0), normal(90, 5, 1)
    distance, index = NearestNeighbors(n_neighbors=50, algorithm="brute").fit(training).kneighbors(images)
    found = find_neighbors(images, training)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)
    assert (found.index.numpy() == index).mean() > 0.999  # but for ties


# ------------------------------------------------------------------------------------------ colours


def test_a_shift_of_a_channel_is_its_distance():
    real = torch.randint(0, 200, (30, 3, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    moved = real.clone()
    moved[:, 1] += 20
    found = color_statistics(moved, real)
    assert [found[name]["distance"] for name in ("red", "green", "blue")] == pytest.approx([0, 20, 0])
    assert found["green"]["mean"] - found["green"]["mean_real"] == pytest.approx(20)
    assert found["red"]["std"] == pytest.approx(real[:, 0].double().std(correction=0).item())
