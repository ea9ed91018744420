"""Samplers on data whose answer is known, against plain diffusers loops, and what generation promises of its images."""

import functools
import inspect

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from diffusion_lit.config.targets import locate
from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.imaging.grids import to_uint8
from diffusion_lit.runs.build import guide_network
from diffusion_lit.sampling import samplers
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.guidance import add_classifier_free_guidance
from diffusion_lit.sampling.samplers import Sampler, make_sampler
from diffusion_lit.system.errors import UserError
from tests.cases import each
from tests.sampled import COSINE, LINEAR, YAMLS, sampler_of, unet

SPRITES = DiscreteProcess(500, "linear_one_based", 1e-3, 0.02)
CLIPPED = DiscreteProcess(beta_schedule="cosine_clipped")
PROCESSES = [LINEAR, COSINE] + [
    DiscreteProcess(beta_schedule=name, zero_terminal_snr=True) for name in ("linear", "cosine")
]
PAIRS = [
    (process, prediction)
    for process in PROCESSES
    for prediction in ("epsilon", "sample", "v_prediction")
    if not (prediction == "epsilon" and process.zero_terminal_snr)
]


def id_of(value: object) -> str:
    if isinstance(value, DiscreteProcess):
        return value.beta_schedule + "-zero" * value.zero_terminal_snr
    return str(value)


slow = pytest.mark.slow
every_yaml = each("name", YAMLS)
thoroughly = each("name", ["ddim", "ddpm", "dpmpp_2m"])  # the others on fewer processes: test_processes
every_pair = each(("process", "prediction"), PAIRS, ids=id_of)
two_pairs = each(("process", "prediction"), [(COSINE, "v_prediction"), (LINEAR, "epsilon")], ids=id_of)


# ------------------------------------------------------------------------------- Gaussian data, where all is known

# Two channels, correlated and of different spread; every place of every image is one independent draw. Nothing comes
# near the clipping at [-1, 1]: it is more than four standard deviations away.
MEAN = torch.tensor([0.1, -0.05], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.04, 0.02], [0.02, 0.03]], dtype=torch.float64)
SHAPE, IMAGES = (2, 64, 64), 4
DRAWS = IMAGES * SHAPE[1] * SHAPE[2]


