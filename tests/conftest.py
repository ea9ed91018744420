"""Shared by all tests: one thread a process, and one real run on the digits that many tests look at."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: tests run real processes beside each other
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["WANDB_MODE"] = "offline"  # no test shows anything to anybody's account

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from tests.runs import run  # noqa: E402


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """The run folder of the bare command, `python -m diffusion_lit.train`, with what it printed in printed.txt.

    It is trained once; with `pytest -n` every process has its own copy.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "digits"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            printed = run("train", cwd=folder)
            (run_dir,) = (folder / "outputs" / "digits").iterdir()
            (run_dir / "printed.txt").write_text(printed)
    (run_dir,) = (folder / "outputs" / "digits").iterdir()
    return Path(shutil.copytree(run_dir, own / "digits_copy" / run_dir.name, symlinks=True))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside a developer's checkout; elsewhere the tests that need them are skipped."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data")
    return path
