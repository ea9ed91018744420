"""The site builds without a warning and holds every group and recipe."""

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


def test_the_site_has_every_group_and_every_recipe(site):
    reference, recipes = ((site / name).read_text() for name in ("reference.html", "recipes.html"))
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.parent.name != "experiment":
            assert f"{file.parent.name}={file.stem}" in reference, file
        elif file.stem != "none":
            assert f"{file.stem}</h2>" in recipes.replace('<a class="headerlink"', "</h2><a"), file


def test_nothing_is_loaded_from_elsewhere(site):
    for file in site.rglob("*.html"):
        for word in ('src="http', "fonts.googleapis", 'rel="stylesheet" href="http'):
            assert word not in file.read_text(), file
