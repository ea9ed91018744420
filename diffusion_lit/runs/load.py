"""Load any trained model to generate images: of a run folder, of a published folder, or of a module in memory."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from diffusion_lit.config.groups import read_option
from diffusion_lit.diffusion.codecs import Pixels
from diffusion_lit.diffusion.conditions import ClassCondition, Condition
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.seeds import Seed
from diffusion_lit.imaging.palettes import format_palette, read_palette
from diffusion_lit.runs import build, checkpoints, posthoc_ema
from diffusion_lit.runs.run_dir import require_run_dir
from diffusion_lit.runs.sample_request import NO_GUIDE
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS, read_sampling_config
from diffusion_lit.runs.student import describe_teacher
from diffusion_lit.runs.weights import load_weights
from diffusion_lit.sampling.editing import Edit
from diffusion_lit.sampling.generate import OnStep, generate
from diffusion_lit.sampling.labels import Label
from diffusion_lit.sampling.samplers import Sampler
from diffusion_lit.system.console import progress_bar
from diffusion_lit.system.errors import ConfigError, Exit, UserError
from diffusion_lit.system.memory import free_bytes, is_out_of_memory, limit_to_free_memory

COPIES = 8  # of an image that a network and a sampler hold at least
NO_GUIDANCE = {"guidance_scale": 1.0, "guidance_interval": None, "guidance_rescale": 0.0}


class Generated(NamedTuple):
    """Generated images uint8 (N, C, H, W), network evaluations per image (guidance counts), and seconds for all."""

    images: Tensor
    nfe: float
    seconds: float


@dataclass(eq=False)
class TrainedModel:
    """A network with what sampling needs. `from_run` reads one from disk, `from_module` takes one from training.

    Args:
        net: network (x_t, t, y) -> output, on the device of `diffusion`.
        diffusion: process and prediction type the network was trained with.
        codec: conversion between images and what the network sees.
        class_names: empty for a model without classes.
        sampler: scheduler, number of steps and batch size.
        condition: what y is; None for class labels.
        guidance: any of guidance_scale, guidance_interval, guidance_rescale; {}: no guidance.
        guide: weaker model for autoguidance.
        config: configuration of the run, plain data; empty for a module in memory.
        checkpoint, facts: file of the weights, see `read_facts`; None, {} for a module in memory.
        speed: precision and compilation of the network, see `fast_sampling.speed_up`.
    """

    net: nn.Module
    diffusion: Diffusion
    codec: Pixels
    class_names: Sequence[str]
    sampler: Sampler
    condition: Condition | None = None
    guidance: dict = field(default_factory=dict)
    guide: "TrainedModel | None" = None
    config: dict = field(default_factory=dict)
    checkpoint: Path | None = None
    facts: dict = field(default_factory=dict)
    speed: dict = field(default_factory=lambda: {"precision": "32-true", "compile": False})

    def __post_init__(self):
        self.class_names = list(self.class_names)
        self.condition = self.condition or ClassCondition(len(self.class_names))
        self.guidance = NO_GUIDANCE | self.guidance

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        checkpoint: str = "last",
        weights: str = "ema",
        device: str = "auto",
        sampler: dict | None = None,
        guide: "TrainedModel | None" = None,
        ema_length: float | None = None,
        warn: Callable[[str], None] = print,
        **guidance: float | Sequence[float] | None,
    ) -> "TrainedModel":
        """Load the model of a run folder or a published folder. Arguments that are None are taken from the run.

        Args:
            run: the folder.
            checkpoint: "last", "best" or a step.
            weights: "ema", or "net" for the raw weights.
            ema_length: instead of `weights`, EMA weights of this length, see `posthoc_ema`.
            device: "auto" (a GPU if there is one), "cpu", "cuda:1", ...
            sampler: settings of a `sampler` group.
            guide: weaker model for autoguidance, of the same images and process.
            warn: called with a message if damaged checkpoints are skipped.
            guidance: see `diffusion_lit.sampling.guidance`.

        Raises:
            UserError: exit 4 if the folder is not a run or has no intact checkpoint.
        """
        config = read_sampling_config(run := require_run_dir(run), checkpoint)
        if unknown := guidance.keys() - set(GUIDANCE_KEYS):
            raise TypeError(f"from_run: unknown argument {min(unknown)}")
        config |= {key: value for key, value in {"sampler": sampler, **guidance}.items() if value is not None}
        torch_device, net = resolve_device(device), build.make_network(config)

        def read(path: Path) -> dict:
            if ema_length is None:
                return checkpoints.load_network_weights(path, weights, net)
            load_weights(net, posthoc_ema.reconstruct_ema(run, path, ema_length, warn), path)
            return checkpoints.read_facts(checkpoints.load_checkpoint(path, mmap=True))

        path, facts = checkpoints.read_selected(
            lambda: checkpoints.select_checkpoint(run, checkpoint, warn, weights), read
        )
        return cls(
            net.to(torch_device).eval(),
            build.make_diffusion(config).to(torch_device),
            build.make_codec(config),
            config["data"]["class_names"],
            build.make_configured_sampler(config),
            build.make_condition(config, net),
            {key: config[key] for key in GUIDANCE_KEYS},
            guide,
            config,
            path,
            facts,
        )

    @classmethod
    def from_module(cls, module: nn.Module, sampler: dict | None = None, **settings: Any) -> "TrainedModel":
        """Return the model of a DiffusionModule in memory with its EMA weights (`ema=none`: of `net`).

        Args:
            module: with `net`, `ema`, `diffusion`, `codec`, `class_names` and `condition`.
            sampler: settings of a `sampler` group; DDIM if None, which serves every process.
            settings: `guidance` and `guide` of the constructor.
        """
        sampler = build.make_configured_sampler({"sampler": sampler or read_option("sampler", "ddim")})
        sampler = sampler.with_steps(getattr(module, "learned_steps", None))
        parts = module.ema, module.diffusion, module.codec, module.class_names
        return cls(*parts, sampler, module.condition, **settings)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.diffusion.coefficient_table.device

    @property
    def render(self) -> str:
        """How images are drawn in grids: "none" or "skin"."""
        return self.config.get("data", {}).get("render", "none")

    @property
    def evaluations(self) -> int:
        """Number of sampler steps that evaluate the network, for each batch of images."""
        return len(self.sampler.build_scheduler(self.diffusion.process).timesteps)

    def with_sampler(self, sampler: Sampler, **guidance: object) -> "TrainedModel":
        """Return a model with the same network, another sampler and changed guidance."""
        return replace(self, sampler=sampler, guidance=self.guidance | guidance)

    def count_steps(self, num_images: int, edit: Edit | None = None) -> int:
        """Return how often `generate` calls `on_step`."""
        plan = edit.step_indices(self.evaluations) if edit else range(self.evaluations)
        return len(plan) * -(-num_images // self.sampler.batch_size)

    def generate(
        self,
        labels: Sequence[Label],
        seeds: Sequence[Seed],
        on_step: OnStep = lambda first, k, x: None,
        edit: Edit | None = None,
        decode: bool = True,
    ) -> Tensor:
        """Return images uint8 (N, C, H, W), image k of class `labels[k]` from `seeds[k]`; without `decode` x.

        A label is a class, a blend of classes or a prompt; a model without either ignores it.

        Raises:
            ValueError: for blends that the network does not take.
            UserError: exit 75 if memory is too small for `sampler.batch_size` images at a time.
        """
        y = self.condition.to_tensor(labels)
        net = build.guide_network(self.net, self.condition, **self.guidance, guide=self.guide and self.guide.net)
        training = self.net.training
        self.net.eval()
        try:
            with limit_to_free_memory() if self.device.type == "cpu" else nullcontext():
                x = generate(net, self.diffusion, self.sampler, y, seeds, self.codec.shape, on_step, edit)
                return self.codec.decode(require_finite_images(x)) if decode else require_finite_images(x)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            self.net.train(training)
        size, values = self.sampler.batch_size, math.prod(self.codec.shape)
        message = f"out of memory with {size} images at a time: add sampler.batch_size={max(1, size // 2)}"
        with suppress(OSError):
            if size == 1 or COPIES * 4 * values > free_bytes():
                message = f"out of memory: one image of {values:,} values is too large for this machine"
        raise UserError(Exit.INTERRUPTED, message)


def require_finite_images(x: Tensor) -> Tensor:
    """Return x (N, ...). Raise UserError (exit 6) if values are not finite, which would be drawn black."""
    if bad := [k for k, image in enumerate(x) if not image.isfinite().all()]:
        fault = f"{len(bad)} of {len(x)} images are not finite: the network's output is NaN or infinite"
        raise UserError(Exit.NON_FINITE, f"{fault}. Choose an earlier checkpoint, or weights that were not cast down")
    return x


def load_requested_model(config: DictConfig, warn: Callable[[str], None]) -> TrainedModel:
    """Load the run of a command as its configuration requests, with the keys of `conf/sample.yaml`."""
    config = NO_GUIDE | OmegaConf.to_container(config)
    guide, device = config["guide"], config["device"]
    if guide is not None:
        guide = TrainedModel.from_run(guide, str(config["guide_checkpoint"]), device=device, warn=warn)
    settings = {key: config[key] for key in ("weights", "ema_length", "device", "sampler", *GUIDANCE_KEYS)}
    model = TrainedModel.from_run(config["run"], str(config["checkpoint"]), guide=guide, warn=warn, **settings)
    if config.get("negative_prompt"):
        model.condition = replace(model.condition, negative=config["negative_prompt"])
    if config.get("palette"):
        palette = read_palette(config["palette"], Path(config["run"]).expanduser(), model.codec.shape[0])
        model.codec = replace(model.codec, palette=palette)
    return model


def generate_with_progress(
    model: TrainedModel,
    labels: Sequence[Label],
    seeds: Sequence[Seed],
    on_step: OnStep = lambda first, k, x: None,
    edit: Edit | None = None,
    show_progress: bool = True,
    decode: bool = True,
) -> Generated:
    """Return `model.generate` with its network evaluations and seconds, under a progress bar."""
    evaluations, size = [], model.sampler.batch_size
    with progress_bar("sampling", visible=show_progress) as bar, ExitStack() as hooks:
        task = bar.add_task("", total=model.count_steps(len(labels), edit))
        for net in [model.net, *([model.guide.net] if model.guide else [])]:
            hook = net.register_forward_pre_hook(lambda net, inputs: evaluations.append(len(inputs[0])))
            hooks.callback(hook.remove)

        def advance(first: int, k: int, x: Tensor) -> None:
            bar.advance(task)
            on_step(first, k, x)

        started = time.perf_counter()
        images = model.generate(labels, seeds, advance, edit, decode)
        seconds = time.perf_counter() - started
    return Generated(images, sum(evaluations) / (-(-len(labels) // size) * size), seconds)


def describe_sampling(model: TrainedModel, config: DictConfig) -> dict:
    """Return the settings that images are generated with; `config` is that of `load_requested_model`."""
    has_guidance, negative = model.condition.has_null or model.guide, getattr(model.condition, "negative", "")
    return {
        "checkpoint": model.checkpoint.name,
        "weights": config.weights,
        "ema_length": config.ema_length,
        "seed": config.seed,
        **{key: model.guidance[key] if has_guidance else None for key in GUIDANCE_KEYS},
        **({"negative_prompt": negative} if negative else {}),
        "guide": "/".join(model.guide.checkpoint.parts[-3:]) if model.guide else None,
        "sampler": model.config["sampler"],
        **describe_teacher(model.config),
        "batch_size": model.sampler.batch_size,
        **model.speed,
        "palette": None if model.codec.palette is None else format_palette(model.codec.palette),
        "versions": read_package_versions(),
    }


def read_package_versions() -> dict[str, str]:
    """Return the versions of the packages that generated images depend on."""
    return {name: version(name) for name in ("diffusion_lit", "torch", "diffusers")}


def resolve_device(name: str) -> torch.device:
    """Return the device of a `device` key. Raises UserError (exit 2) if this machine lacks it."""
    available = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device = available if name == "auto" else torch.device(name)
    if device.type not in ("cpu", available.type) or (device.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ConfigError(f"device={name}: not available on this machine. device=auto is {available.type}")
    return device