def mixed(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The matrix applied to the channels of x (B, C, H, W)."""
    return torch.einsum("ij,bjhw->bihw", matrix, x)


@functools.cache
def gaussian_network(process: DiscreteProcess, prediction: str):
    """The exact posterior mean of x0, of eps or of v under the Gaussian, in float64."""
    a, s, mean = process.alpha.view(-1, 1, 1), process.sigma.view(-1, 1, 1), MEAN.view(2, 1)
    precision = torch.linalg.inv(a**2 * COVARIANCE + s**2 * torch.eye(2))
    # each is linear in the distance of x_t from its mean: the matrices, and what it is there
    to_x0, to_eps = a * COVARIANCE @ precision, s * precision
    matrix = {"epsilon": to_eps, "sample": to_x0, "v_prediction": a * to_eps - s * to_x0}[prediction]
    start = {"epsilon": 0 * s, "sample": 1 + 0 * s, "v_prediction": -s}[prediction] * mean

    def net(x_t, t, y):
        k = t[0]
        return (start[k] + matrix[k] @ (x_t.double().flatten(2) - a[k] * mean)).view_as(x_t).float()

    return net


@functools.cache
def gaussian_images(process: DiscreteProcess, prediction: str, name: str, **changes: object) -> torch.Tensor:
    diffusion = Diffusion(process, prediction, Uniform())
    sampler = sampler_of(name, batch_size=IMAGES, clip_x0=False, **changes)
    return generate(
        gaussian_network(process, prediction), diffusion, sampler, [0] * IMAGES, range(IMAGES), SHAPE
    ).double()


def first_noise(shape: tuple = SHAPE, seeds=range(IMAGES)) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def exact_flow(process: DiscreteProcess) -> torch.Tensor:
    """Where the probability-flow equation takes the first noise: along each axis of the Gaussian the distance from the
    mean, in standard deviations, stays what it was."""
    a, s = process.alpha[-1], process.sigma[-1]
    variance, axes = torch.linalg.eigh(COVARIANCE)
    shrink = axes @ torch.diag((variance / (a**2 * variance + s**2)).sqrt()) @ axes.T
    return MEAN.view(2, 1, 1) + mixed(shrink, first_noise().double() - a * MEAN.view(2, 1, 1))


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = images.permute(1, 0, 2, 3).flatten(1)
    return flat.mean(1), torch.cov(flat)


def assert_moments(images: torch.Tensor, shrinkage: float) -> None:
    """Mean and covariance of the data, within four standard errors and, for the covariance, a relative shrinkage."""
    mean, covariance = moments(images)
    spread = COVARIANCE.diag()
    assert ((mean - MEAN).abs() < 4 * (spread / DRAWS).sqrt()).all()
    error = ((COVARIANCE**2 + spread[:, None] * spread) / DRAWS).sqrt()  # of a covariance of Gaussians
    off = covariance - COVARIANCE
    assert (off.abs() < 4 * error + shrinkage * (spread[:, None] * spread).sqrt()).all()


def error_of_flow(process: DiscreteProcess, prediction: str, name: str, **changes: object) -> float:
    """Root mean square over all values."""
    return (gaussian_images(process, prediction, name, **changes) - exact_flow(process)).square().mean().sqrt().item()


def every_thorough_case() -> list:
    """DDPM needs all 1000 timesteps, so that most of its pairs are left to the slow tests."""
    quick = [(COSINE, "v_prediction"), (LINEAR, "epsilon"), (PROCESSES[2], "sample")]
    return [
        pytest.param(name, *pair, marks=[slow] if name == "ddpm" and pair not in quick else [])
        for name in ("ddim", "ddpm", "dpmpp_2m")
        for pair in PAIRS
    ]


@pytest.mark.parametrize(("name", "process", "prediction"), every_thorough_case(), ids=id_of)
def test_every_sampler_reaches_mean_and_covariance(name, process, prediction):
    # Discrete steps take away some variance. DDPM's fixed_small is right for data that is a single point and 3 % too
    # little here, even through all timesteps; DDIM's last jump of 200, from t = 4 to no noise at all, costs 6 %.
    steps, shrinkage = (None, 0.04) if name == "ddpm" else (200, 0.08)
    assert_moments(gaussian_images(process, prediction, name, steps=steps), shrinkage)


@each(("name", "steps", "tolerance"), [("ddim", 200, 0.035), ("dpmpp_2m", 100, 0.025)])
@every_pair
def test_deterministic_samplers_take_each_noise_where_the_exact_flow_does(name, steps, tolerance, process, prediction):
    # Value by value, so there is no sampling error. The tolerance is for the step size (the tests below show that it
    # vanishes with it) at the worst of 32,768 values, some four standard deviations out and 0.8 from the mean.
    images = gaussian_images(process, prediction, name, steps=steps)
    assert (images - exact_flow(process)).abs().max() < tolerance


@every_pair
@pytest.mark.parametrize("steps", [100, pytest.param(1000, marks=slow)])
def test_karras_sigmas_reach_mean_and_covariance(process, prediction, steps):
    # they revisit timesteps, and at 1000 steps they hold many twice
    assert_moments(gaussian_images(process, prediction, "dpmpp_2m", steps=steps, use_karras_sigmas=True), 0.08)


@two_pairs
def test_the_error_of_ddim_is_of_first_order(process, prediction):
    exact = exact_flow(process)
    coarse, fine = (gaussian_images(process, prediction, "ddim", steps=steps) for steps in (100, 200))
    errors = [(x - exact).square().mean().sqrt() for x in (coarse, fine)]
    assert 1.7 < errors[0] / errors[1] < 2.2
    # so that Richardson's extrapolation, which removes the first order, is far better than either
    assert (2 * fine - coarse - exact).square().mean().sqrt() < errors[1] / 5


@two_pairs
def test_the_second_order_sampler_converges_faster(process, prediction):
    errors = {steps: error_of_flow(process, prediction, "dpmpp_2m", steps=steps) for steps in (50, 100, 200)}
    assert errors[100] < error_of_flow(process, prediction, "ddim", steps=100) / 2
    # two halvings of the step: DDIM gains a factor of 4, second order up to 16 (less, for its last jump is a plain one)
    assert errors[50] / errors[200] > 8


def test_the_two_variances_of_ddpm_bracket_the_true_one():
    # Ho et al. 2020, section 3.2: right for data that is a point, and for data of unit variance; ours is in between.
    # A coarse process of 100 timesteps sets the two well apart.
    process = DiscreteProcess(100, "linear", 1e-3, 0.2)
    small, large = (
        moments(gaussian_images(process, "epsilon", "ddpm", variance_type=kind))[1].diag()
        for kind in ("fixed_small", "fixed_large")
    )
    assert (small < COVARIANCE.diag()).all()
    assert (COVARIANCE.diag() < large).all()


@pytest.mark.parametrize(
    ("process", "prediction"), [(COSINE, "v_prediction"), pytest.param(LINEAR, "epsilon", marks=slow)], ids=id_of
)
def test_ddim_with_eta_1_through_all_timesteps_is_ddpm(process, prediction):
    # the same noise from the same generators, so value by value and not only in its moments
    ddim = gaussian_images(process, prediction, "ddim", steps=None, eta=1.0)
    torch.testing.assert_close(ddim, gaussian_images(process, prediction, "ddpm", steps=None), rtol=0, atol=1e-3)


@every_yaml
@two_pairs
def test_the_form_in_which_the_estimate_is_handed_over_makes_no_difference(name, process, prediction):
    # which of these a sampler may be told: DDPM's noisy relative knows no sample
    forms = ["epsilon", "v_prediction", *["sample"] * (name != "euler_a")]
    images = [gaussian_images(process, prediction, name, steps=20, prediction_type=form) for form in forms]
    for other in images[1:]:
        torch.testing.assert_close(other, images[0], rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------- numbers of steps


@every_yaml
@each("steps", [1, 7, 30, 61, 103, 300, 600, 999, 1000])
def test_timesteps_fall_from_pure_noise_and_are_as_many_as_asked_for(name, steps):
    timesteps = sampler_of(name, steps=steps).build_scheduler(COSINE).timesteps.tolist()
    assert len(timesteps) == steps
    assert timesteps[0] == 999  # "leading" spacing, diffusers' default, never starts there
    assert timesteps[-1] >= 0
    assert timesteps == sorted(set(timesteps), reverse=True)


@each("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 30, 61, 300, *[pytest.param(n, marks=slow) for n in (600, 999, 1000)]])
@each(
    ("name", "changes"),
    [("ddim", {}), ("ddim", {"eta": 1.0}), ("ddpm", {}), ("ddpm", {"variance_type": "fixed_large"})],
)
def test_any_number_of_steps_ends_where_there_is_no_noise(name, changes, steps, spacing):
    # the network knows the only image there is, so that whatever else is in the last state is noise that was left
    image = torch.linspace(-0.9, 0.9, 16).view(1, 4, 4)
    sampler = sampler_of(name, steps=steps, timestep_spacing=spacing, batch_size=2, **changes)
    timesteps = sampler.build_scheduler(CLIPPED).timesteps.tolist()
    assert len(timesteps) == steps
    assert timesteps[-1] >= 0
    assert timesteps[0] <= 999
    assert timesteps == sorted(set(timesteps), reverse=True)
    diffusion = Diffusion(CLIPPED, "sample", Uniform())
    images = generate(lambda x_t, t, y: image.expand_as(x_t), diffusion, sampler, [0, 0], [0, 1], (1, 4, 4))
    assert torch.equal(images, image.expand(2, 1, 4, 4))


@pytest.mark.parametrize(("steps", "fewer"), [(300, 250), (600, 500), pytest.param(900, 500, marks=slow)])
def test_steps_that_do_not_divide_the_timesteps_are_as_good_as_those_that_do(steps, fewer):
    error = functools.partial(error_of_flow, LINEAR, "epsilon", "ddim")
    assert error(steps=steps) < error(steps=fewer)  # the larger divisor of 1000, in spite of it


@thoroughly
# few steps take away some variance; 61 is one of the counts to which "trailing" spacing would add a timestep -1
@pytest.mark.parametrize(
    ("steps", "shrinkage"), [(61, 0.25), (600, 0.04), *[pytest.param(n, 0.04, marks=slow) for n in (999, 1000)]]
)
def test_every_sampler_stands_any_number_of_steps(name, steps, shrinkage):
    assert_moments(gaussian_images(COSINE, "v_prediction", name, steps=steps), shrinkage)


@each("process", [COSINE, LINEAR], ids=id_of)
def test_the_ancestral_sampler_is_finite_with_few_steps(process):
    """Between far levels its variance is the difference of two nearly equal squares."""
    x0_hat = torch.zeros(2, 1, 4, 4)
    for steps in range(2, 12):
        sampler = sampler_of("euler_a", steps=steps)
        scheduler, x = sampler.build_scheduler(process), first_noise((1, 4, 4), range(2))
        for k in range(steps - 1):
            x = sampler.step(scheduler, k, x0_hat, x, process, [torch.Generator().manual_seed(j) for j in range(2)])
            assert x.dtype == torch.float32
            assert x.isfinite().all(), (steps, k)


def test_ddim_left_to_itself_takes_a_wrong_next_timestep(monkeypatch):
    # t - 1000 // 600 = t - 1, while the next of its own list is t - 1 or t - 2: noise is left in the image
    assert error_of_flow(LINEAR, "epsilon", "ddim", steps=600) < 0.003
    monkeypatch.setattr(samplers, "_set_ddim_step", lambda scheduler, k: None)
    wrong = gaussian_images.__wrapped__(LINEAR, "epsilon", "ddim", steps=600)  # the cache has the right images
    assert (wrong - exact_flow(LINEAR)).square().mean().sqrt() > 0.1
    assert (moments(wrong)[1].diag() > 2 * COVARIANCE.diag()).all()


# ------------------------------------------------------------------------------------------------ the noise levels


@every_yaml
@each("process", PROCESSES, ids=id_of)
def test_every_sampler_uses_the_noise_levels_of_the_table(name, process):
    scheduler = sampler_of(name).build_scheduler(process)
    theirs = DDPMScheduler(
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[process.beta_schedule],
        rescale_betas_zero_snr=process.zero_terminal_snr,
    )
    torch.testing.assert_close(scheduler.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=2e-6)


class Deaf(DDIMScheduler):
    """A scheduler that takes betas and does not use them, as some do with what they do not know."""

    def __init__(self, num_train_timesteps: int = 1000, trained_betas=None, **arguments):
        super().__init__(num_train_timesteps=num_train_timesteps, beta_schedule="scaled_linear", **arguments)


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        (Deaf, {}),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}),
        (DPMSolverMultistepScheduler, {"rescale_betas_zero_snr": True}),
    ],
)
def test_a_scheduler_with_other_noise_levels_is_refused(scheduler, changes):
    sampler = Sampler(scheduler, {"timestep_spacing": "trailing", **changes}, {}, steps=10, batch_size=1)
    with pytest.raises(UserError, match=f"{scheduler.__name__}: its noise levels differ"):
        sampler.build_scheduler(LINEAR)


# ------------------------------------------------------------------------------------------------------------ yamls


@every_yaml
def test_every_key_of_a_sampler_goes_where_it_belongs(name):
    config = YAMLS[name]
    scheduler = locate(config["_target_"])
    sampler = make_sampler(config, scheduler)
    assert make_sampler(config | {"batch_size": 5}, scheduler).batch_size == 5
    constructor = set(inspect.signature(scheduler.__init__).parameters)
    step = set(inspect.signature(scheduler.step).parameters)
    own = {"_target_", "name", "serves", "starts_anywhere", "steps", "batch_size", "clip_x0"}
    assert set(sampler.arguments) <= constructor
    assert set(sampler.step_arguments) <= step
    assert own | set(sampler.arguments) | set(sampler.step_arguments) == set(config)
    assert not set(sampler.arguments) & (set(sampler.step_arguments) | own)
    assert (sampler.steps, sampler.batch_size, sampler.clip_x0) == (
        config["steps"],
        16,
        config["clip_x0"],
    )
    built = sampler.build_scheduler(COSINE)
    assert type(built) is scheduler
    for key, value in sampler.arguments.items():
        assert built.config[key] == value, key


def test_eta_is_an_argument_of_the_step_and_spacing_one_of_the_constructor():
    sampler = sampler_of("ddim", eta=0.7)
    assert sampler.step_arguments == {"eta": 0.7}
    assert sampler.arguments["timestep_spacing"] == "trailing"


# ------------------------------------------------------------------------------------ against plain diffusers loops


class Noisy(nn.Module):
    """About right for images of nearly no variance, and besides not linear; it sees its label and its time."""

    def __init__(self, process: DiscreteProcess, prediction: str):
        super().__init__()
        torch.manual_seed(0)
        self.sigma, self.size = (
            process.sigma.float(),
            {"epsilon": process.sigma**0, "v_prediction": process.alpha}[prediction],
        )
        self.mix, self.classes = nn.Conv2d(3, 3, 3, padding=1), nn.Embedding(4, 3)

    @torch.no_grad()
    def forward(self, x_t, t, y):
        wave = torch.tanh(self.mix(x_t) + self.classes(y)[:, :, None, None] + (t / 500)[:, None, None, None])
        sigma, size = (values[t].float().view(-1, 1, 1, 1) for values in (self.sigma, self.size))
        return size * (sigma * x_t + 0.2 * wave)


def plain_loop(scheduler, net, steps, labels, seeds, shape, **step_arguments):
    """What a diffusers pipeline does."""
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x, y = torch.stack([torch.randn(shape, generator=generator) for generator in generators]), torch.tensor(labels)
    for t in scheduler.timesteps:
        out = net(x, t.expand(len(y)), y)
        x = scheduler.step(out, t, x, generator=generators, return_dict=False, **step_arguments)[0]
    return x.clamp(-1, 1)


LOOPS = {  # name: our yaml, its changes; their class, its arguments, those of its steps
    "ddim": ("ddim", {"steps": 50}, DDIMScheduler, {}, {}),
    "ddim eta 0.6": ("ddim", {"steps": 50, "eta": 0.6}, DDIMScheduler, {}, {"eta": 0.6}),
    "ddim all steps": ("ddim", {"steps": 1000}, DDIMScheduler, {}, {}),
    "ddpm": ("ddpm", {"steps": 250}, DDPMScheduler, {}, {}),
    "ddpm large": (
        "ddpm",
        {"steps": 1000, "variance_type": "fixed_large"},
        DDPMScheduler,
        {"variance_type": "fixed_large"},
        {},
    ),
    "dpmpp": ("dpmpp_2m", {"steps": 20}, DPMSolverMultistepScheduler, {}, {}),
}


@two_pairs
@pytest.mark.parametrize(
    ("loop", "clip"),
    [
        pytest.param(loop, clip, marks=[slow] if loop in ("ddim all steps", "ddpm large") else [])
        for loop in LOOPS
        for clip in (False, True)
        if not (clip and loop == "dpmpp")  # diffusers' DPM-Solver++ has dynamic thresholding and no clipping
    ],
)
def test_our_loop_is_the_plain_loop_of_diffusers(loop, clip, process, prediction):
    name, changes, theirs, arguments, step_arguments = LOOPS[loop]
    arguments = {
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[process.beta_schedule],
        "prediction_type": prediction,
        "timestep_spacing": "trailing",
        **arguments,
    }
    if loop != "dpmpp":
        arguments["clip_sample"] = clip
    if "ddim" in loop and clip:  # our eps follows from the clipped x0, not from an answer that has been overruled
        step_arguments = {**step_arguments, "use_clipped_model_output": True}
    labels, seeds, shape, net = [0, 1, 2, 3], [5, 6, 7, 8], (3, 6, 6), Noisy(process, prediction)
    expected = plain_loop(theirs(**arguments), net, changes["steps"], labels, seeds, shape, **step_arguments)
    sampler = sampler_of(name, **changes, batch_size=4, clip_x0=clip)
    ours = generate(net, Diffusion(process, prediction, Uniform()), sampler, labels, seeds, shape).clamp(-1, 1)
    assert len(expected.unique()) > 200  # images, not the limits of clipping everywhere
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------- as the source projects sampled

IMAGE, SEEDS, LABELS = (3, 6, 6), [5, 6, 7, 8], torch.tensor([0, 1, 2, 3])


def states_of(name: str, process: DiscreteProcess, **changes: object) -> list[torch.Tensor]:
    """x after each step, from noise of the seeds 5 to 8."""
    states, net = [], Noisy(process, "epsilon")
    sampler = sampler_of(name, batch_size=4, **changes)
    generate(
        net,
        Diffusion(process, "epsilon", Uniform()),
        sampler,
        LABELS.tolist(),
        SEEDS,
        IMAGE,
        on_step=lambda first, k, x: states.append(x),
    )
    return states


class Theirs:
    """The same noise and network for loops written as in the source projects, in float64."""

    def __init__(self, process: DiscreteProcess):
        self.net, self.generators = Noisy(process, "epsilon"), [torch.Generator().manual_seed(seed) for seed in SEEDS]

    def noise(self) -> torch.Tensor:
        return torch.stack([torch.randn(IMAGE, generator=generator) for generator in self.generators]).double()

    def eps(self, x: torch.Tensor, t: int) -> torch.Tensor:
        return self.net(x.float(), torch.full((4,), t), LABELS).double()


def sprites_schedule() -> tuple[torch.Tensor, torch.Tensor]:
    b_t = torch.linspace(1e-3, 0.02, 501, dtype=torch.float64)
    ab_t = torch.cumsum((1 - b_t).log(), 0).exp()
    ab_t[0] = 1
    return b_t, ab_t


def test_fixed_large_without_clipping_is_the_ddpm_of_the_sprites():
    states = states_of("ddpm", SPRITES, steps=None, variance_type="fixed_large", clip_x0=False)
    (b_t, ab_t), theirs = sprites_schedule(), Theirs(SPRITES)
    x = theirs.noise()
    for t in range(500, 1, -1):
        mean = (x - theirs.eps(x, t - 1) * (b_t[t] / (1 - ab_t[t]).sqrt())) / (1 - b_t[t]).sqrt()
        x = mean + b_t[t].sqrt() * theirs.noise()
        torch.testing.assert_close(states[500 - t].double(), x, rtol=0, atol=2e-4)
    # Their last step takes beta_1 for the noise that is left, which is that of beta_0 and beta_1 together: a part of it
    # stays in the image. Ours ends on the estimate of the clean image.
    x0 = (x - (1 - ab_t[1]).sqrt() * theirs.eps(x, 0)) / ab_t[1].sqrt()
    torch.testing.assert_close(states[499].double(), x0, rtol=0, atol=2e-4)


def test_trailing_ddim_is_the_ddim_of_the_sprites():
    states = states_of("ddim", SPRITES, steps=25, clip_x0=False)
    (_, ab_t), theirs = sprites_schedule(), Theirs(SPRITES)
    x = theirs.noise()
    for k, t in enumerate(range(500, 0, -20)):
        eps, ab, ab_prev = theirs.eps(x, t - 1), ab_t[t], ab_t[t - 20]
        x = ab_prev.sqrt() / ab.sqrt() * (x - (1 - ab).sqrt() * eps) + (1 - ab_prev).sqrt() * eps
        torch.testing.assert_close(states[k].double(), x, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("steps", "eta"), [(50, 1.0), (250, 1.0), (50, 0.5)])
def test_leading_ddim_with_clipping_is_that_of_simple_diffusion(steps, eta):
    states = states_of("ddim", CLIPPED, steps=steps, eta=eta, timestep_spacing="leading", clip_x0=True)
    theirs, stride, alpha_bar, clipped = Theirs(CLIPPED), 1000 // steps, CLIPPED.alpha_bar, 0.0
    x = theirs.noise()
    for k, t in enumerate(range(1000 - stride, -1, -stride)):
        ab, ab_prev = alpha_bar[t], alpha_bar[t - stride] if t >= stride else torch.tensor(1.0, dtype=torch.float64)
        x0 = (x - (1 - ab).sqrt() * theirs.eps(x, t)) / ab.sqrt()
        clipped = max(clipped, (x0.abs() > 1).double().mean().item())
        x0 = x0.clamp(-1, 1)
        eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
        std = eta * ((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)).sqrt()
        x = ab_prev.sqrt() * x0 + (1 - ab_prev - std**2).sqrt() * eps
        x = x + std * theirs.noise() if t else x
        torch.testing.assert_close(states[k].double(), x, rtol=0, atol=2e-4)
    assert len(states) == steps
    assert clipped > 0.01  # or the clipping would not be tested


def unet_images(labels, seeds, net=None, name="ddim", size=8, **changes):
    sampler = sampler_of(name, **{"steps": 4, "batch_size": 4, **changes})
    diffusion = Diffusion(COSINE, "v_prediction", Uniform())
    return generate(net or unet(), diffusion, sampler, labels, seeds, (1, size, size))


@every_yaml
def test_an_image_is_the_same_bytes_however_many_are_made(name):
    seeds, labels = image_seeds(0, 11), [k % 3 for k in range(11)]
    whole = unet_images(labels, seeds, name=name)
    assert len(whole.flatten(1).unique(dim=0)) == 11
    for count in (1, 3, 4, 5):
        assert torch.equal(unet_images(labels[:count], seeds[:count], name=name), whole[:count])
    # nor does it matter which other images share its batch
    assert torch.equal(unet_images(labels[4:7], seeds[4:7], name=name), whole[4:7])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("ddim", "ddpm", "dpmpp_2m") else [slow]) for name in YAMLS]
)
def test_other_batch_sizes_change_hardly_a_pixel(name):
    # the last bits of a convolution depend on the batch it runs in: 1 / 255 on one value in a thousand at most
    # (of 1,536 here; of a few hundred a single one would be more)
    make = functools.partial(unet_images, [k % 3 for k in range(6)], image_seeds(0, 6), name=name, size=16)
    images = to_uint8(make()).int()
    for batch_size in (1, 3, 5):
        off = (to_uint8(make(batch_size=batch_size)).int() - images).abs()
        assert off.max() <= 1
        assert off.float().mean() <= 1e-3


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_an_image_depends_on_its_own_seed_and_label_only(name):
    labels, seeds = [0, 1, 2, 0], [10, 11, 12, 13]
    images = unet_images(labels, seeds, name=name)
    changed = unet_images([0, 1, 2, 1], [10, 99, 12, 13], name=name)
    assert [torch.equal(a, b) for a, b in zip(images, changed, strict=True)] == [True, False, True, False]


@every_yaml
def test_generation_leaves_the_global_random_state_alone(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = unet_images([0, 1], [1, 2], name=name, **({"eta": 1.0} if name == "ddim" else {}))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)  # nor does it look at it
    assert torch.equal(images, unet_images([0, 1], [1, 2], name=name, **({"eta": 1.0} if name == "ddim" else {})))


def test_images_are_float32_in_range_with_a_view_of_every_step():
    seen = []
    sampler = sampler_of("ddim", steps=4, batch_size=2)
    images = generate(
        unet(),
        Diffusion(COSINE, "v_prediction", Uniform()),
        sampler,
        [0, 1, 2],
        [1, 2, 3],
        (1, 8, 8),
        on_step=lambda first, k, x: seen.append((first, k, x.clone())),
    )
    assert [(first, k) for first, k, _ in seen] == [(0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert torch.equal(torch.cat([seen[3][2], seen[7][2][:1]]).clamp(-1, 1), images)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1


@every_yaml
def test_the_estimate_is_held_in_range_only_if_asked(name):
    # a network that says x0 = 3 everywhere, far outside: held in range that is an image of ones at every step
    def shouts(x_t, t, y):
        return torch.full_like(x_t, 3.0)

    def last_state(clip):
        states = []
        generate(
            shouts,
            Diffusion(COSINE, "sample", Uniform()),
            sampler_of(name, steps=10, batch_size=1, clip_x0=clip),
            [0],
            [0],
            (1, 4, 4),
            on_step=lambda first, k, x: states.append(x),
        )
        return states[-1]

    torch.testing.assert_close(last_state(True), torch.ones(1, 1, 4, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(last_state(False), torch.full((1, 1, 4, 4), 3.0), rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- guidance


def guided_by(scale: float, num_classes: int = 3):
    return guide_network(unet(), ClassCondition(num_classes), scale)


def test_guidance_1_is_no_guidance_and_0_is_the_null_label_to_the_bit():
    labels, seeds = [0, 1, 2], [1, 2, 3]
    plain = unet_images(labels, seeds)
    null = unet_images([3, 3, 3], seeds)
    assert not torch.equal(plain, null)
    assert torch.equal(unet_images(labels, seeds, guided_by(1)), plain)
    assert torch.equal(unet_images(labels, seeds, guided_by(1.0)), plain)
    assert torch.equal(unet_images(labels, seeds, guided_by(0)), null)
    assert torch.equal(unet_images(labels, seeds, guided_by(0.0)), null)


@pytest.mark.parametrize("scale", [0.5, 2.0, 7.5, -1.0])
def test_other_scales_go_from_the_unconditional_answer_through_the_conditional_one(scale):
    x, t = first_noise((1, 8, 8), range(5)), torch.tensor([0, 10, 500, 900, 999])
    y = torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        c, u = unet()(x, t, y), unet()(x, t, torch.full_like(y, 3))
        ours = add_classifier_free_guidance(unet(), ClassCondition(3), scale)(x, t, y)
    assert (c - u).abs().max() > 1e-3
    torch.testing.assert_close(ours, u + scale * (c - u), rtol=0, atol=1e-5)


def test_guidance_costs_one_evaluation_where_it_is_off_and_a_double_batch_elsewhere():
    sizes = []

    def counting(x_t, t, y):
        sizes.append(len(y))
        return torch.zeros_like(x_t)

    x, t, y = torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), torch.zeros(4).long()
    for scale, expected in ((1, [4]), (0, [4]), (3, [8])):
        sizes.clear()
        add_classifier_free_guidance(counting, ClassCondition(3), scale)(x, t, y)
        assert sizes == expected


def test_without_classes_there_is_nothing_to_guide_by():
    labels, seeds = [0, 1], [1, 2]
    assert torch.equal(unet_images(labels, seeds, guided_by(7.5, num_classes=0)), unet_images(labels, seeds))


@each("steps", [1, 2, 4, 8])
def test_lcm_of_an_exact_consistency_model_reaches_the_distribution(steps):
    """On N(m, v) its map to the clean image is known: x0 = m + sqrt(v) (x_t - alpha m) / sqrt(alpha^2 v + sigma^2)."""
    process, mean, variance = COSINE, 0.1, 0.04

    def net(x_t, t, y):
        alpha, sigma = process.alpha[t[0]], process.sigma[t[0]]
        spread = (alpha**2 * variance + sigma**2).sqrt()
        return (mean + variance**0.5 * (x_t.double() - alpha * mean) / spread).float()

    sampler = sampler_of("lcm", steps=steps, batch_size=4, clip_x0=False)
    scheduler = sampler.build_scheduler(process)
    assert len(scheduler.timesteps) == steps
    images = generate(net, Diffusion(process, "sample", Uniform()), sampler, [0] * 4, range(4), (1, 64, 64))
    assert images.mean().item() == pytest.approx(mean, abs=0.01)  # of 16,384 draws
    assert images.std().item() == pytest.approx(variance**0.5, rel=0.03)
    noise = torch.stack([torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(k)) for k in range(4)])
    is_random = torch.corrcoef(torch.stack([images.flatten(), noise.flatten()]))[0, 1].item() < 0.9
    assert is_random == (steps > 1)  # a step after the first one draws new noise
