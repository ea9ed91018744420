"""Flow matching and EDM against their closed forms, all processes through one loss, every sampler on every process
against an exact denoiser, and how training spreads over the noise levels."""

import functools
import itertools
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
import yaml
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from scipy import stats
from scipy.special import ndtr, ndtri

from diffusion_lit.config.groups import CONF
from diffusion_lit.config.targets import build, locate
from diffusion_lit.data.store import ImageStore
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.processes import EDM, FlowMatching
from diffusion_lit.diffusion.randomness import draw_random_numbers, interleave
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.timesteps import TIMESTEP_DISTRIBUTIONS
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.runs.build import make_diffusion
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.previews import format_steps
from diffusion_lit.sampling.samplers import make_sampler, scheduler_times
from diffusion_lit.training.noise_levels import EDGES
from tests.cases import each
from tests.probe import Probe

PROCESSES = {
    "cosine": DiscreteProcess(),
    "linear": DiscreteProcess(beta_schedule="linear"),
    "zero": DiscreteProcess(zero_terminal_snr=True),
    "flow": FlowMatching(),
    "edm": EDM(),
}
SAMPLERS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(Path(CONF).glob("sampler/*.yaml"))}
WEIGHTINGS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(Path(CONF).glob("weighting/*.yaml"))}
every_process = each("process", PROCESSES)


def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0 in [-1, 1], eps, and something else of their shape."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, other = (torch.randn(count, 1, 4, 4, generator=generator) for _ in range(3))
    return x0.clamp(-1, 1), eps, other


def as_published(name: str) -> Diffusion:
    settings = yaml.safe_load((Path(CONF) / "diffusion" / f"{name}.yaml").read_text())
    return make_diffusion({"diffusion": settings, "weighting": WEIGHTINGS["uniform"]})


# ------------------------------------------------------------------------------------------------ closed forms


