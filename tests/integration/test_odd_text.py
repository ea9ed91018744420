"""Names of users are text: each is shown as it is typed in figures, grids, cards, pages and on the console."""

import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lit.cli import summary
from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.config.targets import build
from diffusion_lit.figures import style
from diffusion_lit.imaging import fonts
from diffusion_lit.imaging.grids import draw_grid
from diffusion_lit.runs.model_card import escape_markdown, format_code
from diffusion_lit.runs.run_dir import read_overrides
from diffusion_lit.sampling.labels import parse_class
from diffusion_lit.system.console import CONTROLS, escape_controls
from diffusion_lit.system.files import normalize_name
from tests.cases import each
from tests.runs import TINY, run

TILES = Path(__file__).parents[2] / "models" / "tiles"
NAMES = [
    "$x_{y$", "$\\frac{a}{$", "100$ or 5$", "a^b_c", "back\\slash", "\\alpha", "b | <i>x", "<script>alert(1)</script>",
    "&amp;", "a`b`c", "*bold* _it_", "[red]x[/red]", "[link](http://x)", ":cat:", "{{7*7}}", "{x}", "%s",
    "${oc.env:HOME}", "thé", "日本語", "🐱", "עברית", "new\nline", "it's", 'q"uote', "1e3", "1_000", "true", "null",
    " spaces ", "-dash", "~", "# title", "caf\udce9", "ta\tb", "re\rturn", "be\x07ll", "e\x1b[31mred", "ne\x85l",
    "se\u2028p", "\u202eltr",
]  # fmt: skip
IN_FILES = [name for name in NAMES if name not in (" spaces ", "100$ or 5$", "{x}", "-dash", "null", "thé", "%s")]


def test_every_name_can_be_drawn():
    images = torch.zeros(len(NAMES), 2, 3, 8, 8, dtype=torch.uint8)
    figure = style.plot_tiles(images, NAMES, NAMES[:2], title=NAMES[0], groups=[(NAMES[1], 1), (NAMES[2], 1)])
    assert style.render_figure(figure).size > (100, 50)
    assert {fonts.to_drawable(name) for name in NAMES} <= {text.get_text() for text in figure.texts}
    figure, ((ax,),) = style.create_axes(1, 1, NAMES[1])
    for name in NAMES:
        ax.plot([1, 10], [1, 10], label=name)
    ax.set(xlabel=NAMES[0], yscale="log")
    ax.legend()
    assert style.encode_figure(figure)
    assert draw_grid(images[:, 0], 1, NAMES, NAMES[-1]).width > 130


def test_a_dollar_is_drawn_and_the_powers_of_an_axis_are_still_powers():
    def draw(text: str, **scale) -> bytes:
        figure, ((ax,),) = style.create_axes(1, 1, text)
        ax.plot([1, 1e6], [1, 1e6])
        ax.set(**scale)
        return style.encode_figure(figure)

    assert draw("$a$") != draw("a")
    log = Image.open(io.BytesIO(draw("", yscale="log")))
    assert log.tobytes() != Image.open(io.BytesIO(draw(""))).tobytes()


def test_characters_that_no_font_has_are_reported_once(caplog, monkeypatch):
    monkeypatch.setattr(fonts, "_warned", set())
    fonts._find_font.cache_clear()
    for _ in range(2):
        for text in ("\U000f0000", "\U000f0001"):
            fonts.find_font(text)
    assert len([record for record in caplog.records if "Install a font" in record.message]) == 1
    assert fonts.find_font("plain é") is None
    assert fonts.find_font("Ж")[0] == "DejaVu Sans"


@each("name", NAMES)
def test_markdown_and_overrides_say_the_same_text(name):
    row = escape_markdown(name)
    assert "\n" not in row
    assert not re.search(r"(?<!\\)[|`*\[\]$~]|<", row)
    expected = escape_controls(" ".join(name.splitlines()))
    assert html.unescape(re.sub(r"\\([\\`*\[\]|~$_])", r"\1", row)) == expected
    code = format_code(name)
    assert not re.search(r"(?<!\\)\|", code)  # which would end the cell
    assert not CONTROLS.search(code)
    fence = re.match("`+", code)[0]
    assert code.strip().count(fence) == 2
    assert code.removeprefix(fence).removesuffix(fence).replace("\\|", "|").strip() == escape_controls(name).strip()
    assert read_override("key", [format_override("key", name)]) == name


@each("name", [name for name in NAMES if name.isprintable()])
def test_tables_on_the_console_say_the_same_text(name, capsys):
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("value")
    table.add_row(f"a{name}b")
    summary.print_lines(table, f"c{name}d")
    printed = capsys.readouterr().out
    assert f"a{name}b" in printed
    assert f"c{name}d" in printed


