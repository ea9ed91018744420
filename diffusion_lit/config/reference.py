"""Texts about commands, config groups and keys: `--help`, and the key reference of the documentation.

Both are read from the yaml files in `conf/`, see `config/schema.py`.
"""

from collections.abc import Iterator
from textwrap import fill

from omegaconf import OmegaConf

from diffusion_lit.config.groups import CONF, list_groups, list_option_keys, list_options
from diffusion_lit.config.overrides import did_you_mean
from diffusion_lit.config.schema import FIXED, Key, read_keys

COMMAND_ORDER = ("train", "sample", "evaluate", "export", "visualize", "report", "audit", "replay", "app")
WIDTH = 100  # columns of --help
GROUP_NOTES = {  # a group that a command has -> what is unusual about its groups
    "experiment": """
  Without data= and experiment= the experiment digits applies: its values replace those below.
  data=<name> without experiment=, or experiment=none: the values below.
  model=<another> replaces all model keys of the experiment. Any other group keeps the values of
  the experiment for the keys that both have: experiment=digits sampler=ddim keeps sampler.steps=10.""",
    "sampler": """
  Without sampler= the sampler of the run is used.""",
}
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


def render_help(config_name: str, names: list[str]) -> str:
    """Return the text of `--help`.

    Args:
        config_name: name of the command.
        names: what stands on the command line besides `--help`. With names of
            config groups the text lists the keys of those groups instead.
    """
    groups = list_groups(config_name)
    options = [(group, name) for group in names if group in groups for name in groups[group]]
    if options:
        return "\n\n".join(_render_option(group, name) for group, name in options)
    file = CONF / f"{config_name}.yaml"
    parts = [f"{name}: no such config group{did_you_mean(name, list(groups))}" for name in names if name.isidentifier()]
    parts.append(OmegaConf.load(file).hydra.help.header.rstrip())
    if groups:
        listed = [
            fill("  ".join(choices), WIDTH, initial_indent=f"  {group:<13}", subsequent_indent=" " * 15)
            for group, choices in groups.items()
        ]
        note = next((text for group, text in GROUP_NOTES.items() if group in groups), "")
        example = "data optimizer" if "optimizer" in groups else " ".join(groups)
        parts += [
            f"Config groups, set with group=name{', the default first' if 'data' in groups else ''}:",
            "\n".join(listed),
            f"{note}\n  Keys of a group: --help {example}. Set them with group.key=value.".lstrip("\n"),
        ]
    parts += [
        "Keys, set with key=value (default, type, meaning; x 1+: at least one element):",
        "\n".join(map(_render_key, read_keys(file).items())),
    ]
    parts.append("--cfg job prints the composed config. --config-dir <folder> adds your own yaml files.")
    return "\n\n".join(parts)


def _render_option(group: str, name: str) -> str:
    keys = list_option_keys(group, name)
    head = [f"{group}={name}", *[f"  {line}" for line in _description(group, name)]]
    return "\n".join([*head, *[_render_key(item) for item in keys.items()]])


def _render_key(item: tuple[str, Key]) -> str:
    name, (default, type_, meaning) = item
    head = f"  {name}: {default}"
    text = ". ".join(filter(None, (type_, meaning)))
    if not text:
        return head
    first = f"{head:<31} " if len(head) < 32 else f"{head}\n{'':<32}"
    wrapped = fill(text, WIDTH, initial_indent=" " * 32, subsequent_indent=" " * 32, break_on_hyphens=False)
    return first + wrapped.lstrip()


def _description(group: str, name: str) -> list[str]:
    """Return the lines of comment at the beginning of a group's yaml file."""
    lines = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line]


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
            parts += [f"### {group}={name}", " ".join(_description(group, name))]
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