def test_flow_is_that_of_diffusers_and_its_target_is_the_velocity():
    theirs = FlowMatchEulerDiscreteScheduler()
    x0, eps, _ = pictures(1000)
    diffusion = as_published("flow")
    t = theirs.sigmas  # 1 to 0.001
    x_t = diffusion.add_noise(x0, t, eps)
    torch.testing.assert_close(x_t, theirs.scale_noise(x0, theirs.timesteps, eps), rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.coefficients(t).target(x0, eps), eps - x0, rtol=0, atol=1e-6)
    torch.testing.assert_close(diffusion.process.time_input(t), theirs.timesteps)
    # an error of the velocity is the loss, whatever t is
    loss = diffusion.loss(lambda x_t, time, y: eps - x0 + 0.3, x0, t, eps, None)
    torch.testing.assert_close(loss, torch.full((1000,), 0.09), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_that_of_diffusers_and_of_table_1(sigma_data):
    theirs = EDMEulerScheduler(sigma_data=sigma_data)
    diffusion = Diffusion(EDM(sigma_data=sigma_data), "edm", Uniform())
    x0, eps, out = pictures(200)
    sigma = torch.logspace(-3, 2, 200)
    x_t, wide = diffusion.add_noise(x0, sigma, eps), sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, x0 + wide * eps)
    given = {}
    diffusion.output(lambda x, time, y: given.update(x=x, time=time) or x, x_t, sigma, None)
    torch.testing.assert_close(given["x"], theirs.precondition_inputs(x_t, wide))
    torch.testing.assert_close(given["time"] / 1000, theirs.precondition_noise(sigma), rtol=1e-5, atol=1e-6)
    estimate = diffusion.estimate_x0(out, x_t, sigma)
    torch.testing.assert_close(estimate, theirs.precondition_outputs(x_t, out, wide), rtol=1e-5, atol=1e-5)
    # the paper's weight on x0, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, is 1 on the network's own error
    loss = diffusion.loss(lambda x, time, y: out, x0, sigma, eps, None)
    on_x0 = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    torch.testing.assert_close(loss, on_x0 * (estimate - x0).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_edm_keeps_input_and_target_at_unit_variance():
    """Karras et al. 2022, appendix B.6: for images of standard deviation sigma_data, exact and not statistical."""
    diffusion = as_published("edm")
    sigma = torch.logspace(-3, 2, 50)
    x0 = torch.tensor([0.5, -0.5, 0.5, -0.5]).expand(50, 1, 1, 4)
    eps = torch.tensor([1.0, 1.0, -1.0, -1.0]).expand(50, 1, 1, 4)
    seen = {}
    diffusion.output(lambda x, time, y: seen.update(x=x) or x, diffusion.add_noise(x0, sigma, eps), sigma, None)
    for values in (seen["x"], diffusion.coefficients(sigma).target(x0, eps)):
        torch.testing.assert_close(values.square().mean((1, 2, 3)), torch.ones(50), rtol=1e-5, atol=0)


def test_samplers_of_edm_step_where_the_paper_does():
    sampler = sampler_of("heun")
    sigmas = scheduler_times(sampler.build_scheduler(EDM()), EDM()).unique().flip(0).double()
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = torch.tensor([(ends[0] + k / 17 * (ends[1] - ends[0])) ** 7 for k in range(18)], dtype=torch.float64)
    torch.testing.assert_close(sigmas, expected, rtol=0.01, atol=0)  # of a table of 1000 levels, the nearest


# -------------------------------------------------------------------------------------- one loss for all of them


@every_process
@each("prediction", PREDICTION_TYPES)
def test_every_weighting_gives_the_gradient_of_its_x0_form(process, prediction):
    """d loss / d x0_hat = 2 w(snr) (x0_hat - x0) / pixels, by autograd through the words of each prediction type."""
    table = PROCESSES[process]
    if prediction == "epsilon" and table.alpha[-1] == 0:
        with pytest.raises(ValueError, match="zero terminal SNR"):
            Diffusion(table, prediction, Uniform())
        return
    t = table.times[(table.snr.log().abs() < 5).nonzero()[::40, 0]]
    x0, eps, other = pictures(len(t))
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in table.alpha_sigma(t))
    snr = (alpha / sigma) ** 2
    for name, settings in WEIGHTINGS.items():
        weighting = build(settings)
        diffusion = Diffusion(table, prediction, weighting)
        x_t = diffusion.add_noise(x0, t, eps)
        x0_hat = (x0 + 0.3 * other).double().requires_grad_()
        eps_hat = (x_t - alpha * x0_hat) / sigma
        norm = (sigma**2 + alpha**2 / 4).sqrt()
        told, per_error = {  # the output, and what an error of it counts on x0
            "epsilon": (eps_hat, sigma / alpha),
            "sample": (x0_hat, 1 + 0 * snr),
            "v_prediction": (alpha * eps_hat - sigma * x0_hat, sigma / (alpha**2 + sigma**2)),
            "velocity": (eps_hat - x0_hat, sigma / (alpha + sigma)),
            "edm": ((sigma * x0_hat - alpha / 4 * eps_hat) * 2 / norm, sigma / 2 / norm),
        }[prediction]
        diffusion.loss(lambda x, time, y, told=told: told, x0, t, eps, None).sum().backward()
        w = 1 / per_error**2 if name == "uniform" else weighting(snr, torch.ones_like(snr))
        expected = 2 * w * (x0_hat.detach() - x0) / 16
        torch.testing.assert_close(x0_hat.grad, expected, rtol=2e-3, atol=2e-4 * expected.abs().max().item(), msg=name)


@each("process", ["flow", "edm"])
@each("prediction", ["velocity", "edm", "v_prediction", "sample"])
def test_a_continuous_process_computes_what_its_table_holds(process, prediction):
    table = PROCESSES[process]
    diffusion = Diffusion(table, prediction, build(WEIGHTINGS["min_snr"]))
    torch.testing.assert_close(
        torch.stack(diffusion.coefficients(table.times)), diffusion.coefficient_table, rtol=1e-6, atol=0
    )
    # and the ends of what can be drawn are no trouble
    ends = table.sample_times(torch.tensor([0.0, 2**-24, 1 - 2**-24]))
    assert torch.stack(diffusion.coefficients(ends)).isfinite().all()


