"""Captions of images: from file names, text files beside the images, and columns of tables."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from diffusion_lit.diffusion.seeds import item_seed
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError

Captions = Sequence[tuple[str, ...]]  # of each image; an empty tuple: it has none

COLUMNS = ("text", "caption", "prompt")  # usual names; the first that exists is used
METADATA = "metadata.jsonl"  # of an image folder of the Hugging Face hub
RARE = 2  # images; a word of fewer is rare
WORD = re.compile(r"[^\W_]+")
# from a letter to a digit and back, and before the first capital of a word: goldDragon2, HTMLPage
BORDERS = re.compile(
    r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-ZÀ-Þ])(?=[A-ZÀ-Þ][a-zß-ÿ])"
)


def caption_from_path(path: Path, root: Path) -> str:
    """Return the words of a file name and of the folders that it lies in, without numbers and single Latin letters.

    >>> caption_from_path(Path("icons/weapons/goldenSword_02.png"), Path("icons"))
    'weapons golden sword'
    """
    parts = path.relative_to(root).with_suffix("").parts if path.is_relative_to(root) else (path.stem,)
    text = BORDERS.sub(" ", unicodedata.normalize("NFC", " ".join(parts)))
    words = [word for word in re.split(r"[\W_]+", text.lower()) if word and not word.isdigit()]
    words = [word for word in words if len(word) > 1 or not word.isascii()]  # sword_02a is the variant a
    return " ".join(dict.fromkeys(words))  # a folder and its files often share words


def clean_caption(text: object) -> str:
    """Return a text as one line in NFC, without control characters; "" for None and NaN."""
    if text is None or text != text:
        return ""
    words = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in str(text)).split()
    return unicodedata.normalize("NFC", " ".join(words))


def split_captions(texts: Sequence[object]) -> tuple[str, ...]:
    """Return the captions that are not empty, each once."""
    return tuple(dict.fromkeys(caption for text in texts if (caption := clean_caption(text))))


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case.

    >>> split_words("A golden Dragon, young_1")
    ['a', 'golden', 'dragon', 'young', '1']
    """
    return WORD.findall(text.lower())


def read_sidecar(path: Path) -> tuple[str, ...]:
    """Return the captions of `<image>.txt`, one a line; none without the file.

    Raises:
        DataError: if the file cannot be read as UTF-8.
    """
    return split_captions(_read_lines(path.with_suffix(".txt")))


