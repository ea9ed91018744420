"""How much memory of its own a run takes does not grow with its pictures: they are mapped, or read anew."""

import io
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.runs import TINY, start

pytestmark = pytest.mark.slow
WORDS = [*TINY, "data.image_size=32", "global_batch_size=64", "max_steps=60", "log_every=20", "sample_every=0"]


def most_anonymous(here: Path, *words: str) -> float:
    """MiB of anonymous memory of a run, at its highest."""
    process, most = start("train", *WORDS, *words, cwd=here), 0
    while process.poll() is None:
        with suppress(ProcessLookupError):  # it has just ended
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            most = max([most, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return most / 1024


def test_200_000_mapped_pictures_take_no_more_than_2_000(tmp_path):
    used = {}
    for n in (2_000, 200_000):
        images = np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", np.uint8, (n, 32, 32, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        images.flush()
        np.save(tmp_path / f"labels{n}.npy", np.arange(n) % 10)
        words = ["data=arrays", f"data.images={n}.npy", f"data.labels=labels{n}.npy", "data.cache_dir=cache"]
        used[n] = [most_anonymous(tmp_path, *words, f"run_dir={name}{n}") for name in ("builds", "maps")]
    print(used)
    for few, many in zip(used[2_000], used[200_000], strict=True):
        assert many - few < 100


def test_100_000_streamed_pictures_take_no_more_than_2_000(tmp_path):
    file, used = io.BytesIO(), {}
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    for n in (2_000, 100_000):
        (tmp_path / f"set{n}").mkdir()
        for k in range(4):
            table = pa.table({"image": pa.array([{"bytes": file.getvalue(), "path": None}] * (n // 4))})
            pq.write_table(table, tmp_path / f"set{n}" / f"train-{k}.parquet", use_dictionary=False)
        words = ["data=huggingface", f"data.path=set{n}", "data.streaming=every_epoch", "data.val_fraction=0"]
        used[n] = most_anonymous(tmp_path, *words, f"run_dir=run{n}")
    print(used)
    assert used[100_000] - used[2_000] < 100
