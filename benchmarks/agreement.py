"""Agreement with NVlabs' EDM and EDM2: losses and gradients in training, images of the sampler, EMA profiles.

Their code runs as it is, from checkouts outside of this repository. Both sides have the same network (EDM's
SongUNet), weights, images and noise. The numbers are largest differences, relative to the largest value.
"""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.measure import MissingRequirement, compose_config, print_table
from diffusion_lit.config.targets import locate
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.processes import EDM
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.runs import posthoc_ema
from diffusion_lit.sampling.editing import initial_noise
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.samplers import make_sampler

SIZE, BATCH, STEPS = 16, 8, 100
SAMPLER_STEPS = (10, 18, 28)  # with 10 and 28 the 1,000 levels here contain theirs exactly


class RawNetwork(nn.Module):
    """EDM's network without its preconditioning, which `Diffusion` does here."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, time_input: Tensor, y: Tensor) -> Tensor:
        return self.model(x, time_input / 1000, class_labels=None)  # c_noise; networks here get 1000 times that


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def compare_training(edm: ModuleType, make_precond) -> Iterator[list[object]]:
    """Train both from the same weights for 100 steps, with the same images and noise."""
    diffusion, criterion = Diffusion(EDM(timestep_distribution="logit_normal"), "edm", Uniform()), edm.EDMLoss()
    theirs, ours = make_precond(), make_precond()
    ours.load_state_dict(theirs.state_dict())
    net, worst = RawNetwork(ours.model), {"loss": 0.0, "gradient": 0.0}
    optimizers = [torch.optim.Adam(one.parameters(), lr=1e-4) for one in (theirs, ours)]
    for step in range(STEPS):
        images = torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(step)) * 2 - 1
        torch.manual_seed(step)
        loss_theirs = criterion(theirs, images).mean()
        torch.manual_seed(step)
        sigma = (torch.randn(BATCH, 1, 1, 1) * 1.2 - 1.2).exp().flatten()
        loss_ours = diffusion.loss(net, images, sigma, torch.randn_like(images), torch.zeros(BATCH)).mean()
        for loss, optimizer in ((loss_theirs, optimizers[0]), (loss_ours, optimizers[1])):
            optimizer.zero_grad()
            loss.backward()
        gradients = [torch.cat([p.grad.flatten() for p in one.parameters()]) for one in (ours, theirs)]
        worst["loss"] = max(worst["loss"], relative_difference(loss_ours.detach(), loss_theirs.detach()))
        worst["gradient"] = max(worst["gradient"], relative_difference(*gradients))
        for optimizer in optimizers:
            optimizer.step()
    for name, value in worst.items():
        yield [f"EDM {name}, {STEPS} steps of Adam", f"{value:.1e}"]


def compare_sampling(edm_sampler, make_precond) -> Iterator[list[object]]:
    precond = make_precond().eval()
    diffusion, seeds = Diffusion(EDM(), "edm", Uniform()), list(range(4))
    noise = torch.stack([initial_noise(seed, (3, SIZE, SIZE))[0] for seed in seeds])
    config = compose_config("diffusion=edm", "weighting=uniform", "sampler=heun")[0]["sampler"]
    for steps in SAMPLER_STEPS:
        sampler = make_sampler(config | {"steps": steps, "batch_size": 4, "clip_x0": False}, locate(config["_target_"]))
        with torch.no_grad():
            theirs = edm_sampler(precond, noise, num_steps=steps).float()
        ours = generate(RawNetwork(precond.model), diffusion, sampler, torch.zeros(4), seeds, (3, SIZE, SIZE))
        pixels = [(x.clamp(-1, 1) * 127.5 + 127.5).round() for x in (ours, theirs)]
        levels = (pixels[0] - pixels[1]).abs().max().item()
        difference = f"{relative_difference(ours, theirs):.1e}, {levels:g} of 255 levels"
        yield [f"EDM sampler, {steps} steps of Heun", difference]


def compare_ema(phema: ModuleType) -> Iterator[list[object]]:
    """Track an EMA of random numbers by their class and by the decay here."""
    steps = torch.randn(STEPS, 50, generator=torch.Generator().manual_seed(0))
    for length in posthoc_ema.LENGTHS:
        net = nn.Linear(50, 1, bias=False)
        tracked, ours = phema.PowerFunctionEMA(net, stds=[length]), torch.zeros(50)
        for step, value in enumerate(steps, 1):
            with torch.no_grad():
                net.weight.copy_(value[None])
            tracked.update(cur_nimg=step * BATCH, batch_size=BATCH)
            ours = ours.lerp(value, 1 - posthoc_ema.compute_decay(length, step))
        yield [f"EDM2 EMA of length {length}", f"{relative_difference(ours, tracked.emas[0].weight[0]):.1e}"]


def require_checkout(path: Path | None, option: str, file: str) -> Path:
    if path is None or not (path / file).exists():
        raise MissingRequirement(f"{option} <checkout of github.com/NVlabs{option.replace('--', '/')}>")
    return path


def main(arguments: Namespace) -> None:
    home = require_checkout(arguments.edm, "--edm", "training/networks.py")
    sys.path.insert(0, str(home))
    from generate import edm_sampler  # of the checkout
    from training import loss
    from training.networks import EDMPrecond

    def make_precond() -> nn.Module:
        torch.manual_seed(0)
        net = EDMPrecond(SIZE, 3, model_type="SongUNet", model_channels=16, channel_mult=[1, 2], attn_resolutions=[8])
        for parameter in net.parameters():  # zero-initialized layers would make every output 0
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        return net

    def measure_rows() -> Iterator[list[object]]:
        yield from compare_training(loss, make_precond)
        yield from compare_sampling(edm_sampler, make_precond)
        file = require_checkout(arguments.edm2, "--edm2", "training/phema.py") / "training/phema.py"
        spec = importlib.util.spec_from_file_location("phema", file)
        phema = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(phema)
        yield from compare_ema(phema)

    print_table(["", "largest relative difference"], measure_rows())
