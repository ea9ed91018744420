"""Random numbers as functions of seed and position: orders, draws, batches, flips, dropped labels, seeds of images."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion_lit.data.batches import Batches, stream_indices
from diffusion_lit.data.store import ImageStore
from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.diffusion.randomness import BLOCK, RandomNumbers, draw_random_numbers, flip_images
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.seeds import derive_seed, image_seeds, item_seed
from tests.cases import each

CPU, SHAPE = torch.device("cpu"), (1, 2, 2)
FIELDS = ("eps", "u_timestep", "u_flip", "u_drop")
# Everything here is deterministic: a p-value below 0.001 is no bad luck of one run, but a reason to look.
UNLIKELY = 1e-3


def slices(total: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Random (start, length) inside range(total)."""
    rng = random.Random(seed)
    starts = [rng.randrange(total) for _ in range(count)]
    return [(start, rng.randint(1, total - start)) for start in starts]


# ----------------------------------------------------------------------------------------------- the order of images


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_n_positions_see_every_image_once(n):
    order = stream_indices(3, 0, 5 * n, n).view(5, n)
    for epoch in order:
        assert sorted(epoch.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [1, 3, 10, 64])
def test_any_slice_of_the_order_is_what_the_whole_order_has_there(n):
    # lengths beyond n too: fewer images than a batch are no special case
    whole = stream_indices(0, 0, 400, n)
    for start, count in slices(400, 60, seed=n):
        assert torch.equal(stream_indices(0, start, count, n), whole[start : start + count])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(stream_indices(seed, epoch * 50, 50, 50).tolist()) for seed in range(4) for epoch in range(6)]
    assert len(set(orders)) == len(orders)


def test_images_do_not_keep_their_places():
    # chi-squared over where image k stands, 2,000 epochs of 8 images
    order = stream_indices(0, 0, 2000 * 8, 8).view(2000, 8)
    counts = torch.stack([torch.bincount(order[:, place], minlength=8) for place in range(8)])
    assert stats.chisquare(counts.flatten().numpy()).pvalue > UNLIKELY


def test_a_far_position_costs_no_more_than_a_near_one():
    # a resumed run starts there; walking to it would take hours
    assert stream_indices(0, 10**15 + 3, 4, 10).shape == (4,)
    assert draw_random_numbers(0, 10**15 + 3, 4, SHAPE, CPU).eps.shape == (4, *SHAPE)


# ------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("seed", [0, 1])
def test_any_slice_of_the_draws_is_bit_equal_to_the_whole(seed):
    whole = draw_random_numbers(seed, 0, 500, SHAPE, CPU)
    edges = [(0, 1), (BLOCK - 1, 2), (BLOCK, BLOCK), (BLOCK - 1, 2 * BLOCK + 2), (499, 1)]
    for start, count in edges + slices(500, 60, seed):
        part = draw_random_numbers(seed, start, count, SHAPE, CPU)
        for name in FIELDS:
            assert torch.equal(getattr(part, name), getattr(whole, name)[start : start + count]), (start, count, name)


def test_draws_ignore_the_global_random_state_and_leave_it_alone():
    torch.manual_seed(1)
    first = draw_random_numbers(0, 5, 40, SHAPE, CPU)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = draw_random_numbers(0, 5, 40, SHAPE, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.eps, second.eps)


def test_no_two_positions_share_their_numbers():
    draws = draw_random_numbers(0, 0, 200 * BLOCK, SHAPE, CPU)
    assert len(draws.eps.flatten(1).unique(dim=0)) == 200 * BLOCK
    # three rows of 6,400 uniform float32 numbers: some coincide by chance (24 bits), a shared block would give 32
    for row in (draws.u_timestep, draws.u_flip, draws.u_drop):
        assert len(row.unique()) > 200 * BLOCK - 10


def test_seeds_have_draws_of_their_own():
    one, two = (draw_random_numbers(seed, 0, 100, SHAPE, CPU) for seed in (0, 1))
    for name in FIELDS:
        assert not (getattr(one, name) == getattr(two, name)).any()


DRAWS = draw_random_numbers(0, 0, 400 * BLOCK, SHAPE, CPU)


