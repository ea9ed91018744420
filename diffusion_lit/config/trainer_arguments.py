"""The arguments of lightning.Trainer: which ones a user may set by `trainer.<name>`."""

from diffusion_lit.config.overrides import did_you_mean

OWNED = {  # set by this project: argument -> what to use instead
    "max_steps": "use max_steps",
    "max_epochs": "use max_epochs",
    "accelerator": "use strategy.accelerator",
    "devices": "use strategy.devices",
    "num_nodes": "use strategy.num_nodes",
    "precision": "use strategy.precision",
    "strategy": "use strategy=single, dp or ddp",
    "accumulate_grad_batches": "use strategy.accumulate",
    "logger": "use logger=",
    "callbacks": "use +callbacks.<name>._target_=",
    "plugins": "use strategy.precision for precision; checkpoint files and processes are set up by diffusion_lit",
    "val_check_interval": "use val_every",
    "check_val_every_n_epoch": "use val_every",
    "num_sanity_val_steps": "use trainer.fast_dev_run",
    "enable_checkpointing": "use checkpoint_every",
    "default_root_dir": "use run_dir",
    "use_distributed_sampler": "use strategy=ddp, which gives each process its share of every batch",
    "overfit_batches": "use trainer.limit_train_batches",
    "reload_dataloaders_every_n_epochs": "use data.streaming where the source has it",
    "barebones": "use plan=true to measure speed",
    "log_every_n_steps": "use log_every",
    "enable_progress_bar": "the progress bar is shown on terminals only",
    "enable_model_summary": "the summary is part of the first lines of a run",
}
ALLOWED = (
    "fast_dev_run", "limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches",
    "max_time", "min_epochs", "min_steps", "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark",
    "inference_mode", "detect_anomaly", "profiler", "sync_batchnorm", "enable_autolog_hparams", "model_registry",
)  # fmt: skip


def trainer_fault(name: str) -> str | None:
    """Return why `trainer.<name>` cannot be set, or None if it can."""
    if name in OWNED:
        return f"trainer.{name}: set by diffusion_lit, {OWNED[name]}"
    if name not in ALLOWED:
        close = did_you_mean(f"trainer.{name}", [f"trainer.{known}" for known in (*ALLOWED, *OWNED)])
        return f"trainer.{name}: lightning.Trainer has no such argument{close}"
    return None
