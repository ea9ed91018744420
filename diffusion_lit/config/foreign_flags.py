"""Flags of other training scripts, answered with the overrides of this project; docs/coming_from.md explains each."""

import re
from collections.abc import Callable, Sequence

from diffusion_lit.config.overrides import did_you_mean, format_command, format_override

PRECISIONS = {"no": "32-true", "none": "32-true", "fp32": "32-true", "fp16": "16-mixed", "bf16": "bf16-mixed"}
OBJECTIVES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
SCHEDULES = {"constant_with_warmup": "constant", "cosine_with_restarts": "cosine_restarts"}
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z][\w./@]*=")
PLAIN = re.compile(r"[\w.,/+\[\]-]+", re.ASCII)
Values = dict[str, str]  # all flags and their values
Translate = str | Callable[[str, Values], str]  # overrides with {} for the value, or a function of value and flags


def _precision(value: str, flags: Values) -> str:
    return f"strategy.precision={PRECISIONS.get(value.lower(), value)}"


def _betas(value: str, flags: Values) -> str:
    return f"optimizer.betas=[{flags.get('adam_beta1') or 0.9},{flags.get('adam_beta2') or 0.999}]"


def _channels(value: str, flags: Values) -> str:
    factors = flags.get("dim_mults") or "1,2,4,8"
    channels = [int(flags.get("dim") or 64) * int(factor) for factor in factors.strip("()[]").split(",")]
    return f"model=unet model.block_out_channels=[{','.join(map(str, channels))}]"


def _duration(value: str, flags: Values) -> str:  # EDM counts millions of images
    return f"max_steps={round(float(value) * 1e6 / int(flags.get('batch') or 512))}"


def _half_life(value: str, flags: Values) -> str:
    return f"ema=constant ema.decay={0.5 ** (int(flags.get('batch') or 512) / (float(value) * 1e6)):.6g}"


FLAGS: dict[str, Translate] = {
    "train_data_dir": "data=image_folder data.root={}",
    "data_dir": "data=image_folder data.root={}",
    "folder": "data=image_folder data.root={}",
    "data": "data=image_folder data.root={}",
    "dataset_name": "data=huggingface data.path={}",
    "dataset_config_name": "data=huggingface data.name={}",
    "model_config_name_or_path": "model=pretrained model.path={} model.take=architecture",
    "output_dir": "run_dir={}",
    "outdir": "run_dir={}",
    "results_folder": "run_dir={}",
    "desc": "name={}",
    "cache_dir": "data.cache_dir={}",
    "resolution": "data.image_size={}",
    "image_size": "data.image_size={}",
    "channels": "data.channels={}",
    "train_batch_size": "global_batch_size={}",
    "batch_size": "global_batch_size={}",
    "batch": "global_batch_size={}",
    "eval_batch_size": "sampler.batch_size={}",
    "num_epochs": "max_epochs={}",
    "num_train_epochs": "max_epochs={}",
    "epochs": "max_epochs={}",
    "train_num_steps": "max_steps={}",
    "duration": _duration,
    "max_train_steps": "max_steps={}",
    "save_and_sample_every": "sample_every={0} checkpoint_every={0}",
    "checkpointing_steps": "checkpoint_every={}",
    "checkpoints_total_limit": "keep_checkpoints={}",
    "gradient_accumulation_steps": "strategy.accumulate={}",
    "gradient_accumulate_every": "strategy.accumulate={}",
    "learning_rate": "optimizer.lr={}",
    "train_lr": "optimizer.lr={}",
    "lr": "optimizer.lr={}",
    "lr_scheduler": lambda value, flags: f"lr_schedule={SCHEDULES.get(value, value)}",
    "lr_warmup_steps": "lr_schedule.warmup_steps={}",
    "adam_beta1": _betas,
    "adam_beta2": _betas,
    "adam_betas": lambda value, flags: f"optimizer.betas=[{value.strip('()[]')}]",
    "adam_weight_decay": "optimizer.weight_decay={}",
    "weight_decay": "optimizer.weight_decay={}",
    "adam_epsilon": "optimizer.eps={}",
    "max_grad_norm": "trainer.gradient_clip_val={}",
    "ema": _half_life,
    "ema_inv_gamma": "ema.inv_gamma={}",
    "ema_power": "ema.power={}",
    "ema_max_decay": "ema.max_decay={}",
    "ema_decay": "ema=constant ema.decay={}",
    "ema_update_every": "ema=constant ema.update_every={}",
    "logger": "logger={}",
    "report_to": "logger={}",
    "mixed_precision": _precision,
    "mixed_precision_type": _precision,
    "prediction_type": "diffusion.prediction_type={}",
    "objective": lambda value, flags: f"diffusion.prediction_type={OBJECTIVES.get(value, value)}",
    "ddpm_num_steps": "diffusion.num_train_timesteps={}",
    "timesteps": "diffusion.num_train_timesteps={}",
    "diffusion_steps": "diffusion.num_train_timesteps={}",
    "ddpm_num_inference_steps": "sampler.steps={}",
    "sampling_timesteps": "sampler=ddim sampler.steps={}",
    "ddim_sampling_eta": "sampler=ddim sampler.eta={}",
    "ddpm_beta_schedule": lambda value, flags: (
        f"diffusion.beta_schedule={value.replace('squaredcos_cap_v2', 'cosine')}"
    ),
    "beta_schedule": lambda value, flags: f"diffusion.beta_schedule={value.replace('sigmoid', 'cosine')}",
    "min_snr_gamma": "weighting=min_snr weighting.gamma={}",
    "snr_gamma": "weighting=min_snr weighting.gamma={}",
    "cond_drop_prob": "label_dropout={}",
    "dim": _channels,
    "dim_mults": _channels,
    "attn_dim_head": "model=unet model.attention_head_dim={}",
    "dropout": "model=unet model.dropout={}",
    "arch": "model=unet",
    "sigma_data": "diffusion=edm diffusion.sigma_data={}",
    "precond": lambda value, flags: "diffusion=edm weighting=uniform" if value == "edm" else "diffusion=ddpm",
    "transfer": "init_from={}",
    "resume_from_checkpoint": lambda value, flags: "resume=auto" if value == "latest" else "resume={}",
}
SWITCHES = {  # overrides of a flag without a value or with true, and with false
    "center_crop": ("data.fit=crop", ""),
    "random_flip": ("data.flip=0.5", "data.flip=0"),
    "augment_horizontal_flip": ("data.flip=0.5", "data.flip=0"),
    "xflip": ("data.flip=0.5", "data.flip=0"),
    "cond": ("", "data.labels=none"),
    "use_ema": ("ema=power", "ema=none"),
    "amp": ("strategy.precision=16-mixed", "strategy.precision=32-true"),
    "fp16": ("strategy.precision=16-mixed", "strategy.precision=32-true"),
    "bench": ("trainer.benchmark=true", "trainer.benchmark=false"),
    "min_snr_loss_weight": ("weighting=min_snr", "weighting=snr"),
    "dry_run": ("plan=true", ""),
}
# flags that have no counterpart, or none that a value alone decides; docs/coming_from.md says why
WITHOUT_COUNTERPART = {
    "overwrite_output_dir",
    "preserve_input_precision",
    "dataloader_num_workers",
    "num_workers",
    "workers",
    "save_images_epochs",
    "save_model_epochs",
    "push_to_hub",
    "hub_token",
    "hub_model_id",
    "hub_private_repo",
    "logging_dir",
    "local_rank",
    "enable_xformers_memory_efficient_attention",
    "full_attn",
    "flash_attn",
    "self_condition",
    "learned_variance",
    "offset_noise_strength",
    "immiscible",
    "auto_normalize",
    "convert_image_to",
    "split_batches",
    "num_samples",
    "calculate_fid",
    "num_fid_samples",
    "save_best_and_latest_only",
    "cond_scale",
    "rescaled_phi",
    "nosubdir",
    "batch_gpu",
    "cbase",
    "cres",
    "augment",
    "ls",
    "cache",
    "tick",
    "snap",
    "dump",
}