def test_runs_older_than_the_new_keys_are_of_the_process_that_they_were():
    old = {"num_train_timesteps": 500, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    old |= {"zero_terminal_snr": False, "prediction_type": "epsilon", "loss": "mse"}
    diffusion = make_diffusion({"diffusion": old, "weighting": WEIGHTINGS["uniform"]})
    assert diffusion.process == DiscreteProcess(500, "linear")
    assert torch.equal(diffusion.process.density, torch.ones(500, dtype=torch.float64))


# ------------------------------------------------------- every sampler of every process, on a mixture of Gaussians

# Every pixel is one draw of 0.3 N(-0.5, 0.1^2) + 0.7 N(0.3, 0.14^2). In one dimension the probability flow keeps the
# order of the pixels, so it takes each from its quantile of the noisy mixture to the same quantile of the clean one:
# the exact answer, value by value.
SHARES, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.5, 0.3]), np.array([0.1, 0.14])
SHAPE, SEEDS = (1, 48, 48), [0, 1]
KINDS = {"ddim": 1, "euler": 1, "flow_euler": 1, "dpmpp_2m": 2, "deis": 2, "unipc": 2, "heun": 2, "flow_heun": 2}
SECOND_ORDER = {("heun", "edm"), ("flow_heun", "flow"), ("dpmpp_2m", "edm"), ("unipc", "edm")}  # at every halving
RANDOM = {"ddpm": 150, "euler_a": 150, "dpmpp_sde": 50}  # steps that reach the distribution
SERVED = {"discrete": ["cosine", "zero"], "flow": ["flow"], "edm": ["edm"]}


def pairs(names) -> list[tuple[str, str]]:
    return [(name, process) for name in names for kind in SAMPLERS[name]["serves"] for process in SERVED[kind]]


def sampler_of(name: str, **changes: object):
    config = {**SAMPLERS[name], "batch_size": len(SEEDS), **changes}
    return make_sampler(config, locate(config["_target_"]))


def cdf(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    spread = np.sqrt((alpha * STDS) ** 2 + sigma**2)
    return (SHARES * ndtr((x[..., None] - alpha * MEANS) / spread)).sum(-1)


@functools.cache
def clean_quantiles() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-1.5, 1.8, 200_001)
    return cdf(x, 1.0, 0.0), x


def posterior_mean(x_t: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    variance = (alpha * STDS) ** 2 + sigma**2
    log_share, mean, scale, gain = (  # the components first, which softmax sums over faster
        torch.from_numpy(values).view(2, 1, 1, 1, 1)
        for values in (np.log(SHARES / np.sqrt(variance)), MEANS, 2 * variance, alpha * STDS**2 / variance)
    )
    off = x_t.double() - alpha * mean
    share = (log_share - off**2 / scale).softmax(0)
    return (share * (mean + gain * off)).sum(0)


def mixture_images(process: str, name: str, **changes: object) -> torch.Tensor:
    table = PROCESSES[process]
    diffusion = Diffusion(table, "sample", Uniform())

    def net(x_t, time, y):
        t = {"flow": time / 1000, "edm": (time / 250).exp()}.get(process, time)  # undoes time_input
        alpha, sigma = (level[0].item() for level in table.alpha_sigma(t))
        return posterior_mean(x_t, alpha, sigma).float()

    sampler = sampler_of(name, clip_x0=False, **changes)
    return generate(net, diffusion, sampler, [0] * len(SEEDS), SEEDS, SHAPE).double()


@functools.cache
def exact_images(process: str) -> torch.Tensor:
    table = PROCESSES[process]
    alpha, sigma = table.alpha[-1].item(), table.sigma[-1].item()
    noise = np.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).numpy() for seed in SEEDS])
    share = cdf(noise.astype(np.float64) * math.hypot(alpha, sigma), alpha, sigma)
    return torch.from_numpy(np.interp(share, *clean_quantiles()))


