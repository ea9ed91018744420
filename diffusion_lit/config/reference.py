"""The texts of `--help` about commands, config groups and keys, from the yaml files in `conf/` (`config/schema.py`)."""

from textwrap import fill

from omegaconf import OmegaConf

from diffusion_lit.config.groups import CONF, list_groups, list_option_keys
from diffusion_lit.config.overrides import did_you_mean
from diffusion_lit.config.schema import Key, read_keys

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
    head = [f"{group}={name}", *[f"  {line}" for line in describe_option(group, name)]]
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


def describe_option(group: str, name: str) -> list[str]:
    """Return the lines of comment at the beginning of a group's yaml file."""
    lines = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line]
