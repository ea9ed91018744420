"""The data module by hand: one line, epochs, validation shards, transforms by position, a plain Trainer."""

import re
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.transforms import v2

from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.sources.data_source import Split
from diffusion_lit.system.errors import UserError
from tests.cases import each

N, N_VAL = 23, 11
IMAGES = np.random.default_rng(0).integers(0, 256, (N + N_VAL, 6, 6, 3), dtype=np.uint8)


class Source:
    class_names = ["a", "b"]

    def splits(self) -> dict[str, Split]:
        labels = np.arange(N + N_VAL) % 2
        return {"train": Split(IMAGES[:N], labels[:N]), "val": Split(IMAGES[N:], labels[N:])}


def datamodule(step: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1, **settings) -> ImageDataModule:
    data = ImageDataModule(Source(), image_size=6, **{"batch_size": 4, "seed": 7} | settings)
    place = {"global_step": step, "accumulate_grad_batches": accumulate, "global_rank": rank, "world_size": world}
    data.trainer = SimpleNamespace(**place, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    data.setup()
    return data


def take(data: ImageDataModule, count: int) -> list[dict]:
    stream = iter(data.train_dataloader())
    return [next(stream) for _ in range(count)]


def test_a_folder_in_one_line(tmp_path):
    for k in range(10):
        Image.fromarray(IMAGES[k]).save(tmp_path / f"{k}.png")
    data = ImageDataModule(str(tmp_path), image_size=4, batch_size=3, val_fraction=0.2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (3, 3, 4, 4)
    assert len(data.train) + len(data.val) == 10
    assert (len(data.train_dataloader()), data.class_names) == (-(-len(data.train) // 3), [])


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_an_epoch_is_one_pass_in_whole_steps(accumulate, world):
    steps = -(-N // (4 * accumulate * world))
    assert len(datamodule(0, accumulate, 0, world).train_dataloader()) == steps * accumulate


def validation(**place) -> list[dict]:
    return list(datamodule(**place).val_dataloader())


@pytest.mark.parametrize("val_images", [N_VAL, 150, 320])
def test_ranks_share_out_the_batches_of_a_validation(val_images):
    one = validation(val_images=val_images)
    index = torch.cat([batch["index"] for batch in one])
    assert len(index) == val_images
    assert sorted(index[:N_VAL].tolist()) == list(range(N_VAL))  # every image before one comes again
    for batch in one:
        images = IMAGES[N:][batch["index"].numpy()]
        assert np.array_equal(batch["image"].numpy().transpose(0, 2, 3, 1), images)
        assert torch.equal(batch["y"], (batch["index"] + N) % 2)
    for world in (2, 3, 8):
        ranks = [validation(val_images=val_images, rank=rank, world=world) for rank in range(world)]
        shared = sorted((batch for batches in ranks for batch in batches), key=lambda batch: batch["position"])
        assert torch.equal(torch.cat([batch["index"] for batch in shared]), index)
        assert all(ranks)  # a rank without a batch would not take part in the sums
        if 64 * world <= val_images:
            assert [batch["position"] for batch in shared] == [batch["position"] for batch in one]


class Recording(L.LightningModule):
    """Writes down the indices of every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_index, self.val_index, self.ends = [], [], []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.train_index += batch["index"].tolist()
        return self.weight * 1.0

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.val_index += batch["index"].tolist()

    def on_train_epoch_end(self) -> None:
        self.ends.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, ckpt_path=None, accumulate: int = 2, **arguments) -> tuple[L.Trainer, Recording]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(default_root_dir=folder, accumulate_grad_batches=accumulate, **quiet | arguments)
    module = Recording()
    trainer.fit(module, ImageDataModule(Source(), image_size=6, batch_size=4, seed=7), ckpt_path=ckpt_path)
    return trainer, module


def test_a_plain_trainer_has_epochs_in_the_order_of_the_endless_stream(tmp_path):
    _, module = fit(tmp_path, max_epochs=3, num_sanity_val_steps=0, enable_checkpointing=False)
    expected = [index for batch in take(datamodule(0, 2), 18) for index in batch["index"].tolist()]
    assert module.train_index == expected
    assert module.ends == [3, 6, 9]
    once = torch.cat([batch["index"] for batch in validation()]).tolist()
    assert module.val_index == once * 3


def test_a_resumed_trainer_continues_by_position(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    _, unbroken = fit(tmp_path, max_epochs=3, callbacks=[saving])
    for step in (1, 2, 3, 4, 6):  # in the middle of an epoch and at its end
        _, resumed = fit(tmp_path, tmp_path / f"step={step}.ckpt", max_epochs=3, enable_checkpointing=False)
        assert resumed.train_index == unbroken.train_index[8 * step :]
        assert resumed.ends == [end for end in unbroken.ends if end > step]


def test_limits_of_a_trainer_hold(tmp_path):
    _, module = fit(tmp_path, fast_dev_run=True, accumulate=1)
    assert len(module.train_index) == 4
    assert module.val_index == validation()[0]["index"].tolist()
    _, module = fit(tmp_path, limit_train_batches=2, max_epochs=4, enable_checkpointing=False)
    assert module.ends == [1, 2, 3, 4]
    expected = [index for batch in take(datamodule(0, 2), 8) for index in batch["index"].tolist()]
    assert module.train_index == expected


TRANSFORMS = (v2.RandomHorizontalFlip(), v2.RandomCrop(6, padding=2), v2.ColorJitter(0.5, 0.5, 0.5, 0.2))


def test_transforms_are_a_function_of_the_position():
    (whole,) = take(datamodule(batch_size=12, transforms=TRANSFORMS), 1)
    plain = take(datamodule(batch_size=12), 1)[0]
    assert torch.equal(whole["index"], plain["index"])
    assert not torch.equal(whole["image"], plain["image"])
    for accumulate, world in ((3, 1), (1, 3)):
        ranks = [
            take(datamodule(0, accumulate, rank, world, transforms=TRANSFORMS), accumulate) for rank in range(world)
        ]
        parts = [batches[k] for k in range(accumulate) for batches in ranks]
        assert torch.equal(torch.cat([part["image"] for part in parts]), whole["image"])
    walked = take(datamodule(transforms=TRANSFORMS), 12)
    assert torch.equal(take(datamodule(8, transforms=TRANSFORMS), 1)[0]["image"], walked[8]["image"])
    assert not torch.equal(take(datamodule(seed=8, transforms=TRANSFORMS), 1)[0]["image"], walked[0]["image"])


def test_transforms_leave_the_global_generator_and_validation_images_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    data = datamodule(transforms=TRANSFORMS)
    take(data, 2)
    assert torch.equal(torch.rand(3), expected)
    batch = next(iter(data.val_dataloader()))
    assert np.array_equal(batch["image"].permute(0, 2, 3, 1), IMAGES[N:][batch["index"].numpy()])


@pytest.mark.parametrize("transform", [v2.ToDtype(torch.float32), v2.Resize(5)])
def test_a_transform_that_changes_type_or_shape_is_named(transform):
    with pytest.raises(UserError, match=f"data.transforms: {type(transform).__name__} made"):
        take(datamodule(transforms=[transform]), 1)


@each(
    ("source", "settings", "fault"),
    [
        ({"streaming": "every_epoch"}, {"caption_colors": True}, "data.caption_colors=true: needs all images"),
        ({"streaming": True, "caption_column": "text"}, {}, "data.caption_column=text: a stream has no captions"),
        ({}, {"alpha": "zero"}, "data.alpha=zero: has no effect with data.channels=3"),
        ({}, {"render": "skin"}, "data.render=skin: needs RGBA images of 64x64 px"),
        ({}, {"value_range": [1, 0]}, "data.value_range=[1, 0]: must be [low,high]"),
        ({}, {"channels": 4, "image_size": 16_385}, "data.image_size=16385: too large"),
    ],
)
def test_arguments_that_the_command_line_refuses_are_refused(source, settings, fault):
    stream = Source()
    vars(stream).update(source)
    with pytest.raises(UserError, match=re.escape(fault)) as refused:
        ImageDataModule(stream, **settings)
    assert refused.value.exit_code == 2
