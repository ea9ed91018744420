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
from diffusion_lit.data.validation_split import KnownImages, hash_image
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.evaluation.features import RealImages
from diffusion_lit.evaluation.image_sets import make_reference
from diffusion_lit.evaluation.intervals import measure_mean
from diffusion_lit.evaluation.metrics import Comparison
from diffusion_lit.imaging.color_names import name_colors
from diffusion_lit.runs.load import TrainedModel, generate_with_progress
from diffusion_lit.runs.run_images import read_data_state
from diffusion_lit.sampling.previews import draw_class_grid
from diffusion_lit.system.console import join_names
from diffusion_lit.web.session import enlarge

Pair = tuple[str, str]  # a color and a kind
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


def load_tiles(root: str, size: int | None) -> list[Tile]:
    """Return the tiles, resized to `size` pixels as for a run; None for the size of the recipe."""
    overrides = ["experiment=tiles_prompt", f"data.root={root}", "data.val_fraction=0"]
    overrides += [f"data.image_size={size}"] if size else []
    config, source = compose_config(*overrides)
    store, _ = load_splits(source, config["data"])
    words = [{SINGULAR.get(word, word) for text in texts for word in text.split()} for texts in store.captions]
    return list(map(Tile, source.splits()["train"].images, np.array(store.images), words))


def require_held_out(model: TrainedModel, tiles: Sequence[Tile], file: Path) -> None:
    """Raise MissingRequirement for a model that was trained on images with held-out pairs.

    A checkpoint has the hashes of its training images. An exported model has the command of its training alone.
    """
    advice = f"needs a run that was trained with data.exclude={file}"
    state = read_data_state(model.checkpoint)
    if not state:
        if "data.exclude=" not in (model.config.get("exported", {}).get("command") or ""):
            raise MissingRequirement(f"{advice}, and the command of {model.checkpoint.parent} does not say so")
        return
    hashes = {tile.path: hash_image(tile.path)[0] for tile in tiles}
    allowed = {hashes[tile.path] for tile in tiles if not tile.is_held_out}  # some images have several names
    trained = set(KnownImages.from_state(state).train.tolist()) - allowed
    found = [tile.path.name for tile in tiles if hashes[tile.path] in trained]
    if found:
        raise MissingRequirement(
            f"{advice}. This one was trained on {len(found)} of its images: {join_names(found, 3)}"
        )


def choose_seen(tiles: Sequence[Tile]) -> list[Pair]:
    """Return a pair of training for each held-out one, with the most frequent colors of its kind."""
    counts = Counter((tile.color, tile.kind) for tile in tiles if not tile.is_held_out)
    chosen: list[Pair] = []
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


def draw_samples(model: TrainedModel, pairs: Sequence[Pair], seed: int) -> Tensor:
    """Return samples uint8 (P, NUM_IMAGES, C, H, W) of the prompts "color kind"."""
    labels = [" ".join(pair) for pair in pairs for _ in range(NUM_IMAGES)]
    images = generate_with_progress(model, labels, image_seeds(seed, NUM_IMAGES) * len(pairs)).images
    return images.unflatten(0, (len(pairs), NUM_IMAGES))


