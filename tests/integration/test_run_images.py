"""A run and its images: the split stays when images are added, other images are refused, a moved run finds its own."""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.paths import make_absolute, relocate
from diffusion_lit.figures.album import load_subject
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.run_dir import read_run_config
from diffusion_lit.runs.run_images import load_run_images, read_data_state
from diffusion_lit.system.errors import Exit, UserError
from tests.image_sets import make_data
from tests.runs import TINY, run, start

RNG = np.random.default_rng(5)
WORDS = ["experiment=none", *TINY, "data=image_folder", "data.image_size=16", "data.val_fraction=0.3", "max_steps=2"]


def write_images(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{name}.png")


def hashes_of(folder: Path) -> dict[str, set[int]]:
    state = read_data_state(checkpoints.select_checkpoint(folder))
    return {name: set(state[name].tolist()) for name in ("train", "val")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run and its images, trained with a relative path to them."""
    home = tmp_path_factory.mktemp("trained")
    write_images(home / "store", [f"{name}/{k}" for name in "ab" for k in range(15)] + ["rare/0"])
    run("train", *WORDS, "data.root=store", "run_dir=runs/one", cwd=home)
    return home


def test_a_split_stays_when_a_run_goes_on_with_more_images(trained, tmp_path):
    home = shutil.copytree(trained, tmp_path / "home")
    before = hashes_of(home / "runs" / "one")
    write_images(home / "store", [f"a/new{k}" for k in range(20)] + ["rare/1", "rare/2"])
    words = [f"data.root={home / 'store'}", "data.val_fraction=0.9", "max_steps=3", "resume=runs/one"]
    run("train", *words, "accept=[config]", cwd=home, code=4)
    assert hashes_of(home / "runs" / "one") == before
    run("train", *words, "accept=[config,data]", cwd=home)
    after = hashes_of(home / "runs" / "one")
    assert before["train"] <= after["train"]
    assert before["val"] <= after["val"]
    assert not after["train"] & after["val"]
    assert len(after["train"] | after["val"]) == 53
    run("train", "resume=runs/one", "max_steps=4", "accept=[]", cwd=tmp_path / "home")


def test_images_of_another_folder_are_refused_by_name_and_number(trained, tmp_path, monkeypatch):
    folder = trained / "runs" / "one"
    config, checkpoint = read_run_config(folder), checkpoints.select_checkpoint(folder)
    assert config["data"]["root"] == str(trained / "store")
    monkeypatch.chdir(tmp_path)  # a relative path would lead to other images
    train, val = load_run_images(config["data"], checkpoint)
    more = shutil.copytree(trained / "store", tmp_path / "store")
    write_images(more, ["a/one more"])
    other = config["data"] | {"root": str(more)}
    with pytest.raises(UserError, match="1 new, 0 missing") as caught:
        load_run_images(other, checkpoint)
    assert train.fingerprint in str(caught.value)
    assert caught.value.exit_code == Exit.CHECKPOINT
    assert f"{len(train)} for training and {len(val)} for validation" in str(caught.value)
    assert len(load_run_images(other, checkpoint, ["data"])[0]) >= len(train)


def test_figures_show_training_images_of_the_run_alone(trained, tmp_path):
    home = shutil.copytree(trained, tmp_path / "home")
    config = home / "runs" / "one" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(home)))
    (command,) = compose_configs("visualize", [f"run={home / 'runs' / 'one'}", "what=[forward]"])
    shown = load_subject(command, print).load_originals(20)
    state = read_data_state(checkpoints.select_checkpoint(home / "runs" / "one"))
    data = make_data(*WORDS[1:], f"data.root={trained / 'store'}")
    assert len(data.train) == state["images"]
    assert {image.numpy().tobytes() for image in shown.flatten(0, 1)} == {
        image.tobytes() for image in data.train.images
    }
    Image.new("RGB", (16, 16)).save(home / "store" / "a" / "0.png")
    with pytest.raises(UserError, match="1 new, 1 missing") as caught:
        load_subject(command, print).load_originals(20)
    assert caught.value.exit_code == Exit.CHECKPOINT
    write_images(home / "store", ["b/99"])
    with pytest.raises(UserError, match="2 new, 1 missing"):
        load_subject(command, print).load_originals(1)
    command.accept = ["data"]
    load_subject(command, print).load_originals(1)


def test_a_moved_run_finds_its_images_at_the_same_place_beside_it(trained, tmp_path):
    home = shutil.copytree(trained, tmp_path / "home")
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    run("train", *WORDS, "data.root=store", "run_dir=runs/two", cwd=home)
    home.rename(moved)
    assert read_run_config(moved / "runs" / "two")["data"]["root"] == str(moved / "store")
    run("train", f"resume={moved / 'runs' / 'two'}", "max_steps=3", cwd=tmp_path)
    assert checkpoints.list_steps(moved / "runs" / "two")[-1] == 3
    shutil.rmtree(moved / "store")
    assert "store: folder not found" in run(
        "train", f"resume={moved / 'runs' / 'two'}", "max_steps=4", cwd=tmp_path, code=3
    )


def test_what_is_a_path_and_what_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "auto", "me"):
        Path(name).touch()
    data = {
        "root": "later", "images": "a.npy", "labels": "auto", "path": "me/set", "sources": ["a.npy", "none.csv"],
        "cache_dir": None, "dataset": {"_target_": "a.npy", "root": "~/x", "split": "me"}, "fit": "me",
    }  # fmt: skip
    absolute = make_absolute(data)
    assert absolute == data | {
        "root": f"{tmp_path}/later", "images": f"{tmp_path}/a.npy", "sources": [f"{tmp_path}/a.npy", "none.csv"],
        "dataset": {"_target_": "a.npy", "root": str(Path("~/x").expanduser()), "split": "me"},
    }  # fmt: skip
    Path("new").mkdir()
    for name in ("a.npy", "later"):
        Path(name).rename(f"new/{name}") if Path(name).exists() else None
    moved = relocate(absolute, tmp_path / "runs" / "x", tmp_path / "new" / "runs" / "x")
    assert (moved["images"], moved["root"]) == (f"{tmp_path}/new/a.npy", f"{tmp_path}/later")


def test_a_resumed_run_says_what_makes_it_another_than_an_unbroken_one(trained, tmp_path):
    home = shutil.copytree(trained, tmp_path / "home")
    words = ["resume=runs/one", "lr_schedule=cosine", "lr_schedule.warmup_steps=0", "accept=[config]"]
    assert "learning rate" in run("train", *words, "max_steps=6", cwd=home)
    assert "learning rate" not in run("train", "resume=runs/one", "max_steps=6", cwd=home)
    threads = "import torch; torch.set_num_threads(2)"
    process = start("train", "resume=runs/one", "max_steps=30", cwd=home, prelude=threads)
    while "step " not in (printed := process.so_far()):  # the notes come before, and two threads are slow beside tests
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    assert "note       2 CPU threads, 1 before" in printed
    assert re.search(r"note       the learning rate goes from \S+e-05 to 9\.\de-04", printed)


def test_too_few_images_for_metrics_are_told_at_the_start(tmp_path):
    write_images(tmp_path / "store", ["0", "1", "2"])
    words = [*WORDS, "data.root=store", "metrics_every=2", "run_dir=run"]
    assert "metrics_every=2: the metrics need 4 training images" in run("train", *words, cwd=tmp_path, code=3)
    assert not (tmp_path / "run").exists()
