"""Flags of other training scripts, answered with the overrides of this project; docs/coming_from.md explains each."""

import re
from collections.abc import Callable, Sequence

from diffusion_lit.config.overrides import did_you_mean, format_command, format_override

OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z][\w./@]*=")
PLAIN = re.compile(r"[\w.,/+\[\]-]+", re.ASCII)
Values = dict[str, str]  # all flags and their values
Translate = str | Callable[[str, Values], str]  # overrides with {} for the value, or a function of value and flags


def _betas(value: str, flags: Values) -> str:
    return f"optimizer.betas=[{flags.get('adam_beta1') or 0.9},{flags.get('adam_beta2') or 0.999}]"


def _channels(value: str, flags: Values) -> str:
    default = "1,2,2,2" if "num_channels" in flags else "1,2,4,8"
    factors = flags.get("dim_mults") or flags.get("channel_mult") or default
    width = int(flags.get("dim") or flags.get("num_channels") or 64)
    channels = [width * int(factor) for factor in factors.strip("()[]").split(",")]
    return f"model=unet model.block_out_channels=[{','.join(map(str, channels))}]"


def _duration(value: str, flags: Values) -> str:  # EDM counts millions of images
    return f"max_steps={round(float(value) * 1e6 / int(flags.get('batch') or 512))}"


def _half_life(value: str, flags: Values) -> str:
    return f"ema=constant ema.decay={0.5 ** (int(flags.get('batch') or 512) / (float(value) * 1e6)):.6g}"


def _seeds(value: str, flags: Values) -> str:  # EDM: first-last, of an image each
    first, last = map(int, value.split("-"))
    return f"seed={first} num_images={last - first + 1}"


