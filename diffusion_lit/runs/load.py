"""A trained run, ready to make images: what the commands and the notebooks start from."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion_lit.diffusion.seeds import Seed
from diffusion_lit.imaging.grids import to_uint8
from diffusion_lit.runs import checkpoints, posthoc_ema
from diffusion_lit.runs.build import guided, make_diffusion, make_network, make_sampler_of
from diffusion_lit.runs.run_dir import require_run
from diffusion_lit.runs.settings import GUIDANCE
from diffusion_lit.runs.stored_config import read_sampling
from diffusion_lit.sampling.editing import Edit
from diffusion_lit.sampling.generate import OnStep, generate
from diffusion_lit.sampling.labels import Label
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.memory import is_out_of_memory


class Trained:
    """The network of a run folder with everything that sampling needs; asks for nothing the run knows.

    Args:
        run: the run folder.
        checkpoint: "last", "best" or a step.
        weights: "ema", or "net" for the raw weights.
        ema_length: in place of `weights` the average of that length, a share of the training; see `ema_lengths`.
        device: "auto" (a GPU if there is one), "cpu", "cuda:1", ...
        sampler: a `sampler` group to use instead of the run's, or of its sampling.yaml.
        guidance_scale: instead of the run's, as are
        guidance_interval: of the share of noise, and
        guidance_rescale: up to 1.
        guide: a worse network of the same pictures, noise and prediction type, to be led away from.
        warn: is told of broken checkpoints that were passed over, and of an average that is not quite of its length.
    Raises:
        UserError: exit 4 for a folder that is no run, or without a checkpoint that can be used.
    """

    def __init__(
        self,
        run: str | Path,
        checkpoint: str = "last",
        weights: str = "ema",
        device: str = "auto",
        sampler: dict | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float | None = None,
        guide: "Trained | None" = None,
        ema_length: float | None = None,
        warn: Callable[[str], None] = print,
    ):
        run = require_run(run)
        self.config = read_sampling(run)
        self.config["sampler"] = sampler or self.config["sampler"]
        asked = guidance_scale, guidance_interval, guidance_rescale
        self.config |= {key: value for key, value in zip(GUIDANCE, asked, strict=True) if value is not None}
        data = self.config["data"]
        self.class_names: list[str] = data["class_names"]
        self.shape = (data["channels"], data["image_size"], data["image_size"])
        self.checkpoint = checkpoints.choose(run, checkpoint, warn)
        self.device = device_of(device)
        net = make_network(self.config)
        if ema_length is None:
            checkpoints.load_network(self.checkpoint, weights, net)
        else:
            net.load_state_dict(posthoc_ema.weights_of(run, self.checkpoint, ema_length, warn))
        self.net = net.to(self.device).eval()
        self.diffusion = make_diffusion(self.config).to(self.device)
        self.guide = guide
        self.sampler: Sampler = make_sampler_of(self.config)

    def generate(
        self,
        labels: Sequence[Label],
        seeds: Sequence[Seed],
        on_step: OnStep = lambda first, k, x: None,
        edit: Edit | None = None,
    ) -> Tensor:
        """Images uint8 (N, C, H, W), image k of class `labels[k]` from `seeds[k]` and, in an edit, its picture;
        labels count for nothing in a run without classes. In place of classes a network with `takes_blends` takes
        blends of them, see `blend_of`.

        Raises:
            ValueError: for blends that the network does not take.
            UserError: exit 75 if memory is too small for `sampler.batch_size` images at a time.
        """
        y, num_classes = torch.as_tensor(labels), len(self.class_names)
        if y.is_floating_point() or y.ndim > 1:
            if not getattr(self.net, "takes_blends", False):
                raise ValueError(f"{type(self.net).__name__} takes one class at a time, not blends of them")
            if not y.is_floating_point() or y.shape[1:] != (num_classes,):
                raise ValueError(f"a blend has a share, a float, for each of the {num_classes} classes")
        net = guided(self.net, self.config, self.guide and self.guide.net)
        try:
            return to_uint8(generate(net, self.diffusion, self.sampler, labels, seeds, self.shape, on_step, edit))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        size = self.sampler.batch_size
        told = f"out of memory with {size} images at a time: add sampler.batch_size={max(1, size // 2)}"
        raise UserError(Exit.INTERRUPTED, told)


def as_asked(config: DictConfig, warn: Callable[[str], None]) -> Trained:
    """The run that a command names, with what the keys of `conf/sample.yaml` ask of it."""
    config = OmegaConf.to_container(config)
    guide, device = config["guide"], config["device"]
    if guide is not None:
        guide = Trained(guide, str(config["guide_checkpoint"]), device=device, warn=warn)
    keys = ("weights", "ema_length", "device", "sampler", *GUIDANCE)
    asked = {key: config[key] for key in keys}
    return Trained(config["run"], str(config["checkpoint"]), guide=guide, warn=warn, **asked)


def counted(
    model: Trained, labels: Sequence[Label], seeds: Sequence[Seed], on_step: OnStep
) -> tuple[Tensor, float, float]:
    """`model.generate`; network evaluations for each image (guidance counts as the second that it is), and seconds."""
    evaluations, size = [], model.sampler.batch_size
    nets = [model.net, *([model.guide.net] if model.guide else [])]
    hooks = [net.register_forward_pre_hook(lambda net, inputs: evaluations.append(len(inputs[0]))) for net in nets]
    started = time.perf_counter()
    images = model.generate(labels, seeds, on_step)
    for hook in hooks:
        hook.remove()
    return images, sum(evaluations) / (-(-len(labels) // size) * size), time.perf_counter() - started


def settings_of(model: Trained, config: DictConfig) -> dict:
    """What images are made with, for a manifest or a result; of the same configuration as `as_asked`."""
    guided_by = model.class_names or model.guide
    return {
        "checkpoint": model.checkpoint.name,
        "weights": config.weights,
        "ema_length": config.ema_length,
        "seed": config.seed,
        **{key: model.config.get(key) if guided_by else None for key in GUIDANCE},
        "guide": str(model.guide.checkpoint) if model.guide else None,
        "sampler": model.config["sampler"],
        "versions": {name: version(name) for name in ("diffusion_lit", "torch", "diffusers")},
    }


def device_of(name: str) -> torch.device:
    """The device that a `device` key names. Raises UserError (exit 2) if it is not here."""
    here = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name == "auto":
        return here
    wanted = torch.device(name)
    if wanted.type not in ("cpu", here.type) or (wanted.index or 0) >= max(1, torch.accelerator.device_count()):
        raise UserError(Exit.CONFIG, f"device={name}: there is no such device here; device=auto takes {here.type}")
    return wanted