def classify_samples(classifier, samples: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors and kinds (P, NUM_IMAGES) of samples, as words."""
    images = samples.flatten(0, 1).numpy()
    colors = [next(iter(name_colors(image.transpose(1, 2, 0))), "none") for image in images]
    kinds = classifier.predict(shape_features(images))
    return np.array(colors).reshape(len(samples), -1), np.array(kinds).reshape(len(samples), -1)


def find_copies(images: Tensor, tiles: Sequence[Tile]) -> Tensor:
    """Return which images (N, C, H, W) are copies of training images by pixels, bool (N,)."""
    training = np.stack([tile.image for tile in tiles if not tile.is_held_out])
    cut = len(training) * 4 // 5  # the rest decides how near a new image is to its nearest one
    order = np.random.default_rng(0).permutation(len(training))
    stores = [ImageStore(training[rows], np.zeros(len(rows), np.int64)) for rows in (order[:cut], order[cut:])]
    real = RealImages(*stores, 1, False, "bicubic", torch.device("cpu"))
    reference = make_reference(real, "pixels", ["tile"], with_classifier=False)
    return Comparison(reference, images, [0] * len(images)).copies["pixels"].is_copy


def find_hits(found: np.ndarray, words: Sequence[str]) -> tuple[np.ndarray, float]:
    """Return which samples have the word of their prompt, and how often those of prompts without the word have it.

    Args:
        found: words of the samples (P, NUM_IMAGES).
        words: of the prompts (P,).
    """
    others = [np.mean(found[[other != word for other in words]] == word) for word in words]
    return found == np.array(words)[:, None], float(np.mean(others))


def format_share(hits: np.ndarray) -> str:
    """Return the share of right samples (P, NUM_IMAGES), with its interval over prompts if they differ."""
    share = measure_mean(torch.tensor(hits.mean(1))).interval()
    if share.low == share.high:
        return f"{share.value:.0%}"
    return f"{share.value:.0%} ({max(0, share.low):.0%} to {min(1, share.high):.0%})"


def compare_pairs(
    model: TrainedModel, classifier, tiles: Sequence[Tile], seen: Sequence[Pair], out: Path
) -> Iterator[list[object]]:
    """Yield the rows of the table, and write a grid of the first eight images of each prompt."""
    for name, pairs in (("seen", seen), ("held out", HELD_OUT)):
        samples = draw_samples(model, pairs, seed=0)
        found, words = classify_samples(classifier, samples), zip(*pairs, strict=True)
        (colors, color_chance), (kinds, kind_chance) = map(find_hits, found, words)
        copies = find_copies(samples.flatten(0, 1), tiles).double().mean()
        labels = [k for k in range(len(pairs)) for _ in range(8)]
        grid = draw_class_grid(samples[:, :8].flatten(0, 1), labels, [" ".join(pair) for pair in pairs])
        enlarge(grid).save(out / f"{name.replace(' ', '_')}.png")
        cells = [format_share(colors), f"{color_chance:.1%}", format_share(kinds), f"{kind_chance:.1%}"]
        yield [name, len(pairs), *cells, f"{(colors & kinds).mean():.0%}", f"{copies:.1%}"]


def choose_guidance(model: TrainedModel, classifier, seen: Sequence[Pair]) -> TrainedModel:
    """Return the model with the guidance scale that gives the most right colors and kinds of seen pairs, seed 1."""
    scores = {}
    for scale in GUIDANCE:
        samples = draw_samples(model.with_sampler(model.sampler, guidance_scale=scale), seen, seed=1)
        found, words = classify_samples(classifier, samples), zip(*seen, strict=True)
        color, kind = (hits.mean() for hits, _ in map(find_hits, found, words))
        scores[scale] = color + kind
        print(f"guidance {scale:g}, seed 1, seen pairs: color {color:.0%}, kind {kind:.0%}", flush=True)
    best = max(scores, key=scores.get)
    print(f"\n{NUM_IMAGES} images of each prompt, seed 0, guidance {best:g}; intervals over prompts\n")
    return model.with_sampler(model.sampler, guidance_scale=best)


def main(arguments: Namespace) -> None:
    if not (arguments.data and arguments.out):
        raise MissingRequirement("needs --data <folder of tiles> and --out <folder>")
    model = TrainedModel.from_run(arguments.run) if arguments.run else None
    tiles = load_tiles(arguments.data[0], model.config["data"]["image_size"] if model else None)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, root = arguments.out / "held_out.txt", Path(arguments.data[0])
    excluded = [tile.path.relative_to(root).as_posix() for tile in tiles if tile.is_held_out]
    file.write_text("\n".join(excluded) + "\n", encoding="utf-8")
    if model:
        require_held_out(model, tiles, file)
    classifier, accuracy, count = train_classifier(tiles)
    print(f"{len(excluded)} of {len(tiles):,} images with held-out pairs are in {file}")
    print(f"kinds: balanced accuracy {accuracy:.1%} on {count:,} real tiles, five-fold cross-validation")
    print("colors: named by the rule that puts them into captions\n")
    if accuracy < MIN_ACCURACY:
        raise MissingRequirement(f"needs a classifier of kinds that is right on {MIN_ACCURACY:.0%} of real tiles")
    if not model:
        command = f"experiment=tiles_prompt data.root={root} data.exclude={file}"
        print(f"Then train, and give the run as --run: python -m diffusion_lit.train {command}")
        return
    seen = choose_seen(tiles)
    if not model.config.get("distill"):  # a student has learned one guidance scale
        model = choose_guidance(model, classifier, seen)
    header = ["pairs", "prompts", "color right", "by chance", "kind right", "by chance", "both right", "copies"]
    print_table(header, compare_pairs(model, classifier, tiles, seen, arguments.out))
