"""The notebooks run from top to bottom on the digits' run folder, and show pictures."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_pictures(path, digits_run, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LIT_RUN", str(digits_run))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures inline
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed with outputs"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 5
    if os.environ.get("KEEP_NOTEBOOK"):  # to look at it
        nbformat.write(notebook, os.environ["KEEP_NOTEBOOK"])
