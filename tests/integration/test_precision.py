"""A run whose precision is chosen by the device, and its resume on another machine."""

import logging
from pathlib import Path

import pytest

from diffusion_lit.cli.train_overrides import prepare_train_overrides
from diffusion_lit.config.compose import compose_configs
from diffusion_lit.runs.resume import check_continuation
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.runs.warm_start import resolve_training_config
from diffusion_lit.system.bfloat16 import DeviceFacts
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training import precision
from diffusion_lit.training.launch_run import fit
from tests.equal_runs import assert_equal_training
from tests.trained import SHORT, train

FAST = DeviceFacts("cpu", flags=frozenset({"amx_bf16"}))
EMULATED = DeviceFacts("cpu", flags=frozenset({"avx2"}))


def resume(run: Path, *overrides: str) -> None:
    """Continue a run in this process."""
    overrides = prepare_train_overrides([f"resume={run}", *overrides], None)
    config, source = resolve_training_config(compose_configs("train", overrides)[0])
    check_continuation(run, config)
    fit(config, source, run, overrides)


def test_a_run_in_bf16_keeps_it_on_a_machine_without_it(tmp_path, monkeypatch, caplog):
    unbroken, moved = tmp_path / "unbroken", tmp_path / "moved"
    words = [*SHORT, "lr_schedule=constant", "checkpoint_every=2"]
    monkeypatch.setattr(precision, "inspect_device", lambda accelerator: FAST)
    train(unbroken, *words, "strategy.precision=bf16-mixed")
    train(moved, *words, "strategy.precision=auto", "max_steps=2")
    assert read_model_config(moved)["strategy"]["precision"] == "bf16-mixed"

    monkeypatch.setattr(precision, "inspect_device", lambda accelerator: EMULATED)
    with pytest.raises(UserError, match="bf16-mixed in the run, 32-true now") as refused:
        resume(moved, "strategy.precision=32-true", "max_steps=4")
    assert refused.value.exit_code == Exit.CHECKPOINT
    caplog.clear()
    with caplog.at_level(logging.INFO):
        resume(moved, "max_steps=4")
    (warning,) = [record.getMessage() for record in caplog.records if "slow here" in record.getMessage()]
    assert "kept from the run" in warning
    assert "\n" not in warning
    assert read_model_config(moved)["strategy"]["precision"] == "bf16-mixed"
    assert_equal_training(unbroken, moved)  # both computed in bf16, whatever the machine


def test_auto_is_float32_where_bf16_is_not_fast(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "inspect_device", lambda accelerator: EMULATED)
    auto, fixed = train(tmp_path / "auto", "strategy.precision=auto"), train(tmp_path / "fixed")
    assert auto == fixed
    assert read_model_config(tmp_path / "auto")["strategy"]["precision"] == "32-true"
