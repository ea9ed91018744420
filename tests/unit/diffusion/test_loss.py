"""Targets, estimates, loss weightings, autocast and held-out probes, against published forms and exact expectations."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from torch import nn

from diffusion_lit.config.groups import CONF
from diffusion_lit.config.targets import build, locate
from diffusion_lit.data.store import ImageStore
from diffusion_lit.diffusion.loss import LOSS_FUNCTIONS, Diffusion
from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.schedules import BETA_SCHEDULES, DiscreteProcess
from diffusion_lit.diffusion.weighting import SNR, X0, MinSNR, Sigmoid, SNRPlusOne, SoftMinSNR, Uniform, Velocity
from diffusion_lit.imaging.grids import to_float
from diffusion_lit.sampling.samplers import x0_to_output
from diffusion_lit.training.noise_levels import BINS, EDGES
from diffusion_lit.training.noise_levels import LEVELS_PER_BIN as PER_BIN
from tests.cases import each
from tests.probe import Probe

YAMLS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(Path(CONF).glob("weighting/*.yaml"))}
LINEAR, COSINE = DiscreteProcess(beta_schedule="linear"), DiscreteProcess()
ZERO = DiscreteProcess(beta_schedule="linear", zero_terminal_snr=True)
PAIRS = [
    (process, prediction)
    for process in (LINEAR, COSINE, ZERO, DiscreteProcess(zero_terminal_snr=True))
    for prediction in PREDICTION_TYPES
    if not (prediction == "epsilon" and process.zero_terminal_snr)
]
every_pair = each(
    ("process", "prediction"),
    PAIRS,
    ids=[f"{process.beta_schedule}{'-zero' * process.zero_terminal_snr}-{prediction}" for process, prediction in PAIRS],
)
every_prediction = each("prediction", PREDICTION_TYPES)
every_weighting = each("name", YAMLS)
ON_OUTPUT = {"uniform"}  # weightings of the output error; all others weight the x0 error


def pictures(count: int, shape: tuple = (3, 4, 4), seed: int = 0) -> tuple:
    """x0 in [-1, 1] and eps."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator) * 2 - 1, torch.randn(count, *shape, generator=generator)


def factor(diffusion: Diffusion) -> torch.Tensor:
    """The factor on the network's own error at each timestep, read off the loss: 0 is the answer and 1 is given."""
    t = torch.arange(diffusion.process.num_train_timesteps)
    zero = torch.zeros(len(t), 1, 1, 1)
    return diffusion.loss(lambda x_t, time, y: torch.ones_like(x_t), zero, t, zero, t)


def losses_of_estimate(diffusion: Diffusion, x0_hat, x0, eps, t) -> torch.Tensor:
    """The loss of a network that says `x0_hat`, each in the form its prediction type asks for."""
    x_t = diffusion.add_noise(x0, t, eps)
    told = [
        x0_to_output(diffusion.prediction_type, x0_hat[k], x_t[k], diffusion.process, int(t[k])) for k in range(len(t))
    ]
    return diffusion.loss(lambda x_t, time, y: torch.stack(told), x0, t, eps, t)


# ------------------------------------------------------------------------------------------- targets and estimates


@every_pair
def test_the_exact_target_gives_back_the_clean_image(process, prediction):
    diffusion, t = Diffusion(process, prediction, Uniform()), torch.arange(1000)
    x0, eps = pictures(1000)
    x_t = diffusion.add_noise(x0, t, eps)
    target = diffusion.coefficients(t).target(x0, eps)
    # The estimate is a sum of two terms; what cancels between them is lost to float32, relative to their size. That is
    # harmless except for epsilon at the noisy end, where 1 / alpha is 157 (linear) or 20,000 (cosine).
    _, c_skip, c_out = PREDICTION_TYPES[prediction](process.alpha, process.sigma)
    size = c_skip.abs().view(-1, 1, 1, 1) * x_t.abs() + c_out.abs().view(-1, 1, 1, 1) * target.abs()
    error = (diffusion.estimate_x0(target, x_t, t) - x0).abs()
    assert (error <= 4e-7 * (size + 1)).all()


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_targets_are_those_of_diffusers(schedule):
    theirs = DDPMScheduler(beta_schedule=schedule if schedule != "cosine" else "squaredcos_cap_v2")
    x0, eps = pictures(1000)
    t = torch.arange(1000)
    expected = {"epsilon": eps, "sample": x0, "v_prediction": theirs.get_velocity(x0, eps, t)}
    for prediction in expected:
        ours = Diffusion(DiscreteProcess(beta_schedule=schedule), prediction, Uniform()).coefficients(t).target(x0, eps)
        torch.testing.assert_close(ours, expected[prediction], rtol=0, atol=2e-5)


