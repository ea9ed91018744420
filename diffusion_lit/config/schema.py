"""The range of every key."""

import re

from diffusion_lit.config.value_types import Check, Each, Rule, format_value


def checkpoint_fault(value: object) -> str | None:
    is_step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if is_step or value in ("last", "best") else "must be last, best or a step"


def device_fault(value: object) -> str | None:
    return None if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(value)) else "must be auto, cpu, cuda, cuda:1 or mps"


def image_size_fault(value: object) -> str | None:
    is_size = COUNT(value) is None or Each(COUNT, length=2)(value) is None
    return None if is_size else "must be a number of pixels, or [height,width]"


def devices_fault(value: object) -> str | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if is_count or value == "auto" else "must be auto or a number of devices"


def streaming_fault(value: object) -> str | None:
    return None if isinstance(value, bool) or value == "every_epoch" else "must be true, false or every_epoch"


def optional_names_fault(value: object) -> str | None:
    is_list = value is None or (not Each(Rule(str), shortest=1)(value) and len(set(value)) == len(value))
    return None if is_list else "must be a list of different class names [a,b]"


def classes_fault(value: object) -> str | None:
    words = value if isinstance(value, list) else [value]
    if value is None or (words and all(isinstance(word, int | str) and not isinstance(word, bool) for word in words)):
        return None
    return "must be a list of class names or numbers, [3,8]"


def context_fault(value: object) -> str | None:
    if value is None:
        return None
    blends = value if isinstance(value, list) else [value]
    if not blends or not all(isinstance(blend, dict) and blend for blend in blends):
        return "must be shares of classes, {a: 0.5, b: 0.5}, or a list of such"
    shares = [share for blend in blends for share in blend.items()]
    return next((f"the share of {word} {fault}" for word, share in shares if (fault := Rule()(share))), None)


def limit_fault(value: object) -> str | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_share = isinstance(value, float) and 0 < value <= 1
    return None if value is None or is_count or is_share else "must be a number of batches or a share such as 0.1"


def duration_fault(value: object) -> str | None:
    is_time = value is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(value))
    return None if is_time else "must be DD:HH:MM:SS, 00:12:00:00 for half a day"


def flag_or(rule: Rule) -> Check:
    """Return a rule that lets true and false pass, besides the values of another rule."""
    return lambda value: None if isinstance(value, bool) or not rule(value) else f"{rule(value)}, or true or false"


def leafs_fault(value: object) -> str | None:
    leafs = value if isinstance(value, list) else [None]
    are_leafs = all(isinstance(leaf, dict) and isinstance(leaf.get("_target_"), str) for leaf in leafs)
    return None if are_leafs else "must be a list of classes with their arguments [{_target_: package.Class, ...}]"


def seeds_fault(value: object) -> str | None:
    is_pair = value is None or (not Each(RULES["seed"], length=2)(value) and value[0] != value[1])
    return None if is_pair else "must be two different seeds [3,8]"