def answer_flags(verb: str, arguments: Sequence[str], flags: Sequence[str], keys: Sequence[str]) -> str | None:
    """Return the command line that flags of another script stand for; None if none of them is known.

    Args:
        verb: the command. Flags of training scripts are known to `train` alone.
        arguments: the command line, without Hydra's flags and their values.
        flags: those of the arguments that are flags.
        keys: dotted keys of the command; a flag of such a name is that override.
    """
    flags = [flag for flag in flags if re.match(r"--?[A-Za-z]", flag)]
    values, overrides, missing, unknown = _read_flags(arguments, flags), {}, [], []
    own = [text for text in arguments if text not in flags and OVERRIDE.match(text)]
    table, switches = (FLAGS, SWITCHES) if verb == "train" else ({}, {})
    for name, value in values.items():
        try:
            for text in _translate(name, values, table, switches, keys).split():
                key, _, form = text.partition("=")
                form = form.format(value) if "{" in form else form
                is_plain = PLAIN.fullmatch(form)  # a number, a name, a list: typed as it is
                overrides[key] = f"{key}={form}" if is_plain else format_override(key, form)
        except (ValueError, LookupError):
            is_known = name in table or (verb == "train" and name in WITHOUT_COUNTERPART)
            (missing if is_known else unknown).append(f"--{name}")
    if not overrides and not missing:
        return None
    ordered = sorted(overrides, key=lambda key: "." in key)  # a choice of a group comes before its keys
    lines = ["keys are written key=value here, without dashes. In the words of this project:"]
    lines.append("  " + format_command(verb, *[overrides[key] for key in ordered], *own))
    if missing:
        lines.append(f"without a counterpart or a value: {', '.join(missing)}. See docs/coming_from.md")
    lines += [f"{flag}: unknown{did_you_mean(flag[2:], [*table, *switches, *keys])}" for flag in unknown]
    return "\n  ".join(lines)


def _translate(name: str, values: Values, table: dict, switches: dict, keys: Sequence[str]) -> str:
    """Return the overrides of a flag. Raises ValueError for one that is unknown or lacks its value."""
    value = values[name]
    if name in switches:
        return switches[name][value.lower() in ("false", "0", "no", "none")]
    translation = table.get(name) or (f"{name}={{}}" if name in keys else None)
    if translation is None or not value:
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
