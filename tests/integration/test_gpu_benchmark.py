"""The benchmark of a GPU, as far as it runs without one: every row comes, and a failing row ends no other."""

from argparse import Namespace

import pytest

from benchmarks import gpu


def rows_of(printed: str) -> dict[str, str]:
    lines = [line.strip("| ").partition(" | ") for line in printed.splitlines() if line.startswith("|")]
    return {name: values for name, _, values in lines}


def test_every_row_comes_and_a_failure_is_a_row(capsys, monkeypatch):
    measure, calls = gpu.measure_training, []

    def fail_once(setup, strategy, batch, *rest):
        calls.append(strategy)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: out of luck\nmore")
        return measure(setup, strategy, batch, *rest)

    monkeypatch.setattr(gpu, "measure_training", fail_once)
    monkeypatch.setattr(gpu, "CASES", [case for case in gpu.CASES if not case[1]["compile"]][:3])
    gpu.main(Namespace(debug=True, script=None))
    rows = rows_of(capsys.readouterr().out)
    assert calls[0]["precision"] == "bf16-mixed"  # the fastest first
    assert rows["bf16, 8"] == "failed: RuntimeError: CUDA error: out of luck"
    for name in ("bf16, channels_last, 8", "float32, 8", "bf16, 256", "32-true, 64", "network alone"):
        assert float(rows[name].split(" | ")[0].replace(",", "")) > 0, name
    assert "of TF32" in rows["float32, 8"]
    assert float(rows["in DDP of one process"]) > 0
    assert int(rows["kernels of a step, GPU"].partition(", no GPU")[0].replace(",", "")) > 100
    assert rows["50 steps twice with one seed"] == "equal bits"
    assert rows["bf16"].startswith("failed: MissingRequirement: ")


def test_rows_after_the_time_are_named(capsys):
    gpu.print_rows(["a", "b"], {"late": lambda: pytest.fail("measured")}, deadline=0)
    assert rows_of(capsys.readouterr().out)["late"] == "not measured: the time is over"
