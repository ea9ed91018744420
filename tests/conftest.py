"""Shared by all tests: one thread a process, and one real run on the digits that many tests look at."""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: tests run real processes beside each other
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["DIFFUSION_LIT_CACHE"] = os.path.join(tempfile.gettempdir(), "diffusion_lit_tests")  # kept, as for a user
os.environ["WANDB_MODE"] = "offline"  # no test shows anything to anybody's account

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from tests.runs import run  # noqa: E402

# With `pytest -n` a file goes to one process as a whole: those that take minutes begin, so that none ends alone.
LONGEST = ("strategies", "digits", "notebooks", "kills", "samplers", "training", "sweeps", "export", "resume")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """Nothing of another test's: classes trusted because its command named them, and the service of its W&B run."""
    monkeypatch.setattr("diffusion_lit.config.targets._trusted_names", set())
    monkeypatch.delenv("WANDB_SERVICE", raising=False)


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
def sprites_run(tmp_path_factory) -> Path:
    """A run of a ContextUnet on made-up sprites, `color 0` to `color 4`, trained for a few seconds."""
    folder = tmp_path_factory.mktemp("sprites")
    words = ["data=synthetic", "data.image_size=16", "data.num_classes=5", "model=context_unet", "model.features=16"]
    words += ["diffusion=ddpm", "diffusion.num_train_timesteps=50", "diffusion.beta_start=0.001", "sampler=ddpm"]
    words += ["diffusion.beta_end=0.2", "weighting=uniform", "global_batch_size=16", "max_steps=60", "log_every=10"]
    run("train", *words, "val_every=30", "sampler.batch_size=16", "sample_every=0", "run_dir=run", cwd=folder)
    return folder / "run"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside a developer's checkout; elsewhere the tests that need them are skipped."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data")
    return path