@pytest.mark.parametrize("name", ["u_timestep", "u_flip", "u_drop"])
def test_uniform_numbers_are_uniform_and_below_one(name):
    values = getattr(DRAWS, name).double().numpy()
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > UNLIKELY
    # blocks are reseeded with consecutive seeds, so what comes first in each must be uniform too
    for place in (0, 1, BLOCK - 1):
        assert stats.kstest(values[place::BLOCK], "uniform").pvalue > UNLIKELY


def test_noise_is_standard_normal():
    for values in (DRAWS.eps.flatten(), DRAWS.eps[::BLOCK].flatten(), DRAWS.eps[:, 0, 0, 0]):
        assert stats.kstest(values.double().numpy(), "norm").pvalue > UNLIKELY


def test_the_numbers_of_a_position_are_independent_of_each_other_and_of_their_neighbours():
    columns = {name: getattr(DRAWS, name).double().numpy() for name in ("u_timestep", "u_flip", "u_drop")}
    columns |= {f"eps{k}": DRAWS.eps.flatten(1)[:, k].double().numpy() for k in range(2)}
    for name, one in columns.items():
        for other_name, other in columns.items():
            for lag in (0, 1, BLOCK):  # the same position, the next, the same place of the next block
                if name < other_name or lag:
                    found = stats.pearsonr(one[: len(one) - lag], other[lag:]).pvalue
                    assert found > UNLIKELY / 100, (name, other_name, lag)  # the smallest of some sixty


# ----------------------------------------------------------------------------------------------------------- batches


N = 23
STORE = ImageStore(
    np.random.default_rng(0).integers(0, 256, (N, 1, 2, 2), dtype=np.uint8), np.arange(N, dtype=np.int64) * 10
)


def step_of(step: int, global_batch: int, accumulate: int = 1, world: int = 1) -> list[dict]:
    """The micro-batches of one optimizer step, in the order of their positions."""
    micro = global_batch // accumulate // world
    ranks = [iter(Batches(STORE, 7, micro, lambda: step, accumulate, rank, world)) for rank in range(world)]
    return [next(rank) for _ in range(accumulate) for rank in ranks]


@each(("accumulate", "world"), [(1, 1), (2, 1), (1, 2), (4, 1), (2, 3), (6, 2), (1, 12)])
@each("step", [0, 1, 5])
def test_micro_batches_of_all_ranks_are_the_one_big_batch(accumulate, world, step):
    (whole,) = step_of(step, 24)  # more than the 23 images, so that a batch holds one of them twice
    parts = step_of(step, 24, accumulate, world)
    for key in ("image", "y", "index"):
        assert torch.equal(torch.cat([part[key] for part in parts]), whole[key])
    assert whole["position"] == step * 24
    numbers = [draw_random_numbers(7, part["position"], len(part["index"]), SHAPE, CPU) for part in parts]
    expected = draw_random_numbers(7, whole["position"], 24, SHAPE, CPU)
    for name in FIELDS:
        assert torch.equal(torch.cat([getattr(part, name) for part in numbers]), getattr(expected, name))


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (3, 1), (2, 2)])
def test_starting_at_step_k_is_having_come_there(accumulate, world):
    for rank in range(world):
        walked = iter(Batches(STORE, 7, 5, lambda: 0, accumulate, rank, world))
        walked = [next(walked) for _ in range(6 * accumulate)]
        jumped = iter(Batches(STORE, 7, 5, lambda: 4, accumulate, rank, world))
        for batch in walked[4 * accumulate :]:
            again = next(jumped)
            assert again["position"] == batch["position"]
            for key in ("image", "y", "index"):
                assert torch.equal(again[key], batch[key])


def test_the_step_is_asked_for_when_iteration_starts():
    # the loader is made before Lightning has restored the step of a resumed run
    step = 0
    batches = Batches(STORE, 7, 5, lambda: step)
    step = 3
    assert next(iter(batches))["position"] == 15


def test_pictures_and_labels_belong_to_their_index():
    batch = next(iter(Batches(STORE, 7, 16, lambda: 2)))
    assert batch["image"].dtype == torch.uint8
    for image, y, index in zip(batch["image"], batch["y"], batch["index"], strict=True):
        assert np.array_equal(image.numpy(), STORE.images[index])
        assert y == index * 10


# ------------------------------------------------------------------------------------------------- flips and labels


