"""The choice of a precision from the facts of a device, and what a run logs about it."""

import logging

import pytest

from diffusion_lit.system import platform
from diffusion_lit.system.bfloat16 import DeviceFacts, choose_precision
from diffusion_lit.training import precision
from diffusion_lit.training.precision import FAST_FLAGS, resolve_precision
from tests.cases import each

FAST = DeviceFacts("cpu", flags=frozenset({"avx512_bf16", "amx_bf16"}))
EMULATED = DeviceFacts("cpu", flags=frozenset({"avx2"}))


@each(
    ("facts", "strategy_precision", "is_resumed", "logged"),
    [
        (FAST, "auto", False, "precision  bf16-mixed: this CPU has amx_bf16"),
        (EMULATED, "auto", False, "precision  32-true: this CPU has no amx_bf16"),
        (FAST, "bf16-mixed", True, "precision  bf16-mixed, kept from the run"),
        (EMULATED, "bf16-mixed", True, "kept from the run: slow here"),
        (EMULATED, "bf16-mixed", False, "set by strategy.precision: slow here"),
        (DeviceFacts("cuda", (7, 0)), "bf16-mixed", True, "slow here"),
        (DeviceFacts("cpu"), "bf16-mixed", True, "precision  bf16-mixed, kept from the run"),  # unknown, so no warning
        (FAST, "32-true", False, ""),
    ],
)
def test_a_run_logs_its_precision_and_the_reason(monkeypatch, caplog, facts, strategy_precision, is_resumed, logged):
    monkeypatch.setattr(precision, "inspect_device", lambda accelerator: facts)
    strategy = {"accelerator": "auto", "precision": strategy_precision, "accumulate": 2}
    with caplog.at_level(logging.INFO):
        resolved = resolve_precision(strategy, is_resumed)
    expected = choose_precision(facts, FAST_FLAGS)[0] if strategy_precision == "auto" else strategy_precision
    assert resolved == strategy | {"precision": expected}
    assert [record.levelname for record in caplog.records] == ["WARNING" if "slow" in logged else "INFO"] * bool(logged)
    assert logged in caplog.text


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", {"fpu", "amx_bf16", "amx_tile"}),
        ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("model name\t: something\n", set()),
    ],
)
def test_flags_of_the_cpu(monkeypatch, text, flags):
    platform.cpu_flags.cache_clear()
    monkeypatch.setattr(platform.Path, "read_text", lambda self, encoding: text)
    assert platform.cpu_flags() == flags
    platform.cpu_flags.cache_clear()
