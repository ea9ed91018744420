"""Odd images and odd folders: what is not pixels fails no image, and nothing in a folder is left out silently."""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.data.decoding import Decoding, Encoded
from diffusion_lit.system.errors import UserError
from tests.cases import each
from tests.runs import TINY, run

RGB = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
TURNED = np.rot90(RGB).copy()  # stored so, upright with orientation 6


def encode(array: np.ndarray, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **settings)
    return file.getvalue()


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", more: bytes = b"") -> bytes:
    """An EXIF block of tags (tag, type, count, value), by hand, for Pillow writes only valid ones."""
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    begin = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return b"Exif\0\0" + begin + body + bytes(4) + more


def short(value: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}H", value)


def png(*chunks: tuple[bytes, bytes], array: np.ndarray = RGB, crc: int = 0, at: int = 33, **settings) -> bytes:
    """A PNG with more chunks after its header, or before its end; `crc` other than 0 makes their checksums wrong."""
    data = encode(array, **settings)
    at = at % len(data)
    sealed = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b) ^ crc) for k, b in chunks]
    return data[:at] + b"".join(sealed) + data[at:]


def jpeg(*segments: tuple[int, bytes], array: np.ndarray = RGB) -> bytes:
    data = encode(array, "JPEG", quality=100, subsampling=0)
    return data[:2] + b"".join(b"\xff" + bytes([m]) + struct.pack(">H", len(s) + 2) + s for m, s in segments) + data[2:]


def tiff(tag: int, kind: int, count: int, value: int) -> bytes:
    """A TIFF in which one description has another type, count or place than it says."""
    data = bytearray(encode(RGB, "TIFF", description="twenty letters of text", artist="somebody else and more"))
    (start,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, start)
    at = next(a for a in range(start + 2, start + 2 + 12 * n, 12) if struct.unpack_from("<H", data, a) == (tag,))
    struct.pack_into("<HII", data, at + 2, kind, count, value)
    return bytes(data)


def cut_metadata_of_webp() -> bytes:
    data = encode(RGB, "WEBP", lossless=True, xmp=b"<x/>" * 20)
    return data[: data.index(b"XMP ") + 20]


