"""The rules of the source that a machine can check: which way imports point, and how long things may be."""

import ast
from collections import Counter
from graphlib import TopologicalSorter

from diffusion_lit import __version__
from tests.cases import each
from tests.structure import (
    COMMANDS,
    ORDER,
    PACKAGE,
    ROOT,
    SHELL,
    code_lines,
    import_graph,
    imported,
    modules,
    nodes,
    place,
)

CODE_LINES = 18_755  # of the package; a pull request that adds a part raises this by its size
MEAN_LENGTH = 55.2  # of its lines that are not blank or comments
COMMAND_LINES = 100


@each("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
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


def test_no_import_circle_also_inside_functions():
    TopologicalSorter(import_graph()).prepare()  # raises CycleError, which names the circle


def test_no_two_modules_have_one_name():
    stems = Counter(path.stem for path in modules())
    assert [name for name, count in stems.items() if count > 1] == []
    assert stems.keys() & {path.name for path in PACKAGE.rglob("*") if path.is_dir()} == set()


def test_commands_import_no_other_command():
    commands = {f"diffusion_lit.{name}" for name in COMMANDS}
    for module, imports in import_graph().items():
        assert module not in commands or not imports & commands, module


def test_files_and_functions_stay_small():
    for path in modules():
        assert path.read_text().count("\n") <= 300, path
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_commands_stay_short():
    lines = {name: (PACKAGE / f"{name}.py").read_text().count("\n") for name in COMMANDS}
    assert {name: count for name, count in lines.items() if count > COMMAND_LINES} == {}


def test_the_package_stays_small_and_its_lines_short():
    assert sum(map(code_lines, PACKAGE.rglob("*.py"))) <= CODE_LINES
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines()]
    lengths = [len(line) for line in lines if line.strip() and not line.strip().startswith("#")]
    assert sum(lengths) / len(lengths) <= MEAN_LENGTH


def test_unit_tests_mirror_the_package():
    """A file is named after its module, or after its folder where it covers several modules of that."""
    unit = ROOT / "tests" / "unit"
    for path in sorted(unit.rglob("test_*.py")):
        folder, name = path.parent.relative_to(unit), path.stem.removeprefix("test_")
        if path.parent != unit or name not in ("docs", "structure"):
            assert (PACKAGE / folder / f"{name}.py").exists() or folder.name == name, path


def test_the_core_dispatches_on_no_string():
    """A new weighting, prediction type or sampler is an entry, never another `if name == ...`."""
    for path in modules():
        if place(path) in ("diffusion", "networks", "sampling"):
            for node in nodes(path):
                if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq) for op in node.ops):
                    words = [c.value for c in ast.walk(node) if isinstance(getattr(c, "value", None), str)]
                    assert not words, f"{path}:{node.lineno}"


def test_only_one_place_names_what_not_every_system_has():
    for path in modules():
        if path.stem != "platform":
            words = {"fcntl", "resource", "SIGHUP", "SIGUSR1", "posix_fallocate", "pthread_sigmask", "fork", "getuid"}
            for node in nodes(path):
                named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                if named and node.value.id in ("os", "signal"):
                    assert node.attr not in words, f"{path}:{node.lineno}"
            assert not words & imported(path), path


def test_text_files_are_utf_8_in_every_locale():
    """Whatever opens a file as text names its encoding; what reads bytes needs none."""
    missing = []
    for path in [*modules(), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").glob("*.py")]:
        for call in (node for node in nodes(path) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            modes = [*call.args[1:2], *[keyword.value for keyword in call.keywords if keyword.arg == "mode"]]
            is_binary = any("b" in ast.unparse(mode) for mode in modes)
            is_text = isinstance(call.func, ast.Name) and name == "open" and not is_binary
            if is_text or name in ("read_text", "write_text"):
                missing += [] if "encoding" in {keyword.arg for keyword in call.keywords} else [f"{path}:{call.lineno}"]
    assert missing == []


def test_one_version_everywhere():
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
