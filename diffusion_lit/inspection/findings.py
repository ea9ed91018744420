"""What an audit finds: as plain data for `audit.json`, as lines for the terminal, and the keys that it proposes."""

from collections import Counter
from collections.abc import Sequence
from statistics import median_high, median_low

import numpy as np

from diffusion_lit.imaging.sizes import height_width, size_text
from diffusion_lit.inspection.inspect import Facts, equal_groups, near_groups, repeats_every

PIXEL_ART = 64  # px, the largest side of what is taken for pixel art
NAMES = 3  # named on the terminal; audit.json has all


def find(facts: list[Facts], labels: np.ndarray, parts: np.ndarray, data: dict, near: float) -> dict:
    """Everything but the proposal.

    Args:
        facts, labels, parts: of the pictures, in one order; parts are "train" or "val".
        data: the `data` group, with `class_names`.
        near: distance of near duplicates, see `near_groups`.
    """
    good = [k for k, fact in enumerate(facts) if fact.fault is None]
    names = [fact.name for fact in facts]
    equal = equal_groups([fact.digest for fact in facts])
    copies = {k for group in equal for k in group[1:]}
    once = [k for k in good if k not in copies]  # one of each group of equal ones
    thumbs = np.array([facts[k].thumb.ravel() for k in once])
    nearly = [[once[k] for k in group] for group in near_groups(thumbs, near)] if len(once) > 1 else []
    with_copies = {group[0]: group for group in equal}
    nearly = [sorted(m for k in group for m in with_copies.get(k, [k])) for group in nearly]
    alpha = Counter(facts[k].alpha for k in good)
    return {
        "pictures": {part: int((parts == part).sum()) for part in ("train", "val")},
        "broken": [{"picture": fact.name, "why": fact.fault} for fact in facts if fact.fault is not None],
        "modes": dict(Counter(facts[k].mode for k in good).most_common()),
        "sizes": dict(Counter("x".join(map(str, facts[k].size)) for k in good).most_common()),
        "more_than_8_bits": [names[k] for k in good if facts[k].deep],
        "animated": [names[k] for k in good if facts[k].animated],
        "alpha": {kind: alpha[kind] for kind in ("none", "opaque", "used", "empty")},
        "fully_transparent": [names[k] for k in good if facts[k].alpha == "empty"],
        "hidden_colours": sum(facts[k].hidden for k in good),
        "grey": sum(facts[k].grey for k in good),
        "pixel_art": _is_pixel_art([facts[k] for k in good]),
        "resized": _resized([facts[k].size for k in good], min(height_width(data["image_size"]))),
        "classes": {
            name: {part: int(((labels == k) & (parts == part)).sum()) for part in ("train", "val")}
            for k, name in enumerate(data["class_names"])
        },
        "equal": [[names[k] for k in group] for group in equal],
        "near": [[names[k] for k in group] for group in nearly],
        "leaks": {kind: _leaks(groups, parts, names) for kind, groups in (("equal", equal), ("near", nearly))},
        "repeats_every": repeats_every([fact.digest for fact in facts]),
    }


def _leaks(groups: list[list[int]], parts: np.ndarray, names: list[str]) -> list[str]:
    """Held-out pictures that are, or nearly are, trained on."""
    leaking = [group for group in groups if len(set(parts[group])) == 2]
    return [names[k] for group in leaking for k in group if parts[k] == "val"]


def _is_pixel_art(facts: list[Facts]) -> bool:
    small = [fact for fact in facts if max(fact.size) <= PIXEL_ART and fact.few_colours]
    return len(small) > 0.9 * len(facts)


def _resized(sizes: Sequence[tuple[int, int]], image_size: int) -> dict[str, int]:
    """By the shorter side; those that are not square are besides cropped or stretched."""
    shorter = np.array([min(size) for size in sizes], dtype=int)
    return {
        "as_they_are": int((shorter == image_size).sum()),
        "enlarged": int((shorter < image_size).sum()),
        "shrunk": int((shorter > image_size).sum()),
        "not_square": sum(width != height for width, height in sizes),
    }


# ------------------------------------------------------------------------------------------ the proposal


def propose(found: dict, data: dict, given: set[str], multiple: int, largest: int) -> dict[str, object]:
    """Keys of data, and the values that these pictures ask for, where they have others; those `given` are left alone.

    Args:
        multiple: what the network divides the image size by.
        largest: image size of photos.
    """
    n = sum(found["modes"].values())
    if not n:
        return {}
    channels = 4 if found["alpha"]["used"] > n / 2 else 1 if found["grey"] == n else 3
    wanted = {"channels": channels, "image_size": _image_size(found, multiple, largest)}
    wanted = data | {key: value for key, value in wanted.items() if f"data.{key}" not in given}
    resized = any(size != size_text(wanted["image_size"]) for size in found["sizes"])
    if found["pixel_art"] and resized:
        wanted["resample"] = "nearest"
    if found["hidden_colours"] and wanted["channels"] == 4:
        wanted["alpha"] = "zero"
    if found["leaks"]["equal"] and "split_modulo" in data:
        wanted["split_modulo"] = found["repeats_every"]
    keys = ("image_size", "channels", "resample", "alpha", "split_modulo")
    return {f"data.{key}": wanted[key] for key in keys if key in data and wanted[key] != data[key]
            and f"data.{key}" not in given}  # fmt: skip


