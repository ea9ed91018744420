"""The key reference of the documentation: every key of every command and config group, from the files in `conf/`."""

from collections.abc import Iterator

from diffusion_lit.config.groups import CONF, list_groups, list_option_keys, list_options
from diffusion_lit.config.reference import describe_option
from diffusion_lit.config.schema import FIXED, Key, read_keys

COMMAND_ORDER = ("train", "sample", "evaluate", "export", "visualize", "report", "audit", "replay", "app")
KEY_REFERENCE = """Set a key with `group.key=value` on the command line, a key of the command with `key=value`, and a
config group with `group=name`. Every wrong key, type, range and combination is reported before anything starts.

| type | values |
|---|---|
| `int`, `float`, `bool`, `str`, `null` | as in yaml; `str` is not empty |
| `folder name` | a `str` of at most 255 bytes without `/`, `\\` and control characters, not `.` or `..` |
| `int >= 1`, `float in [0, 1)` | a range; a parenthesis excludes the end |
| `list[T]`, `list[T] x 2`, `list[T] x 1+` | a list `[a,b]` of any length, of two, of at least one |
| `dict[T]` | a mapping `{name: value}` |
| `class` | a mapping with `_target_` and the arguments of the class |
| `a \\| b` | one of the alternatives |

A default of `???` means that the key needs a value.
"""


def render_key_reference() -> str:
    """Return every key of every command and config group as Markdown: default, type, meaning."""
    parts = [KEY_REFERENCE]
    for command in COMMAND_ORDER:
        text = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
        groups = ", ".join(f"[`{group}`](#{group})" for group in list_groups(command) if group != "experiment")
        parts += [f"## {command}", text.splitlines()[0].removeprefix("# ")]
        parts += [f"Config groups: {groups}"] if groups else []
        parts.append("\n".join(_render_rows(read_keys(CONF / f"{command}.yaml"))))
    for group in [group for group in list_groups("train") if group != "experiment"]:
        parts.append(f"## {group}")
        for name in list_options(group):
            parts += [f"### {group}={name}", " ".join(describe_option(group, name))]
            keys = list_option_keys(group, name)
            if target := keys.pop("_target_", None):
                parts.append(f"Class: `{target.default}`")
            own = {key: value for key, value in keys.items() if not f"{group}.{key}".endswith(FIXED)}
            parts += ["\n".join(_render_rows(own))] if own else []
    return "\n\n".join(parts) + "\n"


def _render_rows(keys: dict[str, Key]) -> Iterator[str]:
    yield "| key | default | type | meaning |"
    yield "|---|---|---|---|"
    for name, key in keys.items():
        cells = [f"`{text}`" if text else "" for text in (name, key.default, key.type)]
        row = [text.replace("|", "\\|") for text in (*cells, key.meaning.replace("<", "&lt;"))]
        yield f"| {' | '.join(row)} |"
