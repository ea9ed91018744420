"""The range of every key."""

import re

from diffusion_lit.config.value_types import Check, Each, Rule, shown


def checkpoint_fault(value: object) -> str | None:
    is_step = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if is_step or value in ("last", "best") else "must be last, best or a step"


def device_fault(value: object) -> str | None:
    return None if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(value)) else "must be auto, cpu, cuda, cuda:1 or mps"


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


def seeds_fault(value: object) -> str | None:
    is_pair = value is None or (not Each(RULES["seed"], length=2)(value) and value[0] != value[1])
    return None if is_pair else "must be two different seeds [3,8]"


METRICS = {name: [name] for name in ("fd", "kid", "class_accuracy")}  # and their columns in metrics.csv
METRICS |= {"precision_recall": ["precision", "recall", "density", "coverage"], "colours": ["colour_distance"]}
METRICS |= {"memorisation": ["copied_pixels", "copied_features"]}
FIGURES = ("forward", "panels", "schedule", "losses", "denoising", "samplers", "curves")  # in the order of drawing
TEXT = Rule(str)
OPTIONAL_TEXT = Rule(str, optional=True)
COUNT = Rule(int, low=1)
WHOLE = Rule(int, low=0)
POSITIVE = Rule(above=0)
PROBABILITY = Rule(low=0, high=1)
MAPPINGS = ("context",)  # keys whose value has names of its own
RULES: dict[str, Check] = {
    "name": TEXT,
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
    "best_by": Rule(choices=("val_loss", "val_error", *[name for names in METRICS.values() for name in names])),
    "label_dropout": PROBABILITY,
    "guidance_scale": Rule(low=0, high=100, optional=True),
    "guidance_interval": Each(PROBABILITY, length=2, optional=True),
    "guidance_rescale": Rule(low=0, high=1, optional=True),
    "metric": TEXT,
    "data.root": OPTIONAL_TEXT,
    "data.path": TEXT,
    "data.name": OPTIONAL_TEXT,
    "data.split": OPTIONAL_TEXT,
    "data.image_column": TEXT,
    "data.label_column": TEXT,
    "data.streaming": streaming_fault,
    "data.max_images": Rule(int, low=1, optional=True),
    "data.image_size": COUNT,
    "data.channels": Rule(choices=(1, 3, 4)),
    "data.resample": Rule(choices=("nearest", "bilinear", "bicubic", "area")),
    "data.background": Each(Rule(int, low=0, high=255), length=3),
    "data.fit": Rule(choices=("crop", "stretch")),
    "data.alpha": Rule(choices=("keep", "zero")),
    "data.random_crop": WHOLE,
    "data.labels": TEXT,
    "data.images": TEXT,
    "data.image_array": TEXT,
    "data.classes": optional_names_fault,
    "data.split_modulo": Rule(int, low=2, optional=True),
    "data.path_column": TEXT,
    "data.split_column": TEXT,
    "data.sources": Each(TEXT, shortest=1),
    "data.num_classes": Rule(int, low=0, optional=True),
    "data.val_fraction": Rule(low=0, high=0.9),
    "data.flip": PROBABILITY,
    "data.cache_dir": OPTIONAL_TEXT,
    "data.judge_images": WHOLE,
    "data.num_images": Rule(int, low=5),
    "data.render": Rule(choices=("none", "skin")),
    "model.path": TEXT,
    "model.take": Rule(choices=("weights", "architecture", "narrow")),
    "model.block_out_channels": Each(COUNT, shortest=1),
    "model.attention_levels": Each(WHOLE),
    "model.layers_per_block": COUNT,
    "model.attention_head_dim": Rule(int, low=1, optional=True),
    "model.norm_num_groups": COUNT,
    "model.dropout": PROBABILITY,
    "model.class_embed_type": Rule(choices=("table", "timestep")),
    "model.down_block_types": Each(Rule(choices=("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"))),
    "model.mid_block_type": Rule(choices=("UNetMidBlock2D",), optional=True),
    "model.up_block_types": Each(Rule(choices=("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"))),
    "model.attn_norm_num_groups": Rule(int, low=1, optional=True),
    "model.norm_eps": POSITIVE,
    "model.act_fn": Rule(choices=("silu", "gelu", "relu", "mish")),
    "model.resnet_time_scale_shift": Rule(choices=("default", "scale_shift")),
    "model.downsample_type": Rule(choices=("conv", "resnet")),
    "model.upsample_type": Rule(choices=("conv", "resnet")),
    "model.downsample_padding": Rule(choices=(0, 1)),
    "model.mid_block_scale_factor": POSITIVE,
    "model.time_embedding_type": Rule(choices=("positional", "learned")),
    "model.time_embedding_dim": Rule(int, low=1, optional=True),
    "model.freq_shift": Rule(choices=(0, 1)),
    "model.features": COUNT,
    "model.norm": Rule(choices=("group", "batch")),
    "model.widths": Each(COUNT),
    "model.downsample": Rule(choices=("conv", "pixels")),
    "model.attention": Rule(choices=("linear", "softmax", "cosine")),
    "model.bottleneck_attention": Rule(choices=("linear", "softmax", "cosine")),
    "model.attention_norm": Rule(choices=("layer", "rms")),
    "model.patch_size": COUNT,
    "model.width": COUNT,
    "model.depth": COUNT,
    "model.heads": COUNT,
    "model.mlp_ratio": POSITIVE,
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
    "optimizer._target_": Rule(choices=("torch.optim.Adam", "torch.optim.AdamW")),
    "optimizer.lr": POSITIVE,
    "optimizer.betas": Each(Rule(low=0, below=1), length=2),
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": Rule(low=0),
    "optimizer.schedule": Rule(choices=("constant", "linear", "cosine", "cosine_restarts", "polynomial", "staircase")),
    "optimizer.cycles": COUNT,
    "optimizer.power": POSITIVE,
    "optimizer.warmup_steps": WHOLE,
    "optimizer.warmup_fraction": Rule(low=0, high=1, optional=True),
    "optimizer.clip": Rule(above=0, optional=True),
    "strategy.accelerator": Rule(choices=("auto", "cpu", "gpu", "cuda", "mps")),
    "strategy.name": Rule(choices=("single", "dp", "ddp")),
    "strategy.devices": devices_fault,
    "strategy.num_nodes": COUNT,
    "strategy.precision": Rule(choices=("32-true", "bf16-mixed", "16-mixed")),
    "strategy.accumulate": COUNT,
    "logger.project": TEXT,
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
    "metrics": Each(Rule(choices=tuple(METRICS)), shortest=1),  # from here on python -m diffusion_lit.evaluate
    "pictures": OPTIONAL_TEXT,
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
    if key.endswith(("._target_", ".process")) and value != default:
        return f"{key}={shown(value)}: belongs to the choice of {key.partition('.')[0]}, choose another"
    fault = (RULES.get(key) or _rule_like(default))(value)
    return f"{key}={shown(value)}: {fault}" if fault else None


def _rule_like(default: object) -> Check:
    """The type of the default; null tells nothing of a type."""
    if isinstance(default, list):
        return Each(_rule_like(default[0])) if default else Each()
    return Rule(type(default)) if default is not None else lambda value: None
