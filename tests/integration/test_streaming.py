"""Runs on streamed data: length, kills, lost hubs, ranks."""

import io
import re
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lit import audit
from diffusion_lit.config.compose import compose_configs
from diffusion_lit.runs.checkpoints import list_steps
from diffusion_lit.system.errors import UserError
from tests.equal_runs import assert_equal_runs
from tests.image_sets import FILES, STREAMED, shrink_streams, write_streams
from tests.runs import TINY, last_step, run, signal_at_step, start, trace

N = sum(FILES)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    return write_streams(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    shrink_streams(monkeypatch, tmp_path_factory.mktemp("hf"))


# ------------------------------------------------------------------------------------------ runs


def settings(path: Path, *words: str) -> list[str]:
    return ["data=huggingface", f"data.path={path}", *STREAMED, *TINY, "data.flip=0.5", "sample_every=0", *words]


SMALL = "from diffusion_lit.data import streaming; streaming.WINDOW, streaming.RETRY_WAITS = 64, (0, 0)\n"
NO_HUB = """
from diffusion_lit.data.sources import hf_tables, row_groups
files, read, rows = hf_tables.parquet_files, row_groups.ParquetRows.read_rows, []
hf_tables.parquet_files = lambda *args: [f"file://{file}" for file in files(*args)]
def gone(self, part, skip):
    for row in read(self, part, skip):
        if len(rows) > 500:
            raise ConnectionError("peer is gone")
        rows.append(None)
        yield row
row_groups.ParquetRows.read_rows = gone
"""


@pytest.fixture(scope="module")
def whole(sets, tmp_path_factory) -> Path:
    """A run of three windows an epoch, and into its second epoch."""
    words = settings(sets["parquet"], "max_epochs=1.6", "checkpoint_every=10", "val_every=20", "model.dropout=0.1")
    home = tmp_path_factory.mktemp("whole")
    (home / "printed.txt").write_text(run("train", *words, "run_dir=run", cwd=home, prelude=SMALL))
    return home / "run"


def test_the_length_of_a_run_is_that_of_the_pictures_there_are(whole):
    printed = (whole.parent / "printed.txt").read_text()
    found = re.search(r"data +(\d+) images 4x4x3, 3 classes, (\d+) for validation", printed)
    train, val = map(int, found.groups())  # row groups are divided by hashes that depend on the version of pyarrow
    assert train + val == 457
    assert val > 0
    steps = re.search(r"(\d+) steps of 12 images = 1\.6 epochs", printed)
    assert abs(int(steps[1]) - 1.6 * train / 12) <= 1


def test_commands_that_need_all_pictures_say_so(sets, whole):
    told = run("evaluate", f"run={whole}", "num_images=20", cwd=whole.parent, code=2)
    assert "every_epoch keeps no training images: add reference_data=<a folder" in told
    words = ["data=huggingface", f"data.path={sets['parquet']}", "data.streaming=every_epoch"]
    with pytest.raises(UserError, match=r"data\.streaming=every_epoch: an audit reads images more than once"):
        audit.check_audit(compose_configs("audit", words)[0])


def test_a_killed_run_goes_on_bit_for_bit(sets, whole, tmp_path):
    words = settings(sets["parquet"], "max_epochs=1.6", "checkpoint_every=10", "val_every=20", "model.dropout=0.1")
    process = start("train", *words, "run_dir=broken", cwd=tmp_path, prelude=SMALL)
    assert signal_at_step(33, process, tmp_path / "broken") == -signal.SIGKILL
    run("train", "resume=broken", cwd=tmp_path, prelude=SMALL)
    assert_equal_runs(whole, tmp_path / "broken")


@pytest.mark.slow
def test_a_run_whose_hub_is_gone_ends_with_75_and_goes_on_bit_for_bit(sets, whole, tmp_path):
    words = settings(sets["parquet"], "max_epochs=1.6", "checkpoint_every=10", "val_every=20", "model.dropout=0.1")
    printed = run("train", *words, "run_dir=broken", cwd=tmp_path, prelude=SMALL + NO_HUB, code=75)
    assert "(peer is gone), also on the last retry. Resume the run to go on from its last checkpoint" in printed
    assert "Traceback" not in printed
    run("train", "resume=broken", cwd=tmp_path, prelude=SMALL)
    assert_equal_runs(whole, tmp_path / "broken")


@pytest.mark.slow
def test_two_ranks_train_what_one_does(sets, tmp_path):
    words = settings(sets["parquet"], "max_steps=50", "checkpoint_every=10", "val_every=25", "model.dropout=0")
    run("train", *words, "run_dir=one", cwd=tmp_path)
    run("train", *words, "strategy=ddp", "strategy.devices=2", "strategy.accumulate=2", "run_dir=two", cwd=tmp_path)
    for a, b in zip(trace(tmp_path / "one"), trace(tmp_path / "two"), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), abs=1e-5)


def test_a_plan_of_pictures_that_are_not_kept(sets, tmp_path):
    words = ["data=huggingface", f"data.path={sets['parquet']}", *STREAMED, *TINY, "model.attention_levels=[]"]
    prelude = "import diffusion_lit.training.benchmark as bench; bench.MIN_SECONDS = 0.05"
    printed = run("train", *words, "max_steps=40", "plan=true", cwd=tmp_path, prelude=prelude)
    assert "run time   about" in printed


def test_a_broken_image_ends_a_run_that_is_saved_and_goes_on_after_the_repair(tmp_path):
    file = tmp_path / "set" / "train.parquet"
    file.parent.mkdir()
    images = []
    for k in range(300):
        image = io.BytesIO()
        Image.effect_noise((8, 8), 50 + k % 60).save(image, "PNG")
        images.append({"bytes": image.getvalue(), "path": f"{k}.png"})

    def write(changes: dict[int, bytes]) -> None:
        rows = [image | {"bytes": changes.get(k, image["bytes"])} for k, image in enumerate(images)]
        pq.write_table(pa.table({"image": rows}), file, row_group_size=20)

    words = ["data=huggingface", f"data.path={file}", "data.streaming=every_epoch", "data.image_size=8", *TINY]
    words += ["data.val_fraction=0", "val_every=0", "sample_every=0", "max_steps=30", "run_dir=run"]
    write({170: b"broken"})
    printed = run("train", *words, cwd=tmp_path, code=3)
    assert f"error: row 170 of {file}, train: cannot be read as an image (unknown image format). Repair" in printed
    assert "resume=<run> accept=[data]" in printed
    assert "data.streaming=false" in printed
    step = last_step(tmp_path / "run")
    assert step > 0
    assert list_steps(tmp_path / "run") == [step]
    write({})
    run("train", "resume=run", "accept=[data]", cwd=tmp_path)
    assert last_step(tmp_path / "run") == 30
