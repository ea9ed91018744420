"""The findings of an audit: plain data for `audit.json`, lines for the terminal, and the overrides that it proposes."""

from collections import Counter
from collections.abc import Sequence
from statistics import median_high, median_low

import numpy as np

from diffusion_lit.config.network_size import describe_levels, find_divisor, find_size_faults
from diffusion_lit.config.value_types import format_value
from diffusion_lit.data.captions import format_captions
from diffusion_lit.data.sources.listing import format_left_out
from diffusion_lit.imaging.sizes import ImageSize, format_size, height_width
from diffusion_lit.inspection.exclude_list import is_contradictory
from diffusion_lit.inspection.image_facts import ImageFacts, find_duplicates, find_near_duplicates, find_period
from diffusion_lit.inspection.tile_sheets import FOUND, find_tile_size
from diffusion_lit.system.console import escape_controls, join_names

PIXEL_ART = 64  # px, the largest side of pixel art
MAX_NAMES = 3  # on the terminal; audit.json has all
MAX_CLASSES = 20  # of which each has a line


def summarize_facts(
    facts: list[ImageFacts], labels: np.ndarray, splits: np.ndarray, data: dict, distance: float
) -> dict:
    """Return the findings.

    Args:
        facts: of all images.
        labels: of the images, (N,).
        splits: "train" or "val" for each image, (N,).
        data: the `data` group, with `class_names`.
        distance: of near duplicates, see `find_near_duplicates`.
    """
    readable = [fact for fact in facts if fact.error is None]
    names = [fact.name for fact in facts]
    duplicates = find_duplicates([fact.digest for fact in facts])
    near = _find_near(facts, duplicates, distance)
    alpha = Counter(fact.alpha for fact in readable)
    return {
        "images": {split: int((splits == split).sum()) for split in ("train", "val")},
        "broken": [{"image": fact.name, "reason": fact.error} for fact in facts if fact.error is not None],
        "modes": dict(Counter(fact.mode for fact in readable).most_common()),
        "sizes": dict(Counter("x".join(map(str, fact.size)) for fact in readable).most_common()),
        "more_than_8_bits": [fact.name for fact in readable if fact.is_deep],
        "value_range": data.get("value_range"),
        "clipped": {fact.name: round(fact.clipped, 4) for fact in readable if fact.clipped},
        "animated": [fact.name for fact in readable if fact.is_animated],
        "alpha": {kind: alpha[kind] for kind in ("none", "opaque", "used", "empty")},
        "fully_transparent": [fact.name for fact in readable if fact.alpha == "empty"],
        "soft_alpha": sum(not fact.has_hard_alpha for fact in readable),
        "hidden_colors": sum(fact.has_hidden_colors for fact in readable),
        "gray": sum(fact.is_gray for fact in readable),
        "pixel_art": _is_pixel_art(readable),
        "tile": find_tile_size([fact.grids for fact in readable]) if data.get("tile", 0) is None else None,
        "resized": _count_resized([fact.size for fact in readable], min(height_width(data["image_size"]))),
        "classes": {
            name: {split: int(((labels == k) & (splits == split)).sum()) for split in ("train", "val")}
            for k, name in enumerate(data["class_names"])
        },
        "duplicates": [[names[k] for k in group] for group in duplicates],
        "contradictions": [
            {names[k]: data["class_names"][labels[k]] for k in group}
            for group in duplicates
            if is_contradictory(group, labels)
        ],
        "near_duplicates": [[names[k] for k in group] for group in near],
        "leaks": _find_leaks(duplicates, splits, names),
        "near_leaks": _find_leaks(near, splits, names),
        "repeats_every": find_period([fact.digest for fact in facts]),
    }


def _find_near(facts: list[ImageFacts], duplicates: list[list[int]], distance: float) -> list[list[int]]:
    """Return groups of near duplicates, which include the duplicates of their images."""
    copies = {k for group in duplicates for k in group[1:]}
    unique = [k for k, fact in enumerate(facts) if fact.error is None and k not in copies]
    if len(unique) < 2:
        return []
    groups = find_near_duplicates(np.array([facts[k].thumbnail.ravel() for k in unique]), distance)
    copies_of = {group[0]: group for group in duplicates}
    return [sorted(copy for k in group for copy in copies_of.get(unique[k], [unique[k]])) for group in groups]


def _find_leaks(groups: list[list[int]], splits: np.ndarray, names: list[str]) -> list[str]:
    """Return the validation images that are in a group with training images."""
    leaking = [group for group in groups if len(set(splits[group])) == 2]
    return [names[k] for group in leaking for k in group if splits[k] == "val"]


def _is_pixel_art(facts: list[ImageFacts]) -> bool:
    small = [fact for fact in facts if max(fact.size) <= PIXEL_ART and fact.has_few_colors]
    return len(small) > 0.9 * len(facts)