@every_pair
def test_an_estimate_put_into_a_networks_form_is_read_back(process, prediction):
    diffusion = Diffusion(process, prediction, Uniform())
    x0_hat, x_t = pictures(1)
    for t in (0, 1, 10, 500, 900, 998, 999):
        out = x0_to_output(prediction, x0_hat, x_t, process, t)
        back = diffusion.estimate_x0(out, x_t, torch.tensor([t]))
        # as above: the two large terms of epsilon at the noisy end leave the rounding of their size
        size = x_t.abs().max().item() / process.alpha[t].item() if prediction == "epsilon" else 0
        torch.testing.assert_close(back, x0_hat, rtol=0, atol=4e-7 * (size + 2))


@each("schedule", BETA_SCHEDULES)
def test_epsilon_at_zero_terminal_snr_is_refused(schedule):
    process = DiscreteProcess(beta_schedule=schedule, zero_terminal_snr=True)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Diffusion(process, "epsilon", Uniform())


# ------------------------------------------------------------------------------------------------------ weightings

# The factor on the network's own squared error, as the papers give it for each prediction type, written in
# a = alpha^2 and s = sigma^2 instead of snr and gain: (epsilon, sample, v_prediction).
PUBLISHED = {
    "uniform": lambda a, s: (1 + 0 * a, 1 + 0 * a, 1 + 0 * a),
    "snr": lambda a, s: (1 + 0 * a, a / s, a),  # the epsilon loss of Ho et al.; for v, lucidrains' default
    "snr_plus_one": lambda a, s: (1 / a, 1 / s, 1 + 0 * a),  # plain v
    "velocity": lambda a, s: ((1 + np.sqrt(s / a)) ** 2, (1 + np.sqrt(a / s)) ** 2, (np.sqrt(a) + np.sqrt(s)) ** 2),
    "truncated_snr": lambda a, s: (np.maximum(1, s / a), np.maximum(a / s, 1), np.maximum(a, s)),
    "min_snr": lambda a, s: (  # Hang et al.: min(snr, g) / snr, min(snr, g), min(snr, g) / (snr + 1)
        np.minimum(a / s, 5) / (a / s),
        np.minimum(a / s, 5),
        np.minimum(a / s, 5) / (a / s + 1),
    ),
    "soft_min_snr": lambda a, s: (5 * s / (a + 5 * s), 5 * a / (a + 5 * s), 5 * a * s / (a + 5 * s)),
    "x0": lambda a, s: (s / a, 1 + 0 * a, s),
    "p2": lambda a, s: (s, a, a * s),  # Choi et al. at k = gamma = 1: 1 / (1 + snr) on epsilon
    "sigmoid": lambda a, s: (1 / (1 + a / s), a, a * s),  # Kingma & Gao at bias 0: sigmoid(-log snr) on epsilon
}


def test_every_weighting_has_its_published_form():
    assert PUBLISHED.keys() == YAMLS.keys(), "a new weighting needs its formula in PUBLISHED"


@each("name", PUBLISHED)
@each("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_weightings_are_the_published_ones_for_every_prediction_type(name, process):
    signal = process.alpha_bar.numpy()
    for prediction, expected in zip(
        ("epsilon", "sample", "v_prediction"), PUBLISHED[name](signal, 1 - signal), strict=True
    ):
        ours = factor(Diffusion(process, prediction, build(YAMLS[name])))
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, err_msg=prediction)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 20.0])
def test_knobs_of_weightings_move_what_their_papers_say(gamma):
    snr = COSINE.snr.numpy()

    def on_epsilon(weighting):
        return factor(Diffusion(COSINE, "epsilon", weighting)).numpy()

    np.testing.assert_allclose(on_epsilon(MinSNR(gamma)), np.minimum(1, gamma / snr), rtol=1e-5)
    np.testing.assert_allclose(on_epsilon(SoftMinSNR(gamma)), 1 / (1 + snr / gamma), rtol=1e-5)
    p2 = build({**YAMLS["p2"], "gamma": gamma, "k": 0.3})
    np.testing.assert_allclose(on_epsilon(p2), (0.3 + snr) ** -gamma, rtol=1e-5, atol=1e-30)
    # a logistic in log snr is the same curve as the soft minimum
    np.testing.assert_allclose(on_epsilon(Sigmoid(math.log(gamma))), on_epsilon(SoftMinSNR(gamma)), rtol=1e-5)


