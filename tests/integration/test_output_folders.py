"""Nothing is overwritten, orphaned or lost: `out=` of others, two writers, kills, and run folders that move."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forks import Process
from tests.runs import TINY, last_step, run, start

LONG = [*TINY, "max_steps=100000", "val_every=0", "sample_every=0", "checkpoint_every=40"]
MADE = {  # what a command writes into a new folder, briefly
    "sample": "num_images=4",
    "export": "seed=1",
    "evaluate": "num_images=20 metrics=[colors] features=pixels",
    "visualize": "what=[schedule]",
    "audit": "",
    "report": "",
}


@pytest.fixture
def home(tiny_run, tmp_path) -> Path:
    """A folder with a run of its own."""
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    return tmp_path


def words_of(verb: str, out: str) -> list[str]:
    source = "data=digits" if verb == "audit" else "run=run"
    return [source, *MADE[verb].split(), f"out={out}"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_until(condition, process: Process, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, process.so_far()
        time.sleep(0.002)


# ------------------------------------------------------------------------------------------ files of others


def test_out_of_others_is_refused_and_stays_as_it_is(home):
    (home / "theirs").mkdir()
    (home / "theirs" / "letter.txt").write_text("dear")
    (home / "linked").symlink_to("theirs")
    (home / "circle").symlink_to("circle")
    (home / "page.html").write_text("<html>mine</html>")
    (home / "linked.html").symlink_to("page.html")
    before = contents(home)
    outs = ("theirs", "linked", "circle", "page.html", "run/config.yaml", "linked.html", "run", "/dev/null")
    for k, verb in enumerate(MADE):
        for out in outs if verb in ("sample", "report") else outs[k % 4 :: 4]:  # a folder, a file; the others in turn
            printed = run(verb, *words_of(verb, out), cwd=home, code=5)
            assert "error: out=" in printed, (verb, out, printed)
            assert "Traceback" not in printed
    assert contents(home) == before


def test_results_of_ours_are_replaced_where_that_loses_nothing(home):
    for verb, out in (("visualize", "figures"), ("audit", "audit"), ("report", "page.html")):
        first, second = (run(verb, *words_of(verb, out), cwd=home) for _ in range(2))
        assert ("replaced" in second) == (verb != "report"), first
    (home / "audit" / "mine.txt").write_text("kept")
    run("audit", "data=synthetic", "data.image_size=8", "out=audit", cwd=home)
    assert (home / "audit" / "mine.txt").read_text() == "kept"
    assert "synthetic" in (home / "audit" / "audit.json").read_text()
    for verb in ("sample", "export", "evaluate"):
        run(verb, *words_of(verb, verb), cwd=home)
        before = contents(home / verb)
        assert f"out={verb} is not empty" in run(verb, *words_of(verb, verb), "seed=2", cwd=home, code=5)
        assert contents(home / verb) == before
        assert not [name for name in before if name.startswith(".")]


# ------------------------------------------------------------------------------------------ two writers


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[] if verb in ("sample", "report") else pytest.mark.slow) for verb in MADE]
)
def test_of_two_writers_one_wins_whole(home, verb):
    out = "page.html" if verb == "report" else "out"
    two = [start(verb, *words_of(verb, out), cwd=home) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in two]
    codes = sorted(process.returncode for process in two)
    assert codes in ([0, 0], [0, 5]) if verb in ("report", "visualize", "audit") else codes == [0, 5], printed
    assert all("error: " in text for text, process in zip(printed, two, strict=True) if process.returncode), printed
    run(verb, *words_of(verb, "alone.html" if verb == "report" else "alone"), cwd=home)
    if verb == "report":
        assert (home / out).stat().st_size == (home / "alone.html").stat().st_size
    else:
        assert contents(home / out).keys() == contents(home / "alone").keys()
    assert not list(home.glob(".*"))


# ------------------------------------------------------------------------------------------ kills


def test_a_killed_sample_is_continued_by_the_same_command(home):
    words = ["run=run", "num_images=40", "sampler=ddim", "sampler.steps=20", "sampler.batch_size=4", "npy=true"]
    run("sample", *words, "out=unbroken", cwd=home)
    for number in range(1, 4):  # killed again and again, each time a little further
        process = start("sample", *words, "out=broken", cwd=home)
        batches = home / "broken" / ".partial" / "batches"
        wait_until(lambda number=number, batches=batches: len(list(batches.glob("0*.npz"))) >= 2 * number, process)
        process.kill()
        process.communicate(timeout=60)
        assert not (home / "broken" / "manifest.json").exists()
    assert "images were there from a killed process" in run("sample", *words, "out=broken", cwd=home)
    assert contents(home / "broken") == contents(home / "unbroken")


@pytest.mark.parametrize("verb", ["sample", "export", "evaluate"])
def test_after_a_kill_the_same_command_makes_what_an_unbroken_one_makes(home, verb):
    run(verb, *words_of(verb, "whole"), cwd=home)
    for place in ("os.replace", "shutil.rmtree"):  # while files are written, and while they are moved
        kill = f"import os, shutil\nreal = {place}\ndef killed(path, *args, **more):\n"
        kill += "    if '.partial' in str(path) and 'request' not in str(path): os.kill(os.getpid(), 9)\n"
        kill += f"    return real(path, *args, **more)\n{place} = killed"
        if place == "shutil.rmtree" and verb != "sample":
            continue
        run(verb, *words_of(verb, "killed"), cwd=home, code=-9, prelude=kill)
        assert not (home / "killed" / ("config.yaml" if verb == "export" else "manifest.json")).exists()
    run(verb, *words_of(verb, "killed"), cwd=home)
    killed, whole = contents(home / "killed"), contents(home / "whole")
    assert killed.keys() == whole.keys()
    assert all(killed[name] == whole[name] for name in whole if name.endswith((".png", ".safetensors")))
    run("sample", "run=run", "num_images=4", cwd=home)


def test_what_a_kill_at_the_start_leaves_is_removed_by_the_next_start(tmp_path):
    words = [*TINY, "max_steps=1", "val_every=0", "sample_every=0"]
    kills = {
        "locked": "from diffusion_lit.runs import warm_start as m; name = 'resolve_training_config'",
        "recorded": "from diffusion_lit.runs import run_dir as m; name = 'append_command'",
    }
    for place, code in kills.items():
        kill = f"{code}\nimport os\nreal = getattr(m, name)\ncalls = []\ndef killed(*args):\n    calls.append(0)\n"
        kill += "    result = real(*args)\n"
        kill += f"    if len(calls) > {int(place == 'locked')}: os.kill(os.getpid(), 9)\n    return result\n"
        run("train", *words, cwd=tmp_path, code=-9, prelude=kill + "setattr(m, name, killed)")
    left = list((tmp_path / "outputs" / "digits").iterdir())
    assert len(left) == 1  # the second start has removed what the first one left
    assert not (left[0] / "config.yaml").exists()
    assert "it has no config.yaml" in run("sample", f"run={left[0]}", cwd=tmp_path, code=4)
    run("train", *words, cwd=tmp_path)
    (kept,) = (tmp_path / "outputs" / "digits").iterdir()
    assert (kept / "result.json").exists()


def test_only_what_is_without_value_and_unlocked_is_removed(tmp_path):
    from diffusion_lit.runs import run_dir, run_lock

    folders = {name: tmp_path / name for name in ("killed", "held", "notes", "released", "foreign", "empty")}
    for name, folder in folders.items():
        folder.mkdir()
        if name == "empty":
            continue
        lock = run_lock.RunLock(folder)
        (folder / "train.log").write_text("step 1")
        text = (folder / ".lock").read_text()
        if name == "notes":
            (folder / "notes.txt").write_text("mine")
        if name != "held":
            lock.release()
        if name in ("killed", "notes"):
            (folder / ".lock").write_text(text)
        if name == "foreign":
            (folder / ".lock").write_text(text.replace(" on ", " on another-"))
        folders[name] = (folder, lock)
    run_dir.remove_leftovers(tmp_path, run_dir.BEFORE_TRAINING)
    assert {path.name for path in tmp_path.iterdir()} == {"held", "notes", "released", "foreign", "empty"}


# ------------------------------------------------------------------------------------------ run folders that move


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_that_is_moved_stops_saved_where_it_is_now(tmp_path, replaced):
    process = start("train", *LONG, "run_dir=here", cwd=tmp_path)
    wait_until(lambda: last_step(tmp_path / "here") >= 5, process)
    (tmp_path / "here").rename(tmp_path / "there")
    if replaced:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "letter.txt").write_text("dear")
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 5, printed
    assert "here was moved to there during the run, which stopped at step" in printed
    assert "Traceback" not in printed
    assert "To continue: python -m diffusion_lit.train resume=there" in printed
    assert contents(tmp_path / "here") == ({"letter.txt": b"dear"} if replaced else {})
    step = last_step(tmp_path / "there")
    assert (tmp_path / "there" / "checkpoints" / f"step-{step:08d}.ckpt").exists()
    run("train", "resume=there", f"max_steps={step + 5}", cwd=tmp_path)
    assert last_step(tmp_path / "there") == step + 5


def test_a_run_that_is_deleted_stops_in_words(tmp_path):
    process = start("train", *LONG, "run_dir=here", cwd=tmp_path)
    wait_until(lambda: last_step(tmp_path / "here") >= 5, process)
    (tmp_path / "here").rename(tmp_path / "there")
    shutil.rmtree(tmp_path / "there")
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 5, printed
    assert "here was deleted, or moved to another disk, during the run" in printed
    assert "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


MOVED_EARLY = """
import os
import diffusion_lit.training.train_rank as m
real = m.build_parts
def moved(*args):
    os.rename("here", "there")
    return real(*args)
