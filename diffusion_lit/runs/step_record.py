"""The flight record of a run that ended because loss or gradient were not finite: its last step, to be gone through
again without the run's pictures.

flight.ckpt holds weights, images and random numbers of the step, flight.json what a person or a script looks at first.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.randomness import Draws, flip, seed_network
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.build import make_codec, make_condition
from diffusion_lit.system.files import write_text_atomically

NAME = "flight.ckpt"


# ------------------------------------------------------------------------------------------------ the record


def taken(step: int, config_text: str, net: nn.Module, batch: dict, draws: Draws, micro_batch: int) -> dict:
    """The record of optimizer step `step`, as `read` gives it; numbers of `draws` as they were drawn on the device."""
    return {
        "step": step,
        "config": config_text,
        "net": net.state_dict(),
        "micro_batch": micro_batch,  # whose dropout has a seed of its own
        "draws": dict(vars(draws)),
        **{key: batch[key] for key in ("image", "y", "index", "position")},
    }


def write(run: Path, record: dict) -> None:
    checkpoints.write(record, run / NAME)


def read(run: Path) -> dict:
    """The record of a run. Raises UserError (exit 4) if it has none, or a broken one; nothing in it is executed."""
    return checkpoints.read(run / NAME)


def write_summary(run: Path, record: dict, found: "Forward") -> None:
    """flight.json; what is not finite is written as text."""
    summary = {
        "step": record["step"],
        "position": record["position"],  # of the first image in the stream
        "seed": found.seed,
        "images": [
            {"index": index, "label": label, "timestep": t, "loss": _plain(loss), "largest_x_t": _plain(largest)}
            for index, label, t, loss, largest in zip(
                record["index"].tolist(),
                record["y"].tolist(),
                found.t.tolist(),
                found.losses.tolist(),
                found.largest.tolist(),
                strict=True,
            )
        ],
        "layers": [{key: _plain(value) for key, value in asdict(row).items()} for row in found.layers],
    }
    write_text_atomically(run / "flight.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")


def _plain(value):
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------ going through it


@dataclass(frozen=True)
class Layer:
    """What a layer of the network gave for all images: the range of its finite values, and how many are not."""

    name: str
    low: float  # +inf, and high -inf, if no value is finite
    high: float
    values: int
    not_finite: int
    fed_not_finite: int = 0  # values that it was given

    def __add__(self, other: "Layer") -> "Layer":
        return replace(
            self,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            values=self.values + other.values,
            not_finite=self.not_finite + other.not_finite,
            fed_not_finite=self.fed_not_finite + other.fed_not_finite,
        )


@dataclass(frozen=True)
class Forward:
    """A step's forward pass: `layers` in the order of computation, from x_t to the loss; of each image (N,) the
    timestep, the loss and the largest |x_t|.
    """

    seed: int
    layers: list[Layer]
    t: Tensor
    losses: Tensor
    largest: Tensor

    @property
    def first_bad(self) -> int | None:
        """Place in `layers` of the first one that is not finite."""
        return next((k for k, layer in enumerate(self.layers) if layer.not_finite), None)


@torch.no_grad()
def forward(net: nn.Module, diffusion: Diffusion, config: dict, record: dict) -> Forward:
    """The forward pass in chunks of the micro-batch, in training mode, with the dropout of the run (on a device of the
    same kind), and a look at what every leaf module gives.
    """
    layers: list[Layer] = []
    times, losses, largest = [], [], []
    net.train()
    for x0, t, eps, y in chunks(diffusion, config, record):
        x_t = diffusion.add_noise(x0, t, eps)
        seen = [_range("x_t", x_t)]
        hooks = [
            module.register_forward_hook(partial(_look, seen, name or type(net).__name__))
            for name, module in net.named_modules()
            if not any(True for _ in module.children())
        ]
        try:
            loss = diffusion.loss(net.forward, x0, t, eps, y)  # not by its call, which may be a compiled one
        finally:
            for hook in hooks:
                hook.remove()
        seen.append(_range("loss", loss))
        layers = [a + b for a, b in zip(layers, seen, strict=True)] if layers else seen
        times.append(t), losses.append(loss), largest.append(x_t.abs().flatten(1).amax(1))
    return Forward(config["seed"], layers, *[torch.cat(parts).cpu() for parts in (times, losses, largest)])


def backward(net: nn.Module, diffusion: Diffusion, config: dict, record: dict) -> float:
    """Leave the step's gradient in the parameters, as training computes it; returns its Euclidean norm."""
    net.train().requires_grad_(True).zero_grad()
    for x0, t, eps, y in chunks(diffusion, config, record):
        (diffusion.loss(net.forward, x0, t, eps, y).sum() / len(record["index"])).backward()
    return nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]).item()


def chunks(diffusion: Diffusion, config: dict, record: dict) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(x0, t, eps, y) of every micro-batch, as the training step makes them; sets the seed of its dropout."""
    device, codec, condition = diffusion.tables.device, make_codec(config), make_condition(config)
    for start in range(0, len(record["index"]), record["micro_batch"]):
        part = slice(start, start + record["micro_batch"])
        draws = Draws(**{name: values[part].to(device) for name, values in record["draws"].items()})
        seed_network(config["seed"], record["position"] + start)
        x0 = codec.encode(flip(record["image"][part].to(device), draws, config["data"]["flip"]))
        y = condition.drop(record["y"][part].to(device), draws.drop, config["label_dropout"])
        yield x0, diffusion.table.draw(draws.timestep), draws.eps, y


def _look(seen: list[Layer], name: str, module: nn.Module, inputs: tuple, output: object) -> None:
    if not torch.is_tensor(output):
        return
    fed = sum(int((~x.isfinite()).sum()) for x in inputs if torch.is_tensor(x))
    calls = sum(layer.name.partition(" #")[0] == name for layer in seen)
    seen.append(replace(_range(f"{name} #{calls + 1}" if calls else name, output), fed_not_finite=fed))


def _range(name: str, values: Tensor) -> Layer:
    finite = values[values.isfinite()].float()
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (math.inf, -math.inf)
    return Layer(name, low, high, values.numel(), values.numel() - len(finite))
