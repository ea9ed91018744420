"""`python -m diffusion_lit.report`: one page that has everything in it, also of what is missing or damaged."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diffusion_lit.figures import page
from tests.cases import each
from tests.runs import TINY, run

QUICK = [*TINY, "max_steps=4", "val_every=2", "sample_every=2", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two runs, with a name that is no name for a page."""
    home = tmp_path_factory.mktemp("sweep")
    words = ["seed=0,1", "name='<b>a&b<b>'", f"hydra.sweep.dir={home / 'sweep'}"]
    run("train", "--multirun", *QUICK, *words, cwd=home)
    run("evaluate", f"run={home / 'sweep' / '0'}", "num_images=40", cwd=home)
    return home / "sweep"


class Page(HTMLParser):
    """What a browser would load, and the words of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.sources, self.words, self.tags = [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def pictures(self) -> list[Image.Image]:
        found = [re.fullmatch(r"data:image/\w+;base64,(.*)", source) for source in self.sources]
        return [Image.open(BytesIO(base64.b64decode(match[1]))) for match in found]


def test_the_page_of_a_run_holds_all_of_it(sweep, tmp_path):
    printed = run("report", f"run={sweep / '0'}", "out=page.html", cwd=tmp_path)
    assert "page.html" in printed
    shown = Page(tmp_path / "page.html")
    assert all(source.startswith("data:image/") for source in shown.sources)  # nothing from elsewhere
    sizes = [picture.size for picture in shown.pictures]
    for step in (2, 4):  # the grids themselves
        with Image.open(sweep / "0" / "samples" / f"step-{step:08d}.png") as grid:
            assert grid.size in sizes
            assert any(picture.tobytes() == grid.tobytes() for picture in shown.pictures if picture.size == grid.size)
    text = " ".join(shown.words)
    assert "step 2" in text
    for word in ("val/error", "40", "class_accuracy", "finished", "python -m diffusion_lit.train"):
        assert word in text, word
    assert "b" not in shown.tags  # a name is text, whatever is in it


def test_a_page_of_several_runs_says_what_differs(sweep, tmp_path):
    run("report", f"sweep={sweep}", cwd=tmp_path)
    text = Page(sweep / "report.html").words
    assert "Differences" in text
    row = text[text.index("run") :]
    assert "seed" in row[:4]
    run("report", f"runs=[{sweep / '0'},{sweep / '1'}]", cwd=tmp_path)
    assert (tmp_path / "report.html").exists()


def test_runs_are_named_by_what_differs_and_the_metric_comes_first(tmp_path):
    """Choices of groups have their own names, never paths of classes; curves of equal overrides stay apart."""
    for name, choice, gamma in (("a", "Uniform", None), ("b", "MinSNR", 5), ("c", "MinSNR", 5)):
        (tmp_path / name).mkdir()
        weighting = {"_target_": f"diffusion_lit.diffusion.weighting.{choice}"} | ({"gamma": gamma} if gamma else {})
        optimizer = {"_target_": f"torch.optim.{'Adam' if name == 'a' else 'AdamW'}", "lr": 0.1}
        config = {key: {} for key in ("data", "model", "diffusion", "sampler")}
        config |= {"weighting": weighting, "optimizer": optimizer, "run_dir": name}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        override = {"a": "weighting=uniform", "b": "weighting=min_snr", "c": "weighting=min_snr"}[name]
        (tmp_path / name / "command.txt").write_text(f"python -m diffusion_lit.train {override}\n")
        (tmp_path / name / "result.json").write_text('{"steps": 3, "fd": 1.5}')
    runs = [tmp_path / name for name in "abc"]
    found = page.find_differences(runs, "fd")
    assert found["keys"] == ["weighting", "optimizer._target_"]
    assert [config["weighting"] for _, config, _ in found["rows"]] == ["uniform", "min_snr", "min_snr"]
    assert [config["optimizer._target_"] for _, config, _ in found["rows"]] == ["Adam", "AdamW", "AdamW"]
    assert found["names"][0] == "fd"
    labels = page.label_runs(runs, found)
    assert len(set(labels)) == 3
    assert labels[0] == "weighting=uniform optimizer._target_=Adam"
    assert labels[1] == "weighting=min_snr optimizer._target_=AdamW b"


def test_what_is_missing_is_left_out(sweep, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.yaml", "command.txt"):
        (tmp_path / "bare" / name).write_bytes((sweep / "0" / name).read_bytes())
    run("report", "run=bare", cwd=tmp_path)
    text = " ".join(Page(tmp_path / "bare" / "report.html").words)
    assert "No samples." in text
    assert "No metrics.csv." in text
    assert "unfinished" in text


@each(("words", "code", "told"), [
    ([], 2, "add one of run=<folder>"),
    (["run=a", "sweep=b"], 2, "add one of run=<folder>"),
    (["run=a"], 4, "a: no such folder"),
    (["sweep=."], 4, "there are no runs in it"),
    (["grids=0", "run=a"], 2, "grids=0"),
])  # fmt: skip
def test_what_cannot_be_shown_is_told(tmp_path, words, code, told):
    assert told in run("report", *words, cwd=tmp_path, code=code)


def test_a_sweep_is_sorted_by_what_it_has(sweep, tmp_path):
    assert "by=quality: no run of this sweep has this metric. Choose one of:" in run(
        "report", f"sweep={sweep}", "by=quality", cwd=tmp_path, code=2
    )
    run("report", f"sweep={sweep}", "by=val/loss", "out=page.html", cwd=tmp_path)