def part(draws: RandomNumbers, start: int, count: int) -> RandomNumbers:
    return RandomNumbers(*(getattr(draws, name)[start : start + count] for name in FIELDS))


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flips_mirror_whole_images_at_the_asked_rate_and_by_position_only(probability):
    count = len(DRAWS.u_flip)
    x0 = torch.rand(count, 2, 1, 3)
    flipped = flip_images(x0, DRAWS, probability)
    mirrored = (flipped == x0.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == x0).flatten(1).all(1)).all()
    rate = mirrored.double().mean().item()
    assert abs(rate - probability) <= 4 * (probability * (1 - probability) / count) ** 0.5
    other = torch.arange(5.0).expand(50, 1, 1, 5)  # other images at some of these positions
    again = flip_images(other, part(DRAWS, 100, 50), probability)
    assert torch.equal((again == other.flip(-1)).flatten(1).all(1), mirrored[100:150])


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_dropped_at_the_asked_rate_and_by_position_only(probability):
    count = len(DRAWS.u_drop)
    y = torch.arange(count) % 10
    dropped = ClassCondition(10).drop(y, DRAWS.u_drop, probability)
    assert dropped.dtype == torch.int64
    null = dropped == 10
    assert torch.equal(dropped[~null], y[~null])
    assert abs(null.double().mean().item() - probability) <= 4 * (probability * (1 - probability) / count) ** 0.5
    for label in (0, 9):  # whatever the label is, and whatever the batch
        other = ClassCondition(10).drop(torch.full((50,), label), part(DRAWS, 100, 50).u_drop, probability)
        assert torch.equal(other == 10, null[100:150])


def test_without_classes_no_label_is_dropped():
    y = torch.zeros(100, dtype=torch.int64)
    assert torch.equal(ClassCondition(0).drop(y, DRAWS.u_drop[:100], 0.5), y)


def test_flips_say_nothing_of_dropped_labels_or_timesteps():
    count = len(DRAWS.u_flip)
    flipped = flip_images(torch.tensor([0.0, 1.0]).expand(count, 1, 1, 2), DRAWS, 0.5)[:, 0, 0, 0] == 1
    dropped = ClassCondition(10).drop(torch.zeros(count, dtype=torch.int64), DRAWS.u_drop, 0.1) == 10
    late = DiscreteProcess().sample_times(DRAWS.u_timestep) >= 500
    for one, other in ((flipped, dropped), (flipped, late), (dropped, late)):
        table = [[(a & b).sum().item() for b in (other, ~other)] for a in (one, ~one)]
        assert stats.chi2_contingency(table).pvalue > UNLIKELY


# -------------------------------------------------------------------------------------------------- seeds of images


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_no_two_images_share_a_seed_and_more_images_change_none(seed):
    seeds = image_seeds(seed, 50_000)
    assert len(set(seeds)) == 50_000
    assert all(0 <= value < 2**32 for value in seeds)  # all that torch's CPU generator reads
    assert image_seeds(seed, 7) == seeds[:7]


def test_counting_goes_on_past_the_largest_seed():
    # some seeds lie so near 2^32 that their images pass it; they come round to 0 and stay apart
    start = derive_seed(0, "image")
    around = [item_seed(0, "image", 2**32 - start + k) for k in (-1, 0, 1)]
    assert around == [2**32 - 1, 0, 1]


def test_noises_of_neighbouring_image_seeds_are_independent():
    # the first number of each image and of the next: consecutive seeds of a Mersenne twister
    first = np.array(
        [torch.randn(16, generator=torch.Generator().manual_seed(s)).tolist() for s in image_seeds(0, 4000)]
    )
    assert stats.kstest(first[:, 0], "norm").pvalue > UNLIKELY
    for place in range(16):
        assert stats.pearsonr(first[:-1, place], first[1:, place]).pvalue > UNLIKELY
    assert stats.kstest(first.mean(1) * 4, "norm").pvalue > UNLIKELY


def test_purposes_and_words_have_seeds_of_their_own():
    words = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", 11), ("image",), ("training",), ("order",)]
    seeds = [derive_seed(seed, *rest) for seed in (0, 1, 11) for rest in words]
    assert len(set(seeds)) == len(seeds)
