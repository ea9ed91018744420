"""What files hold besides pixels: the orientation is read alone, and nothing else decides whether an image is read."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

TRNS_BYTES = {0: (2, 2), 2: (6, 6), 3: (1, 256)}  # color type of a PNG -> bytes of a valid tRNS chunk
ORIENTATION = 0x0112
# tags of a TIFF that its pixels need: size, bits, compression, layout, palette, color space
TIFF_TAGS = {
    254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 330, 332, 338,
    339, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532,
}  # fmt: skip
CONTENTS = (  # first bytes, and what they say of a file that is no image
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file with git lfs pull"),
    (b"<!doctype html", "a web page: download the image again"),
    (b"<html", "a web page: download the image again"),
    (b"<svg", "an SVG drawing: convert it to PNG"),
    (b"%pdf", "a PDF document: export it as PNG"),
)
HEIF_BRANDS = (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf")


def describe_content(data: bytes) -> str:
    """Return what the bytes of a file are that Pillow does not know."""
    if not data:
        return "the file is empty"
    if data[4:11] in HEIF_BRANDS:
        return "a HEIC photo: convert it to PNG, with pillow-heif for example"
    begin = data[:200].lstrip().lower()
    return next((text for prefix, text in CONTENTS if begin.startswith(prefix)), "unknown image format")


def read_orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block, 1 to 8; 1, upright, without a valid one. Other tags are not read."""
    for _, tag, kind, n, value in _list_entries(exif.removeprefix(b"Exif\0\0")):
        if tag == ORIENTATION:
            return value if kind == 3 and n == 1 and 1 <= value <= 8 else 1
    return 1


def _list_entries(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield place, tag, type, count and first two bytes of the entries of a TIFF's first directory, up to a damage."""
    order = "<" if data.startswith(b"II") else ">"
    with suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            yield place, *struct.unpack_from(f"{order}HHIHxx", data, place)


def strip_metadata(data: bytes) -> bytes:
    """Return a PNG, TIFF, JPEG or WebP with what its pixels and orientation need; other files as they are.

    Damaged parts, such as the rest of half a file, are kept for the decoder to
    refuse.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data[:8] + b"".join(_keep_png_chunks(data))
    if data.startswith((b"II*\0", b"MM\0*")):
        return _clear_tiff_entries(data)
    if data.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd8" + b"".join(_keep_jpeg_segments(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        body = b"WEBP" + b"".join(_keep_webp_chunks(data))
        return b"RIFF" + struct.pack("<I", len(body)) + body
    return data


def _keep_png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the critical chunks, and valid ones of transparency, EXIF and the number of frames."""
    at, color_type = 8, data[25] if len(data) > 25 else 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        limits = {b"tRNS": TRNS_BYTES.get(color_type, (1, 0)), b"eXIf": (8, 2**31), b"acTL": (8, 8)}
        low, high = limits.get(kind, (1, 0))
        is_valid = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        is_critical = not kind[0] & 0x20
        if is_critical or (low <= length <= high and is_valid):
            yield data[at:end]
        at = end
    yield data[at:]


def _clear_tiff_entries(data: bytes) -> bytes:
    """Return the file with every other tag of its first image replaced by a zero, where it is not damaged."""
    order, cleared = "<" if data.startswith(b"II") else ">", bytearray(data)
    for place, tag, kind, n, _ in _list_entries(data):
        if tag not in TIFF_TAGS and (tag, kind, n) != (ORIENTATION, 3, 1):
            struct.pack_into(f"{order}HI4s", cleared, place + 2, 1, 1, bytes(4))
    return bytes(cleared)


def _keep_jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Yield all but comments and application segments; JFIF, EXIF and Adobe, which is about colors, are kept."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + max(int.from_bytes(data[at + 2 : at + 4]), 2)
        marker, body = data[at + 1], data[at + 4 : end]
        is_known = body.startswith(b"Exif\0\0") or (len(body) > 11 and body.startswith((b"JFIF", b"Adobe")))
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or is_known:
            yield data[at:end]
        at = end
    yield data[at:]


def _keep_webp_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the chunks of pixels, and the header without the bits of profile, EXIF and XMP."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        if kind == b"VP8X":
            yield data[at : at + 8] + bytes([data[at + 8] & ~0x2C]) + data[at + 9 : end]
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            yield data[at:end]
        at = end
