"""Record of the optimizer step at which a run ended with a non-finite loss, gradient or weight (exit code 6).

non_finite_step.ckpt holds weights, images and random numbers of the step, so that
`replay` can compute it again without the training data. non_finite_step.json
summarizes the losses of the images and the ranges of the layers.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.randomness import RandomNumbers, flip_images, seed_network
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.build import make_codec, make_condition
from diffusion_lit.system.files import write_text_atomically

RECORD_FILE = "non_finite_step.ckpt"


class LayerRange(NamedTuple):
    """Range of the finite outputs of a layer over all images, and the number of values that are not finite."""

    name: str
    low: float  # +inf, and high -inf, if no value is finite
    high: float
    values: int
    non_finite: int
    non_finite_inputs: int = 0

    def merge(self, other: "LayerRange") -> "LayerRange":
        """Return the range over the images of both."""
        counts = [a + b for a, b in zip(self[3:], other[3:], strict=True)]
        return LayerRange(self.name, min(self.low, other.low), max(self.high, other.high), *counts)


class ForwardTrace(NamedTuple):
    """Forward pass of a step over N images."""

    seed: int
    layers: list[LayerRange]  # in order of computation, from x_t to the loss
    t: Tensor  # timesteps (N,)
    losses: Tensor  # (N,)
    largest: Tensor  # largest |x_t| (N,)

    @property
    def first_bad(self) -> int | None:
        """Index in `layers` of the first one that is not finite."""
        return next((k for k, layer in enumerate(self.layers) if layer.non_finite), None)


# ------------------------------------------------------------------------------------------ files


def make_step_record(
    step: int, config_text: str, net: nn.Module, batch: dict, draws: RandomNumbers, micro_batch: int
) -> dict:
    """Return the record of optimizer step `step`.

    Args:
        step: number of the step.
        config_text: configuration of the run as YAML.
        net: the network before the step, which was skipped; after it if weights
            became non-finite.
        batch: the global batch of the step.
        draws: random numbers of the batch, as they were drawn on the device of the
            run.
        micro_batch: images per forward pass; each pass has its own dropout seed.
    """
    record = {"step": step, "config": config_text, "net": net.state_dict(), "micro_batch": micro_batch}
    keys = [key for key in ("image", "y", "caption", "index", "position") if key in batch]
    return record | {"draws": dict(vars(draws))} | {key: batch[key] for key in keys}


def load_step_record(run: Path) -> dict:
    """Return the record of a run.

    Raises:
        UserError: exit 4 if it is missing or damaged.
    """
    return checkpoints.load_checkpoint(run / RECORD_FILE)


def write_step_summary(run: Path, record: dict, trace: ForwardTrace) -> None:
    """Write non_finite_step.json, with numbers that are not finite as text."""
    columns = {"index": record["index"], "label": record["y"], "timestep": trace.t, "loss": trace.losses}
    columns["largest_x_t"] = trace.largest
    images = zip(*[values.tolist() for values in columns.values()], strict=True)
    rows = [dict(zip(columns, image, strict=True)) for image in images]
    summary = {
        "step": record["step"],
        "position": record["position"],  # of the first image in the stream
        "seed": trace.seed,
        "images": [_with_finite_numbers(row) for row in rows],
        "layers": [_with_finite_numbers(layer._asdict()) for layer in trace.layers],
    }
    write_text_atomically(run / "non_finite_step.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")


def _with_finite_numbers(row: dict) -> dict:
    """Return a row with NaN and infinity as text, which JSON does not have."""
    return {key: str(x) if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.items()}


# ------------------------------------------------------------------------------------------ computing the step again


@torch.no_grad()
def trace_forward(net: nn.Module, diffusion: Diffusion, config: dict, record: dict) -> ForwardTrace:
    """Compute the forward pass in training mode and record the range of what every leaf module returns.

    Micro-batches and dropout are those of the run, on a device of the same kind.
    """
    layers: list[LayerRange] = []
    parts = []
    net.train()
    leaves = [(name or type(net).__name__, module) for name, module in net.named_modules() if not [*module.children()]]
    for x0, t, eps, y in iterate_micro_batches(diffusion, config, record):
        x_t = diffusion.add_noise(x0, t, eps)
        ranges = [_range_of("x_t", x_t)]
        hooks = [module.register_forward_hook(partial(_append_range, ranges, name)) for name, module in leaves]
        try:
            loss = diffusion.loss(net.forward, x0, t, eps, y)  # not net(...), whose call may be compiled
        finally:
            for hook in hooks:
                hook.remove()
        ranges.append(_range_of("loss", loss))
        layers = [a.merge(b) for a, b in zip(layers, ranges, strict=True)] if layers else ranges
        parts.append((t, loss, x_t.abs().flatten(1).amax(1)))
    return ForwardTrace(config["seed"], layers, *[torch.cat(part).cpu() for part in zip(*parts, strict=True)])


def compute_gradient(net: nn.Module, diffusion: Diffusion, config: dict, record: dict) -> float:
    """Leave the gradient of the step in the parameters, as training computes it, and return its Euclidean norm."""
    net.train().requires_grad_(True).zero_grad()
    for x0, t, eps, y in iterate_micro_batches(diffusion, config, record):
        (diffusion.loss(net.forward, x0, t, eps, y).sum() / len(record["index"])).backward()
    return nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]).item()


def iterate_micro_batches(diffusion: Diffusion, config: dict, record: dict) -> Iterator[tuple[Tensor, ...]]:
    """Yield (x0, t, eps, y) of every micro-batch as the training step makes them, after seeding its dropout."""
    device, codec, condition = diffusion.coefficient_table.device, make_codec(config), make_condition(config)
    captions = record.get("caption", [])
    for start in range(0, len(record["index"]), record["micro_batch"]):
        part = slice(start, start + record["micro_batch"])
        draws = RandomNumbers(**{name: values[part].to(device) for name, values in record["draws"].items()})
        seed_network(config["seed"], record["position"] + start)
        x0 = codec.encode(flip_images(record["image"][part].to(device), draws, config["data"]["flip"]))
        y = condition.read_batch({"image": x0, "y": record["y"][part].to(device), "caption": captions[part]})
        y = condition.drop(y, draws.u_drop, config["label_dropout"])
        yield x0, diffusion.process.sample_times(draws.u_timestep), draws.eps, y


def _append_range(ranges: list[LayerRange], name: str, module: nn.Module, inputs: tuple, output: object) -> None:
    if not torch.is_tensor(output):
        return
    non_finite = sum(int((~x.isfinite()).sum()) for x in inputs if torch.is_tensor(x))
    calls = sum(layer.name.partition(" #")[0] == name for layer in ranges)
    layer = _range_of(f"{name} #{calls + 1}" if calls else name, output)
    ranges.append(layer._replace(non_finite_inputs=non_finite))


def _range_of(name: str, values: Tensor) -> LayerRange:
    finite = values[values.isfinite()].float()
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (math.inf, -math.inf)
    return LayerRange(name, low, high, values.numel(), values.numel() - len(finite))