def _count_resized(sizes: Sequence[tuple[int, int]], image_size: int) -> dict[str, int]:
    """Count by the shorter side; images that are not square are cropped or stretched too."""
    shorter = np.array([min(size) for size in sizes], dtype=int)
    return {
        "unchanged": int((shorter == image_size).sum()),
        "enlarged": int((shorter < image_size).sum()),
        "shrunk": int((shorter > image_size).sum()),
        "not_square": sum(width != height for width, height in sizes),
    }


# ------------------------------------------------------------------------------------------ the proposal


def propose_overrides(
    findings: dict, data: dict, given: set[str], multiple: int, largest: int
) -> tuple[dict[str, object], str]:
    """Return keys of the `data` group and their values that suit these images, where they differ.

    The second result is the image size and the reason, or nothing where it is
    not proposed.

    Args:
        findings: see `summarize_facts`.
        data: the `data` group.
        given: keys on the command line, which are left alone.
        multiple: what the network divides the image size by.
        largest: image size for photos.
    """
    n = sum(findings["modes"].values())
    if not n:
        return {}, ""
    size, reason = _choose_image_size(findings, multiple, largest)
    channels = 4 if findings["alpha"]["used"] > n / 2 else 1 if findings["gray"] == n else 3
    proposed = {"channels": channels, "image_size": size}
    proposed = data | {key: value for key, value in proposed.items() if f"data.{key}" not in given}
    if findings["tile"]:
        proposed["tile"] = findings["tile"]
        proposed["resample"] = "nearest" if proposed["image_size"] != findings["tile"] else data["resample"]
    if findings["pixel_art"] and any(size != format_size(proposed["image_size"]) for size in findings["sizes"]):
        proposed["resample"] = "nearest"
    if proposed["channels"] == 4 and findings["alpha"]["used"] and not findings["soft_alpha"]:
        proposed["alpha"] = "hard"
    elif findings["hidden_colors"] and proposed["channels"] == 4:
        proposed["alpha"] = "zero"
    if findings["leaks"] and "split_modulo" in data:
        proposed["split_modulo"] = findings["repeats_every"]
    keys = [key for key in ("tile", "image_size", "channels", "resample", "alpha", "split_modulo") if key in data]
    changed = [key for key in keys if proposed[key] != data[key] and f"data.{key}" not in given]
    reason = f"{format_value(size)}{reason}" if "image_size" in changed else ""
    return {f"data.{key}": proposed[key] for key in changed}, reason