def error(process: str, name: str, steps: int) -> float:
    return (mixture_images(process, name, steps=steps) - exact_images(process)).square().mean().sqrt().item()


def distance(images: torch.Tensor) -> float:
    """Wasserstein distance between the pixels and the mixture."""
    found = np.sort(images.flatten().numpy())
    expected = np.interp((np.arange(len(found)) + 0.5) / len(found), *clean_quantiles())
    return np.abs(found - expected).mean()


def test_every_sampler_is_checked_here():
    others = {"lcm"}  # of consistency models: test_samplers
    assert {*KINDS, *RANDOM, *others} == set(SAMPLERS), "a new sampler needs its order in KINDS, or its steps in RANDOM"


@each(("name", "process"), pairs(KINDS))
def test_deterministic_samplers_reach_the_exact_flow_with_their_order(name, process):
    coarse, fine = error(process, name, 24), error(process, name, 96)
    assert fine < 0.02
    if KINDS[name] == 1:
        assert 3 < coarse / fine < 4.5  # the step is a quarter
    else:
        assert coarse / fine > 7  # about 16; less where the last jump, to no noise, is a plain one
        assert fine < 0.005
    if (name, process) in SECOND_ORDER:
        assert (
            13 < coarse / fine < (20 if KINDS[name] == 2 and name != "unipc" else 50)
        )  # UniPC corrects to nearly third


@pytest.mark.slow
def test_the_order_of_convergence_of_each_sampler_and_process():
    """`-s` prints the table of BENCHMARKS.md: log2 of the ratio of errors for each doubling of the steps."""
    for name, process in pairs(KINDS):
        errors = [error(process, name, steps) for steps in (24, 48, 96, 192)]
        slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
        print(f"| {name} | {process} | {' | '.join(f'{s:.2f}' for s in slopes)} | {errors[-1]:.1e} |")
        low, high = {1: (0.8, 1.1), 2: (1.4, 3.0)}[KINDS[name]]
        assert low < sum(slopes) / 3 < high, (name, process)
        if (name, process) in SECOND_ORDER:
            assert min(slopes) > 1.85, (name, process)


@each(("name", "process"), pairs(RANDOM))
def test_random_samplers_reach_the_distribution(name, process):
    images = mixture_images(process, name, steps=RANDOM[name])
    # 4608 draws of the mixture itself have a distance of about 0.004
    assert distance(images) < 0.016
    assert (images - mixture_images(process, name, steps=10)).abs().mean() > 0.1  # they are random


@pytest.mark.parametrize("process", ["cosine", "flow", "edm"])
def test_the_samplers_of_first_order_are_one(process):
    """Euler in sigma and DDIM are the same line through x0_hat and eps_hat; with all levels so is Euler in t."""
    ddim = mixture_images(process, "ddim", steps=20)
    torch.testing.assert_close(mixture_images(process, "euler", steps=20), ddim, rtol=0, atol=1e-3)
    if process == "flow":
        ddim = mixture_images(process, "ddim", steps=1000)
        torch.testing.assert_close(mixture_images(process, "flow_euler", steps=1000), ddim, rtol=0, atol=1e-3)


@each("name", SAMPLERS)
def test_evaluations_of_the_network_are_as_many_as_told(name):
    process = SERVED[SAMPLERS[name]["serves"][0]][0]
    calls, seen = [], []
    changes = {"steps": 10} if name == "ddpm" else {}
    sampler, diffusion = sampler_of(name, **changes), Diffusion(PROCESSES[process], "sample", Uniform())
    net = lambda x_t, time, y: calls.append(len(x_t)) or x_t  # noqa: E731
    generate(net, diffusion, sampler, [0, 0], SEEDS, (1, 2, 2), lambda first, k, x: seen.append(k))
    told = len(sampler.build_scheduler(diffusion.process).timesteps)
    assert len(calls) == told
    assert seen == list(range(told))
    if "heun" in name:
        assert format_steps(sampler.steps, told) == "18 steps, 35 NFE"


