"""Shared by all tests: one thread a process, and one real run on the digits that many tests look at."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: tests run real processes beside each other
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["WANDB_MODE"] = "offline"  # no test shows anything to anybody's account

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

from tests.runs import run  # noqa: E402


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The run folder of the bare command, `python -m diffusion_lit.train`, with what it printed in printed.txt."""
    folder = tmp_path_factory.mktemp("digits")
    printed = run("train", cwd=folder)
    (run_dir,) = (folder / "outputs" / "digits").iterdir()
    (run_dir / "printed.txt").write_text(printed)
    return run_dir


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside a developer's checkout; elsewhere the tests that need them are skipped."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data")
    return path
