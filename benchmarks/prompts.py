"""Prompts of a color and a kind of thing that training never had together: how many samples have both.

python -m benchmarks prompts --data tiles --out prompts              # held_out.txt, and how to train
python -m benchmarks prompts --data tiles --out prompts --run RUN    # the table, and grids of the samples
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import MissingRequirement, compose_config, print_table
from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation.features import RealImages
from diffusion_lit.evaluation.image_sets import make_reference
from diffusion_lit.evaluation.intervals import measure_mean
from diffusion_lit.evaluation.metrics import Comparison
from diffusion_lit.imaging.color_names import name_colors
from diffusion_lit.runs.load import TrainedModel, generate_with_progress
from diffusion_lit.sampling.previews import draw_class_grid
from diffusion_lit.web.session import enlarge

KINDS = (
    "wall", "floor", "potion", "amulet", "book", "dragon", "shield", "sword", "axe", "robe", "statue", "cloud",
    "altar", "scroll",
)  # fmt: skip
SINGULAR = {"statues": "statue", "altars": "altar", "robes": "robe"}
HELD_OUT = (
    ("purple", "potion"), ("green", "potion"), ("red", "book"), ("blue", "robe"), ("green", "shield"),
    ("blue", "dragon"), ("red", "amulet"), ("blue", "sword"), ("green", "cloud"), ("blue", "wall"),
    ("purple", "scroll"), ("green", "altar"),
)  # fmt: skip
NUM_IMAGES = 32  # of a prompt
GUIDANCE = (1.5, 3.0, 5.0)
MIN_ACCURACY = 0.9  # of the classifier on real images that it was not trained on; below it nothing is measured


class Tile(NamedTuple):
    """An image uint8 (C, H, W) with the words of its caption."""

    path: Path
    image: np.ndarray
    words: set[str]

    @property
    def color(self) -> str | None:
        return next(iter(name_colors(self.image.transpose(1, 2, 0))), None)

    @property
    def kind(self) -> str | None:
        kinds = self.words & set(KINDS)
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def is_held_out(self) -> bool:
        return any({color, kind} <= self.words for color, kind in HELD_OUT)


def load_tiles(root: str) -> list[Tile]:
    overrides = ["experiment=tiles_prompt", f"data.root={root}", "data.val_fraction=0"]
    config, source = compose_config(*overrides)
    store, _ = load_splits(source, config["data"])
    words = [{SINGULAR.get(word, word) for text in texts for word in text.split()} for texts in store.captions]
    return list(map(Tile, source.splits()["train"].images, np.array(store.images), words))


def choose_seen(tiles: Sequence[Tile]) -> list[tuple[str, str]]:
    """Return a pair of training for each held-out one, with the most frequent colors of its kind."""
    counts = Counter((tile.color, tile.kind) for tile in tiles if not tile.is_held_out)
    chosen: list[tuple[str, str]] = []
    for _, kind in HELD_OUT:
        pairs = [pair for pair, _ in counts.most_common() if pair[1] == kind and pair[0] and pair not in chosen]
        chosen.append(pairs[0])
    return chosen


def shape_features(images: np.ndarray) -> np.ndarray:
    """Return alpha, lightness and its gradients (N, D) of uint8 RGBA images (N, 4, H, W): no colors."""
    x = images / 255
    gray = x[:, :3].mean(1) * x[:, 3]
    edges = [np.abs(np.diff(gray, axis=axis, append=0)) for axis in (1, 2)]
    return np.concatenate([part.reshape(len(x), -1) for part in (x[:, 3], gray, *edges)], 1)


def train_classifier(tiles: Sequence[Tile]) -> tuple[object, float, int]:
    """Return a classifier of kinds, its accuracy by five-fold cross-validation, and the number of tiles."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    known = [tile for tile in tiles if tile.kind]
    features, kinds = shape_features(np.stack([tile.image for tile in known])), [tile.kind for tile in known]
    classifier = ExtraTreesClassifier(500, class_weight="balanced", random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    accuracy = cross_val_score(classifier, features, kinds, cv=folds, scoring="balanced_accuracy").mean()
    return classifier.fit(features, kinds), accuracy, len(known)


def draw_samples(model: TrainedModel, pairs: Sequence[tuple[str, str]], guidance: float, seed: int) -> Tensor:
    """Return samples uint8 (P, NUM_IMAGES, C, H, W) of the prompts "color kind"."""
    labels = [" ".join(pair) for pair in pairs for _ in range(NUM_IMAGES)]
    guided = model.with_sampler(model.sampler, guidance_scale=guidance)
    images = generate_with_progress(guided, labels, image_seeds(seed, NUM_IMAGES) * len(pairs)).images
    return images.unflatten(0, (len(pairs), NUM_IMAGES))


def classify_samples(classifier, samples: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors and kinds (P, NUM_IMAGES) of samples, as words."""
    images = samples.flatten(0, 1).numpy()
    colors = [next(iter(name_colors(image.transpose(1, 2, 0))), "none") for image in images]
    kinds = classifier.predict(shape_features(images))
    return np.array(colors).reshape(len(samples), -1), np.array(kinds).reshape(len(samples), -1)


def find_copies(samples: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """Return which samples are copies of training images by pixels, bool (P * NUM_IMAGES,)."""
    images = np.stack([tile.image for tile in tiles if not tile.is_held_out])
    cut = len(images) * 4 // 5  # the rest decides how near a new image is to its nearest one
    order = np.random.default_rng(0).permutation(len(images))
    stores = [ImageStore(images[rows], np.zeros(len(rows), np.int64)) for rows in (order[:cut], order[cut:])]
    real = RealImages(*stores, 1, False, "bicubic", torch.device("cpu"))
    reference = make_reference(real, "pixels", ["tile"], with_classifier=False)
    return Comparison(reference, samples.flatten(0, 1), [0] * samples[:, :, 0, 0, 0].numel()).copies["pixels"].is_copy


def compare_pairs(
    model: TrainedModel, classifier, tiles: Sequence[Tile], guidance: float, figure: Path | None
) -> Iterator[list[object]]:
    for name, pairs in (("seen", choose_seen(tiles)), ("held out", list(HELD_OUT))):
        samples = draw_samples(model, pairs, guidance, seed=0)
        colors, kinds = classify_samples(classifier, samples)
        cells = []
        for found, wanted in ((colors, [color for color, _ in pairs]), (kinds, [kind for _, kind in pairs])):
            hits = found == np.array(wanted)[:, None]
            # how often an image of another prompt has it, prompts of the same word left out
            others = [np.mean(found[[other != word for other in wanted]] == word) for word in wanted]
            share = measure_mean(torch.tensor(hits.mean(1))).interval()
            cells += [
                f"{share.value:.0%} ({max(0, share.low):.0%} to {min(1, share.high):.0%})",
                f"{np.mean(others):.1%}",
            ]
        both = (colors == np.array([[color] for color, _ in pairs])) & (
            kinds == np.array([[kind] for _, kind in pairs])
        )
        yield [name, len(pairs), *cells, f"{both.mean():.0%}", f"{find_copies(samples, tiles).double().mean():.1%}"]
        if figure:
            names = [" ".join(pair) for pair in pairs]
            rows = samples[:, :8].flatten(0, 1)
            grid = draw_class_grid(rows, [k // 8 for k in range(len(rows))], names)
            enlarge(grid).save(figure / f"{name.replace(' ', '_')}.png")


def choose_guidance(model: TrainedModel, classifier, tiles: Sequence[Tile]) -> float:
    """Return the guidance scale with the most right colors and kinds of seen pairs, with another seed."""
    pairs, scores = choose_seen(tiles), {}
    for guidance in GUIDANCE:
        colors, kinds = classify_samples(classifier, draw_samples(model, pairs, guidance, seed=1))
        right = [
            (found == np.array(words)[:, None]).mean()
            for found, words in zip((colors, kinds), zip(*pairs, strict=True), strict=True)
        ]
        scores[guidance] = sum(right)
        print(f"guidance {guidance:g}, seed 1, seen pairs: color {right[0]:.0%}, kind {right[1]:.0%}", flush=True)
    return max(scores, key=scores.get)


def main(arguments: Namespace) -> None:
    if not (arguments.data and arguments.out):
        raise MissingRequirement("needs --data <folder of tiles> and --out <folder>")
    tiles = load_tiles(arguments.data[0])
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, root = arguments.out / "held_out.txt", Path(arguments.data[0])
    excluded = [tile.path.relative_to(root).as_posix() for tile in tiles if tile.is_held_out]
    file.write_text("\n".join(excluded) + "\n", encoding="utf-8")
    classifier, accuracy, count = train_classifier(tiles)
    print(f"{len(excluded)} of {len(tiles):,} images with held-out pairs are in {file}")
    print(f"kinds: balanced accuracy {accuracy:.1%} on {count:,} real tiles, five-fold cross-validation")
    print("colors: named by the rule that puts them into captions\n")
    if accuracy < MIN_ACCURACY:
        raise MissingRequirement(f"needs a classifier of kinds that is right on {MIN_ACCURACY:.0%} of real tiles")
    if not arguments.run:
        command = f"experiment=tiles_prompt data.root={root} data.exclude={file}"
        print(f"Then train, and give the run as --run: python -m diffusion_lit.train {command}")
        return
    model = TrainedModel.from_run(arguments.run)
    guidance = choose_guidance(model, classifier, tiles)
    print(f"\n{NUM_IMAGES} images of each prompt, seed 0, guidance {guidance:g}; intervals over prompts\n")
    header = ["pairs", "prompts", "color right", "by chance", "kind right", "by chance", "both right", "copies"]
    print_table(header, compare_pairs(model, classifier, tiles, guidance, arguments.out))