OVERRIDES = {  # with {} for the value -> flags
    "data=image_folder data.root={}": "train_data_dir data_dir data_path instance_data_dir folder data",
    "data=huggingface data.path={}": "dataset_name",
    "data=huggingface data.name={}": "dataset_config_name",
    "model=pretrained model.path={} model.take=architecture": "model_config_name_or_path",
    "run_dir={}": "output_dir outdir results_folder results_dir",
    "name={}": "desc",
    "data.cache_dir={}": "cache_dir",
    "data.image_size={}": "resolution image_size img_size",
    "data.channels={}": "channels",
    "global_batch_size={}": "train_batch_size batch_size batch",
    "sampler.batch_size={}": "eval_batch_size",
    "max_epochs={}": "num_epochs num_train_epochs epochs",
    "max_steps={}": "train_num_steps max_train_steps lr_anneal_steps",
    "sample_every={0} checkpoint_every={0}": "save_and_sample_every",
    "checkpoint_every={}": "checkpointing_steps save_interval ckpt_every",
    "keep_checkpoints={}": "checkpoints_total_limit",
    "strategy.accumulate={}": "gradient_accumulation_steps gradient_accumulate_every",
    "optimizer.lr={}": "learning_rate train_lr lr",
    "lr_schedule={}": "lr_scheduler",
    "lr_schedule.warmup_steps={}": "lr_warmup_steps",
    "optimizer.weight_decay={}": "adam_weight_decay weight_decay",
    "optimizer.eps={}": "adam_epsilon",
    "trainer.gradient_clip_val={}": "max_grad_norm",
    "ema.inv_gamma={}": "ema_inv_gamma",
    "ema.power={}": "ema_power",
    "ema.max_decay={}": "ema_max_decay",
    "ema=constant ema.decay={}": "ema_decay ema_rate",
    "ema=constant ema.update_every={}": "ema_update_every",
    "logger={}": "logger report_to",
    "strategy.precision={}": "mixed_precision mixed_precision_type",
    "diffusion.prediction_type={}": "prediction_type objective",
    "diffusion.num_train_timesteps={}": "ddpm_num_steps timesteps diffusion_steps",
    "sampler.steps={}": "ddpm_num_inference_steps",
    "sampler=ddim sampler.steps={}": "sampling_timesteps",
    "sampler=ddim sampler.eta={}": "ddim_sampling_eta",
    "diffusion.beta_schedule={}": "ddpm_beta_schedule beta_schedule noise_schedule",
    "weighting=min_snr weighting.gamma={}": "min_snr_gamma snr_gamma",
    "label_dropout={}": "cond_drop_prob",
    "model=unet model.attention_head_dim={}": "attn_dim_head",
    "model=unet model.dropout={}": "dropout",
    "model=unet": "arch",
    "diffusion=edm diffusion.sigma_data={}": "sigma_data",
    "diffusion={}": "precond",
    "init_from={}": "transfer",
    "resume={}": "resume_from_checkpoint",
    "log_every={}": "log_interval",
    "seed={}": "global_seed",
    "strategy=ddp strategy.devices={}": "gpus devices",
    "model=unet model.layers_per_block={}": "num_res_blocks",
}
VALUES = {  # key -> values of others and what they are here
    "strategy.precision": dict.fromkeys(("no", "none", "fp32"), "32-true") | {"fp16": "16-mixed", "bf16": "bf16-mixed"},
    "diffusion.prediction_type": {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"},
    "diffusion.beta_schedule": {"squaredcos_cap_v2": "cosine", "sigmoid": "cosine"},
    "diffusion": {"vp": "ddpm", "ve": "ddpm"},
    "lr_schedule": {"constant_with_warmup": "constant", "cosine_with_restarts": "cosine_restarts"},
    "resume": {"latest": "auto"},
}
FLAGS: dict[str, Translate] = {name: text for text, names in OVERRIDES.items() for name in names.split()}
FLAGS |= {
    "duration": _duration,
    "ema": _half_life,
    "adam_beta1": _betas,
    "adam_beta2": _betas,
    "adam_betas": lambda value, flags: f"optimizer.betas=[{value.strip('()[]')}]",
    "dim": _channels,
    "dim_mults": _channels,
    "num_channels": _channels,
    "channel_mult": _channels,
}
SAMPLE_OVERRIDES = {  # of scripts that sample
    "run={}": "ckpt network model_path pretrained_model_name_or_path",
    "out={}": "outdir output_dir",
    "sampler.steps={}": "steps num_steps num_inference_steps num_sampling_steps",
    "sampler.batch_size={}": "batch batch_size",
    "sampler=ddim sampler.eta={}": "eta",
    "num_images={}": "num_samples n_samples",
    "classes=[{}]": "class class_labels",
    "guidance_scale={}": "cfg_scale cond_scale",
}
SAMPLE_FLAGS: dict[str, Translate] = {name: text for text, names in SAMPLE_OVERRIDES.items() for name in names.split()}
SAMPLE_FLAGS |= {"seeds": _seeds}
SWITCHES = {  # overrides of a flag without a value or with true, and with false
    "center_crop": ("data.fit=crop", ""),
    **dict.fromkeys(("random_flip", "augment_horizontal_flip", "xflip"), ("data.flip=0.5", "data.flip=0")),
    **dict.fromkeys(("cond", "class_cond"), ("", "data.labels=none")),
    "use_ema": ("ema=power", "ema=none"),
    **dict.fromkeys(("amp", "fp16", "use_fp16"), ("strategy.precision=16-mixed", "strategy.precision=32-true")),
    "bench": ("trainer.benchmark=true", "trainer.benchmark=false"),
    "min_snr_loss_weight": ("weighting=min_snr", "weighting=snr"),
    "dry_run": ("plan=true", ""),
}
# flags that have no counterpart, or none that a value alone decides; docs/coming_from.md says why
WITHOUT_COUNTERPART = {
    "overwrite_output_dir", "preserve_input_precision", "dataloader_num_workers", "num_workers", "workers",
    "save_images_epochs", "save_model_epochs", "push_to_hub", "hub_token", "hub_model_id", "hub_private_repo",
    "logging_dir", "local_rank", "enable_xformers_memory_efficient_attention", "full_attn", "flash_attn",
    "self_condition", "learned_variance", "offset_noise_strength", "immiscible", "auto_normalize",
    "convert_image_to", "split_batches", "num_samples", "calculate_fid", "num_fid_samples",
    "save_best_and_latest_only", "cond_scale", "rescaled_phi", "nosubdir", "batch_gpu", "cbase", "cres", "augment",
    "ls", "cache", "tick", "snap", "dump",
}  # fmt: skip


def answer_flags(verb: str, arguments: Sequence[str], flags: Sequence[str], keys: Sequence[str]) -> str | None:
    """Return the command line that flags of another script stand for; None if none of them is known.

    Args:
        verb: the command. `train` knows flags of training scripts, `sample` of sampling scripts.
        arguments: the command line, without Hydra's flags and their values.
        flags: those of the arguments that are flags.
        keys: dotted keys of the command; a flag of such a name is that override.
    """
    flags = [flag for flag in flags if re.match(r"--?[A-Za-z]", flag)]
    values, overrides, missing, unknown = _read_flags(arguments, flags), {}, [], []
    own = [text for text in arguments if text not in flags and OVERRIDE.match(text)]
    table = {"train": FLAGS, "sample": SAMPLE_FLAGS}.get(verb, {})
    switches = SWITCHES if verb == "train" else {}
    for name, value in values.items():
        try:
            for text in _translate(name, values, table, switches, keys).split():
                key, _, form = text.partition("=")
                form = form.format(VALUES.get(key, {}).get(value.lower(), value))
                is_plain = PLAIN.fullmatch(form)  # a number, a name, a list: typed as it is
                overrides[key] = f"{key}={form}" if is_plain else format_override(key, form)
        except (ArithmeticError, ValueError, LookupError):
            is_known = name in table or (verb == "train" and name in WITHOUT_COUNTERPART)
            (missing if is_known else unknown).append(f"--{name}")
    if not overrides and not missing:
        return None
    ordered = sorted(overrides, key=lambda key: "." in key)  # a choice of a group comes before its keys
    lines = ["keys are written key=value here, without dashes."]
    if overrides:
        lines[0] += " The overrides of this project:"
        lines.append("  " + format_command(verb, *[overrides[key] for key in ordered], *own))
    if missing:
        lines.append(f"without a counterpart or a value: {', '.join(missing)}. See docs/coming_from.md")
    lines += [f"{flag}: unknown{did_you_mean(flag[2:], [*table, *switches, *keys])}" for flag in unknown]
    return "\n  ".join(lines)


def _translate(name: str, values: Values, table: dict, switches: dict, keys: Sequence[str]) -> str:
    """Return the overrides of a flag.

    Raises:
        ValueError: for one that is unknown, lacks its value, or has several for a key of one.
    """
    value = values[name]
    if name in switches:
        return switches[name][value.lower() in ("false", "0", "no", "none")]
    translation = table.get(name) or (f"{name}={{}}" if name in keys else None)
    is_sweep = isinstance(translation, str) and "[" not in translation and re.fullmatch(r"[\d.]+(,[\d.]+)+", value)
    if translation is None or not value or is_sweep:
        raise ValueError(name)
    return translation(value, values) if callable(translation) else translation


def _read_flags(arguments: Sequence[str], flags: Sequence[str]) -> Values:
    """Return the values of the flags by name, "" for none; several words are joined by commas."""
    values, name = {}, None
    for argument in arguments:
        if argument in flags:
            name, has_value, value = argument.lstrip("-").partition("=")
            name = name.replace("-", "_")
            values[name], name = value, None if has_value else name
        elif name and not OVERRIDE.match(argument):
            values[name] = f"{values[name]},{argument}".lstrip(",")
        else:
            name = None
    return values
