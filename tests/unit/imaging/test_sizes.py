"""Images that are not square: decoded, trained on and sampled, with every network."""

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.data.batches import random_crops
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.networks.dit import DiT
from diffusion_lit.runs.build import (
    guide_network,
    make_codec,
    make_condition,
    make_configured_sampler,
    make_diffusion,
    make_network,
)
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.previews import draw_class_grid

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 12, 3), dtype=np.uint8)
UNET = ["model.block_out_channels=[8,8]", "model.norm_num_groups=4", "model.attention_head_dim=8"]
NETWORKS = {
    "unet_small": [*UNET, "model.attention_levels=[1]", "model.layers_per_block=1"],
    "dit": ["model.width=16", "model.depth=1", "model.heads=2"],
    "context_unet": ["model.features=8", "diffusion=ddpm"],
    "simple_unet": ["model.widths=[8,8,16]", "model.attention_levels=[1]"],
}


class Wide(Dataset):
    """8 x 12 images of two classes."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, k: int):
        return IMAGES[k], k % 2


class Step(L.LightningModule):
    """The loss of a network on a batch, with fixed noise."""

    def __init__(self, config: dict):
        super().__init__()
        self.net, self.diffusion, self.codec = make_network(config), make_diffusion(config), make_codec(config)

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        x0 = self.codec.encode(batch["image"])
        assert x0.shape[1:] == self.codec.shape == (3, 8, 12)
        t = self.diffusion.process.times[torch.arange(len(x0)) * 20]
        return self.diffusion.loss(self.net, x0, t, torch.randn_like(x0), batch["y"]).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_and_samples_at_8_x_12(name, tmp_path):
    words = ["experiment=none", "data=synthetic", "data.image_size=8", "data.num_classes=2", f"model={name}"]
    config, _ = resolve_data(compose_configs("train", [*words, *NETWORKS[name], "sampler.steps=2"])[0])
    config["data"]["image_size"] = [8, 12]
    if "image_size" in config["model"]:
        config["model"]["image_size"] = [8, 12]
    module, data = Step(config), ImageDataModule(Wide(), [8, 12], 4, val_fraction=0.25, random_crop=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(default_root_dir=tmp_path, max_steps=2, enable_checkpointing=False, **quiet)
    trainer.fit(module, data)
    assert trainer.callback_metrics is not None
    assert data.val.images.shape == (4, 3, 8, 12)
    net = guide_network(module.net.eval(), make_condition(config), guidance_scale=2.0)
    x = generate(net, module.diffusion, make_configured_sampler(config), [0, 1, 1], [1, 2, 3], module.codec.shape)
    images = module.codec.decode(x)
    assert images.shape == (3, 3, 8, 12)
    assert draw_class_grid(images, [0, 1, 1], ["a", "b"]).width > 0


def test_decoding_crops_to_height_and_width():
    image = np.zeros((24, 24, 3), np.uint8)
    image[8:16] = 255  # the middle third, which a crop to 8 x 24 keeps
    decoded = Decoding([8, 24], 3)(image)
    assert decoded.shape == (3, 8, 24)
    assert (decoded == 255).all()
    assert Decoding(8, 3)(image).shape == (3, 8, 8)


def test_windows_of_squares_are_those_of_one_number():
    images = IMAGES[:, :, :8].transpose(0, 3, 1, 2)
    assert np.array_equal(random_crops(images, 6, 3, 5), random_crops(images, [6, 6], 3, 5))


def test_patches_are_in_the_order_of_their_positions():
    square, wide = DiT(8, 3, 2, 2, 16, 1, 2, 2.0), DiT([8, 12], 3, 2, 2, 16, 1, 2, 2.0)
    assert square.positions.shape == (16, 16)
    assert wide.positions.shape == (24, 16)
    rows = wide.positions.view(4, 6, 16)
    halves = rows.chunk(2, -1)
    along = [half for half in halves if torch.equal(half[0], half[-1])]  # the same in every row: by column
    assert len(along) == 1
