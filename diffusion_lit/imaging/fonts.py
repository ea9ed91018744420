"""Fonts for the text of users: an installed one that has the characters, or a warning, once."""

import logging
from collections.abc import Iterable
from functools import cache

log = logging.getLogger(__name__)
PLAIN = 0x250  # characters below it are Latin, which every default font has
INVISIBLE = set("\n\t\u200b\u200c\u200d\ufe0e\ufe0f")


def to_drawable(text: str) -> str:
    """Return a text without what no font has: bytes of file names that are no UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def find_font(text: str) -> tuple[str, str] | None:
    """Return family and file of the installed font that has most characters of a text.

    None means that the text is Latin. Characters that no font has are drawn as boxes, and
    reported once.
    """
    codes = frozenset(ord(letter) for letter in text if letter not in INVISIBLE)
    return _find_font(codes) if codes and max(codes) >= PLAIN else None


@cache
def _find_font(codes: frozenset[int]) -> tuple[str, str] | None:
    from matplotlib.font_manager import findfont, fontManager

    regular = [font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal")]
    others = sorted((font.name, str(font.fname)) for font in regular if not font.name.startswith("Last Resort"))
    fonts = [("DejaVu Sans", str(findfont("DejaVu Sans"))), *others]
    best = max(fonts, key=lambda font: len(codes & _characters(font[1])))  # the first of equals
    _warn_of_missing(codes - _characters(best[1]))
    return best


@cache
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # a format that matplotlib cannot draw, such as color emoji
        return frozenset()


_warned: set[str] = set()


def _warn_of_missing(codes: Iterable[int]) -> None:
    if missing := "".join(sorted(map(chr, codes))):
        if not _warned:
            hint = "they are drawn as boxes. Install a font that has them, such as Noto Sans CJK"
            log.warning("warning    no font has the characters %s: %s", missing[:20], hint)
        _warned.add(missing)