@pytest.mark.parametrize("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_the_published_plain_losses_are_one_weighting_each(process):
    # one estimate of x0 as the output of four networks, for timesteps where float32 still tells epsilon from x_t
    t = (process.alpha > 0.05).nonzero()[::7, 0]
    x0, eps = pictures(len(t))
    x0_hat = x0 + 0.3 * pictures(len(t), seed=1)[1]

    def loss(prediction, weighting):
        return losses_of_estimate(Diffusion(process, prediction, weighting), x0_hat, x0, eps, t)

    plain_losses = {"epsilon": SNR(), "sample": X0(), "v_prediction": SNRPlusOne(), "velocity": Velocity()}
    for plain, weighting in plain_losses.items():
        expected = loss(plain, Uniform())
        for prediction in PREDICTION_TYPES:
            torch.testing.assert_close(loss(prediction, weighting), expected, rtol=2e-4, atol=0)


@each("name", [name for name in YAMLS if name not in ON_OUTPUT])
@each("kind", LOSS_FUNCTIONS)
def test_a_weighting_means_the_same_for_every_prediction_type(name, kind):
    t = (COSINE.alpha > 0.05).nonzero()[::20, 0]
    x0, eps = pictures(len(t))
    x0_hat = x0 + 0.3 * pictures(len(t), seed=1)[1]
    distance = {"mse": torch.square, "l1": torch.abs}[kind](x0_hat - x0).mean((1, 2, 3))
    # what it asks of x0: its factor where the network answers x0 itself
    expected = factor(Diffusion(COSINE, "sample", build(YAMLS[name]), kind))[t] * distance
    for prediction in PREDICTION_TYPES:
        diffusion = Diffusion(COSINE, prediction, build(YAMLS[name]), kind)
        torch.testing.assert_close(losses_of_estimate(diffusion, x0_hat, x0, eps, t), expected, rtol=5e-4, atol=0)


@every_weighting
@each("kind", LOSS_FUNCTIONS)
def test_the_absolute_error_is_weighted_by_what_it_counts_on_x0(name, kind):
    signal = LINEAR.alpha_bar.numpy()
    counts = {"epsilon": np.sqrt((1 - signal) / signal), "sample": 1.0, "v_prediction": np.sqrt(1 - signal)}
    on_x0 = factor(Diffusion(LINEAR, "sample", build(YAMLS[name]), kind)).numpy()
    for prediction, count in counts.items():
        gain = 1 if name in ON_OUTPUT else count if kind == "l1" else count**2
        ours = factor(Diffusion(LINEAR, prediction, build(YAMLS[name]), kind)).numpy()
        np.testing.assert_allclose(ours, on_x0 * gain, rtol=1e-5, err_msg=prediction)


@every_pair
@every_weighting
@each("kind", LOSS_FUNCTIONS)
def test_every_weighting_is_finite_and_never_negative(process, prediction, name, kind):
    weight = factor(Diffusion(process, prediction, build(YAMLS[name]), kind))
    assert weight.isfinite().all()
    assert (weight >= 0).all()
    assert (weight > 0).any()


@every_weighting
def test_a_weighting_yaml_holds_the_fields_and_defaults_of_its_class(name):
    settings = dict(YAMLS[name])
    cls = locate(settings.pop("_target_"))
    assert settings == {field.name: field.default for field in dataclasses.fields(cls)}


def test_min_snr_with_v_is_finite_at_zero_terminal_snr():
    # Hang et al.'s own code divides by the snr there
    diffusion = Diffusion(ZERO, "v_prediction", MinSNR())
    x0, eps = pictures(1000)
    loss = diffusion.loss(lambda x_t, t, y: torch.zeros_like(x_t), x0, torch.arange(1000), eps, torch.arange(1000))
    assert loss.isfinite().all()
    assert loss[-1] == 0
    assert (loss[:-1] > 0).all()


# -------------------------------------------------------------------------------------------------------- autocast


class Spy(nn.Module):
    """A network that writes down in which precision it is called and works."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.given, self.worked_in = [], []

    def forward(self, x_t, t, y):
        self.given += [x_t.dtype]
        out = self.last(torch.tanh(self.first(x_t)))
        self.worked_in += [out.dtype]
        return out


@every_prediction
@each("process", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_autocast_touches_nothing_but_the_network(process, prediction):
    diffusion, net, t = Diffusion(process, prediction, MinSNR()), Spy(), torch.arange(0, 1000, 5)
    x0, eps = pictures(len(t))
    plain = diffusion.loss(net, x0, t, eps, t)
    with torch.autocast("cpu", torch.bfloat16):
        loss = diffusion.loss(net, x0, t, eps, t)
        x_t = diffusion.add_noise(x0, t, eps)
        target, out = diffusion.coefficients(t).target(x0, eps), diffusion.output(net, x_t, t, t)
    assert net.worked_in == [torch.float32, torch.bfloat16, torch.bfloat16]  # else this test shows nothing
    assert net.given == [torch.float32] * 3
    assert {value.dtype for value in (loss, x_t, target, out, *diffusion.buffers())} == {torch.float32}
    # bfloat16 keeps 8 bits, an error of some 1 % in an output of order 1 is at most a few per cent of the loss
    torch.testing.assert_close(loss, plain, rtol=0.05, atol=1e-3 * plain.mean().item())


def test_the_first_noise_level_survives_autocast():
    # diffusers' add_noise casts its table to the images' dtype: in bfloat16 sigma_0 = 0.01 becomes 0, and the
    # first 50 timesteps have 8 noise levels between them
    diffusion, t = Diffusion(LINEAR, "epsilon", Uniform()), torch.arange(50)
    with torch.autocast("cpu", torch.bfloat16):
        sigma = diffusion.add_noise(torch.zeros(50, 1, 1, 1), t, torch.ones(50, 1, 1, 1)).flatten()
    assert sigma[0].item() == pytest.approx(0.01, rel=1e-6)
    assert len(sigma.unique()) == 50


# ---------------------------------------------------------------------------------------------------------- probes

GREY, VARIED = 200, torch.randint(256, (70, 1, 4, 4), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def store_of(images: torch.Tensor) -> ImageStore:
    return ImageStore(images.numpy(), np.arange(len(images), dtype=np.int64) % 3)


GREY_STORE = store_of(torch.full((5, 1, 4, 4), GREY, dtype=torch.uint8))


class Knows:
    """A network that knows that all images are GREY and so answers rightly, but for an error that depends on t only."""

    def __init__(self, process: DiscreteProcess, prediction: str, error=lambda t: 0.0 * t):
        self.process, self.prediction, self.error = process, prediction, error

    def __call__(self, x_t, t, y):
        alpha, sigma = (level[t].view(-1, 1, 1, 1) for level in (self.process.alpha, self.process.sigma))
        x0 = to_float(torch.full_like(x_t, GREY, dtype=torch.uint8)).double()
        eps = (x_t - alpha * x0) / sigma
        variance = sigma**2 + (alpha * 0.5) ** 2  # of x_t for EDM's images, of standard deviation 0.5
        if self.prediction == "edm":
            eps = (x_t * variance.sqrt() - alpha * x0) / sigma  # its input is scaled
        right = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha * eps - sigma * x0,
            "velocity": eps - x0,
            "edm": (sigma * x0 - alpha * 0.25 * eps) / (0.5 * variance.sqrt()),  # Karras et al., eq. 8
        }[self.prediction]
        return right + self.error(t.double()).view(-1, 1, 1, 1)


def log_snr_of_diffusers(t: torch.Tensor, schedule: str) -> torch.Tensor:
    signal = (1 - DDPMScheduler(beta_schedule=schedule).betas.double()).cumprod(0)
    return (signal / (1 - signal)).log()[t]


def bounds(name: str) -> tuple[float, float]:
    """The interval that the name of a bin speaks of."""
    if "_to_" in name:
        low, high = name.split("_to_")
        return float(low), float(high)
    side, edge = name.split("_")
    return (-math.inf, float(edge)) if side == "below" else (float(edge), math.inf)


@pytest.mark.parametrize(("process", "theirs"), [(LINEAR, "linear"), (COSINE, "squaredcos_cap_v2")])
def test_timesteps_of_a_bin_have_the_snr_that_its_name_says(process, theirs):
    probe = Probe(GREY_STORE, Diffusion(process, "v_prediction", Uniform()))
    values = log_snr_of_diffusers(torch.arange(1000), theirs)
    assert len(BINS) == len(EDGES) + 1
    for k, (low, high) in enumerate(map(bounds, BINS)):
        inside = ((low < values) & (values <= high)).nonzero()[:, 0]
        chosen = probe.t[probe.bin == k]
        assert len(chosen) == PER_BIN
        assert set(chosen.tolist()) <= set(inside.tolist())
        assert len(chosen.unique()) == min(PER_BIN, len(inside))
        # Evenly: up to any timestep the bin's share of probes is its share of timesteps, to one probe or one timestep.
        up_to = [abs((chosen <= t).float().mean() - (inside <= t).float().mean()) for t in inside]
        assert max(up_to) <= 1 / PER_BIN + 1 / len(inside)
        assert probe.share[k].item() == pytest.approx(len(inside) / 1000)


def test_probes_are_the_same_in_every_run():
    store = store_of(VARIED)
    torch.manual_seed(1)
    first = Probe(store, Diffusion(COSINE, "v_prediction", Uniform()))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = Probe(store, Diffusion(COSINE, "epsilon", MinSNR()), batch_size=17)
    other = Probe(store, Diffusion(LINEAR, "sample", SNR()))
    assert torch.equal(torch.get_rng_state(), before)
    for name in ("t", "bin", "image", "y", "eps"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in ("image", "y", "eps"):  # another noise process has other timesteps, but no other pictures or noise
        assert torch.equal(getattr(first, name), getattr(other, name)), name
    # every picture is asked for, and no two probes share their noise
    assert len(first.image.flatten(1).unique(dim=0)) == len(VARIED)
    assert len(first.eps[:, 0, 0, 0].unique()) == len(first.eps)


def test_losses_of_probes_are_the_same_on_repeat_and_in_any_batches():
    store, net = store_of(VARIED.expand(-1, 3, -1, -1).contiguous()), Spy()
    diffusion = Diffusion(COSINE, "v_prediction", MinSNR())
    loss, bins, noise = Probe(store, diffusion).losses(net)
    assert Probe(store, diffusion).losses(net) == (loss, bins, noise)
    again, other_bins, other_noise = Probe(store, diffusion, batch_size=7).losses(net)
    assert again == pytest.approx(loss, rel=1e-5)
    assert other_bins == pytest.approx(bins, rel=1e-5)
    assert other_noise == pytest.approx(noise, rel=1e-5)


@every_pair
def test_a_perfect_network_has_no_held_out_loss(process, prediction):
    probe = Probe(GREY_STORE, Diffusion(process, prediction, Uniform()))
    loss, bins, noise = probe.losses(Knows(process, prediction))
    # an error of float32 in x_t is 1 / sigma of it in eps: 1e-5 at sigma_0 = 0.006, squared 1e-10
    assert 0 <= loss < 1e-9
    assert max(bins) < 1e-8
    assert 0 <= noise < 1e-8


WRONG = {"constant": lambda t: 0.3 + 0 * t, "rising": lambda t: 0.1 + t / 1000, "falling": lambda t: 0.9 - t / 1250}


@each("wrong", WRONG)
@each("weighting", [Uniform(), MinSNR(), Sigmoid()], ids=lambda weighting: type(weighting).__name__)
@each(("process", "prediction"), [(COSINE, "v_prediction"), (LINEAR, "epsilon"), (ZERO, "sample")])
def test_the_held_out_loss_is_the_one_expected_over_all_timesteps(process, prediction, weighting, wrong):
    diffusion = Diffusion(process, prediction, weighting)
    probe = Probe(GREY_STORE, diffusion)
    loss, bins, _ = probe.losses(Knows(process, prediction, WRONG[wrong]))
    error = WRONG[wrong](torch.arange(1000, dtype=torch.float64)) ** 2
    expected = factor(diffusion).double() * error
    # A bin's mean is taken over 32 of its n timesteps. By the Koksma-Hlawka inequality it is off by no more than the
    # variation of the weighted error inside the bin times the discrepancy of the 32, at most 1 / 32 + 1 / n (above).
    bin_of = torch.bucketize(process.snr.log(), torch.tensor(EDGES, dtype=torch.float64))
    tolerance = 0.0
    for k in range(len(BINS)):
        inside = bin_of == k
        n = int(inside.sum())
        tolerance += n / 1000 * expected[inside].diff().abs().sum().item() * (1 / 32 + 1 / n)
        assert error[inside].min() - 1e-6 <= bins[k] <= error[inside].max() + 1e-6
    assert abs(loss - expected.mean().item()) <= tolerance + 1e-6
    assert tolerance < 0.1 * expected.mean()  # or the bound says nothing


def test_bins_without_timesteps_are_nan_and_left_out_of_the_loss():
    process = DiscreteProcess(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)  # Stable Diffusion's
    net = Knows(process, "v_prediction", lambda t: 0.5 + 0 * t)
    loss, bins, noise = Probe(GREY_STORE, Diffusion(process, "v_prediction", Uniform())).losses(net)
    log_snr = process.snr.log()
    for (low, high), value in zip(map(bounds, BINS), bins, strict=True):
        reached = ((low < log_snr) & (log_snr <= high)).any()
        assert math.isnan(value) != reached
    assert math.isnan(bins[0])  # it ends at a log snr of -5.4 ...
    assert math.isnan(bins[-1])  # ... and starts at 7.1
    assert loss == pytest.approx(0.25, rel=1e-5)
    assert math.isfinite(noise)


@every_pair
@each("distance", ["mse", "l1"])
def test_the_held_out_error_is_that_of_the_noise_estimate(process, prediction, distance):
    """Directly: from a wrong output to x0_hat, to eps_hat, to its error; then the mean over the inner bins."""
    net = Knows(process, prediction, WRONG["falling"])
    probe = Probe(GREY_STORE, Diffusion(process, prediction, MinSNR(), distance))
    noise = probe.losses(net)[2]
    alpha, sigma = (level[probe.t].view(-1, 1, 1, 1) for level in (process.alpha, process.sigma))
    x_t = alpha * to_float(probe.image).double() + sigma * probe.eps.double()
    scale = (sigma**2 + alpha**2 / 4).sqrt() if prediction == "edm" else 1.0
    out = net(x_t / scale, probe.t, probe.y)
    x0_hat = {
        "epsilon": lambda: (x_t - sigma * out) / alpha,
        "sample": lambda: out,
        "v_prediction": lambda: alpha * x_t - sigma * out,
        "velocity": lambda: (x_t - sigma * out) / (alpha + sigma),
        "edm": lambda: alpha / 4 * x_t / scale**2 + sigma / 2 * out / scale,
    }[prediction]()
    error = LOSS_FUNCTIONS[distance]((x_t - alpha * x0_hat) / sigma - probe.eps).flatten(1).mean(1)
    in_bins = [error[probe.bin == k].mean() for k in range(1, len(BINS) - 1) if (probe.bin == k).any()]
    assert math.isfinite(noise)
    assert noise == pytest.approx(torch.stack(in_bins).mean().item(), rel=1e-3)
    again = Probe(GREY_STORE, Diffusion(process, prediction, Uniform(), distance)).losses(net)[2]
    assert again == noise  # whatever the weighting


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_networks_with_the_same_noise_estimate_have_the_same_held_out_error(prediction):
    """eps_hat = eps + 0.3 everywhere, said in each form: the number is 0.09."""
    alpha, sigma = COSINE.alpha, COSINE.sigma
    factor = {"epsilon": 1 + 0 * alpha, "sample": -sigma / alpha, "v_prediction": 1 / alpha}[prediction]
    net = Knows(COSINE, prediction, lambda t: 0.3 * factor[t.long()])
    noise = Probe(GREY_STORE, Diffusion(COSINE, prediction, Uniform())).losses(net)[2]
    assert noise == pytest.approx(0.09, rel=1e-3)
