"""Divide images into training and validation by a hash of each, so that images that are added move no other.

An image is for validation if its hash, read as a number in [0, 1), is below `val_fraction`.
Equal images, and those of one group, have one hash and stay together. Two exceptions: a
class without a training image, and a set without a validation image, take the nearest by
hash.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from diffusion_lit.data.decoding import Encoded, StoredImage, read_encoded

NO_HASHES = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class KnownImages:
    """The images that a run was trained and validated on, which keep their sides when it is resumed.

    Args:
        train: hashes of the training images, uint64 (N,).
        val: hashes of the validation images, uint64 (M,).
    """

    train: np.ndarray = field(default_factory=NO_HASHES.copy)
    val: np.ndarray = field(default_factory=NO_HASHES.copy)

    @classmethod
    def from_state(cls, state: dict) -> "KnownImages":
        """Return the images of a checkpoint's `state_dict` of the data module; none for {}."""
        return cls(*(state[name].numpy().view(np.uint64) for name in ("train", "val"))) if state else cls()

    def add(self, train: np.ndarray, val: np.ndarray) -> "KnownImages":
        """Return these images and more, without the order."""
        return KnownImages(np.union1d(self.train, train), np.union1d(self.val, val))


def summarize_images(train, val) -> dict:
    """Return fingerprint and number of the training images, and of the validation images, if there are any."""
    summary = {"fingerprint": train.fingerprint, "images": len(train)}
    return summary | {"val_fingerprint": val.fingerprint if val else None, "val_images": len(val) if val else 0}


def describe_change(state: dict, train, val) -> str | None:
    """Return how images differ from those of a checkpoint; None if they are the same.

    Args:
        state: `state_dict` of the data module in the checkpoint.
        train: `ImageStore` or `StreamedStore` of the training images.
        val: of the validation images, or None.
    """
    now = summarize_images(train, val)
    if all(state[name] == value for name, value in now.items()):
        return None
    part = "" if state["fingerprint"] != now["fingerprint"] else "val_"

    def describe(one: dict) -> str:
        counts = f"{one['images']:,} for training and {one['val_images']:,} for validation"
        return f"{counts}, fingerprint {one[part + 'fingerprint']}"

    hashes = np.concatenate([store.hashes for store in (train, val) if store])
    known = KnownImages.from_state(state)
    known = np.concatenate([known.train, known.val])
    added, missing = (~np.isin(hashes, known)).sum(), (~np.isin(known, hashes)).sum()
    details = f" ({added:,} new, {missing:,} missing)" if added or missing else ""
    return f"{describe(state)} then; {describe(now)} now{details}"


def hash_image(image: StoredImage) -> tuple[int, StoredImage]:
    """Return a 64-bit hash of the content of an image, and the image with its bytes in memory.

    The content is the bytes of a file, or shape and pixels.
    """
    image = read_encoded(image)
    if isinstance(image, Encoded):
        content = [image.data]
    elif isinstance(image, np.ndarray):
        content = [f"{image.dtype} {image.shape}".encode(), np.ascontiguousarray(image)]
    else:
        content = [f"{image.mode} {image.size}".encode(), bytes(image.getpalette() or ()), image.tobytes()]
    return int.from_bytes(hashlib.blake2b(b"".join(content), digest_size=8).digest()), image


def select_validation(
    hashes: np.ndarray,
    labels: np.ndarray,
    fraction: float,
    groups: np.ndarray | None = None,
    known: KnownImages | None = None,
) -> np.ndarray:
    """Return which images are for validation, bool (N,).

    Args:
        hashes: of the images, uint64 (N,).
        labels: of the images, (N,).
        fraction: share of the images for validation.
        groups: (N,) or None. Images of one group stay on one side, by a hash of its name.
        known: images whose side is known. They keep it.
    """
    keys = hashes if groups is None else hash_groups(groups)
    is_val = keys < np.uint64(fraction * 2**64)
    is_known = np.zeros(len(keys), bool)
    if known is not None:
        trained, validated = np.isin(hashes, known.train), np.isin(hashes, known.val)
        # others of a known group follow it
        is_val = (is_val | np.isin(keys, keys[validated])) & ~np.isin(keys, keys[trained])
        is_val = np.where(trained | validated, validated & ~trained, is_val)
        is_known = np.isin(keys, keys[trained | validated])
    for label in np.setdiff1d(labels, labels[~is_val]):  # classes without a training image
        movable = (labels == label) & ~is_known
        if movable.any() and is_val[labels == label].all():
            is_val &= keys != keys[movable].max()
    if fraction and not is_val.any():
        classes = set(labels.tolist())
        candidates = (keys == key for key in np.unique(keys[~is_known]))
        is_val = next((own for own in candidates if set(labels[~own].tolist()) == classes), is_val)
    return is_val


def hash_groups(groups: np.ndarray) -> np.ndarray:
    """Return a hash of the name of each image's group, uint64 (N,)."""
    names, inverse = np.unique(groups, return_inverse=True)
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names]
    return np.array([int.from_bytes(digest) for digest in digests], np.uint64)[inverse]