METRIC_COLUMNS = {name: [name] for name in ("fd", "kid", "class_accuracy")}  # and their columns in metrics.csv
METRIC_COLUMNS |= {"precision_recall": ["precision", "recall", "density", "coverage"], "colors": ["color_distance"]}
METRIC_COLUMNS |= {"memorization": ["copied_pixels", "copied_features"]}
FIGURES = ("forward", "panels", "schedule", "losses", "denoising", "samplers", "curves")  # in the order of drawing
TEXT = Rule(str)
OPTIONAL_TEXT = Rule(str, optional=True)
COUNT = Rule(int, low=1)
WHOLE = Rule(int, low=0)
POSITIVE = Rule(above=0)
PROBABILITY = Rule(low=0, high=1)
MAPPINGS = ("context",)  # keys whose value is a mapping with names of its own
OPEN = ("optimizer", "trainer", "callbacks", "logger", "data.dataset")  # nodes that take more keys than their yaml has
FIXED = ("._target_", ".process", "lr_schedule.name")  # endings of keys that the choice of a group decides
RULES: dict[str, Check] = {
    "seed": Rule(int, low=0, high=2**63 - 1),
    "resume": OPTIONAL_TEXT,
    "init_from": OPTIONAL_TEXT,
    "accept": Each(Rule(choices=("config", "data", "weights"))),
    "max_steps": COUNT,
    "max_epochs": Rule(above=0, optional=True),
    "global_batch_size": COUNT,
    "log_every": COUNT,
    "val_every": WHOLE,
    "sample_every": WHOLE,
    "checkpoint_every": COUNT,
    "keep_checkpoints": COUNT,
    "ema_snapshot_every": WHOLE,
    "max_skipped_steps": WHOLE,
    "metrics_every": WHOLE,
    "metrics_images": Rule(int, low=20),
    "metrics_steps": COUNT,
    "best_by": Rule(choices=("val/loss", "val/error", *[name for names in METRIC_COLUMNS.values() for name in names])),
    "label_dropout": PROBABILITY,
    "guidance_scale": Rule(low=0, high=100, optional=True),
    "guidance_interval": Each(PROBABILITY, length=2, optional=True),
    "guidance_rescale": Rule(low=0, high=1, optional=True),
    "data.root": OPTIONAL_TEXT,
    "data.name": OPTIONAL_TEXT,
    "data.split": OPTIONAL_TEXT,
    "data.streaming": streaming_fault,
    "data.max_images": Rule(int, low=1, optional=True),
    "data.image_size": image_size_fault,
    "model.image_size": image_size_fault,
    "data.channels": Rule(choices=(1, 3, 4)),
    "data.resample": Rule(choices=("nearest", "bilinear", "bicubic", "area")),
    "data.background": Each(Rule(int, low=0, high=255), length=3),
    "data.fit": Rule(choices=("crop", "stretch")),
    "data.alpha": Rule(choices=("keep", "zero")),
    "data.random_crop": WHOLE,
    "data.classes": optional_names_fault,
    "data.split_modulo": Rule(int, low=2, optional=True),
    "data.sources": Each(TEXT, shortest=1),
    "data.num_classes": Rule(int, low=0, optional=True),
    "data.val_fraction": Rule(low=0, high=0.9),
    "data.flip": PROBABILITY,
    "data.transforms": leafs_fault,
    "data.cache_dir": OPTIONAL_TEXT,
    "data.judge_images": WHOLE,
    "data.num_images": Rule(int, low=5),
    "data.render": Rule(choices=("none", "skin")),
    "diffusion.num_train_timesteps": Rule(int, low=2),
    "diffusion.beta_schedule": Rule(
        choices=("linear", "scaled_linear", "cosine", "cosine_clipped", "linear_one_based")
    ),
    "diffusion.beta_start": Rule(above=0, below=1),
    "diffusion.beta_end": Rule(above=0, below=1),
    "diffusion.prediction_type": Rule(choices=("epsilon", "sample", "v_prediction", "velocity", "edm")),
    "diffusion.timestep_sampling": Rule(choices=("uniform", "stratified", "logit_normal", "stratified_logit_normal")),
    "diffusion.sampling_std": POSITIVE,
    "diffusion.sigma_min": POSITIVE,
    "diffusion.sigma_max": POSITIVE,
    "diffusion.sigma_data": POSITIVE,
    "diffusion.loss": Rule(choices=("mse", "l1")),
    "weighting.gamma": POSITIVE,
    "weighting.k": POSITIVE,
    "ema.inv_gamma": POSITIVE,
    "ema.power": POSITIVE,
    "ema.max_decay": PROBABILITY,
    "ema.decay": PROBABILITY,
    "ema.update_every": COUNT,
    "sampler.steps": Rule(int, low=1, optional=True),
    "sampler.batch_size": COUNT,
    "sampler.eta": PROBABILITY,
    "sampler.timestep_spacing": Rule(choices=("trailing", "leading", "linspace")),
    "sampler.prediction_type": Rule(choices=("epsilon", "sample", "v_prediction")),
    "sampler.variance_type": Rule(choices=("fixed_small", "fixed_large")),
    "sampler.solver_order": Rule(choices=(1, 2, 3)),
    "sampler.algorithm_type": Rule(choices=("dpmsolver++", "sde-dpmsolver++")),
    "sampler.shift": POSITIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.betas": Each(Rule(low=0, below=1), length=2),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": Rule(low=0),
    "lr_schedule.cycles": COUNT,
    "lr_schedule.power": POSITIVE,
    "lr_schedule.warmup_steps": WHOLE,
    "lr_schedule.warmup_fraction": Rule(low=0, high=1, optional=True),
    "trainer.fast_dev_run": flag_or(Rule(int, low=1)),
    "trainer.limit_train_batches": limit_fault,
    "trainer.limit_val_batches": limit_fault,
    "trainer.max_time": duration_fault,
    "trainer.gradient_clip_val": Rule(above=0, optional=True),
    "trainer.gradient_clip_algorithm": Rule(choices=("norm", "value")),
    "trainer.deterministic": flag_or(Rule(choices=("warn",), optional=True)),
    "trainer.benchmark": Rule(bool, optional=True),
    "trainer.profiler": Rule(choices=("simple", "advanced", "pytorch", "xla"), optional=True),
    "strategy.accelerator": Rule(choices=("auto", "cpu", "gpu", "cuda", "mps")),
    "strategy.name": Rule(choices=("single", "dp", "ddp")),
    "strategy.devices": devices_fault,
    "strategy.num_nodes": COUNT,
    "strategy.precision": Rule(choices=("32-true", "bf16-mixed", "16-mixed")),
    "strategy.accumulate": COUNT,
    "logger.entity": OPTIONAL_TEXT,
    "logger.mode": Rule(choices=("auto", "online", "offline", "disabled")),
    "logger.connect_seconds": POSITIVE,
    "logger.init_seconds": POSITIVE,
    "logger.finish_seconds": POSITIVE,
    # python -m diffusion_lit.sample
    "run": OPTIONAL_TEXT,
    "checkpoint": checkpoint_fault,
    "weights": Rule(choices=("ema", "net")),
    "ema_length": Rule(above=0, high=0.28, optional=True),
    "guide": OPTIONAL_TEXT,
    "guide_checkpoint": checkpoint_fault,
    "num_images": COUNT,
    "classes": classes_fault,
    "context": context_fault,
    "images_per_class": Rule(int, low=1, optional=True),
    "seeds": seeds_fault,
    "init": OPTIONAL_TEXT,
    "strength": Rule(above=0, high=1, optional=True),
    "mask": OPTIONAL_TEXT,
    "resample": COUNT,
    "out": OPTIONAL_TEXT,
    "shards": Rule(int, low=1, optional=True),
    "device": device_fault,
    "metrics": Each(Rule(choices=tuple(METRIC_COLUMNS)), shortest=1),  # from here on python -m diffusion_lit.evaluate
    "reference_data": OPTIONAL_TEXT,
    "features": Rule(choices=("classifier", "pixels", "inception"), optional=True),
    "reference": Rule(choices=("train", "val")),
    "reference_images": Rule(int, low=20, optional=True),
    # python -m diffusion_lit.audit
    "near": Rule(low=0, high=255),
    "largest": COUNT,
    # python -m diffusion_lit.app
    "port": Rule(int, low=0, high=65535),
    # python -m diffusion_lit.report
    "runs": Each(TEXT, shortest=1, optional=True),
    "sweep": OPTIONAL_TEXT,
    "by": OPTIONAL_TEXT,
    "grids": COUNT,
    # python -m diffusion_lit.visualize, where keys of sample have not its meaning
    "what": Each(Rule(choices=FIGURES), shortest=1, optional=True),
    "columns": Rule(int, low=2),
    "samplers": Each(TEXT, shortest=1),
}


def value_fault(key: str, value: object, default: object) -> str | None:
    """Why a key cannot have this value, by its rule or else by the type of its default; None if it can."""
    if key.endswith(FIXED) and value != default and not is_open(key):
        return f"{key}={format_value(value)}: belongs to the choice of {key.partition('.')[0]}, choose another"
    if value is None and key.startswith("model."):
        return None  # the class decides
    fault = (RULES.get(key) or _rule_like(default))(value)
    return f"{key}={format_value(value)}: {fault}" if fault else None


def is_open(key: str) -> bool:
    """Return whether a key belongs to a node that takes any key: the arguments of a class that the user chooses."""
    return any(f"{key}.".startswith(f"{node}.") for node in OPEN)


def _rule_like(default: object) -> Check:
    """The type of the default; null tells nothing of a type."""
    if isinstance(default, list):
        return Each(_rule_like(default[0])) if default else Each()
    return Rule(type(default)) if default is not None else lambda value: None
