"""The files of the package and what they import."""

import ast
import functools
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_lit"
# A place may import from those above it. The README's map has the same order.
ORDER = [
    "system", "imaging", "config", "diffusion", "networks", "data", "text", "sampling", "evaluation", "runs",
    "distributed", "training", "figures", "cli", "inspection", "web", "train", "sample", "evaluate", "export", "app",
    "visualize", "report", "audit", "replay", "__main__",
]  # fmt: skip
COMMANDS = ORDER[ORDER.index("train") : ORDER.index("__main__")]
SHELL = {"lightning", "hydra", "omegaconf"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Return every node of the syntax tree of a file."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def import_graph() -> dict[str, set[str]]:
    """Return for every module of the package the modules of it that it imports, also inside functions."""
    names = {module_name(path) for path in modules()}
    graph = {}
    for path in modules():
        # of "package.module.name" the module, of "package.module" itself
        targets = {name if name in names else name.rpartition(".")[0] for name in imported(path)}
        graph[module_name(path)] = targets & names - {module_name(path)}
    return graph


def code_lines(path: Path) -> int:
    """Return the number of lines that hold code: no blank lines, comments or docstrings."""
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    rows, starts_line = set(), True
    for token, following in zip(tokens, tokens[1:] + tokens[-1:], strict=True):
        if token.type in silent:
            starts_line |= token.type == tokenize.NEWLINE
            continue
        if token.type == tokenize.STRING and starts_line and following.type == tokenize.NEWLINE:
            continue  # a docstring
        starts_line = False
        rows |= set(range(token.start[0], token.end[0] + 1))
    return len(rows)
