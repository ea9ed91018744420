"""Image sizes of a configuration: one number for a square, or [height, width]."""

from collections.abc import Sequence

ImageSize = int | Sequence[int]


def height_width(size: ImageSize) -> tuple[int, int]:
    """Return (height, width).

    >>> height_width(32), height_width([8, 12])
    ((32, 32), (8, 12))
    """
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def grow_size(size: ImageSize, by: int) -> ImageSize:
    """Return the size with `by` more pixels on each axis, as a number or a list.

    >>> grow_size(32, 2), grow_size([8, 12], 2)
    (34, [10, 14])
    """
    return size + by if isinstance(size, int) else [side + by for side in size]


def format_size(size: ImageSize) -> str:
    """Return the size as text, width first.

    >>> format_size(32), format_size([8, 12])
    ('32x32', '12x8')
    """
    height, width = height_width(size)
    return f"{width}x{height}"
