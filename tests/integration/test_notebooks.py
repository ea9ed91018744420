"""The notebooks run from top to bottom on run folders and show images."""

import os
from pathlib import Path

import pytest

from diffusion_lit.system.errors import UserError
from tests.runs import TINY, run

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
RUNS = {
    "01_digits": "digits_run", "02_process": "digits_run", "03_classes": "digits_run", "04_sprites": "sprites_run",
    "05_ablation": "sweep", "06_skins": "skins_run",
}  # fmt: skip
SLOW = ("02_process", "03_classes", "04_sprites", "05_ablation", "06_skins")  # or the usual tests take too long
IMAGES = {"01_digits": 5, "02_process": 5, "03_classes": 4, "04_sprites": 5, "05_ablation": 4, "06_skins": 4}


@pytest.fixture(scope="module")
def skins_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("skins")
    words = ["data=synthetic", "data.labels=none", "data.image_size=64", "data.channels=4", "data.render=skin"]
    words += [*TINY, "data.num_images=40", "max_steps=2", "sample_every=0", "val_every=0", "sampler.batch_size=8"]
    run("train", *words, "run_dir=run", cwd=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "sweep"
    words = [*TINY, "max_steps=4", "val_every=2", "sample_every=0", "checkpoint_every=4", f"hydra.sweep.dir={folder}"]
    run("train", "--multirun", *words, "seed=0,1", "weighting=x0,snr", "metric=val/error", cwd=folder.parent)
    return folder


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow) if path.stem in SLOW else path for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_and_shows_images(path, request, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LIT_RUN", str(request.getfixturevalue(RUNS[path.stem])))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures inline
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed with outputs"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert len(images) >= IMAGES[path.stem]
    assert ("image/gif" in images) == (path.stem == "03_classes")
    if os.environ.get("KEEP_NOTEBOOK"):  # a folder, to look at them
        nbformat.write(notebook, Path(os.environ["KEEP_NOTEBOOK"]) / path.name)


def test_without_a_run_the_command_that_makes_one_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFUSION_LIT_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    cells = [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    cells = [cell for cell in cells if "or require_newest_run(home" in cell]
    assert len(cells) == 5
    for cell in cells:
        with pytest.raises(UserError, match="there are no runs in it yet. Make one first: python -m diffusion_lit.tr"):
            exec(cell, {})