@each(("name", "process"), [pair for pair in pairs(SAMPLERS) if pair[1] in ("flow", "edm")])
def test_an_image_depends_on_its_own_seed_alone(name, process):
    diffusion = Diffusion(PROCESSES[process], "sample", Uniform())

    def images(seeds):
        sampler = sampler_of(name, steps=4, batch_size=3)
        return generate(lambda x_t, time, y: (3 * x_t).sin(), diffusion, sampler, [0] * len(seeds), seeds, (1, 4, 4))

    whole = images([5, 6, 7, 8])
    assert torch.equal(images([9, 7, 5])[1:], whole[[2, 0]])
    assert torch.equal(images([8]), whole[3:])


@pytest.mark.parametrize("process", ["flow", "edm"])
def test_clipping_ends_in_range_and_the_film_is_of_unit_variance(process):
    diffusion, seen = Diffusion(PROCESSES[process], "sample", Uniform()), []
    for name in SAMPLERS:
        if PROCESSES[process].name in SAMPLERS[name]["serves"]:
            sampler, seen = sampler_of(name, steps=8), []
            net = lambda x_t, time, y: torch.full_like(x_t, 3.0)  # noqa: E731
            generate(net, diffusion, sampler, [0, 0], SEEDS, (1, 16, 16), lambda first, k, x, seen=seen: seen.append(x))
            torch.testing.assert_close(seen[-1], torch.ones(2, 1, 16, 16), rtol=0, atol=1e-5)
            assert seen[0].abs().max() < 8, name  # sigma is 80 there


# ------------------------------------------------------------------------------- how training spreads over levels


def test_stratified_numbers_lie_one_in_each_share_of_a_batch_for_any_slices():
    shape, cpu = (1, 2, 2), torch.device("cpu")
    whole = draw_random_numbers(3, 5 * 96, 2 * 96, shape, cpu, strata=96)
    for batch in whole.u_timestep.chunk(2):
        assert sorted((batch * 96).long().tolist()) == list(range(96))
    parts = [
        draw_random_numbers(3, 5 * 96 + start, 48, shape, cpu, strata=96).u_timestep for start in range(0, 192, 48)
    ]
    assert torch.equal(torch.cat(parts), whole.u_timestep)
    plain = draw_random_numbers(3, 5 * 96, 2 * 96, shape, cpu)
    assert torch.equal(plain.eps, whole.eps)
    assert torch.equal(plain.u_flip, whole.u_flip)
    inside = whole.u_timestep * 96 - (whole.u_timestep * 96).long()  # what the plain number was
    torch.testing.assert_close(inside, plain.u_timestep, rtol=0, atol=2e-5)
    assert not torch.equal(plain.u_timestep, whole.u_timestep)


