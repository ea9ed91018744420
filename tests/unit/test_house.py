"""The house rules that a machine can check: which way imports point, what is imported when, what the wheel carries."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from diffusion_lit import __version__

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "diffusion_lit"
# A place may import from those above it. The README's map has the same order.
ORDER = [
    "system", "imaging", "config", "diffusion", "networks", "data", "sampling", "evaluation", "runs",
    "distributed", "training", "figures", "cli", "inspection", "web", "train", "sample", "evaluate", "export", "app",
    "visualize", "report", "audit", "replay", "__main__",
]  # fmt: skip
SHELL = {"lightning", "hydra", "omegaconf"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "diffusion_lit" and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(place(path)), f"{path} imports {name}"
        if place(path) in ("diffusion", "networks", "data", "sampling", "evaluation") and path.stem != "datamodule":
            assert parts[0] not in SHELL, f"{path} imports {name}"
        if place(path) == "runs":
            assert parts[0] != "lightning", f"{path} imports {name}"


def test_every_place_is_in_the_order_and_on_the_map():
    places = {place(path) for path in modules()}
    assert places == set(ORDER)
    readme = (ROOT / "README.md").read_text()
    for name in places - {"__main__"}:
        assert f"{name}/" in readme or f"{name}.py" in readme, f"{name} is missing on the README's map"


def test_files_and_functions_stay_small():
    for path in modules():
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_the_core_dispatches_on_no_string():
    """A new weighting, prediction type or sampler is an entry, never another `if name == ...`."""
    for path in modules():
        if place(path) in ("diffusion", "networks", "sampling"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq) for op in node.ops):
                    words = [c.value for c in ast.walk(node) if isinstance(getattr(c, "value", None), str)]
                    assert not words, f"{path}:{node.lineno}"


def test_only_one_place_names_what_not_every_system_has():
    for path in modules():
        if path.stem != "platform":
            words = {"fcntl", "resource", "SIGHUP", "SIGUSR1", "posix_fallocate", "pthread_sigmask", "fork", "getuid"}
            for node in ast.walk(ast.parse(path.read_text())):
                named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                if named and node.value.id in ("os", "signal"):
                    assert node.attr not in words, f"{path}:{node.lineno}"
            assert not words & imported(path), path


def loaded_after(code: str) -> set[str]:
    """Modules in memory after some code, in a fresh interpreter."""
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return set(out.stderr.split())


def test_the_commands_start_without_torch():
    loaded = loaded_after(
        "import diffusion_lit.train, diffusion_lit.sample, diffusion_lit.evaluate, diffusion_lit.audit, "
        "diffusion_lit.visualize, diffusion_lit.replay, diffusion_lit.__main__"
    )
    assert not loaded & {"torch", "lightning", "diffusers", "numpy", "sklearn", "wandb"}


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("sample", ["num_images=1", "sampler.steps=1"]),
        ("evaluate", ["num_images=20", "sampler.steps=1"]),
        ("visualize", ["what=[panels,curves]"]),
    ],
)
def test_sampling_does_not_pay_for_lightning(digits_run, tmp_path, verb, words):
    words = [f"run={digits_run}", *words, f"out={tmp_path / 'out'}"]
    code = f"sys.argv = ['{verb}', *{words}]\nfrom diffusion_lit.{verb} import main\nmain()"
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "wandb", "torchmetrics"}
    assert verb != "sample" or "sklearn" not in loaded


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
    assert not [name for name in inside if name.startswith(("tests", "conf"))]
    out = subprocess.run(
        [sys.executable, "-m", "diffusion_lit", "train", "--cfg", "job", "weighting=p2"],
        cwd=tmp_path / "site", env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "diffusion_lit.diffusion.weighting.P2" in out.stdout


def test_one_version_everywhere():
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