def _choose_image_size(findings: dict, multiple: int, largest: int) -> tuple[ImageSize, str]:
    """Return the median size, rounded to a multiple, and the reason.

    Pixel art is not shrunk, and photos are not enlarged. Of two sizes that are equally
    common it is the larger or the smaller one, not a size between them.
    """
    sides = [tuple(map(int, size.split("x"))) for size, n in findings["sizes"].items() for _ in range(n)]
    middle = median_low(min(side) for side in sides)
    size = max(min(middle, largest) // multiple, 1) * multiple
    if findings["tile"]:
        return -(-findings["tile"] // multiple) * multiple, " holds the tiles without shrinking them"
    if findings["pixel_art"]:
        size = -(-median_high(max(side) for side in sides) // multiple) * multiple
        if len(set(sides)) == 1 and len(set(sides[0])) == 2:  # a square would crop and rescale all of it
            size = [-(-side // multiple) * multiple for side in sides[0][::-1]]
        return size, " holds the pixel art without shrinking it"
    if middle <= largest:
        return size, f", because the middle image is {middle} px and photos are not enlarged"
    return size, (
        f", though the middle image is {middle} px: a step at {middle} px costs {round((middle / size) ** 2)} times "
        f"as much and needs many more images. Start with {size}, or set data.image_size. "
        f"largest={2 * largest} allows it"
    )


# ------------------------------------------------------------------------------------------ on the terminal


def format_findings(findings: dict, data: dict, model: dict, reason: str) -> list[str]:
    """Return the lines of the table on the terminal.

    Args:
        findings: see `summarize_facts`.
        data: the `data` group.
        model: the `model` group as it would be trained.
        reason: for the image size, see `propose_overrides`.
    """
    images, alpha, resized = (findings[key] for key in ("images", "alpha", "resized"))
    n, size = sum(findings["modes"].values()), model.get("image_size")  # which a network of the user's may lack
    how = "center-cropped" if data["fit"] == "crop" else "stretched"
    edges = "soft edges" if findings["soft_alpha"] else "hard edges"
    kinds = f"{alpha['used']:,} use it ({edges}), {alpha['opaque']:,} are opaque, {alpha['empty']:,} fully transparent"
    sizes = [f"{resized[key]:,} {key}" for key in ("enlarged", "shrunk", "unchanged")]
    sizes += [f"{resized['not_square']:,} {how}"] if resized["not_square"] else []
    untrained = [name for name, counts in findings["classes"].items() if not counts["train"]]
    table = [
        ("images", f"{sum(images.values()):,}: {images['train']:,} for training, {images['val']:,} for validation"),
        *[("left out", line) for line in format_left_out(findings["left_out"])],
        *[("note", note) for note in findings["notes"]],
        ("broken", _describe_broken(findings["broken"])),
        ("modes", _join_counts(findings["modes"])),
        ("sizes", _join_counts(findings["sizes"]) + ", pixel art" * findings["pixel_art"]),
        ("sheets", _describe_tiles(findings["tile"])),
        ("deep", _describe_images(findings["more_than_8_bits"], "with more than 8 bits, scaled to 8")),
        ("values", _describe_value_range(findings)),
        ("animated", _describe_images(findings["animated"], "with several frames, the first is used")),
        ("alpha", f"{kinds}, {alpha['none']:,} have none" if alpha["none"] < n else ""),
        ("", _describe_images(findings["fully_transparent"], "fully transparent")),
        ("", f"{findings['hidden_colors']:,} have colors under alpha 0" if findings["hidden_colors"] else ""),
        ("resized", f"to {format_size(data['image_size'])}, {data['resample']}: {', '.join(sizes)}"),
        ("proposed", f"data.image_size={reason}" if reason else ""),
        ("network", f"{size} is a multiple of {find_divisor(model)}: fits" if size else ""),
        ("", describe_levels(model)),
        *(("note", fault) for fault in find_size_faults(model, images["train"])),
        *_format_classes(findings["classes"]),
        ("captions", format_captions(findings["captions"]) if "captions" in findings else ""),
        ("", _describe_images(untrained, "without training images")),
        ("equal", _describe_groups(findings["duplicates"])),
        ("labels", _describe_contradictions(findings["contradictions"])),
        ("near", _describe_groups(findings["near_duplicates"])),
        ("leaks", _describe_images(findings["leaks"], "validation images are in training")),
        ("leaks", _describe_images(findings["near_leaks"], "validation images have near duplicates in training")),
        ("repeats", f"every {findings['repeats_every']} images" if findings["repeats_every"] else ""),
    ]
    always = ("images", "left out", "note", "broken")
    return [f"{name:<11}{text}" for name, text in table if text and (n or name in always)]


def _join_counts(counts: dict[str, int]) -> str:
    return join_names([f"{name} {n:,}" for name, n in counts.items()], 6)


def _describe_images(names: list[str], note: str) -> str:
    """Return the number of names, the note and the first names; empty without names."""
    return f"{len(names):,} {note}: {join_names(names, MAX_NAMES)}" if names else ""


def _describe_value_range(findings: dict) -> str:
    """Return what is black and white in images with more than 8 bits, and how many values are clipped."""
    deep, clipped = findings["more_than_8_bits"], findings["clipped"]
    if not findings["value_range"]:
        return ""
    low, high = findings["value_range"]
    text = f"{low:g} is black, {high:g} white (data.value_range=[{low:g},{high:g}])"
    if not deep:
        return f"{text}: has no effect, no image has more than 8 bits"
    if clipped:
        share = sum(clipped.values()) / len(clipped)
        text += f"; {len(clipped):,} have values outside, which are clipped ({share:.1%} of them): "
        text += join_names(clipped, MAX_NAMES)
    return text


def _describe_tiles(size: int | None) -> str:
    if size is None:
        return ""
    return f"{FOUND.format(size)}. Look at them with another audit"


def _describe_broken(broken: list[dict[str, str]]) -> str:
    lines = [
        f"{len(broken):,}",
        *(escape_controls(f"{image['image']}: {image['reason']}") for image in broken[:MAX_NAMES]),
    ]
    if len(broken) > MAX_NAMES:
        lines.append(f"and {len(broken) - MAX_NAMES:,} more")
    return ("\n" + " " * 13).join(lines) if broken else ""


def _describe_groups(groups: list[list[str]]) -> str:
    if not groups:
        return ""
    plural = "s" * (len(groups) > 1)
    return f"{sum(map(len, groups)):,} images in {len(groups):,} group{plural}: {join_names(groups[0], MAX_NAMES)}"


def _describe_contradictions(groups: list[dict[str, str]]) -> str:
    if not groups:
        return ""
    plural, names = "s" * (len(groups) > 1), [f"{name} ({label})" for name, label in groups[0].items()]
    verb = "carry" if plural else "carries"
    return (
        f"{len(groups):,} group{plural} of equal images {verb} different class labels: {join_names(names, MAX_NAMES)}"
    )


def _format_classes(classes: dict[str, dict[str, int]]) -> list[tuple[str, str]]:
    """Return a line with a bar for each class, of many classes for the largest and the smallest."""
    if not classes:
        return [("classes", "none")]
    by_size = sorted(classes.items(), key=lambda item: -item[1]["train"])
    most = max(by_size[0][1]["train"], 1)
    title, rows = f"{len(classes)}: training, validation", list(classes.items())
    if len(classes) > MAX_CLASSES:
        title, rows = f"{title}, the 5 largest and smallest", by_size[:5] + by_size[-5:]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"{name:<{width}} {n['train']:>7,} {n['val']:>6,}  {'#' * round(30 * n['train'] / most)}" for name, n in rows
    ]
    return [("classes", title), *[("", line) for line in lines]]
