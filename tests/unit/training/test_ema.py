"""The average of the network and the learning rate, in closed form, against diffusers, and in real training."""

import copy
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from diffusers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_lit.config.groups import CONF
from diffusion_lit.data.batches import Batches
from diffusion_lit.data.store import ImageStore
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.weighting import MinSNR
from diffusion_lit.runs.build import make_ema_decay
from diffusion_lit.system.errors import CheckpointError, ConfigError
from diffusion_lit.training import ema as ema_module
from diffusion_lit.training.ema import (
    ConstantDecay,
    EMAUpdater,
    PowerDecay,
    RisingDecay,
    decay_at_step,
    lerp_fused_,
    split_tensors,
    update_ema,
)
from diffusion_lit.training.module import DiffusionModule
from diffusion_lit.training.optimizers import learning_rate_factor, make_optimizer, replace_settings
from tests import trained
from tests.cases import each

EMAS = {file.stem: yaml.safe_load(file.read_text()) for file in Path(CONF).glob("ema/*.yaml")}


# ------------------------------------------------------------------------------------------------------- the average


class Tiny(nn.Module):
    """A network with float buffers (running statistics) and an integer one (the count of batches)."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.out = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x_t, t, y):
        return self.out(torch.relu(self.norm(self.conv(x_t))))


def wander(net: nn.Module, generator: torch.Generator) -> None:
    """One step of training, as the average sees it."""
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.randn(value.shape, generator=generator)
            else:
                value += 3


def in_closed_form(start: np.ndarray, values: list[np.ndarray], decays: list[float]) -> np.ndarray:
    """The average as a weighted sum of all that it has seen, in float64: value j counts (1 - d_j) d_j+1 ... d_k."""
    weights = [(1 - d) * math.prod(decays[j + 1 :]) for j, d in enumerate(decays)]
    return math.prod(decays) * start + sum(w * value for w, value in zip(weights, values, strict=True))


DECAYS = [PowerDecay(power=0.75), PowerDecay(2.0, 2 / 3, 0.5), PowerDecay(power=1.0), ConstantDecay(0.9)]


@each("every", [1, 4])
def test_the_logged_decay_is_that_of_the_last_update(monkeypatch, every):
    decay, net, used = PowerDecay(update_every=every), Tiny(), []
    updater = EMAUpdater(net, copy.deepcopy(net), decay, [], [])
    monkeypatch.setattr(ema_module, "update_ema", lambda ema, net, decay, is_skipped: used.append(decay))
    for step in range(1, 40):
        updater.update(step, torch.tensor(False))
        assert decay_at_step(decay, step) == (used[-1] if used else decay(0)), step
    assert used == [decay(n) for n in range(39 // every)]


@each("decay", [*DECAYS, RisingDecay(40, decay=0.5)], ids=str)
def test_the_average_is_the_weighted_sum_of_all_that_it_saw(decay):
    net, generator = Tiny(), torch.Generator().manual_seed(0)
    average = copy.deepcopy(net)
    start = {name: value.double().numpy() for name, value in copy.deepcopy(net.state_dict()).items()}
    seen = {name: [] for name in start}
    decays = [decay(n) for n in range(40)]
    for d in decays:
        wander(net, generator)
        update_ema(split_tensors(average), split_tensors(net), d)
        for name, value in net.state_dict().items():
            seen[name].append(value.double().numpy().copy())
    for name, value in average.state_dict().items():
        wanted = in_closed_form(start[name], seen[name], decays)
        if not value.is_floating_point():
            wanted = seen[name][-1]  # an average of counts is no count
        np.testing.assert_allclose(value.numpy(), wanted, atol=2e-6, err_msg=name)
    assert average.norm.num_batches_tracked == 120
    assert not torch.equal(average.norm.running_mean, net.norm.running_mean)


def test_the_average_is_that_of_diffusers_and_crowson():
    net, generator = Tiny(), torch.Generator().manual_seed(1)
    average = copy.deepcopy(net)
    theirs = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1, power=3 / 4)
    decay = make_ema_decay({"ema": EMAS["power"]})
    for n in range(60):
        wander(net, generator)
        update_ema(split_tensors(average), split_tensors(net), decay(n))
        theirs.step(net.parameters())
        assert decay(n) == pytest.approx(theirs.cur_decay_value, abs=1e-12)
        for a, b in zip(average.parameters(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(a.data, b.data, rtol=0, atol=1e-6)


@each("lerp", [lambda ema, net, share: torch._foreach_lerp_(ema, net, [share] * len(net)), lerp_fused_])
def test_both_ways_to_update_follow_the_formula_and_leave_a_skipped_step_as_it_was(lerp):
    generator = torch.Generator().manual_seed(2)
    shapes = [(8, 3, 3, 3), (8,), ()]
    ema, net = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    exact = [a.double() for a in ema]
    for decay in (0.6, 0.99, 0.9999, 1.0):
        lerp(ema, net, torch.tensor(1 - decay))
        exact = [a + float(torch.tensor(1 - decay)) * (b.double() - a) for a, b in zip(exact, net, strict=True)]
    for a, b in zip(ema, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=4e-7, atol=4e-7)
    before = [a.clone() for a in ema]
    lerp(ema, net, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(ema, before, strict=True))


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


@each(("device", "decay", "updates"), [
    ("meta", 0.999, ["_foreach_sub.List", "_foreach_mul_.Tensor", "_foreach_add_.List"]),  # as any device but a CPU
    ("meta", 0.0, ["_foreach_lerp_.List"]),  # the first update copies the network, without an error of rounding
    ("cpu", 0.999, ["_foreach_lerp_.List"]),
])  # fmt: skip
def test_a_device_updates_with_operators_that_it_fuses(device, decay, updates):
    tensors = [torch.zeros(2, device=device) for _ in range(5)]
    networks = [ema_module.NetworkTensors(tensors, []) for _ in range(2)]
    with Calls() as calls:
        update_ema(*networks, decay, torch.zeros((), dtype=torch.bool, device=device))
    assert [name for name in calls.names if name.startswith("_foreach")] == updates


def test_power_decay_reaches_its_promised_values_and_no_more():
    # Crowson's notes: power 3/4 is 0.999 after 10,000 steps and 0.9999 after 215,400; 2/3 after 31,600 and a million
    for power, steps in ((0.75, (10_000, 215_400)), (2 / 3, (31_600, 1_000_000))):
        decay = PowerDecay(power=power, max_decay=1.0)
        assert [round(decay(n), 6) for n in steps] == pytest.approx([0.999, 0.9999], abs=2e-6)
    decays = [PowerDecay()(n) for n in (0, 1, 10, 1000, 215_000, 10**6, 10**9)]
    assert decays[0] == 0  # the first average is the network itself, not its random beginning
    assert decays == sorted(decays)
    assert decays[-1] == 0.9999


def test_a_rising_decay_goes_from_its_base_to_1_over_the_run():
    decay = make_ema_decay({"ema": EMAS["rising"], "max_steps": 400})
    # BYOL's momentum at k of K steps, and where half a cosine must be without computing one
    wanted = [1 - (1 - 0.996) * (math.cos(math.pi * k / 400) + 1) / 2 for k in range(400)]
    assert [decay(n) for n in range(400)] == pytest.approx(wanted, abs=1e-15)
    assert [decay(n) for n in (0, 100, 200, 300, 400, 500)] == pytest.approx(
        [0.996, 1 - 0.002 * (1 + 0.5**0.5), 0.998, 1 - 0.002 * (1 - 0.5**0.5), 1, 1], abs=1e-15
    )
    seldom = make_ema_decay({"ema": EMAS["rising"] | {"update_every": 10}, "max_steps": 400})
    assert [seldom(n) for n in range(40)] == pytest.approx(wanted[::10], abs=1e-15)  # of 40 updates


def test_a_constant_decay_leaves_as_much_of_the_untrained_network_as_it_says():
    decay = make_ema_decay({"ema": EMAS["constant"]})
    assert {decay(n) for n in (0, 1, 10**6)} == {0.995}
    assert math.prod(decay(n) for n in range(1000)) == pytest.approx(0.007, abs=4e-4)


def test_runs_from_before_the_key_average_at_every_step():
    old = {key: value for key, value in EMAS["power"].items() if key != "update_every"}
    assert make_ema_decay({"ema": old}) == make_ema_decay({"ema": EMAS["power"]}) == PowerDecay()


def test_no_average_has_no_decay():
    assert make_ema_decay({"ema": EMAS["none"]}) is None


# ----------------------------------------------------------------------------------------------- the learning rate

CYCLES, POWER = 3, 1.5
THEIRS = {
    "constant": lambda optimizer, warmup, steps: get_constant_schedule_with_warmup(optimizer, warmup),
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "cosine_restarts": lambda *words: get_cosine_with_hard_restarts_schedule_with_warmup(*words, num_cycles=CYCLES),
    "polynomial": lambda *words: get_polynomial_decay_schedule_with_warmup(*words, lr_end=0, power=POWER),
}
every_schedule = each("schedule", THEIRS)


def curve(schedule: str, warmup: int, steps: int, count: int = 0, fraction=None, cycles=CYCLES) -> list[float]:
    """Factors of the steps 0, 1, ..., `count` (one past the last by default)."""
    config = {"name": schedule, "warmup_steps": warmup, "warmup_fraction": fraction}
    config |= {"cycles": cycles, "power": POWER}
    factor = learning_rate_factor(config, steps)
    return [factor(n) for n in range((count or steps) + 1)]


def curve_of_diffusers(schedule: str, warmup: int, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = THEIRS[schedule](optimizer, warmup, steps)
    rates = []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@every_schedule
@each(("warmup", "steps"), [(0, 100), (1, 50), (10, 100), (37, 200), (50, 51)])
def test_the_rate_is_that_of_diffusers_but_for_the_first_step(schedule, warmup, steps):
    # Theirs runs the first step at 0, which trains nothing, and step w + 1 at the full rate; ours runs the first at
    # 1 / w and reaches the full rate at step w. From the end of warm-up on there is no difference.
    ours, theirs = curve(schedule, warmup, steps), curve_of_diffusers(schedule, warmup, steps)
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1] if warmup else [])
    assert ours[warmup:] == pytest.approx(theirs[warmup:], abs=1e-12)


@every_schedule
@each("warmup", [1, 7, 50])
def test_warm_up_climbs_in_equal_steps_to_the_peak_and_never_again(schedule, warmup):
    rates = curve(schedule, warmup, 200)
    assert rates[0] == pytest.approx(1 / warmup)
    assert np.diff(rates[:warmup]) == pytest.approx(1 / warmup)
    assert rates[warmup - 1] == rates[warmup] == max(rates) == 1
    assert (np.diff(rates[warmup:]) > 0).sum() == (CYCLES - 1 if schedule == "cosine_restarts" else 0)


def test_a_staircase_falls_in_equal_stairs():
    # the sprites' rate of epoch e of E is 1 - e / E; with 100 stairs in 700 steps floats would lengthen some
    for epochs, steps, warmup in ((100, 700, 0), (4, 20, 5), (3, 10, 0)):
        ours = curve("staircase", warmup, warmup + steps, cycles=epochs)
        wanted = [1 - (n * epochs // steps) / epochs for n in range(steps)] + [0.0]
        assert ours[warmup:] == pytest.approx(wanted, abs=1e-12)


def test_restarts_begin_at_the_full_rate():
    rates = curve("cosine_restarts", 0, 70, cycles=10)
    assert rates[0:70:7] == [1.0] * 10
    assert rates[7:14] == pytest.approx(curve("cosine", 0, 7)[:7])


def test_decaying_rates_end_at_zero_and_are_half_of_it_in_the_middle():
    for schedule in ("linear", "cosine", "cosine_restarts"):
        rates = curve(schedule, 20, 120)
        assert rates[70] == pytest.approx(0.5)
        assert rates[120] == pytest.approx(0, abs=1e-12)  # of the step after the last, as with diffusers
        assert 0 < rates[119] < 0.011  # so the last step still trains
    assert set(curve("constant", 20, 120)[20:]) == {1.0}


@every_schedule
def test_past_the_end_the_rate_stays_where_it_is(schedule):
    # diffusers' cosine has the same end, but its `num_cycles` relatives climb back up
    rates = curve(schedule, 10, 100, count=1000)
    assert set(rates[100:]) == {rates[100]}


@every_schedule
def test_a_warm_up_longer_than_the_run_only_climbs(schedule):
    rates = curve(schedule, 100, 30)
    assert rates == pytest.approx([(n + 1) / 100 for n in range(31)])


def test_warm_up_can_be_a_fraction_of_the_run():
    assert curve("cosine", 500, 200, fraction=0.1) == curve("cosine", 20, 200)
    assert curve("linear", 500, 200, fraction=0.0) == curve("linear", 0, 200)


# ------------------------------------------------------------------------------------------- both, in real training

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)
STEPS = 6


class Watch(L.Callback):
    """Writes down the learning rate of each optimizer step, and the network after it."""

    def __init__(self):
        self.rates, self.networks = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, module, *_):
        state = {name: value.double().numpy().copy() for name, value in module.net.state_dict().items()}
        if trainer.global_step > len(self.networks):
            self.networks.append(state)
        else:  # the buffers of a batch norm move with every micro-batch
            assert trainer.accumulate_grad_batches > 1


def train(ema: dict, accumulate: int, schedule: str = "cosine") -> tuple[DiffusionModule, Watch, nn.Module]:
    torch.manual_seed(0)
    leaf = yaml.safe_load((CONF / "optimizer" / "adamw.yaml").read_text()) | {"lr": 0.05}
    lr_schedule = {"name": schedule, "warmup_steps": 2, "warmup_fraction": None}
    net = Tiny()
    start = copy.deepcopy(net)
    diffusion = Diffusion(DiscreteProcess(), "v_prediction", MinSNR())
    module, watch = (
        DiffusionModule(
            net,
            diffusion,
            image_shape=(1, 4, 4),
            ema=make_ema_decay({"max_steps": STEPS, "ema": ema}),
            optimizer=partial(make_optimizer, leaf=leaf, fused=True),
            lr_schedule=learning_rate_factor(lr_schedule, STEPS),
            label_dropout=0.0,
        ),
        Watch(),
    )
    store = ImageStore(IMAGES, np.zeros(len(IMAGES), np.int64))
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        callbacks=[watch],
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader(_Stream(store, 8 // accumulate, accumulate), batch_size=None)
    trainer.fit(module, loader)
    return module, watch, start


class _Stream(torch.utils.data.IterableDataset):
    def __init__(self, store: ImageStore, batch_size: int, accumulate: int):
        self.batches = Batches(store, 0, batch_size, lambda: 0, accumulate)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (1, 2), (2, 1), (4, 2)])
def test_training_averages_at_the_optimizer_steps_that_it_should(every, accumulate):
    module, watch, start = train(EMAS["power"] | {"update_every": every}, accumulate)
    assert len(watch.networks) == STEPS
    # diffusers' own decays for these updates: what its EMAModel would have made of the same networks
    theirs = EMAModel(start.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1, power=3 / 4)
    decays = [theirs.get_decay(update) for update in range(1, STEPS // every + 1)]
    state = {name: value.double().numpy() for name, value in start.state_dict().items()}
    for name, value in module.ema.state_dict().items():
        seen = [network[name] for network in watch.networks][every - 1 :: every]
        wanted = in_closed_form(state[name], seen, decays) if value.is_floating_point() else seen[-1]
        np.testing.assert_allclose(value.numpy(), wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not any(value.requires_grad for value in module.ema.parameters())
    assert not module.ema.training


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_without_an_average_has_one_network_only(accumulate):
    module, watch, _ = train(EMAS["none"], accumulate)
    assert module.ema is module.net
    for name, value in module.net.state_dict().items():
        np.testing.assert_array_equal(value.double().numpy(), watch.networks[-1][name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_training_runs_each_step_at_the_rate_of_the_curve(schedule, accumulate):
    # with accumulation too: diffusers' training script counts micro-batches, and its rate hardly falls
    _, watch, _ = train(EMAS["none"], accumulate, schedule)
    theirs = curve_of_diffusers(schedule, 2, STEPS)
    assert watch.rates == pytest.approx([0.05 * rate for rate in [*theirs[1:3], *theirs[2:STEPS]]])


def test_make_optimizer_takes_any_class_and_fuses_where_it_can():
    weight = nn.Parameter(torch.ones(2))
    for name, fused in {"RAdam": None, "SGD": True, "NAdam": None, "Adagrad": True, "AdamW": True}.items():
        optimizer = make_optimizer([weight], {"_target_": f"torch.optim.{name}", "lr": 0.1}, fused=True)
        assert type(optimizer) is getattr(torch.optim, name)
        assert optimizer.defaults.get("fused") == fused


SGD = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps"]


@each(("words", "told"), [
    ([*SGD, "+optimizer.nesterov=true"], "optimizer: torch.optim.SGD: Nesterov momentum requires a momentum"),
    (["optimizer._target_=torch.optim.Muon", "~optimizer.betas"], "optimizer: torch.optim.Muon: Muon only supports 2D"),
    (["+optimizer.differentiable=true"], "optimizer: torch.optim.AdamW: `fused` does not support `differentiable`"),
])  # fmt: skip
def test_settings_that_an_optimizer_refuses_are_an_error_before_the_run_begins(tmp_path, words, told):
    with pytest.raises(ConfigError) as error:
        trained.train(tmp_path, *words)
    assert str(error.value).startswith(told)
    assert not (tmp_path / "config.yaml").exists()


def test_a_whole_number_among_the_settings_is_a_float():
    for betas in ([0, 0.99], [0.5, 0], [0, 0]):
        leaf = {"_target_": "torch.optim.AdamW", "lr": 0.1, "betas": betas}
        assert make_optimizer([nn.Parameter(torch.ones(2))], leaf, fused=True).defaults["betas"] == tuple(betas)


OTHER = "holds the state of another optimizer"


@each(("name", "settings", "is_refused"), [
    ("Adam", {}, False), ("AdamW", {"betas": [0.5, 0.6]}, False), ("AdamW", {"amsgrad": True}, True),
    ("RMSprop", {}, True), ("SGD", {}, True), ("Adamax", {}, True),
])  # fmt: skip
def test_a_checkpoint_of_another_optimizer_is_refused(name, settings, is_refused):
    weight = nn.Parameter(torch.ones(2))
    stored, new = (
        make_optimizer([weight], {"_target_": f"torch.optim.{cls}", "lr": 0.1} | more, fused=True)
        for cls, more in (("AdamW", {}), (name, settings))
    )
    checkpoint = {"global_step": 3, "optimizer_states": [stored.state_dict()], "lr_schedulers": []}
    with pytest.raises(CheckpointError, match=OTHER) if is_refused else nullcontext():
        replace_settings(checkpoint, new.param_groups, None)


def test_settings_that_change_the_state_of_an_optimizer_are_refused():
    for settings in ({"centered": True}, {"momentum": 0.9}):
        stored, new = (torch.optim.RMSprop([nn.Parameter(torch.ones(2))], **more) for more in ({}, settings))
        checkpoint = {"global_step": 3, "optimizer_states": [stored.state_dict()], "lr_schedulers": []}
        with pytest.raises(CheckpointError, match=OTHER):
            replace_settings(checkpoint, new.param_groups, None)


def test_make_optimizer_hands_over_every_setting():
    for name in ("adam", "adamw"):
        config = yaml.safe_load((CONF / "optimizer" / f"{name}.yaml").read_text())
        config |= {"lr": 0.3, "betas": [0.5, 0.7], "eps": 1e-3, "weight_decay": 0.2}
        weight = nn.Parameter(torch.tensor([1.0]))
        ours = make_optimizer([weight], config, fused=True)
        other = nn.Parameter(torch.tensor([1.0]))
        cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
        plain = cls([other], lr=0.3, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.2)
        for gradient in (1.0, -0.3, 0.01):
            for parameter, optimizer in ((weight, ours), (other, plain)):
                parameter.grad = torch.tensor([gradient])
                optimizer.step()
        torch.testing.assert_close(weight, other)
