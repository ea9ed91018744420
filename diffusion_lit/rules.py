"""What a configuration may hold: ranges and choices of single values, and what keys mean together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Type, range and choices of a value; `low` and `high` are allowed themselves unless `open`."""

    kind: type = float
    low: float | None = None
    high: float | None = None
    open: bool = False
    choices: tuple = ()
    optional: bool = False

    def fault(self, value: object) -> str | None:
        if value is None:
            return None if self.optional else "needs a value"
        if self.choices:
            return None if value in self.choices else f"is none of {', '.join(map(str, self.choices))}"
        wrong = type_fault(value, self.kind)
        if wrong or self.kind not in (int, float):
            return wrong
        if self.low is not None and (value <= self.low if self.open else value < self.low):
            return f"must be {'more than' if self.open else 'at least'} {self.low:g}"
        if self.high is not None and (value >= self.high if self.open else value > self.high):
            return f"must be {'less than' if self.open else 'at most'} {self.high:g}"
        return None


COUNT = Rule(int, low=1)
WHOLE = Rule(int, low=0)
POSITIVE = Rule(low=0, open=True)
PROBABILITY = Rule(low=0, high=1)
RULES: dict[str, Rule] = {
    "name": Rule(str),
    "resume": Rule(str, optional=True),
    "seed": Rule(int, low=0, high=2**63 - 1),
    "max_steps": COUNT,
    "global_batch_size": COUNT,
    "log_every": COUNT,
    "val_every": WHOLE,
    "sample_every": WHOLE,
    "checkpoint_every": COUNT,
    "keep_checkpoints": COUNT,
    "label_dropout": PROBABILITY,
    "guidance_scale": Rule(low=0, high=100, optional=True),
    "data.image_size": COUNT,
    "data.channels": Rule(choices=(1, 3, 4)),
    "data.resample": Rule(choices=("nearest", "bilinear", "bicubic", "area")),
    "data.labels": Rule(choices=("auto", "none")),
    "data.num_classes": Rule(int, low=0, optional=True),
    "data.val_fraction": Rule(low=0, high=0.9),
    "data.flip": PROBABILITY,
    "data.cache_dir": Rule(str, optional=True),
    "data.judge_images": WHOLE,
    "model.layers_per_block": COUNT,
    "model.attention_head_dim": COUNT,
    "model.norm_num_groups": COUNT,
    "model.dropout": PROBABILITY,
    "diffusion.num_train_timesteps": Rule(int, low=2),
    "diffusion.beta_schedule": Rule(choices=("linear", "scaled_linear", "cosine")),
    "diffusion.beta_start": Rule(low=0, high=1, open=True),
    "diffusion.beta_end": Rule(low=0, high=1, open=True),
    "diffusion.prediction_type": Rule(choices=("epsilon", "sample", "v_prediction")),
    "diffusion.loss": Rule(choices=("mse", "l1")),
    "weighting.gamma": POSITIVE,
    "weighting.k": POSITIVE,
    "ema.inv_gamma": POSITIVE,
    "ema.power": POSITIVE,
    "ema.max_decay": Rule(low=0, high=1),
    "sampler.steps": Rule(int, low=1, optional=True),
    "sampler.batch_size": COUNT,
    "sampler.eta": PROBABILITY,
    "sampler.timestep_spacing": Rule(choices=("trailing", "leading", "linspace")),
    "sampler.prediction_type": Rule(choices=("sample", "epsilon", "v_prediction")),
    "sampler.variance_type": Rule(choices=("fixed_small", "fixed_large")),
    "sampler.solver_order": Rule(choices=(1, 2, 3)),
    "optimizer.lr": POSITIVE,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": Rule(low=0),
    "optimizer.schedule": Rule(choices=("constant", "linear", "cosine")),
    "optimizer.warmup_steps": WHOLE,
    "optimizer.warmup_fraction": Rule(low=0, high=1, optional=True),
    "optimizer.clip": Rule(low=0, open=True, optional=True),
    "strategy.accelerator": Rule(choices=("auto", "cpu", "gpu", "cuda", "mps")),
    "strategy.devices": Rule(choices=(1,)),
    "strategy.num_nodes": Rule(choices=(1,)),
    "strategy.precision": Rule(choices=("32-true", "bf16-mixed", "16-mixed")),
    "strategy.accumulate": COUNT,
    # python -m diffusion_lit.sample
    "run": Rule(str),
    "num_images": COUNT,
    "out": Rule(str, optional=True),
    "weights": Rule(choices=("ema", "net")),
    "device": Rule(str),
}


def type_fault(value: object, kind: type) -> str | None:
    """Why `value` is not of the kind; a whole number passes for a float, nothing else passes for anything else."""
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list [a,b]"}
        return f"must be {names.get(kind, kind.__name__)}"
    if kind is float and value != value:
        return "must be a number"
    return None


def conflicts(config: dict, choices: dict[str, str], serving: dict[str, list[str]]) -> list[str]:
    """What cannot work together in a training configuration, one line each.

    Args:
        choices: the name chosen in each group.
        serving: process to the names of the samplers that serve it.
    """
    data, model, diffusion, sampler = config["data"], config["model"], config["diffusion"], config["sampler"]
    faults = []
    if diffusion["prediction_type"] == "epsilon" and diffusion["zero_terminal_snr"]:
        faults.append(
            "diffusion.prediction_type=epsilon with diffusion.zero_terminal_snr=true: the last timestep is pure noise "
            "and says nothing of x0; predict v_prediction or sample"
        )
    if diffusion["beta_start"] > diffusion["beta_end"]:
        faults.append("diffusion.beta_start is more than diffusion.beta_end")
    if sampler["steps"] is not None and sampler["steps"] > diffusion["num_train_timesteps"]:
        faults.append(
            f"sampler.steps={sampler['steps']}: the process has {diffusion['num_train_timesteps']} timesteps "
            "(diffusion.num_train_timesteps)"
        )
    faults += sampler_conflicts(choices["sampler"], sampler, serving)
    widths = model.get("block_out_channels")
    if widths:
        multiple = 2 ** (len(widths) - 1)
        if data["image_size"] % multiple:
            faults.append(
                f"data.image_size={data['image_size']}: the network halves images {len(widths) - 1} times, "
                f"so the size must be a multiple of {multiple}"
            )
        if any(width % model["norm_num_groups"] for width in widths):
            faults.append(f"model.block_out_channels={widths} are not multiples of model.norm_num_groups")
        if any(width % model["attention_head_dim"] for width in widths):
            faults.append(f"model.block_out_channels={widths} are not multiples of model.attention_head_dim")
        if any(not 0 <= level < len(widths) for level in model["attention_levels"]):
            faults.append(f"model.attention_levels={model['attention_levels']}: there are levels 0 to {len(widths) - 1}")
    accumulate = config["strategy"]["accumulate"]
    if config["global_batch_size"] % accumulate:
        faults.append(f"global_batch_size={config['global_batch_size']} is no multiple of strategy.accumulate={accumulate}")
    return faults


def sampler_conflicts(name: str, sampler: dict, serving: dict[str, list[str]], process: str = "discrete") -> list[str]:
    """A sampler that does not serve the process, and those that do."""
    if process in sampler["serves"]:
        return []
    serves = ", ".join(sampler["serves"])
    return [f"sampler={name} serves {serves} processes, and this one is {process}: use {', '.join(serving[process])}"]