def test_composed_and_decomposed_names_are_one_class(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for folder in (f"train/{nfc}", f"train/{nfd}", "train/tea", f"val/{nfd}", "val/tea"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "a.png")
    source = build(
        {"_target_": "diffusion_lit.data.sources.folder.ImageFolder", "root": str(tmp_path), "labels": "auto"}
    )
    assert source.class_names == [nfc, "tea"]
    splits = source.splits()
    assert sorted(splits["train"].labels.tolist()) == [0, 0, 1]
    assert sorted(splits["val"].labels.tolist()) == [0, 1]
    assert parse_class(nfd, source.class_names) == parse_class(nfc, [nfd, "tea"]) == 0
    assert normalize_name("caf\udce9") == nfc  # a folder of a Latin-1 disk


def test_names_that_look_like_numbers():
    names = ["true", "1_000", "1e3x", "0.5", "7"]
    for value, index in ((True, 0), ("true", 0), (1000, 1), ("1_000", 1), (0.5, 3), (7, 4), ("7", 4), (2, 2)):
        assert parse_class(value, names) == index
    for value in (False, 9, "TRUE", 1.5):
        with pytest.raises(ValueError, match="not a class of this run"):
            parse_class(value, names)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_console_never_dies_of_an_encoding(encoding, tmp_path):
    code = "from diffusion_lit.__main__ import main; main()"
    env = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["audit", "data=image_folder", "data.root='日本 café [red]'", "seed='\udce9'"]
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"[red]" in done.stderr or b"seed" in done.stderr
    assert b"bytes that are not ASCII. Set PYTHONUTF8=1" in done.stderr  # the names themselves are UTF-8


def test_classes_of_any_name_through_every_command(tmp_path):
    """Train, sample, draw, export and report with them; the files say the names as they are."""
    for name in IN_FILES:
        folder = tmp_path / "in" / name.replace("/", "\u2215")
        folder.mkdir(parents=True)
        for k in range(2):
            Image.effect_noise((8, 8), 50 + k).save(folder / f"{k}.png")
    words = [*TINY, "data=image_folder", "data.root=in", "data.image_size=8", "max_steps=2", "run_dir=run"]
    printed = [run("audit", *words[len(TINY) : -2], cwd=tmp_path)]
    printed += [run("train", *words, "val_every=0", cwd=tmp_path)]
    label = format_override("classes", "[red]x[\u2215red]")
    run("sample", "run=run", "out=s", label, "num_images=2", cwd=tmp_path)
    assert "[red]x" in str(json.loads((tmp_path / "s" / "manifest.json").read_bytes())["images"])
    labels = 'classes=["new\nline",new\\nline,"ta\tb"]'  # as the folder is named, and as it is shown
    run("sample", "run=run", "out=p", labels, "num_images=3", "per_class=true", cwd=tmp_path)
    shown = [image["class"] for image in json.loads((tmp_path / "p" / "manifest.json").read_bytes())["images"]]
    assert shown == ["new\\nline", "new\\nline", "ta\\tb"]
    printed += [run("sample", "run=run", "classes=[nope]", cwd=tmp_path, code=2)]
    printed += [run("evaluate", "run=run", "num_images=40", "metrics=[kid,class_accuracy]", cwd=tmp_path)]
    run("export", "run=run", "out=ex", cwd=tmp_path)
    card = (tmp_path / "ex" / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith("| classes |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    run("report", "run=run", "out=r.html", cwd=tmp_path)
    texts = [*printed, card, *((tmp_path / name).read_text("utf-8") for name in ("r.html", "run/train.log"))]
    for text in texts:
        assert not CONTROLS.search(text.replace("\n", ""))
        assert not re.search(r"^\W*line\b", text, re.MULTILINE)  # the rest of a name
    made = [path.name for folder in ("s", "p", "run", "ex") for path in (tmp_path / folder).rglob("*")]
    assert not [name for name in made if CONTROLS.search(name) or "\\" in name]
    assert "<script>alert(1)" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_folder_with_a_line_break_in_its_name(tmp_path):
    """Its command has two lines in command.txt, and is read, resumed, exported and reported as one."""
    root = "my\nimages\u2028 `x|y"
    for k in range(6):
        (tmp_path / root).mkdir(exist_ok=True)
        Image.effect_noise((8, 8), 50 + k).save(tmp_path / root / f"{k}.png")
    typed = format_override("data.root", root)
    run("train", *TINY, "data=image_folder", typed, "data.image_size=8", "max_steps=1", "run_dir=run", cwd=tmp_path)
    run("train", "resume=run", "max_steps=2", cwd=tmp_path)
    assert [typed in read_overrides(tmp_path / "run", start) for start in (0, 1)] == [True, True]
    run("export", "run=run", "out=ex", cwd=tmp_path)
    (row,) = [line for line in (tmp_path / "ex" / "README.md").read_text().split("\n") if "| command |" in line]
    assert "my\\nimages\\u2028 `x\\|y" in row
    run("report", "run=run", "out=r.html", cwd=tmp_path)
    assert (tmp_path / "r.html").read_text().count("python -m diffusion_lit.train ") == 2


def test_prompts_with_line_breaks(tmp_path):
    prompts = 'prompt=["red\npotion\x1b[31m","green\trobe"]'
    printed = run("sample", f"run={TILES}", prompts, "out=s", "num_images=2", "per_class=true", cwd=tmp_path)
    assert not CONTROLS.search(printed.replace("\n", ""))
    assert not [path for path in (tmp_path / "s").iterdir() if CONTROLS.search(path.name)]


def test_a_stored_class_with_control_characters_is_refused(tmp_path):
    shutil.copytree(TILES.parent / "digits", tmp_path / "digits")
    config = tmp_path / "digits" / "config.yaml"
    config.write_text(config.read_text().replace("- '0'", '- "\\e[31m\\0"'))
    assert "data.class_names: has line breaks" in run("sample", "run=digits", cwd=tmp_path, code=2)
