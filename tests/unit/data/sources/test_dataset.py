"""The user's own torch Dataset as a source: every form of an item, labels, validation, errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from diffusion_lit.config import targets
from diffusion_lit.data.datamodule import ImageDataModule, datamodule_from_config
from diffusion_lit.data.sources.dataset import DatasetSource
from diffusion_lit.system.errors import Exit, UserError
from tests.cases import each

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
LABELS = [3, 7] * 10


class Items(torch.utils.data.Dataset):
    """Items 0 .. count - 1, each made by a function of its number."""

    def __init__(self, item, count: int = 20):
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int):
        return self.item(k)


class Named(torch.utils.data.Dataset):
    """A dataset as a configuration names it."""

    classes = ("no", "yes")

    def __init__(self, count: int):
        self.targets = [k % 2 for k in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, k: int):
        return IMAGES[k], self.targets[k]


def chw(k: int) -> torch.Tensor:
    return torch.from_numpy(IMAGES[k]).permute(2, 0, 1)


FORMS = {
    "array and int": lambda k: (IMAGES[k], LABELS[k]),
    "pil and numpy int": lambda k: (Image.fromarray(IMAGES[k]), np.int64(LABELS[k])),
    "uint8 tensor and tensor": lambda k: (chw(k), torch.tensor(LABELS[k])),
    "float in a dict": lambda k: {"image": chw(k) / 255, "label": LABELS[k]},
}


def loaded(dataset, **settings) -> ImageDataModule:
    data = ImageDataModule(dataset, image_size=6, batch_size=4, val_fraction=0, **settings)
    data.setup()
    return data


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_store(form):
    data = loaded(Items(FORMS[form]))
    assert np.array_equal(data.train.images.transpose(0, 2, 3, 1), IMAGES)
    assert data.train.labels.tolist() == [0, 1] * 10
    assert data.class_names == ["3", "7"]


def test_images_alone_have_no_classes_and_gray_ones_one_channel():
    data = loaded(Items(lambda k: IMAGES[k]))
    assert data.class_names == []
    gray = loaded(Items(lambda k: chw(k)[:1]), channels=1)
    assert np.array_equal(gray.train.images[:, 0], IMAGES[..., 0])
    flat = loaded(Items(lambda k: chw(k)[0]), channels=1)
    assert np.array_equal(flat.train.images[:, 0], IMAGES[..., 0])
    assert loaded(DatasetSource(Items(FORMS["array and int"]), labels="none")).class_names == []


def test_floats_in_another_range():
    source = DatasetSource(Items(lambda k: chw(k) / 127.5 - 1))
    assert np.array_equal(loaded(source, value_range=[-1, 1]).train.images.transpose(0, 2, 3, 1), IMAGES)


def test_from_a_configuration_with_validation_data_and_a_cache(tmp_path):
    name = f"{Named.__module__}.{Named.__qualname__}"
    leaf = {"dataset": {"_target_": name, "count": 12}, "val_dataset": {"_target_": name, "count": 4}}
    targets.trust(leaf)
    data = {"image_size": 6, "channels": 3, "val_fraction": 0.5, "cache_dir": str(tmp_path), **leaf}
    for _ in range(2):
        module = datamodule_from_config(DatasetSource(**leaf), data, 0, 4)
        module.setup()
        assert module.class_names == ["no", "yes"]
        assert (len(module.train), len(module.val)) == (12, 4)
    assert len(list(tmp_path.glob("*.npy"))) == 2


@each("mode", ["I;16", "F"])
def test_deep_images_of_another_dataset_are_not_taken_from_the_cache(tmp_path, mode):
    """As RGBA, 16-bit values above 255 are white and floats below 1 black."""
    values = {"I;16": np.arange(1000, 1064, dtype=np.uint16), "F": np.linspace(0, 0.9, 64, dtype=np.float32)}[mode]

    def load(values: np.ndarray) -> np.ndarray:
        images = [Image.fromarray(np.roll(values, k).reshape(8, 8)) for k in range(6)]
        assert images[0].mode == mode
        data = ImageDataModule(images, 8, channels=1, cache_dir=str(tmp_path), value_range=(0, values.max()))
        data.setup()
        return np.concatenate([data.train.images, data.val.images])

    assert not np.array_equal(load(values), load(values[::-1].copy()))


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "data.dataset: Endless has no items. Use a map-style dataset"),
        (Items(lambda k: (IMAGES[k], 1, 2)), r"data.dataset\[0\] has 3 values"),
        (Items(lambda k: "a.png"), r"data.dataset\[0\]: the image is of type str"),
        (Items(lambda k: {"pixels": IMAGES[k]}), r"data.dataset\[0\]: the image is of type NoneType"),
        (Items(lambda k: IMAGES[k] * 1j), r"data.dataset\[0\]: the image is complex128 \(6, 6, 3\)"),
        (Items(lambda k: chw(k) / (k - 4)), r"data.dataset\[4\]: 108 of its values are NaN or infinite"),
        (Items(lambda k: (IMAGES[k], 1.5 if k == 4 else 0)), r"data.dataset\[4\]: its label is 1.5"),
        (Items(lambda k: 1 / (k - 3)), r"data.dataset\[0\]: the image is of type float"),
        (Items(lambda k: IMAGES[[k, 30][k == 7]]), r"data.dataset\[7\] raised IndexError"),
    ],
)
def test_what_is_wrong_is_named_with_its_item(dataset, message):
    with pytest.raises(UserError, match=message) as caught:
        loaded(dataset)
    assert caught.value.exit_code == Exit.DATA
