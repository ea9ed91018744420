"""The notebooks run from top to bottom, on shipped models or on run folders, and show images."""

import os
from pathlib import Path

import pytest

from diffusion_lit.system.errors import UserError
from tests.runs import TINY, run

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

from docs.notebooks import EXECUTED, FOLDER, execute  # noqa: E402

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RUNS = {"07_run": "digits_run", "08_sprites": "sprites_run", "09_ablation": "sweep", "10_skins": "skins_run"}
QUICK = ("01_quick_start",)  # the others are slow, or the usual tests take too long
IMAGES = {
    "01_quick_start": 3, "02_process": 5, "03_guidance_and_samplers": 4, "04_prompts": 5, "05_few_steps": 2,
    "06_comparison": 2, "07_run": 5, "08_sprites": 5, "09_ablation": 4, "10_skins": 4,
}  # fmt: skip
KILOBYTE = 1024


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


def list_images(notebook) -> list[str]:
    """Return the kinds of the images in the outputs of a notebook."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]


@pytest.mark.parametrize(
    "path",
    [path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_and_shows_images(path, request, monkeypatch):
    monkeypatch.delenv("DIFFUSION_LIT_RUN", raising=False)
    if path.stem in RUNS:
        monkeypatch.setenv("DIFFUSION_LIT_RUN", str(request.getfixturevalue(RUNS[path.stem])))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures inline
    notebook = execute(path)
    images = list_images(notebook)
    assert len(images) >= IMAGES[path.stem]
    assert ("image/gif" in images) == (path.stem == "03_guidance_and_samplers")
    if os.environ.get("KEEP_NOTEBOOK"):  # a folder, to look at them
        nbformat.write(notebook, Path(os.environ["KEEP_NOTEBOOK"]) / path.name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_of_shipped_models_are_committed_with_images_and_the_others_without(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(list_images(notebook)) == (0 if path.stem in RUNS else IMAGES[path.stem])
    if path.stem in EXECUTED:
        counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
        assert counts == list(range(1, len(counts) + 1))
        text = path.read_text(encoding="utf-8")
        assert len(text) < 400 * KILOBYTE
        assert "site-packages" not in text  # no warning, no path
        assert '"output_type": "error"' not in text


def test_without_a_run_the_command_that_makes_one_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFUSION_LIT_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    cells = [cell.source for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    cells = [cell for cell in cells if "or require_newest_run(home" in cell]
    assert len(cells) == 3
    for cell in cells:
        with pytest.raises(UserError, match="there are no runs in it yet. Make one first: python -m diffusion_lit.tr"):
            exec(cell, {})
