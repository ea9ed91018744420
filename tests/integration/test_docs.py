"""The pages of docs/ are built without a warning, and have what they say they have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_every_key_is_on_its_page(site):
    page = (site / "reference.html").read_text()
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.parent.name != "experiment":
            assert f"{file.parent.name}={file.stem}" in page, file
    assert "optimizer steps, as everywhere below" in page


def test_every_recipe_is_on_its_page(site):
    page = (site / "recipes.html").read_text()
    for file in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f">{file.stem}<" in page or file.stem == "none", file


def test_what_the_readme_promises_is_on_its_page(site):
    assert "A checkpoint is whole or absent, and plain data" in (site / "promises.html").read_text()


def test_nothing_is_loaded_from_elsewhere(site):
    for file in site.rglob("*.html"):
        for word in ('src="http', "fonts.googleapis", 'rel="stylesheet" href="http'):
            assert word not in file.read_text(), file