def read_metadata(folder: Path) -> dict[Path, tuple[str, ...]]:
    """Return the captions of images by path, from the file METADATA in a folder; {} without it.

    Raises:
        DataError: if the file cannot be read as UTF-8, or a line is no JSON object with
            `file_name`.
    """
    file, captions = folder / METADATA, {}
    for number, line in enumerate(_read_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path = folder / row["file_name"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{file}, line {number}: must be a JSON object with file_name.") from None
        values = next((row[column] for column in COLUMNS if column in row), None)
        captions[path] = split_captions(values if isinstance(values, list) else [values])
    return captions


def _read_lines(file: Path) -> list[str]:
    """Return the lines of a text file; none without the file."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as text in UTF-8 ({error}). Save it so, or remove it.") from None


def list_captions(kind: str, paths: Sequence[Path], root: Path) -> Captions | None:
    """Return the captions of files.

    Args:
        kind: "none"; "filename"; "sidecar"; "column", of METADATA in `root`; or "auto", the first
            of column, sidecar and filename that any image has.
        paths: of the images.
        root: folders below it are part of a caption from a file name.

    Raises:
        DataError: if no image has a caption.
    """
    if kind == "none":
        return None
    for name, captions in _read_kinds(kind, paths, root):
        if any(captions):
            return captions
        if kind != "auto":
            advice = {"sidecar": "<image>.txt beside the images", "column": f"{root / METADATA} with a text"}
            needed = advice.get(name, "words in the names of the files")
            raise DataError(f"data.captions={name}: no image has a caption. It needs {needed}.")
    return [()] * len(paths)


def _read_kinds(kind: str, paths: Sequence[Path], root: Path) -> Iterator[tuple[str, Captions]]:
    if kind in ("auto", "column"):
        rows = read_metadata(root)
        yield "column", [rows.get(path, ()) for path in paths]
    if kind in ("auto", "sidecar"):
        yield "sidecar", list(map(read_sidecar, paths))
    if kind in ("auto", "filename"):
        yield "filename", [split_captions([caption_from_path(path, root)]) for path in paths]


def add_colors(captions: Captions | None, colors: Iterable[Sequence[str]]) -> Captions:
    """Return captions with the color words of each image in front, without those that a caption has.

    Args:
        captions: None, or some or none of each image; the colors are the caption of an image
            without one.
        colors: of each image, see `diffusion_lit.imaging.color_names.name_colors`.
    """
    colors = list(colors)
    added = []
    for own, words in zip(captions or [()] * len(colors), colors, strict=True):
        texts = []
        for text in own or ("",):
            known = split_words(text.lower().replace("grey", "gray"))
            texts.append(" ".join([*(word for word in words if word not in known), text]))
        added.append(split_captions(texts))
    return added


def add_class_names(captions: Captions, labels: Sequence[int], class_names: Sequence[str]) -> Captions:
    """Return captions with the words of the class of each image in front, unless a caption has all of them.

    Args:
        captions: some or none of each image; the class is the caption of an image without one.
        labels: of the images.
        class_names: by label.
    """
    names = [split_words(name) for name in class_names]
    added = []
    for own, label in zip(captions, labels, strict=True):
        words = names[label]
        texts = [text if {*words} <= {*split_words(text)} else " ".join([*words, text]) for text in own or ("",)]
        added.append(split_captions(texts))
    return added


def complete_captions(
    captions: Captions | None,
    labels: Sequence[int],
    class_names: Sequence[str],
    colors: Iterable[Sequence[str]] | None = None,
) -> Captions | None:
    """Return the captions that the network gets: the colors of an image, the words of its class, its own caption.

    Args:
        captions: None if the source has none; then the result has only captions of colors.
        labels: of the images.
        class_names: by label; empty without classes.
        colors: of each image; None: captions without colors.
    """
    if class_names and (colors is not None or any(captions or ())):
        captions = add_class_names(captions or [()] * len(labels), labels, class_names)
    return captions if colors is None else add_colors(captions, colors)


def require_captions(captions: Iterable[Sequence[str]] | None) -> None:
    """Raise DataError if no image has a caption, which a text encoder needs."""
    if not any(captions or ()):
        raise DataError(
            "text_encoder: the training images have no captions. Set data.captions or data.caption_column, where the "
            "data has one of them, or text_encoder=none."
        )


def select_captions(captions: Captions, rows: Sequence[int], seed: int, position: int | None) -> list[str]:
    """Return a caption for each of these images; "" for one without.

    Args:
        captions: of all images.
        rows: numbers of images.
        seed: of the run.
        position: of the first of them in the stream, which decides between several captions of
            an image; None: the first.
    """
    texts = []
    for k, row in enumerate(rows):
        own = captions[row] or ("",)
        number = 0 if position is None or len(own) == 1 else item_seed(seed, "caption", position + k) % len(own)
        texts.append(own[number])
    return texts


def describe_captions(captions: Captions) -> dict:
    """Return the facts that `audit` prints: how many images have captions, their words and lengths.

    Words are counted once for each image.
    """
    counts = Counter(word for own in captions for word in {word for text in own for word in text.lower().split()})
    lengths = [len(text.split()) for own in captions for text in own]
    return {
        "images_without": sum(not own for own in captions),
        "captions": len(lengths),
        "different": len({text for own in captions for text in own}),
        "words": len(counts),
        "words_per_caption": [min(lengths), max(lengths)] if lengths else [0, 0],
        "frequent": sorted(counts, key=lambda word: (-counts[word], word))[:10],
        "rare": sorted(word for word, count in counts.items() if count < RARE),
    }


def format_captions(facts: Mapping) -> str:
    """Return these facts as a line."""
    low, high = facts["words_per_caption"]
    return (
        f"{facts['captions']:,} ({facts['different']:,} different) of {low} to {high} words, "
        f"{facts['images_without']:,} images without; {facts['words']:,} words, "
        f"{len(facts['rare']):,} in one image only; frequent: {join_names(facts['frequent'], 10)}"
    )
