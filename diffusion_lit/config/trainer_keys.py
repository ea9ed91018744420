"""The arguments of lightning.Trainer that `trainer.<name>` can set."""

from diffusion_lit.config.overrides import did_you_mean

OWNED = {  # arguments that diffusion_lit sets -> what to use instead
    "max_steps": "Use max_steps",
    "max_epochs": "Use max_epochs",
    "accelerator": "Use strategy.accelerator",
    "devices": "Use strategy.devices",
    "num_nodes": "Use strategy.num_nodes",
    "precision": "Use strategy.precision",
    "strategy": "Use strategy=single, dp or ddp",
    "accumulate_grad_batches": "Use strategy.accumulate",
    "logger": "Use logger=",
    "callbacks": "Use +callbacks.<name>._target_=",
    "plugins": "Use strategy.precision for precision; checkpoint files and processes are set up by diffusion_lit",
    "val_check_interval": "Use val_every",
    "check_val_every_n_epoch": "Use val_every",
    "num_sanity_val_steps": "Use trainer.fast_dev_run",
    "enable_checkpointing": "Use checkpoint_every",
    "default_root_dir": "Use run_dir",
    "use_distributed_sampler": "Use strategy=ddp, which gives each process its share of every batch",
    "overfit_batches": "Use trainer.limit_train_batches",
    "reload_dataloaders_every_n_epochs": "Use data.streaming where the source has it",
    "barebones": "Use plan=true to measure speed",
    "log_every_n_steps": "Use log_every",
    "enable_progress_bar": "The progress bar is drawn on terminals only",
    "enable_model_summary": "The summary is part of the first lines of a run",
}
ALLOWED = (
    "fast_dev_run", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "max_time", "min_epochs", "min_steps", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark",
    "inference_mode", "detect_anomaly", "profiler", "sync_batchnorm", "enable_autolog_hparams", "model_registry",
)  # fmt: skip


def trainer_fault(name: str) -> str | None:
    """Return why `trainer.<name>` cannot be set, or None if it can."""
    if name in OWNED:
        return f"trainer.{name}: set by diffusion_lit. {OWNED[name]}"
    if name not in ALLOWED:
        close = did_you_mean(f"trainer.{name}", [f"trainer.{known}" for known in (*ALLOWED, *OWNED)])
        return f"trainer.{name}: lightning.Trainer has no such argument{close}"
    return None
