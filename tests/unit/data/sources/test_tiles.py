"""`data.tile`: every tile that is not empty is an image, cut where margin and spacing say, and named by its place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.data.sources.concat import Concat
from diffusion_lit.data.sources.data_source import fingerprint_images
from diffusion_lit.data.sources.folder import ImageFolder
from diffusion_lit.data.sources.path_table import PathTable
from diffusion_lit.data.sources.tiles import EMPTY, NO_TILE, Tiling
from diffusion_lit.system.errors import DataError, UserError

RNG = np.random.default_rng(0)


def draw_sheet(path: Path, tiles: np.ndarray, margin: int = 0, spacing: int = 0) -> None:
    """Write a sheet of tiles uint8 (R, C, H, W, 4) on red."""
    rows, columns, height, width, _ = tiles.shape
    size = [2 * margin + n * side + (n - 1) * spacing for n, side in ((rows, height), (columns, width))]
    sheet = np.full((*size, 4), (255, 0, 0, 255), np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = margin + row * (height + spacing), margin + column * (width + spacing)
            sheet[top : top + height, left : left + width] = tiles[row, column]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def noise(rows: int, columns: int, height: int = 8, width: int = 8) -> np.ndarray:
    tiles = RNG.integers(0, 256, (rows, columns, height, width, 4), dtype=np.uint8)
    tiles[..., 3] |= 1
    return tiles


def read(source, size, split: str = "train") -> dict[str, np.ndarray]:
    """Return the tiles (H, W, 4) of a source by name."""
    images = source.splits()[split].images
    decode = Decoding(size, 4)
    return {str(images[k]).rpartition("/")[2]: decode(images[k]).transpose(1, 2, 0) for k in range(len(images))}


def test_tiles_are_cut_where_margin_and_spacing_say(tmp_path):
    cases = {(8, 0, 0): (8, 8), (8, 3, 0): (8, 8), (8, 0, 2): (8, 8), (8, 5, 1): (8, 8), ((12, 6), 1, 4): (12, 6)}
    for k, ((tile, margin, spacing), (height, width)) in enumerate(cases.items()):
        tiles = noise(3, 4, height, width)
        draw_sheet(tmp_path / f"{k}" / "sheet.png", tiles, margin, spacing)
        found = read(ImageFolder(str(tmp_path / f"{k}"), "auto", tile, margin, spacing), (height, width))
        assert list(found) == [f"sheet.png[{row},{column}]" for row in range(3) for column in range(4)]
        for row in range(3):
            for column in range(4):
                np.testing.assert_array_equal(found[f"sheet.png[{row},{column}]"], tiles[row, column])


def test_pixels_beyond_the_last_complete_tile_are_not_a_tile():
    assert Tiling(8).count((31, 8)) == (1, 3)
    assert Tiling(8).count((7, 90)) == (11, 0)
    assert Tiling((4, 8), 1, 2).count((28, 10)) == (1, 2)


def test_empty_tiles_are_left_out_and_counted(tmp_path):
    tiles = noise(2, 3)
    tiles[0, 1] = (9, 9, 9, 255)  # one color
    tiles[1, 0, ..., 3] = 0  # transparent, with colors beneath
    tiles[1, 2] = 0
    draw_sheet(tmp_path / "a.png", tiles)
    Image.new("RGB", (5, 30)).save(tmp_path / "small.png")
    source = ImageFolder(str(tmp_path), tile=8)
    assert list(read(source, 8)) == ["a.png[0,0]", "a.png[0,2]", "a.png[1,1]"]
    names = {reason: [name.rpartition("/")[2] for name in names] for reason, names in source.left_out.items()}
    assert names == {EMPTY: ["a.png[0,1]", "a.png[1,0]", "a.png[1,2]"], NO_TILE: ["small.png"]}
    with pytest.raises(DataError, match=r"data.tile=64: none of the 2 images has a tile that is not empty.*a.png"):
        ImageFolder(str(tmp_path), tile=64).splits()


def test_sheets_of_every_mode(tmp_path):
    rgb = RNG.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    pictures = {
        "palette": Image.fromarray(rgb).quantize(16), "gray": Image.fromarray(rgb[..., 0]),
        "rgb": Image.fromarray(rgb), "bits": Image.fromarray(rgb[..., 0] > 127),
    }  # fmt: skip
    pictures["hole"] = pictures["palette"].copy()
    pictures["hole"].info["transparency"] = 3
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    found = read(ImageFolder(str(tmp_path), tile=8), 8)
    for name in pictures:
        whole = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGBA"))
        for column in range(2):
            tile = found[f"{name}.png[0,{column}]"]
            np.testing.assert_array_equal(tile, whole[:, 8 * column : 8 * column + 8])
    deep = RNG.integers(0, 4096, (8, 16), dtype=np.uint16)
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep).save(tmp_path / "deep" / "a.png")
    tile = ImageFolder(str(tmp_path / "deep"), tile=8).splits()["train"].images[1]
    assert (np.abs(Decoding(8, 1, value_range=(0, 4095))(tile)[0] - deep[:, 8:] / 4095 * 255) <= 0.51).all()


def test_classes_tables_and_several_sources(tmp_path):
    for name in ("cat", "dog"):
        draw_sheet(tmp_path / "classes" / name / "sheet.png", noise(2, 2))
    source = ImageFolder(str(tmp_path / "classes"), tile=8)
    assert (source.class_names, source.splits()["train"].labels.tolist()) == (["cat", "dog"], [0] * 4 + [1] * 4)
    table = tmp_path / "table.csv"
    table.write_text("path,label,split\nclasses/cat/sheet.png,a,train\nclasses/dog/sheet.png,b,val\n", encoding="utf-8")
    splits = PathTable(str(table), tile=8).splits()
    assert [splits[name].labels.tolist() for name in ("train", "val")] == [[0] * 4, [1] * 4]
    both = Concat([str(tmp_path / "classes"), f"{tmp_path}/classes/"], tile=8).splits()["train"]
    assert both.labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4


def test_tiles_of_one_sheet_go_to_either_split_and_train(tmp_path):
    draw_sheet(tmp_path / "in" / "sheet.png", noise(10, 20))
    for _ in range(2):  # decoded, and from the cache
        data = ImageDataModule(
            ImageFolder(str(tmp_path / "in"), tile=8),
            8,
            channels=4,
            val_fraction=0.3,
            cache_dir=str(tmp_path / "cache"),
        )
        data.setup()
        assert len(data.train) + len(data.val) == 200
        assert 30 < len(data.val) < 90


def test_a_broken_sheet_is_a_broken_image(tmp_path):
    draw_sheet(tmp_path / "good.png", noise(2, 2))
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"(?s)1 of 5 images cannot be read.*cut.png: cannot be read as an image"):
        ImageDataModule(ImageFolder(str(tmp_path), tile=8), 8, channels=4).setup()


def test_the_fingerprint_follows_the_sheets_and_the_cut(tmp_path):
    draw_sheet(tmp_path / "a.png", noise(4, 4))

    def fingerprint(**settings) -> str:
        return fingerprint_images(ImageFolder(str(tmp_path), **settings).splits()["train"].images)

    first = fingerprint(tile=8)
    assert fingerprint(tile=8) == first
    assert fingerprint(tile=16) != first
    assert fingerprint(tile=8, tile_spacing=1) != first
    draw_sheet(tmp_path / "a.png", noise(4, 4))
    assert fingerprint(tile=8) != first


def test_margin_and_spacing_need_a_tile():
    with pytest.raises(UserError, match="data.tile_spacing=1: has no effect without data.tile"):
        compose_configs("train", ["data=image_folder", "data.root=in", "data.tile_spacing=1"])
