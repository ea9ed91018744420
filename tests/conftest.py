"""Shared by all tests: one thread a process, and runs that are trained once for every test that looks at them."""

import gc
import os
import tempfile

gc.disable()  # until all tests are imported: a fifth of the time would go into searching modules for garbage
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: tests run real processes beside each other
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["DIFFUSION_LIT_CACHE"] = os.path.join(tempfile.gettempdir(), "diffusion_lit_tests")  # kept, as for a user
os.environ["WANDB_MODE"] = "offline"  # no test shows anything to anybody's account

import shutil  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from diffusion_lit.config import overrides  # noqa: E402
from tests.configs import read_configs_once  # noqa: E402
from tests.runs import TINY, run  # noqa: E402

read_configs_once()

# With `pytest -n` a file goes to one process as a whole: those that take minutes begin, so that none ends alone.
LONGEST = (
    "digits", "strategies", "sweeps", "experiments", "training", "loggers", "resume", "samplers", "notebooks", "kills",
    "compose", "ema_lengths", "visualize", "export", "evaluate", "commands", "warm_start",
)  # fmt: skip


def pytest_collection_finish() -> None:
    """Let garbage collections be rare and skip what is imported by now, which is never garbage."""
    gc.set_threshold(50_000, 20, 20)
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    """Nothing of another test's: the classes and the --config-dir of its command, and the service of its W&B run."""
    monkeypatch.setattr("diffusion_lit.config.targets._trusted_names", set())
    overrides.CONFIG_DIR.clear()
    monkeypatch.delenv("WANDB_SERVICE", raising=False)


@pytest.fixture(scope="session")
def train_once(tmp_path_factory) -> Callable[..., Path]:
    """Return a function (name, *overrides) that trains a run once, also with `pytest -n`, and returns its run folder.

    What the command printed is in printed.txt. Every process of `pytest -n` has its own copy of the folder.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def train(name: str, *arguments: str, prelude: str = "") -> Path:
        copy = own / f"{name}_copy"
        if copy.exists():
            return next(copy.glob("*/printed.txt")).parent
        folder, done = shared / name, shared / name / "printed.txt"
        with FileLock(folder.with_suffix(".lock")):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                done.write_text(run("train", *arguments, cwd=folder, prelude=prelude))
        (run_dir,) = (path.parent for path in folder.glob("outputs/*/*/result.json"))
        shutil.copytree(run_dir, copy / run_dir.name, symlinks=True)
        shutil.copy(done, copy / run_dir.name)
        return copy / run_dir.name

    return train


WHOLE_VALIDATION = """
from diffusion_lit.data.datamodule import ImageDataModule
ImageDataModule.__init__.__kwdefaults__["val_images"] = 320
"""  # see tests/forks.py
THIRD = ["max_steps=400", "val_every=200", "sample_every=200", "checkpoint_every=200", "sampler.batch_size=100"]


@pytest.fixture(scope="session")
def digits_run(train_once) -> Path:
    """Return the run folder of a third of what the bare command trains, which is enough for good digits."""
    return train_once("digits", *THIRD, prelude=WHOLE_VALIDATION)


@pytest.fixture(scope="session")
def tiny_run(train_once) -> Path:
    """Return the folder of a run of four steps on the digits, for tests that need a finished run and no good images."""
    return train_once("tiny", *TINY, "max_steps=4", "checkpoint_every=2", "val_every=0", "sample_every=0")


@pytest.fixture(scope="session")
def sprites_run(train_once) -> Path:
    """Return a run of a ContextUnet on made-up sprites of five classes, trained for a few seconds."""
    overrides = ["data=synthetic", "data.image_size=16", "data.num_classes=5", "model=context_unet"]
    overrides += ["model.features=16", "diffusion=ddpm", "diffusion.num_train_timesteps=50", "sampler=ddpm"]
    overrides += ["diffusion.beta_start=0.001", "diffusion.beta_end=0.2", "weighting=uniform", "global_batch_size=16"]
    overrides += ["max_steps=20", "log_every=10", "val_every=10", "sampler.batch_size=16", "sample_every=0"]
    return train_once("sprites", *overrides)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside a developer's checkout; elsewhere the tests that need them are skipped."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data")
    return path


@pytest.fixture
def graphs(monkeypatch) -> list:
    """Return the graphs that a backend gets, which runs them as they are: inductor takes a minute on a CPU."""
    import torch

    found, original = [], torch.nn.Module.compile
    torch.compiler.reset()

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, options: original(net, backend=backend))
    return found