m.build_parts = moved
"""


def test_a_run_that_is_moved_before_its_first_step(tmp_path):
    printed = run("train", *LONG, "run_dir=here", cwd=tmp_path, code=5, prelude=MOVED_EARLY)
    assert "here was moved to there during the run" in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# ------------------------------------------------------------------------------------------ folders of this machine


def test_a_deleted_working_directory_is_named(tmp_path):
    for verb in ("train", "sample", "audit"):
        (tmp_path / verb).mkdir()
        printed = run(verb, "run=x", cwd=tmp_path / verb, code=5, prelude="import os; os.rmdir(os.getcwd())")
        assert "error: the working directory was deleted" in printed
        assert "Traceback" not in printed


def test_a_page_to_send_has_no_absolute_paths_unless_they_are_requested(tmp_path):
    home = tmp_path / "home of josé"
    photos = home / "my photos"
    photos.mkdir(parents=True)
    for k in range(24):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{k}.png")
    words = [*TINY, "data=image_folder", f"data.root='{photos}'", "data.image_size=8", "max_steps=1", "val_every=0"]
    words += ["sample_every=0", f"run_dir='{home / 'a run'}'", "model.attention_levels=[]"]
    (tmp_path / "elsewhere").mkdir()
    run("train", *words, cwd=tmp_path / "elsewhere")
    run("train", *words, f"run_dir='{home / 'another'}'", "seed=1", cwd=tmp_path / "elsewhere")
    runs = f"runs=['{home / 'a run'}','{home / 'another'}']"
    for source in (f"run='{home / 'a run'}'", runs):
        run("report", source, "out=page.html", cwd=tmp_path / "elsewhere")
        page = (tmp_path / "elsewhere" / "page.html").read_text(encoding="utf-8")
        assert "home of jos" not in page
        assert str(tmp_path) not in page
        assert "my photos" in page
        assert "max_steps=1" in page
    a_run = f"run='{home / 'a run'}'"
    words = ["num_images=20", "metrics=[kid]", "features=pixels", f"reference_data='{photos}'"]
    run("evaluate", a_run, *words, "out=evaluation", cwd=tmp_path / "elsewhere")
    run("evaluate", a_run, *words, "out=shards", "shards=1", cwd=tmp_path / "elsewhere")
    run("visualize", a_run, "what=[schedule]", "out=figures", cwd=tmp_path / "elsewhere")
    run("export", a_run, "out=model", cwd=tmp_path / "elsewhere")
    for name in ("evaluation/result.json", "shards/result.json", "figures/figures.json", "model/README.md"):
        text = (tmp_path / "elsewhere" / name).read_text(encoding="utf-8")
        assert "home of jos" not in text, name
        assert str(tmp_path) not in text, name
    run("report", runs, "out=page.html", "paths=true", cwd=tmp_path / "elsewhere")
    assert str(photos) in (tmp_path / "elsewhere" / "page.html").read_text(encoding="utf-8")
