"""What lies in a folder of images: every kind of file is an image or is counted with its reason."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.data.sources import listing
from diffusion_lit.data.sources.concat import Concat
from diffusion_lit.data.sources.folder import UNUSED, ImageFolder
from diffusion_lit.data.sources.listing import format_left_out, list_files
from diffusion_lit.data.sources.torchvision import TorchvisionSet
from diffusion_lit.system.errors import Exit, UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(path, None if path.suffix else "PNG")


def names_of(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_every_format_is_found_by_its_content(tmp_path):
    names = ["a.avif", "a.jfif", "a.apng", "a.tga", "a.jp2", "a.ppm", "a.pcx", "a.ico", "a.sgi", "a.dds", "a.im"]
    save(*[tmp_path / name for name in [*names, "noextension"]])
    for name, kind in (("x.foo", "PNG"), ("UPPER.JPEG", "JPEG"), ("x.bak", "WEBP"), ("x.part", "TIFF")):
        Image.fromarray(PIXELS).save(tmp_path / name, kind)
        names.append(name)
    found = list_files(tmp_path)
    assert names_of(found.images, tmp_path) == sorted([*names, "noextension"])
    assert found.left_out == {}


def test_what_is_no_image_is_counted_with_what_would_read_it(tmp_path):
    save(tmp_path / "a.png")
    data = {
        "b.heic": b"\0\0\0\x18ftypheic", "b.svg": b"<svg/>", "b.npy": b"\x93NUMPY", "b.parquet": b"PAR1", "b.zip": b"",
        "b.txt": b"P6 is no image", "b.dng": b"II*\0", "b.mp4": b"", "README": b"text", "b.xyz": b"#", "b.tga": b"",
        ".DS_Store": b"", "Thumbs.db": b"", "desktop.ini": b"", "._a.png": b"", ".hidden.png": b"", "c.h5": b"",
    }  # fmt: skip
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "__MACOSX").mkdir()
    found = list_files(tmp_path)
    assert names_of(found.images, tmp_path) == ["a.png"]
    counts = {reason.partition(":")[0]: names_of(paths, tmp_path) for reason, paths in found.left_out.items()}
    own = {f"{Path(name).suffix or 'other'} files": [name] for name in data if name[0] in "bc" or name == "README"}
    junk = {listing.HIDDEN: sorted([name for name in data if name[0] in ".Td"] + ["__MACOSX"])}
    assert counts == own | junk
    lines = "\n".join(format_left_out({reason: list(map(str, paths)) for reason, paths in found.left_out.items()}))
    for text in (
        ".heic files: 1 (",
        "data=arrays",
        "data=huggingface",
        "rawpy",
    ):
        assert text in lines
    assert lines.splitlines()[-1].startswith("hidden or system files: 6 (")
    assert "and 3 more" in lines


def test_links_are_followed_once_loops_end_and_special_files_are_not_opened(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    save(
        root / "a" / "1.png",
        root / "b" / "2.png",
        elsewhere / "3.png",
        elsewhere / "deep" / "4.png",
        tmp_path / "5.png",
    )
    links = {
        "a/more": "../../elsewhere", "b/again": "../../elsewhere", "a/up": "..", "b/top": "../..", "b/self": "self",
        "b/deep": "../../elsewhere/deep", "a/b": "../b", "b/file.png": "../../5.png", "b/gone.png": "nowhere.png",
        "b/gone": "nowhere/at/all", "a/zero.png": "/dev/zero", "a/here": ".",
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    (elsewhere / "back").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(root)  # the path of a socket is short
        unix.bind("socket.jpg")
        os.chdir(here)
        found = list_files(root)
    (root / "empty").mkdir()
    assert names_of(found.images, root) == ["a/1.png", "a/more/3.png", "a/more/deep/4.png", "b/2.png", "b/file.png"]
    assert {reason: names_of(paths, root) for reason, paths in found.left_out.items()} == {
        listing.DEAD_LINKS: ["b/gone", "b/gone.png", "b/self"],
        listing.SPECIAL: ["a/zero.png", "pipe.png", "socket.jpg"],
        listing.REPEATED: ["a/b", "a/here", "a/more/back", "a/up", "b/again", "b/deep", "b/top"],
    }
    assert names_of(list_files(root).left_out[listing.EMPTY], root) == ["empty"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a" / "1.png", tmp_path / "b" / "2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"/b: folder cannot be read \(Permission denied\)") as caught:
        ImageFolder(str(tmp_path)).splits()
    assert caught.value.exit_code == Exit.DATA


def test_usual_images_are_listed_without_opening_them(tmp_path, monkeypatch):
    for k in range(100):
        (tmp_path / f"{k}.jpg").write_bytes(b"")
        (tmp_path / f"{k}.txt").write_bytes(b"")
    monkeypatch.setattr(Image, "open", None)
    assert len(list_files(tmp_path).images) == 100


def test_folders_without_images_say_what_they_hold(tmp_path):
    save(tmp_path / "cats" / "1.png")
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "1.heic").write_bytes(b"")
    (tmp_path / "birds").symlink_to("cats")
    for root, texts in (
        (
            tmp_path,
            ("class folders without images: birds, dogs", ".heic files: 1 (", "links to folders that are"),
        ),
        (tmp_path / "dogs", ("no images found", ".heic files: 1 (")),
        (tmp_path / "cats" / "1.png", ("is a file",)),
    ):
        with pytest.raises(UserError) as caught:
            ImageFolder(str(root)).splits()
        assert all(text in str(caught.value) for text in texts), caught.value


def test_other_sources_pass_it_on_and_unused_splits_are_named(tmp_path):
    save(
        tmp_path / "train" / "1.png",
        tmp_path / "val" / "2.png",
        tmp_path / "test" / "3.png",
        tmp_path / "valid" / "4.png",
    )
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "train" / "1.svg").write_text("")
    source = ImageFolder(str(tmp_path))
    used = [path.parent.name for split in source.splits().values() for path in split.images]
    assert used in (["train", "val"], ["train", "valid"])
    assert len(source.left_out[UNUSED]) == 2
    assert str(tmp_path / "test") in source.left_out[UNUSED]
    assert source.left_out[".txt files"] == [str(tmp_path / "notes.txt")]
    for other in (Concat([str(tmp_path)]), TorchvisionSet("celeba", str(tmp_path))):
        assert other.left_out == source.left_out


def test_what_this_package_wrote_beside_the_images_is_left_out_and_named(tmp_path):
    run = "outputs/images/2026-01-01"
    written = {
        "a run": [f"{run}/.lock", f"{run}/train.log", f"{run}/samples/step-00000001.png"],
        "a sweep": ["outputs/sweep/multirun.yaml", "outputs/sweep/0/grid.png"],
        "an audit and a run by name": ["audit/audit.json", "audit/images.png", "my/config.yaml", "my/command.txt"],
        "samples": ["new/manifest.json", "new/grid.png", "new/00000.png"],
        "a run that was removed": ["outputs/images/"],
    }
    images = {"classes": ["cat/1.png", "dog/2.png"], "flat": ["1.png"], "splits": ["train/1.png", "val/2.png"]}
    for layout, names in images.items():
        for kind, others in written.items():
            root = tmp_path / layout / kind
            save(*(root / name for name in [*names, *others] if name.endswith(".png")))
            for name in others:
                (root / name).mkdir(parents=True) if name.endswith("/") else None
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).touch()
            source = ImageFolder(str(root))
            splits = source.splits()
            assert names_of([path for split in splits.values() for path in split.images], root) == names, (layout, kind)
            assert source.class_names == (["cat", "dog"] if layout == "classes" else []), (layout, kind)
            left_out = names_of(map(Path, source.left_out[listing.OWN]), root)
            tops = {name.split("/")[0] for name in others}
            assert left_out == sorted(tops), (layout, kind)
    save(tmp_path / "theirs" / "outputs" / "1.png", tmp_path / "theirs" / "inputs" / "1.png")
    assert ImageFolder(str(tmp_path / "theirs")).class_names == ["inputs", "outputs"]
    assert len(list_files(tmp_path / "flat" / "samples" / "new").images) == 2  # named, its images are read