HUGE = zlib.compress(b"x" * 3_000_000)
SIX = exif((0x0112, 3, 1, short(6)))
UPRIGHT = {  # decode to RGB, although what is not pixels is odd
    "huge zTXt": png((b"zTXt", b"comment\0\0" + HUGE)),
    "huge zTXt after the pixels": png((b"zTXt", b"comment\0\0" + HUGE), at=-12),
    "huge iTXt": png((b"iTXt", b"key\0\1\0\0\0" + HUGE)),
    "huge profile": png((b"iCCP", b"sRGB\0\0" + HUGE)),
    "100 texts of 1 MB": png(*[(b"zTXt", b"key%d\0\0" % k + zlib.compress(bytes(10**6))) for k in range(100)]),
    "profile of an unknown method": png((b"iCCP", b"sRGB\0\7abc")),
    "profile without a name": png((b"iCCP", b"sRGB")),
    "text of an unknown method": png((b"zTXt", b"key\0\7abc")),
    "wrong checksum of text": png((b"tEXt", b"key\0text"), crc=1),
    "wrong checksum of a profile": png((b"iCCP", b"sRGB\0\0" + zlib.compress(b"icc")), crc=1),
    "wrong checksum of transparency": png((b"tRNS", bytes(6)), crc=1),
    "half a transparent color": png((b"tRNS", bytes(3))),
    "half a resolution": png((b"pHYs", b"\0\0")),
    "empty gamma": png((b"gAMA", b"")),
    "half an sRGB": png((b"sRGB", b"")),
    "broken animation header": png((b"acTL", b"\0\0")),
    "broken frames": png((b"acTL", struct.pack(">II", 3, 0)), (b"fcTL", bytes(26)), (b"fcTL", bytes(26))),
    "EXIF of a PNG that is text": png((b"eXIf", b"seventy-two")),
    "wrong checksum of EXIF": png((b"eXIf", SIX[6:]), crc=1),
    "orientation 0": png((b"eXIf", exif((0x0112, 3, 1, short(0)))[6:])),
    "orientation 9": png((b"eXIf", exif((0x0112, 3, 1, short(9)))[6:])),
    "orientation in text": png((b"eXIf", exif((0x0112, 2, 2, b"6"))[6:])),
    "two orientations in one": png((b"eXIf", exif((0x0112, 3, 2, short(6) * 2))[6:])),
    "EXIF that begins beyond its end": png((b"eXIf", b"II*\0\xff\xff\xff\x7f")),
    "EXIF of 65,535 tags": png((b"eXIf", b"II*\0\x08\0\0\0\xff\xff")),
    "TIFF with an endless description": tiff(270, 2, 2**32 - 1, 8),
    "TIFF with a description elsewhere": tiff(270, 2, 22, 2**31),
    "TIFF with an unknown type": tiff(315, 77, 3, 0),
    "WebP cut in its text": cut_metadata_of_webp(),
}
LOSSY = {  # the same of JPEG, whose pixels are near
    "JFIF cut short": jpeg((0xE0, b"JFIF\0")),
    "Adobe cut short": jpeg((0xEE, b"Adobe")),
    "EXIF that is text": jpeg((0xE1, b"Exif\0\0seventy-two")),
    "EXIF without end": jpeg((0xE1, SIX[:18])),
    "parts of a profile missing": jpeg((0xE2, b"ICC_PROFILE\0\1\7abc")),
    "Photoshop cut short": jpeg((0xED, b"Photoshop 3.0\x008BIM\x03\xed\0")),
    "comment of 64 kB": jpeg((0xFE, b"x" * 65000)),
    "two frames that are not there": jpeg((0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")),
    "orientation only in XMP": jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>")),
}
RESOLUTION = (0x011A, 2, 12, struct.pack("<I", 200))  # text, where a fraction belongs
ROTATED = {  # stored turned; the orientation alone is read
    "resolution that is text": jpeg((0xE1, exif((0x0112, 3, 1, short(6)), RESOLUTION)), array=TURNED),
    "tags before it lead nowhere": jpeg(
        (0xE1, exif((0x010E, 2, 9**8, b"\xff" * 4), (0x010F, 99, 7, b"\xff" * 4), (0x0112, 3, 1, short(6)))),
        array=TURNED,
    ),
    "big endian": jpeg((0xE1, exif((0x0112, 3, 1, short(6, ">")), order=">")), array=TURNED),
    "EXIF after the pixels of a PNG": png((b"eXIf", SIX[6:]), array=TURNED, at=-12),
    "16 bits": png((b"eXIf", SIX[6:]), array=TURNED[..., 0].astype(np.uint16) * 257),
}
REFUSED = {  # and the message
    "the pixels end early": (encode(RGB)[:900], "truncated"),
    "wrong checksum of the header": (encode(RGB)[:29] + bytes(4) + encode(RGB)[33:], "cannot be read"),
    "a web page": (b" <!DOCTYPE html><html>404", "a web page: download the image again"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "a photo of a phone": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo: convert it to PNG"),
    "nothing": (b"", "the file is empty"),
    "25x24 are too many": (encode(np.zeros((24, 25, 3), np.uint8)), "25x24 are more than 576 pixels. Raise data.max_"),
}
DECODE = Decoding(24, 3, value_range=(0, 65535), max_pixels=24 * 24)


def decode(data: bytes) -> np.ndarray:
    return DECODE(Encoded("odd", data)).transpose(1, 2, 0)


@each("name", UPRIGHT)
def test_what_is_not_pixels_fails_no_image(name):
    np.testing.assert_array_equal(decode(UPRIGHT[name]), RGB)


@each("name", LOSSY)
def test_segments_fail_no_jpeg(name):
    assert np.abs(decode(LOSSY[name]).astype(int) - RGB).max() <= 4


@each("name", ROTATED)
def test_the_orientation_is_read_alone(name):
    expected = RGB[..., :1] if name == "16 bits" else RGB
    assert np.abs(decode(ROTATED[name]).astype(int) - expected).max() <= 4


@each("name", REFUSED)
def test_what_has_no_pixels_is_refused_with_the_reason(name):
    data, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)):
        decode(data)


# ------------------------------------------------------------------------------------------ in a folder


def link(to: str | Path) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


FOLDER = {  # name -> content or function that makes it, and the line of it without the names; None: an image
    "avif.avif": (encode(RGB, "AVIF"), None),
    "jfif.jfif": (LOSSY["comment of 64 kB"], None),
    "no_extension": (encode(RGB), None),
    "targa.tga": (encode(RGB, "TGA"), None),
    "other.backup": (encode(RGB, "WEBP"), None),
    "jpeg2000.jp2": (encode(RGB, "JPEG2000"), None),
    "of_a_phone.heic": (encode(RGB, "JPEG"), None),
    "named.txt": (encode(RGB, "GIF"), None),
    "text.png": (UPRIGHT["huge zTXt"], None),
    "turned.jpg": (ROTATED["resolution that is text"], None),
    "linked.png": (link("no_extension"), None),
    "sub/more": (link("../../elsewhere"), None),
    "sub/again": (link("../../elsewhere"), "links to folders that are read already, or that hold this one: 2 ("),
    "sub/up": (link(".."), "links to folders that are read already"),
    "gone.png": (link("nowhere.png"), "dead links: 2 ("),
    "itself": (link("itself"), "dead links"),
    "pipe.png": (os.mkfifo, "special files (pipes, sockets, devices), which are never opened: 2 ("),
    "zero.png": (link("/dev/zero"), "special files"),
    "sub/unmounted": (Path.mkdir, "empty folders: 1 ("),
    "photo.heic": (b"", ".heic files: 1 ("),
    "array.npy": (b"", "read them with data=arrays"),
    "table.parquet": (b"", "read them with data=huggingface"),
    "photos.zip": (b"", "unpack them"),
    "caption.txt": (b"a cat", ".txt files: 1 ("),
    "README": (b"text", "other files: 1 ("),
    ".DS_Store": (b"", "hidden or system files: 2 ("),
    "Thumbs.db": (b"", "hidden or system files"),
}


def make_folder(root: Path) -> Path:
    (root.parent / "elsewhere").mkdir()
    for k in range(3):
        Image.fromarray(np.roll(RGB, k + 1, 0)).save(root.parent / "elsewhere" / f"{k}.png")
    (root / "sub").mkdir(parents=True)
    for name, (content, _) in FOLDER.items():
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            content(root / name)
    return root


def test_audit_and_train_count_everything_in_a_folder(tmp_path):
    make_folder(tmp_path / "odd")
    images = sum(line is None for _, line in FOLDER.values()) - 1 + 3  # the link to a folder has three
    printed = run("audit", "data=image_folder", "data.root=odd", "near=0", cwd=tmp_path)
    found = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert sum(found["images"].values()) == images
    assert found["broken"] == []
    assert sum(map(len, found["left_out"].values())) == len(FOLDER) - images + 3 - 1
    options = ["data=image_folder", "data.root=odd", "data.image_size=8", "experiment=none", "max_steps=2"]
    trained = run("train", *TINY, *options, "run_dir=run", "logger=csv", cwd=tmp_path)
    for output in (printed, trained):
        for name, (_, line) in FOLDER.items():
            assert line is None or line in output, f"{name}: {line}\n{output}"
    assert len(re.findall(r"^left out", trained, re.MULTILINE)) == 1
