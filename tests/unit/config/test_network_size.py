"""Networks are sized for the image, and what is unwise about a network or a number of images is said."""

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.network_size import choose_channels, describe_levels, find_divisor, find_size_faults
from diffusion_lit.config.targets import build
from diffusion_lit.imaging.sizes import height_width
from diffusion_lit.networks.checks import check_halvings
from tests.cases import each

# at 32 pixels networks are what they were before they depended on the size, and no experiment changes
EXPERIMENTS = {
    "cifar10_cond": ([128, 256, 256, 256], [1]),
    "celeba": ([128, 256, 256, 256], [2]),
    "mnist_cond": ([32, 64, 64], [2]),
    "digits": ([32, 32], []),
}


def model_of(*overrides: str) -> dict:
    config = compose_configs("train", list(overrides), complete=False)[0]
    return OmegaConf.to_container(config.model, resolve=True)


def images(size, *overrides: str) -> dict:
    text = str(size).replace(" ", "")
    return model_of("data=image_folder", "data.root=x", f"data.image_size={text}", "experiment=none", *overrides)


def test_networks_at_32_pixels_and_of_experiments_stay_as_they_were():
    for name, expected in EXPERIMENTS.items():
        model = model_of(f"experiment={name}")
        assert (model["block_out_channels"], model["attention_levels"]) == expected, name
    for name, channels, attention in (("unet", [128, 256, 256, 256], [1]), ("unet_small", [32, 64, 64], [2])):
        model = images(32, f"model={name}")
        assert (model["block_out_channels"], model["attention_levels"]) == (channels, attention)


def test_levels_follow_the_image_size():
    for name, side in (("unet", 16), ("unet_small", 8)):
        for size in (8, 16, 28, 32, 48, 64, 96, 128, 224, 256, 512, [48, 64], [256, 128]):
            model = images(size, f"model={name}")
            channels, attention = model["block_out_channels"], model["attention_levels"]
            shorter = min(height_width(size)) / 2 ** (len(channels) - 1)
            assert 4 <= shorter <= 8, (name, size)
            check_halvings(size, len(channels) - 1)
            positions = [height_width(size)[0] * height_width(size)[1] / 4**k for k in range(len(channels))]
            finest = min((k for k in range(len(channels)) if positions[k] <= side**2), default=len(channels) - 1)
            assert attention == [finest], (name, size)
            assert not find_size_faults(model, 10**6), (name, size)
    assert images(256, "model=unet")["block_out_channels"] == [128, 128, 128, 256, 256, 256]
    model = images(256, "model=unet", "model.block_out_channels=[64,128,128]", "model.attention_levels=[0]")
    assert (model["block_out_channels"], model["attention_levels"]) == ([64, 128, 128], [0])  # typed ones win


@each(
    ("size", "attention"), [(8, [0, 1]), (16, [0, 1, 2]), (32, [1, 2]), (64, [2, 3]), (128, [3, 4]), ([64, 128], [3])]
)
def test_a_network_for_prompts_has_attention_at_16x16_and_below(size, attention):
    model = images(size, "model=unet_text")
    assert model["attention_levels"] == attention
    assert build(model | {"text_tokens": 4})


def test_sizes_that_cannot_be_halved_so_often_keep_fewer_levels():
    assert choose_channels([32, 64, 64], 100) == [32, 64, 64]
    assert choose_channels([32, 64, 64], 227) == [32, 64, 64]
    with pytest.raises(ValueError, match="image_size=227: must be a multiple of 4, .* The nearest are 224 or 228"):
        check_halvings(227, 2)
    with pytest.raises(ValueError, match=r"The nearest are \[224, 64\] or \[228, 68\]"):
        check_halvings([227, 64], 2)
    with pytest.raises(ValueError, match="The nearest are 8"):
        check_halvings(3, 3)


def test_a_network_takes_multiples_of_its_divisor_alone():
    for name, divisor in (
        ("dit", 4), ("unet", 8), ("unet_small", 4), ("unet_digits", 2), ("unet2d", 8), ("simple_unet", 4),
        ("context_unet", 4),
    ):  # fmt: skip
        model = images(32, f"model={name}", *["model.patch_size=4"] * (name == "dit"))
        assert find_divisor(model) == divisor, name
        with torch.device("meta"):
            build(model | {"image_size": 4 * divisor})
            with pytest.raises(ValueError, match=f"must be a multiple of {divisor}"):
                build(model | {"image_size": 4 * divisor + divisor // 2})


def test_unwise_networks_are_named_with_what_to_do():
    old = ["model=unet_small", "model.block_out_channels=[32,64,64]", "model.attention_levels=[2]"]
    cases = [
        (images(256, *old), 10**6, "attention at 64x64 compares 4,096 positions", "without model.block_out_channels"),
        (
            images(256, "model=unet_digits"),
            10**6,
            "2 levels are few for 256x256",
            "model=unet",
        ),
        (
            images(100, "model=unet_small"),
            10**6,
            "3 levels are few for 100x100",
            "data.image_size=96 can be halved until that is 6x6",
        ),
        (images(256, "model=dit"), 10**6, "attention at 128x128", "model.patch_size=8"),
        (images(128, "model=unet2d"), 10**6, "attention at 64x64", "model=unet"),
        (images(256, "model=simple_unet"), 10**6, "attention at 64x64", "model=unet"),
        (images(256), 300, "300 images are few for 256x256", "data.image_size=64 a step costs about 1/16"),
        (images([128, 256]), 300, "300 images are few for 256x128", "data.image_size=64"),
    ]
    for model, count, fault, advice in cases:
        (note,) = find_size_faults(model, count)
        assert fault in note, note
        assert advice in note, note
    for model in (images(64), images(64, "model=dit"), images(32, "model=unet2d"), images(64, "model=context_unet")):
        assert find_size_faults(model, 20) == []
    assert describe_levels(images(64)) == "4 levels from 64x64 to 8x8, attention at 8x8"
    assert describe_levels(images(64, "model=dit")) == ""
