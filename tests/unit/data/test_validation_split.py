"""Which images are for validation: by a hash of each, so that images that are added move no other."""

import io

import numpy as np
from PIL import Image

from diffusion_lit.data.validation_split import KnownImages, hash_groups, hash_image, select_validation
from tests.image_sets import make_data, make_hub_data, write_table

RNG = np.random.default_rng(20)


def draw_set(n: int, num_classes: int, num_groups: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return hashes, labels and groups; some images are equal, and some classes have a single image."""
    hashes = RNG.integers(0, 2**64, n, dtype=np.uint64)
    hashes[RNG.integers(0, n, n // 10)] = hashes[RNG.integers(0, n, n // 10)]
    labels = (num_classes * RNG.random(n) ** 3).astype(np.int64)
    return hashes, labels, RNG.integers(0, num_groups, n) if num_groups else None


def is_below(keys: np.ndarray, fraction: float) -> np.ndarray:
    return keys < np.uint64(fraction * 2**64)


def test_the_share_is_binomial():
    for fraction in (0.001, 0.05, 0.2, 0.9):
        hashes = RNG.integers(0, 2**64, 20_000, dtype=np.uint64)
        share = select_validation(hashes, np.arange(20_000) % 3, fraction).mean()
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 20_000) ** 0.5
    assert not select_validation(hashes, np.arange(20_000) % 3, 0).any()


def test_every_class_keeps_a_training_image_and_units_stay_together():
    for trial in range(200):
        n, fraction = int(RNG.integers(1, 80)), RNG.choice([0.02, 0.3, 0.9])
        hashes, labels, groups = draw_set(n, int(RNG.integers(1, 20)), 9 if trial % 2 else 0)
        keys = hashes if groups is None else groups
        is_val = select_validation(hashes, labels, fraction, groups)
        assert set(labels[~is_val]) == set(labels)
        for key in np.unique(keys):
            assert len(set(is_val[keys == key])) == 1
        others = [set(labels[keys != key]) for key in np.unique(keys)]
        assert is_val.any() == any(other == set(labels) for other in others)  # none, if each is the last of a class
        order = RNG.permutation(n)
        again = select_validation(hashes[order], labels[order], fraction, None if groups is None else groups[order])
        np.testing.assert_array_equal(again, is_val[order])


def test_images_that_are_added_move_no_other_but_exceptions():
    for trial in range(300):
        n, more, fraction = int(RNG.integers(2, 60)), int(RNG.integers(1, 40)), RNG.choice([0.02, 0.1, 0.5])
        hashes, labels, groups = draw_set(n + more, 12, 15 if trial % 2 else 0)
        before = select_validation(hashes[:n], labels[:n], fraction, None if groups is None else groups[:n])
        after = select_validation(hashes, labels, fraction, groups)[:n]
        expected = is_below(hashes if groups is None else hash_groups(groups), fraction)[:n]
        moved = before != after
        assert ((before != expected) | (after != expected))[moved].all()
        known = KnownImages(hashes[:n][~before], hashes[:n][before])
        if groups is None:  # not even the exceptions, when a run is resumed
            resumed = select_validation(hashes, labels, fraction, groups, known)
            np.testing.assert_array_equal(resumed[:n], before)


def test_known_images_keep_their_side_whatever_the_fraction_is():
    hashes, labels = np.arange(100, dtype=np.uint64) << np.uint64(57), np.zeros(100, np.int64)
    known = KnownImages(hashes[:30], hashes[30:60])
    for fraction in (0, 0.1, 0.9):
        is_val = select_validation(hashes, labels, fraction, known=known)
        assert not is_val[:30].any()
        assert is_val[30:60].all()
        np.testing.assert_array_equal(is_val[60:], is_below(hashes[60:], fraction))
    groups = np.arange(100) // 10 * 10 + np.arange(100) % 2  # a new image of a group follows the known ones
    known = KnownImages(hashes[:2], hashes[11:12])
    is_val = select_validation(hashes, labels, 0.5, groups, known)
    assert not is_val[:10].any()
    assert is_val[11:20:2].all()


def test_one_division_whatever_the_source_and_the_order(tmp_path):
    """Files of a folder, of a table, and the bytes of a Hugging Face table, streamed or not; added images move none."""
    images, files = RNG.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8), []
    for k, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append(file.getvalue())
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{k * 37 % 60:02}.png").write_bytes(file.getvalue())
    names = [path.name for path in (tmp_path / "folder").iterdir()]
    (tmp_path / "table.csv").write_text("\n".join(["path", *[f"folder/{name}" for name in names]]) + "\n")
    hub = write_table(tmp_path / "hub", {"image": files[::-1]})
    np.save(tmp_path / "array.npy", images)
    np.save(tmp_path / "fewer.npy", images[:40])
    words = ["data.image_size=4", "data.val_fraction=0.2"]

    def colors(store) -> set[bytes]:
        return {image.tobytes() for image in store.images}

    made = [
        make_data("data=image_folder", f"data.root={tmp_path / 'folder'}", *words),
        make_data("data=image_folder", f"data.root={tmp_path / 'folder'}", *words, f"data.cache_dir={tmp_path / 'c'}"),
        make_data("data=table", f"data.path={tmp_path / 'table.csv'}", *words),
        make_hub_data(hub, *words),
        make_hub_data(hub, *words, "data.streaming=true"),
        make_hub_data(hub, *words, "data.streaming=true", f"data.cache_dir={tmp_path / 'c'}"),
    ]
    assert 4 < len(made[0].val) < 25
    for data in made:
        assert (colors(data.train), colors(data.val)) == (colors(made[0].train), colors(made[0].val))
    every, fewer = (
        make_data("data=arrays", f"data.images={tmp_path / name}.npy", *words) for name in ("array", "fewer")
    )
    assert colors(fewer.val) == colors(every.val) & {image.transpose(2, 0, 1).tobytes() for image in images[:40]}


def test_items_of_a_dataset_are_divided_by_their_pixels_and_palette():
    image = Image.fromarray(RNG.integers(0, 2, (4, 4), dtype=np.uint8), "L").convert("P")
    other = image.copy()
    other.putpalette([9, 9, 9, 1, 2, 3])
    stored = [image, other, image.convert("RGB"), np.asarray(image), np.asarray(image)[None], image.resize((8, 2))]
    assert len({hash_image(one)[0] for one in stored}) == len(stored)
    assert hash_image(image.copy())[0] == hash_image(image)[0]
