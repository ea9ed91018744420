"""The wheel, installed where nothing else of the project is: every verb by `diffusion-lit`, in an empty folder."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from diffusion_lit import __version__
from tests.runs import TINY

ROOT = Path(__file__).parents[2]
ALONE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # nothing of a checkout


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """`diffusion-lit` of a new environment that has the wheel, and by a path what it depends on."""
    home = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", home, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(home / "venv", with_pip=True)
    python, (wheel,) = home / "venv/bin/python", home.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True)
    (site,) = (home / "venv").glob("lib/*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = [python, "-c", "import diffusion_lit; print(diffusion_lit.__file__)"]
    printed = subprocess.run(where, cwd=home, env=ALONE, capture_output=True, text=True, check=True).stdout
    assert printed.startswith(str(site))
    return python.with_name("diffusion-lit")


@pytest.mark.slow
def test_every_verb_works_in_an_empty_folder(script, tmp_path):
    def start(*words: str) -> subprocess.Popen:
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen([script, *words], cwd=tmp_path, env=ALONE, text=True, **told)

    def done(*words: str) -> None:
        process = start(*words)
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed

    done("train", *TINY, "max_steps=4", "run_dir=run")
    done("train", "resume=run", "max_steps=6")
    done("sample", "run=run", "num_images=4", "out=images", "gif=true")
    done("export", "run=run", "out=model")
    done("sample", "run=model", "num_images=4", "out=again")
    assert (tmp_path / "images/00003.png").read_bytes() == (tmp_path / "again/00003.png").read_bytes()
    done("evaluate", "run=run", "metrics=[kid]", "features=pixels", "num_images=20")
    done("visualize", "run=run", "what=[schedule]")
    done("audit", "data=digits")
    done("report", "run=run")
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    page = start("app", "run=run", "port=0")
    address = next(found[0] for line in page.stdout if (found := re.search(r"http://127[.]0[.]0[.]1:[0-9]+", line)))
    assert b"<html" in urllib.request.urlopen(address, timeout=30).read()
    page.send_signal(signal.SIGINT)
    assert page.wait(60) in (0, 130)


def test_the_wheel_carries_the_configuration_and_works_outside_the_checkout(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"diffusion_lit-{__version__}")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert f"diffusion_lit/conf/{file.relative_to(ROOT / 'conf')}" in inside
    assert {"diffusion_lit/py.typed", "diffusion_lit/evaluation/digits_classifier.safetensors"} <= inside
    assert not [name for name in inside if name.startswith(("tests", "conf", "models"))]
    weights = [name for name in inside if name.endswith((".safetensors", ".pt", ".npz"))]
    assert weights == ["diffusion_lit/evaluation/digits_classifier.safetensors"]  # none of models/
    out = subprocess.run(
        [sys.executable, "-m", "diffusion_lit", "train", "--cfg", "job", "weighting=p2"],
        cwd=tmp_path / "site", env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "diffusion_lit.diffusion.weighting.P2" in out.stdout


def test_the_source_distribution_has_what_the_wheel_and_the_tests_need(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert {name.partition("/")[0] for name in inside} == files | {"diffusion_lit", "conf", "tests"}
    for file in (ROOT / "conf").rglob("*.yaml"):
        assert file.relative_to(ROOT).as_posix() in inside