def _image_size(found: dict, multiple: int, largest: int) -> int:
    """Pixel art is not shrunk, photos are not enlarged: the usual size, rounded to what the network can halve. Of two
    sizes that are equally usual it is the larger or the smaller one, not one between them that no picture has.
    """
    sides = [tuple(map(int, size.split("x"))) for size, n in found["sizes"].items() for _ in range(n)]
    if found["pixel_art"]:
        return -(-median_high(max(side) for side in sides) // multiple) * multiple
    return max(min(median_low(min(side) for side in sides), largest) // multiple, 1) * multiple


# ------------------------------------------------------------------------------------------ in words


def lines(found: dict, data: dict, multiple: int) -> list[str]:
    """The table on the terminal."""
    n, parts, alpha, resized = sum(found["modes"].values()), found["pictures"], found["alpha"], found["resized"]
    size = size_text(data["image_size"])
    how = "cut to their centre" if data["fit"] == "crop" else "stretched"
    not_square = f"; {resized['not_square']:,} {how}" if resized["not_square"] else ""
    kinds = f"{alpha['used']:,} use it, {alpha['opaque']:,} are opaque, {alpha['empty']:,} fully transparent"
    table = [
        ("pictures", f"{sum(parts.values()):,}: {parts['train']:,} to train on, {parts['val']:,} held out"),
        ("broken", _named([f"{b['picture']}: {b['why']}" for b in found["broken"]], "\n" + " " * 13)),
        ("modes", _counts(found["modes"])),
        ("sizes", _counts(found["sizes"]) + ("; pixel art" if found["pixel_art"] else "")),
        ("deep", _named(found["more_than_8_bits"], note="more than 8 bits, scaled to 8")),
        ("animated", _named(found["animated"], note="the first picture counts")),
        ("alpha", f"{kinds}, {alpha['none']:,} have none" if alpha["none"] < n else ""),
        ("", _named(found["fully_transparent"], note="fully transparent")),
        ("", f"{found['hidden_colours']:,} have colours under alpha 0" if found["hidden_colours"] else ""),
        (
            "resized",
            f"to {size}, {data['resample']}: {resized['enlarged']:,} enlarged, {resized['shrunk']:,} shrunk, "
            f"{resized['as_they_are']:,} as they are{not_square}",
        ),
        ("network", f"{data['image_size']} is a multiple of {multiple}: fits"),
        *_class_lines(found["classes"]),
        ("", _named([k for k, of in found["classes"].items() if not of["train"]], note="without pictures to train on")),
        ("equal", _groups(found["equal"])),
        ("near", _groups(found["near"])),
        ("leaks", _named(found["leaks"]["equal"], note="held out are trained on, too")),
        ("leaks", _named(found["leaks"]["near"], note="held out are nearly trained on")),
        ("repeats", f"the same pictures come again every {found['repeats_every']}" if found["repeats_every"] else ""),
    ]
    return [f"{word:<11}{text}" for word, text in table if text and (n or word in ("pictures", "broken"))]


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:6]]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _named(names: list[str], between: str = ", ", note: str = "") -> str:
    if not names:
        return ""
    more = f"{between}and {len(names) - NAMES:,} more" if len(names) > NAMES else ""
    start = f"{len(names):,} {note}".rstrip() + (": " if between == ", " else between)
    return start + between.join(names[:NAMES]) + more


def _groups(groups: list[list[str]]) -> str:
    if not groups:
        return ""
    return (
        f"{sum(map(len, groups)):,} pictures in {len(groups):,} group{'s' * (len(groups) > 1)}: "
        + _named(groups[0]).partition(": ")[2]
    )


def _class_lines(classes: dict[str, dict[str, int]]) -> list[tuple[str, str]]:
    """One line for each of up to 20 classes with a bar; of more the largest and smallest."""
    if not classes:
        return [("classes", "none")]
    by_size = sorted(classes.items(), key=lambda item: -item[1]["train"])
    most = max(by_size[0][1]["train"], 1)
    shown = list(classes.items()) if len(classes) <= 20 else by_size[:5] + by_size[-5:]
    width = max(len(name) for name, _ in shown)
    rows = [
        f"{name:<{width}} {n['train']:>7,} {n['val']:>6,}  {'#' * round(30 * n['train'] / most)}" for name, n in shown
    ]
    first = f"{len(classes)}: to train on, held out" + (", the 5 largest and smallest" if len(classes) > 20 else "")
    return [("classes", first), *[("", row) for row in rows]]