@each("parts", [2, 3, 4, 8])
@each("count", [16, 24, 96, 128, 1024])
def test_each_part_of_a_stratified_batch_has_small_and_large_timesteps(parts, count):
    """Those of a rank or micro-batch of n images are within 6 / n of uniform."""
    strata = interleave(torch.arange(count), count)
    assert sorted(strata.tolist()) == list(range(count))
    for part in strata.split(-(-count // parts)):
        assert stats.kstest((part.double() + 0.5).numpy() / count, "uniform").statistic < 6 / len(part)
    assert interleave(torch.tensor([0]), 1).tolist() == [0]


def test_the_last_share_of_a_large_batch_ends_before_1():
    last = int((interleave(torch.arange(2**20), 2**20) == 2**20 - 1).nonzero())
    draw = functools.partial(draw_random_numbers, start=last, count=1, shape=(1, 1, 1), device=torch.device("cpu"))
    timestep = torch.cat([draw(seed, strata=2**20).u_timestep for seed in range(64)])
    assert timestep.max() < 1  # single precision would round 1 in 16 up
    assert DiscreteProcess().sample_times(timestep).max() == 999


def test_only_what_says_so_is_stratified():
    assert {name: DiscreteProcess(timestep_distribution=name).num_strata(64) for name in TIMESTEP_DISTRIBUTIONS} == {
        "uniform": 1,
        "stratified": 64,
        "logit_normal": 1,
        "stratified_logit_normal": 64,
    }


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 1.2), (0.5, 0.3)])
def test_logit_normal_numbers_are_normal_in_the_logit(mean, std):
    u = (torch.arange(4096) + 0.5) / 4096
    settings = {"timestep_distribution": "logit_normal", "logit_mean": mean, "logit_std": std}
    z = mean + std * ndtri(u.double().numpy())
    t = FlowMatching(**settings).sample_times(u).double().numpy()
    np.testing.assert_allclose(np.log(t / (1 - t)), z, rtol=0, atol=2e-3)
    np.testing.assert_allclose(EDM(**settings).sample_times(u).log().numpy(), z, rtol=0, atol=2e-3)
    k = DiscreteProcess(**settings).sample_times(u).numpy()
    share = 1 / (1 + np.exp(-z))
    assert ((k <= share * 1000 + 1e-3) & (share * 1000 < k + 1 + 1e-3)).all()


@every_process
@each("sampling", TIMESTEP_DISTRIBUTIONS)
def test_the_density_is_how_often_levels_are_drawn(process, sampling):
    kind = type(PROCESSES[process])
    table = kind(timestep_distribution=sampling, logit_mean=-0.5, logit_std=0.8)
    assert table.density.mean() == 1
    normal = NormalDist(-0.5, 0.8)
    shares = torch.tensor([0.1, 0.3, 0.7])  # of T, of t, and of sigma / (1 + sigma)
    bounds = {"flow": shares, "edm": shares / (1 - shares)}.get(process, shares * 1000 - 1)
    for share, bound in zip(shares.tolist(), bounds.tolist(), strict=True):
        below = table.density[table.times <= bound * (1 + 1e-6)].sum().item() / 1000
        logit = math.log(share / (1 - share))
        assert below == pytest.approx(normal.cdf(logit) if "normal" in sampling else share, abs=0.01)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_held_out_bins_have_the_share_that_training_gives_them(name):
    """log snr = -2 log(sigma / alpha), which is normal for both."""
    diffusion = as_published(name)
    table = diffusion.process
    store = ImageStore(np.full((4, 1, 4, 4), 200, dtype=np.uint8), np.zeros(4, dtype=np.int64))
    probe = Probe(store, diffusion)
    log_snr = NormalDist(-2 * table.logit_mean, 2 * table.logit_std)
    below = [0, *[log_snr.cdf(edge) for edge in EDGES], 1]
    np.testing.assert_allclose(probe.share, np.diff(below), rtol=0, atol=0.005)
    # a network that knows the picture but is off by 0.1 in its own words: that is the loss, and on noise what it counts
    x0, told = 200 / 127.5 - 1, []

    def knows(x, time, y):
        t = {"flow": time / 1000, "edm": (time / 250).exp()}[name]
        row = diffusion.coefficients(t)
        told.append(row)
        c_in, alpha, sigma, target_x0, target_eps = (
            value.double().view(-1, 1, 1, 1)
            for value in (row.c_in, row.alpha, row.sigma, row.target_x0, row.target_eps)
        )
        eps = (x / c_in - alpha * x0) / sigma
        return (target_x0 * x0 + target_eps * eps + 0.1).float()

    loss, bins, noise = probe.losses(knows)
    assert loss == pytest.approx(0.01, rel=0.01)
    np.testing.assert_allclose(bins, 0.01, rtol=0.02)
    level = torch.cat([row.c_out * row.alpha / row.sigma for row in told])
    each = [(0.01 * level[probe.bin == k] ** 2).mean().item() for k in range(1, len(bins) - 1)]
    assert noise == pytest.approx(np.mean(each), rel=0.02)
