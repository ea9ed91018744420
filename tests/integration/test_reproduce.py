"""`python -m benchmarks reproduce`: every id has a command, and a number passes in its published interval."""

import json
import random
import re
import shlex
from types import SimpleNamespace

import pytest

from benchmarks import reproduce
from benchmarks.__main__ import TABLES
from diffusion_lit.config.compose import compose_configs

ROWS = reproduce.read_rows()
RESULT = {"settings": {"reference": {"data": "7c20be9faeec27fe"}}}


def test_every_id_has_a_command_and_every_command_a_row():
    models = tuple(f"{page.parent.name}." for page in reproduce.CARDS)
    assert {name for name in ROWS if not name.startswith(models)} == reproduce.PUBLISHED["rows"].keys()
    for page in reproduce.PAGES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"\| `(\w+\.[\w.]+)` \|$", text, re.MULTILINE)) <= ROWS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_numbers_in_their_intervals_and_keys_that_exist(name):
    row = ROWS[name]
    for number in row.numbers.values():
        assert number.low <= number.value <= number.high
    if row.table:
        assert row.table in TABLES
    else:
        compose_configs("evaluate", shlex.split(re.sub(r"{\w+}", "folder", row.overrides)))


def test_a_number_reads_as_it_is_written():
    draw = random.Random(0)
    for _ in range(200):
        low, value, high = sorted(draw.uniform(-1, 1) * 10 ** draw.randint(-6, 4) for _ in range(3))
        number = reproduce.parse_number(f"{value:.4g} ({low:.4g} to {high:.4g})")
        assert (number.value, number.low, number.high) == tuple(float(f"{one:.4g}") for one in (value, low, high))
    shares = reproduce.parse_number("98.8 % (97.9 % to 99.3 %)")
    assert (shares.low, shares.high) == pytest.approx((0.979, 0.993))
    assert reproduce.parse_number("0.872 ()").high == pytest.approx(0.872 + reproduce.TOLERANCE)
    assert reproduce.parse_number("1,000").high == pytest.approx(1000 + reproduce.TOLERANCE)


def test_runs_are_trained_once_before_what_needs_them_and_a_failure_is_an_exit_code(tmp_path, monkeypatch, capsys):
    commands, measured = [], {"fd": 0.30, "recall": 0.87, "nfe": 10, "kid": -0.02, "class_accuracy": 0.988}

    def run_command(command, *overrides):
        folder = dict(word.split("=", 1) for word in overrides)
        commands.append((command, folder))
        if command == "evaluate":
            path = reproduce.Path(folder["out"])
            path.mkdir()
            (path / "result.json").write_text(json.dumps(RESULT | measured))

    monkeypatch.setattr(reproduce, "run_command", run_command)
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["few_steps.seed_0.teacher", "few_steps.seed_0.at_1", "few_steps.seed_0.at_4"])
    printed = capsys.readouterr().out
    assert [command for command, _ in commands] == ["train", "evaluate", "train", "evaluate", "evaluate"]
    assert commands[2][1]["distill.teacher"] == commands[0][1]["run_dir"]
    assert "pass       few_steps.seed_0.teacher fd 0.3, published 0.24 (0.18 to 0.30)" in printed
    assert "FAIL       few_steps.seed_0.at_1 fd 0.3, published 0.80 (0.67 to 0.94)" in printed
    assert ended.value.code == 1
    measured |= {"fd64": 0.2427}
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["digits.fd64"])
    assert ended.value.code == 0
    monkeypatch.setitem(RESULT["settings"]["reference"], "data", "other")
    with pytest.raises(SystemExit, match="the card is about images of fingerprint 7c20be9faeec27fe, these have other"):
        reproduce.main(["digits.fd64"])


def test_a_printed_table_is_compared_cell_by_cell(monkeypatch, capsys):
    share = "{0} % ({0} % to {0} %)"
    printed = f"## Copies\n\n| `data=digits` | images | by pixels | by features | by either |\n{'| --- ' * 5}|\n"
    printed += f"| exact | 300 | {share.format('98.0')} | {share.format('99.0')} | {share.format('100.0')} |\n"
    monkeypatch.setattr(reproduce.subprocess, "run", lambda *_, **options: SimpleNamespace(stdout=printed))
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["copies.exact"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines[:3]] == ["FAIL", "pass", "pass"]
    assert "copies.exact by pixels 0.98, published 100.0 % (98.7 % to 100.0 %)" in lines[0]
    assert ended.value.code == 1


def test_numbers_that_are_all_skipped_are_no_success(tmp_path, capsys):
    row = reproduce.Row({"fd": reproduce.parse_number("0.24")}, 23, "run=folder reference_data={mnist}")
    assert not reproduce.reproduce({"mnist.fd": row}, {}, tmp_path)
    assert "skipped    mnist.fd: add --data mnist=<its training images>" in capsys.readouterr().out


def test_an_unknown_id_is_an_error(capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main(["digit"])
    assert ended.value.code == 2
    assert "unknown id digit. Without an id all are listed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "copies.exact", "few_steps.seed_0.teacher"])
def test_cheap_numbers_are_reproduced(name, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.main([name])
    assert ended.value.code == 0, capsys.readouterr().out
