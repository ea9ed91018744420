"""The images below a folder, and by reason everything else that lies there."""

import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError

# extensions of images, whose files are not opened to list them; all others are recognized by their first bytes
SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}
# formats that are recognized whatever the extension is; Pillow's others begin like other files, or cannot be decoded
FORMATS = {"PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "ICNS", "PSD", "QOI", "DDS"}
MISNAMED = {"PNG", "JPEG", "GIF", "WEBP"}  # are found under any extension; a raw photo also begins as a TIFF
UNDECODABLE = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}  # of which Pillow reads the header, on most systems
JUNK = {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found"}

DEAD_LINKS = "dead links: restore what they point to, or remove them"
REPEATED = "links to folders that are read already, or that hold this one"
SPECIAL = "special files (pipes, sockets, devices), which are never opened"
UNREADABLE = "files that cannot be opened: get permission to read them"
EMPTY = "empty folders: is a disk not mounted?"
HIDDEN = "hidden or system files"
OWN = "runs and other output of this package: name such a folder as data.root to read its images"
OWN_FILES = (  # by which folders of runs, sweeps, samples, exports, audits and figures are recognized
    (".lock", "train.log"),
    ("config.yaml", "command.txt"),
    ("config.yaml", "model_index.json"),
    ("multirun.yaml",),
    ("manifest.json", "grid.png"),
    ("audit.json",),
    ("figures.json",),
)
# what reads files that are no images for Pillow, unless they begin as those of MISNAMED
READERS = {
    "convert them to PNG, with pillow-heif for example": ".heic .heif .hif",
    "convert them to PNG, with pillow-jxl-plugin for example": ".jxl",
    "convert them to PNG, with rawpy for example": ".raw .cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw",
    "convert them to PNG, with cairosvg for example": ".svg .svgz",
    "convert them to PNG, with imageio for example": ".exr .hdr",
    "convert them to PNG, with pydicom for example": ".dcm .dicom",
    "export them as PNG": ".xcf .kra .clip .ai .eps .ps .pdf .indd .sketch .aseprite .ase .blend .wmf .emf",
    "extract their frames, with ffmpeg for example": ".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv",
    "unpack them": ".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst",
    "read them with data=arrays": ".npy .npz",
    "read them with data=huggingface": ".parquet .arrow",
    "convert them to images or to an .npz": ".h5 .hdf5 .mat .tfrecord .lmdb .pkl .pickle .pt .nii",
    "read the images that they list with data=table": ".csv .tsv",
    "": ".txt .json .jsonl .xml .md .html .htm .yaml .yml .toml .ini .log .py .ipynb .sh .caption .doc .docx .xlsx",
}
ADVICE = {suffix: advice for advice, suffixes in READERS.items() for suffix in suffixes.split()}


@dataclass
class Listing:
    """What lies in a folder.

    Args:
        images: their paths, sorted.
        left_out: the paths of everything else by the reason why it is no image of the data
            set, which may say after a colon what to do.
    """

    images: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: str) -> None:
        """Add a path to those that are left out for this reason."""
        self.left_out.setdefault(reason, []).append(Path(path))


def list_files(folder: Path, recursive: bool = True) -> Listing:
    """Return what lies in a folder, at any depth.

    A link to a folder is followed unless that folder is read anyway, so every folder is
    read once and loops end.

    Raises:
        DataError: if a folder cannot be read.
    """
    found, images, top, read = Listing(), [], os.path.realpath(folder), set()
    folders, links = [(str(folder), top)], []  # with their real paths
    while folders or links:
        path, real = folders.pop() if folders else heapq.heappop(links)
        if real in read or (top != real and f"{top}/".startswith(os.path.join(real, ""))):
            found.leave_out(REPEATED, path)
            continue
        read.add(real)
        entries = _scan(path)
        if not entries:
            found.leave_out(EMPTY, path)
        for entry in entries:
            kind = _classify(entry)
            if kind == "image":
                images.append(entry.path)
            elif kind != "folder":
                found.leave_out(kind, entry.path)
            elif recursive and entry.is_symlink():
                heapq.heappush(links, (entry.path, os.path.realpath(entry.path)))
            elif recursive:
                folders.append((entry.path, os.path.join(real, entry.name)))
    found.images = sorted(map(Path, images))
    for paths in found.left_out.values():
        paths.sort()
    return found


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without links back to it or to one of its parents."""
    here = folder.resolve()
    inside = [Path(entry.path) for entry in _scan(str(folder)) if _classify(entry, opens=False) == "folder"]
    return sorted(path for path in inside if path.resolve() not in (here, *here.parents))


def format_left_out(left_out: dict[str, list[str]]) -> list[str]:
    """Return a line for each reason: the number of paths and the first ones, and what to do."""
    lines = []
    for reason in sorted(left_out, key=lambda reason: (reason == HIDDEN, ":" not in reason)):
        what, _, advice = reason.partition(": ")
        names = left_out[reason]
        lines.append(f"{what}: {len(names):,} ({join_names(names, 3)}){', ' * bool(advice)}{advice}")
    return lines


def merge_left_out(listings: Iterable[dict[str, list]]) -> dict[str, list[str]]:
    """Return what several listings leave out, as text."""
    merged: dict[str, list[str]] = {}
    for left_out in listings:
        for reason, paths in left_out.items():
            for path in paths:
                text = os.fsencode(str(path)).decode(errors="backslashreplace")
                merged.setdefault(reason, []).append(text)
    return merged


def _scan(path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        fault = f"{path}: folder cannot be read ({error.strerror})"
        raise DataError(f"{fault}. Get permission to read it, mount its disk, or move it elsewhere.") from None


def _is_own(folder: str) -> bool:
    """Return whether this package wrote a folder, or outputs/ that holds its runs or no files at all."""
    if os.path.basename(folder) == "outputs":
        folder = next((path for path, _, files in os.walk(folder) if files), None)
    if folder is None:
        return True
    return any(_holds(folder, names) for names in OWN_FILES)


def _holds(folder: str, names: Iterable[str]) -> bool:
    """Return whether a folder has entries of all these names."""
    return all(os.path.exists(os.path.join(folder, name)) for name in names)


def _classify(entry: os.DirEntry, opens: bool = True) -> str:
    """Return "folder", "image", or the reason to leave the entry out; without `opens` no file is opened."""
    if entry.name.startswith(".") or entry.name.lower() in JUNK:
        return HIDDEN
    try:
        if entry.is_dir():
            return OWN if _is_own(entry.path) else "folder"
        if not entry.is_file():
            return DEAD_LINKS if entry.is_symlink() and not os.path.exists(entry.path) else SPECIAL
    except OSError as error:  # a link into a loop or a folder without permission, a failing disk
        if entry.is_symlink():
            return DEAD_LINKS
        raise DataError(f"{entry.path}: cannot be read ({error.strerror}). Repair or remove it.") from None
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in SUFFIXES:
        return "image"
    if opens:
        Image.init()
        formats = FORMATS | ({Image.EXTENSION.get(suffix, "PNG")} - UNDECODABLE) if suffix not in ADVICE else MISNAMED
        try:
            Image.open(entry.path, formats=sorted(formats & set(Image.OPEN))).close()
            return "image"
        except Exception as error:  # decoders raise about ten types
            if isinstance(error, OSError) and error.errno and suffix not in ADVICE:
                return UNREADABLE
    advice = ADVICE.get(suffix)
    return f"{suffix or 'other'} files{f': {advice}' if advice else ''}"
