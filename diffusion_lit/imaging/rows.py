"""Which of many rows a grid shows, and how that is said."""


def choose_rows(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 to count - 1, evenly from the first to the last.

    >>> choose_rows(3, 16), choose_rows(37, 4)
    ([0, 1, 2], [0, 12, 24, 36])
    """
    most = min(count, most)
    return [round(k * (count - 1) / max(1, most - 1)) for k in range(most)]


def describe_rows(count: int, most: int) -> str:
    """Return ", 16 of 37 classes" for the title of a grid that has a row for each of some classes, or nothing."""
    return f", {most} of {count} classes" if count > most else ""
