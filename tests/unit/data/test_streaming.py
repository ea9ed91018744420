"""Pictures read anew in every epoch: an exact count, an order by position alone, runs that resume bit for bit."""

import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.data import store
from diffusion_lit.data.batches import Batches, random_crops
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources import row_groups
from diffusion_lit.system.errors import Exit, UserError
from tests.image_sets import (
    FILES,
    STREAMED,
    make_hub_data,
    make_table,
    png,
    shrink_streams,
    write_parquet,
    write_streams,
)

N = sum(FILES)
SIZE = STREAMED[:2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    return write_streams(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    shrink_streams(monkeypatch, tmp_path_factory.mktemp("hf"))


def batches(data: ImageDataModule, size: int = 5, step: int = 0, *more: int, seed: int = 7):
    return iter(Batches(data.train, seed, size, lambda: step, *more, image_size=data.config["image_size"]))


def numbers(batch: dict) -> list[int]:
    """Which pictures they are, by their pixels."""
    colours = batch["image"][:, :, 0, 0].long()
    assert (batch["image"] == colours[:, :, None, None]).all()
    assert (colours[:, 2] == 7).all()
    found = colours[:, 0] * 256 + colours[:, 1]
    assert (found % 3 == batch["y"]).all()
    return found.tolist()


def taken(found, positions: int) -> list[int]:
    rows = []
    while len(rows) < positions:
        rows += numbers(next(found))
    return rows[:positions]


# ------------------------------------------------------------------------------------------ the order


@pytest.mark.parametrize("kind", ["parquet", "one large group", "saved"])
def test_every_picture_comes_once_an_epoch_in_an_order_by_seed_and_position_alone(sets, kind):
    data = make_hub_data(sets[kind], *STREAMED, "data.val_fraction=0")
    assert (len(data.train), data.val, data.source.class_names) == (N, None, ["a", "b", "c"])
    order = taken(batches(data), 3 * N)
    epochs = [order[k * N : (k + 1) * N] for k in range(3)]
    for one in epochs:
        assert sorted(one) == list(range(N))
    assert len({*map(tuple, epochs), tuple(taken(batches(data, seed=8), N))}) == 4
    for step in (1, 12, 13, 40, N // 5, N // 5 + 1, 150, 250):  # inside windows, at their ends, over ends of epochs
        assert taken(batches(data, step=step), 80) == order[5 * step : 5 * step + 80]
    assert taken(batches(data, size=N + 9), 2 * N) == order[: 2 * N]  # a batch of more pictures than there are


def test_neighbours_are_parted_as_far_as_is_said(sets):
    """A window is of eight places or more, others in each epoch."""
    data = make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0")
    order = np.array(taken(batches(data), 2 * N))
    places = [{k // 20 for k in order[start : start + 64]} for start in (0, 64, N, N + 64)]
    assert min(map(len, places)) >= 8
    assert places[0] != places[2]
    assert (np.abs(np.diff(order)) == 1).mean() < 0.1


def test_an_index_is_the_number_of_a_picture_in_the_set(sets):
    data = make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0")
    found = batches(data)
    for _ in range(20):
        batch = next(found)
        assert batch["index"].tolist() == numbers(batch)
        assert batch["index"].dtype == batch["y"].dtype


@pytest.mark.parametrize(("accumulate", "world"), [(1, 2), (3, 2), (2, 4)])
def test_ranks_share_the_global_batch_and_decode_only_their_part(sets, accumulate, world, monkeypatch):
    data, decode, decoded = (
        make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0"),
        Decoding.__call__,
        [],
    )
    whole = taken(batches(data, 4 * accumulate * world, step=2), 12 * accumulate * world)
    monkeypatch.setattr(Decoding, "__call__", lambda self, picture: decoded.append(picture) or decode(self, picture))
    shares = [batches(data, 4, 2, accumulate, rank, world) for rank in range(world)]
    steps = [numbers(next(share)) for _ in range(3 * accumulate) for share in shares]
    assert sum(steps, []) == whole
    assert len(decoded) <= world * 4 * (3 * accumulate + 4)  # and what each has ready


def test_random_crops_are_those_of_stored_pictures(tmp_path):
    dice = np.random.default_rng(0)
    pictures = [Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(40)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(tmp_path / "set.parquet")
    words = [*SIZE, "data.random_crop=2", "data.val_fraction=0"]
    data = make_hub_data(tmp_path / "set.parquet", *words, "data.streaming=every_epoch")
    kept = make_hub_data(tmp_path / "set.parquet", *words)
    batch = next(batches(data, size=32))
    stored = random_crops(kept.train.images[batch["index"].numpy()], 4, 7, 0)
    np.testing.assert_array_equal(batch["image"].numpy(), stored)
    assert not np.array_equal(stored, kept.train.images[batch["index"].numpy()][:, :, 1:5, 1:5])


# ------------------------------------------------------------------------------------------ counts and parts


@pytest.mark.parametrize("kind", ["parquet", "one large group", "saved"])
def test_what_is_held_out_is_never_trained_on(sets, kind):
    data = make_hub_data(sets[kind], *STREAMED, "data.val_fraction=0.1")
    trained = taken(batches(data), len(data.train))
    held_out = [256 * int(c[0]) + int(c[1]) for c in data.val.images[:, :, 0, 0]]
    assert 1 < len(held_out) < 0.3 * N
    assert sorted(trained + held_out) == list(range(N))
    assert data.val.labels.tolist() == [k % 3 for k in held_out]
    again = make_hub_data(sets[kind], *STREAMED, "data.val_fraction=0.1")
    assert again.val.fingerprint == data.val.fingerprint
    assert again.train.fingerprint == data.train.fingerprint


@pytest.mark.parametrize("group", [20, 400])
def test_files_that_are_added_move_no_picture(tmp_path, group):
    held_out, shares = [], []
    for sizes in (FILES, (*FILES, 300, 250)):
        folder = write_parquet(tmp_path / f"{len(sizes)}", "train", range(sum(sizes)), sizes, group)
        data = make_hub_data(folder, *STREAMED, "data.val_fraction=0.2")
        held_out.append({256 * int(c[0]) + int(c[1]) for c in data.val.images[:, :, 0, 0]})
        shares.append(len(data.val) / sum(sizes))
    assert held_out[0] == {k for k in held_out[1] if k < N}
    assert all(0.03 < share < 0.45 for share in shares)


def test_rows_that_are_appended_move_no_picture(tmp_path):
    held_out = []
    for n in (N, N + 150):
        make_table(range(n)).save_to_disk(tmp_path / f"{n}")
        data = make_hub_data(tmp_path / f"{n}", *STREAMED, "data.val_fraction=0.2")
        held_out.append({256 * int(c[0]) + int(c[1]) for c in data.val.images[:, :, 0, 0]})
    assert held_out[0] == {k for k in held_out[1] if k < N}


def test_held_out_pictures_are_few(sets, monkeypatch):
    monkeypatch.setattr(store, "MAX_VAL_IMAGES", 23)
    data = make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0.5")
    assert (len(data.train), len(data.val)) == (N - 23, 23)


def test_a_validation_split_is_kept_decoded_and_capped(tmp_path, monkeypatch):
    folder = write_parquet(tmp_path / "set", "train", range(N))
    write_parquet(folder, "validation", range(600, 640), (40,))
    data = make_hub_data(folder, *STREAMED)
    assert (len(data.train), len(data.val)) == (N, 40)
    assert set((data.val.images[:, 0, 0, 0].astype(int) * 256 + data.val.images[:, 1, 0, 0]).tolist()) == {
        *range(600, 640)
    }
    monkeypatch.setattr(store, "MAX_VAL_IMAGES", 10)
    assert len(make_hub_data(folder, *STREAMED).val) == 10


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_only_the_first_so_many(sets, kind):
    data = make_hub_data(sets[kind], *STREAMED, "data.val_fraction=0", "data.max_images=263")
    assert len(data.train) == 263
    assert sorted(taken(batches(data), 263)) == list(range(263))


def test_going_on_reads_little_of_what_was_trained_on(sets, monkeypatch):
    data = make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0")
    others = set(threading.enumerate())
    next(batches(data))
    for thread in set(threading.enumerate()) - others:
        thread.join(10)  # it reads its window ahead, which is not counted
    rows, read = [], pq.ParquetFile.iter_batches
    given, give = [], row_groups.ParquetRows.read_rows
    monkeypatch.setattr(
        row_groups.ParquetRows, "read_rows", lambda *args: (given.append(None) or row for row in give(*args))
    )

    def counted(*args, **more):
        for batch in read(*args, **more):
            rows.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    next(batches(data, step=6 * N // 5 - 40))
    time.sleep(0.2)  # for the window ahead
    assert 0 < len(given) <= 2 * 64 + 8 * 8
    assert sum(rows) <= 2 * 64 + 8 * 8 + 8 * 20  # besides, what comes before in the row group of each lane


def test_row_groups_are_counted_once_and_remembered(sets, tmp_path, monkeypatch):
    words = [sets["parquet"], *STREAMED, f"data.cache_dir={tmp_path / 'cache'}"]
    first = make_hub_data(*words)
    assert len(list((tmp_path / "cache").glob("parts-*.json"))) == 1
    monkeypatch.setattr(row_groups, "_read_metadata", None)
    again = make_hub_data(*words)
    assert (len(again.train), again.train.fingerprint) == (len(first.train), first.train.fingerprint)


@pytest.mark.parametrize("how", ["every_epoch", "true"])
def test_what_is_remembered_of_a_set_is_made_again_where_it_is_damaged(sets, tmp_path, how):
    words = [sets["parquet"], *SIZE, f"data.streaming={how}", f"data.cache_dir={tmp_path / 'cache'}"]
    first = make_hub_data(*words)
    remembered = list((tmp_path / "cache").glob("*.json"))
    for file in remembered:
        file.write_text("")
    again = make_hub_data(*words)
    assert (len(again.train), again.train.fingerprint) == (len(first.train), first.train.fingerprint)
    assert remembered


def test_a_fingerprint_follows_the_pictures_and_not_their_place(sets, tmp_path):
    words = [*STREAMED, "data.val_fraction=0"]
    here = make_hub_data(sets["parquet"], *words).train.fingerprint
    assert make_hub_data(write_parquet(tmp_path / "copy", "train", range(N)), *words).train.fingerprint == here
    others = [
        make_hub_data(write_parquet(tmp_path / "changed", "train", range(3, N + 3)), *words),
        make_hub_data(sets["parquet"], *words, "data.max_images=400"),
        make_hub_data(sets["parquet"], *words, "data.resample=area"),
        make_hub_data(sets["parquet"], *words, "data.label_column=none"),
        make_hub_data(sets["one large group"], *words),
    ]
    assert len({here, *[other.train.fingerprint for other in others]}) == 6


# ------------------------------------------------------------------------------------------ what breaks


@pytest.fixture
def broken(monkeypatch):
    """Reading that breaks off after `after` rows, `times` times."""

    def breaks(after: int, times: int) -> None:
        left, read, lock = [times], row_groups.ParquetRows.read_rows, threading.Lock()

        def now(self, part, skip):
            for k, row in enumerate(read(self, part, skip)):
                with lock:
                    if k >= after and left[0]:
                        left[0] -= 1
                        raise ConnectionError("peer is gone, token hf_abc")
                yield row

        monkeypatch.setattr(row_groups.ParquetRows, "read_rows", now)

    return breaks


def test_what_breaks_off_is_read_again_from_there(sets, broken, caplog):
    data = make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0")
    expected = taken(batches(data), N)
    broken(after=3, times=5)
    assert taken(batches(data), N) == expected
    assert "broke off at row" in caplog.text
    assert "(peer is gone, token hf_...), trying again" in caplog.text


@pytest.mark.parametrize(("address", "code"), [("", Exit.DATA), ("file://", Exit.INTERRUPTED)])
def test_what_stays_broken_ends_the_run(sets, broken, monkeypatch, address, code):
    """Here and at an address, which fsspec reads as it reads those of the hub."""
    files = [f"{address}{file}" for file in sorted(sets["parquet"].iterdir())]
    monkeypatch.setattr("diffusion_lit.data.sources.hf_tables.parquet_files", lambda *args: files)
    data = make_hub_data(sets["parquet"], *STREAMED, "data.val_fraction=0")
    assert sorted(taken(batches(data), N)) == list(range(N))
    broken(after=0, times=1000)
    with pytest.raises(UserError, match=r"train: broke off at row \d+ \(peer is gone.*its last checkpoint") as caught:
        taken(batches(data), N)
    assert caught.value.exit_code == code


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    table = make_table(range(30)).cast_column("image", datasets.Image(decode=False)).to_list()
    table[17]["image"]["bytes"] = b"no picture"
    features = make_table(range(1)).features
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    data = make_hub_data(tmp_path / "set", *STREAMED, "data.val_fraction=0")
    with pytest.raises(UserError, match=r"row 17 of .*set, train: cannot be read as an image") as caught:
        taken(batches(data), 30)
    assert caught.value.exit_code == Exit.DATA


def test_sets_of_other_files_are_refused(tmp_path):
    (tmp_path / "set" / "train" / "a").mkdir(parents=True)
    (tmp_path / "set" / "train" / "a" / "0.png").write_bytes(png(0))
    (tmp_path / "set" / "train" / "b").mkdir()
    (tmp_path / "set" / "train" / "b" / "0.png").write_bytes(png(1))
    with pytest.raises(UserError, match="has other files. Set data.streaming=true") as caught:
        make_hub_data(tmp_path / "set", *STREAMED)
    assert caught.value.exit_code == Exit.DATA


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["metrics_every=100"], "metrics_every=100: needs the training images"),
        (["data.classifier_images=50"], "data.classifier_images=50: needs the training images"),
        (["data.streaming=each_epoch"], "data.streaming=each_epoch: must be bool or every_epoch"),
    ],
)
def test_what_cannot_be_asked_of_it(words, told):
    with pytest.raises(UserError) as caught:
        compose_configs(
            "train", ["experiment=none", "data=huggingface", "data.path=x", "data.streaming=every_epoch", *words]
        )
    assert told in str(caught.value)
    assert caught.value.exit_code == Exit.CONFIG
