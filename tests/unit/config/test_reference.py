"""`--help` of the commands and of config groups, and the key reference."""

import re

from diffusion_lit.__main__ import COMMANDS
from diffusion_lit.config.groups import CONF, list_option_keys
from diffusion_lit.config.reference import render_help
from diffusion_lit.config.schema import read_keys
from docs.key_reference import render_key_reference
from tests.cases import each
from tests.unit.config.test_compose import GROUPS, LEAVES


def test_help_has_every_group_and_key():
    text = render_help("train", [])
    unwrapped = re.sub(r"\n {15}", "  ", text)
    for group in GROUPS:
        for path in (CONF / group).glob("*.yaml"):
            assert re.search(rf"^  {group} .*\b{path.stem}\b", unwrapped, re.M), path
    assert "model=<another> replaces all model keys of the experiment" in text
    assert "data=<name> without experiment=" in text
    assert "sampler      ddim" in render_help("sample", [])


@each("verb", COMMANDS)
def test_help_of_every_verb_is_of_one_form(verb):
    text = render_help(verb, [])
    lines = text.splitlines()
    assert sum(line.strip().startswith(f"python -m diffusion_lit.{verb} ") for line in lines) >= 2
    assert sum(f"python -m diffusion_lit.{verb}" in line for line in lines) >= 3
    assert "\nKeys, set with key=value (default, type, meaning" in text
    assert text.endswith("--config-dir <folder> adds your own yaml files.")
    for name, key in read_keys(CONF / f"{verb}.yaml").items():
        assert re.search(rf"^  {name}: {re.escape(key.default)}\s+{re.escape(key.type.split(' ')[0])}", text, re.M), (
            name
        )
    assert max(len(line) for line in lines if "python -m" not in line) <= 100


def test_help_of_a_group_is_its_keys():
    text = render_help("train", ["ema", "sampler"])
    for path in [*(CONF / "ema").glob("*.yaml"), *(CONF / "sampler").glob("*.yaml")]:
        assert f"{path.parent.name}={path.stem}\n" in text
        for name, key in list_option_keys(path.parent.name, path.stem).items():
            assert f"  {name}: {key.default}" in text


def test_the_key_reference_has_every_key():
    text = render_key_reference()
    for path in LEAVES:
        assert f"### {path.parent.name}={path.stem}\n" in text
    assert "| `max_steps` | `20000` | `int >= 1` | Optimizer steps" in text
    assert "| `take` | `weights` | `weights \\| architecture \\| narrow` | " in text
