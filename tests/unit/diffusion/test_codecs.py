"""Pixels: every uint8 survives the way to the network and back; pixel art comes back as pixel art."""

import numpy as np
import torch

from diffusion_lit.diffusion.codecs import Pixels


def test_pixels_are_scaled_exactly_and_clipped():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    codec = Pixels((1, 16, 16))
    x = codec.encode(images)
    assert (x.min(), x.max(), x.shape[1:]) == (-1, 1, codec.shape)
    assert torch.equal(codec.decode(x), images)
    assert codec.decode(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    assert codec.image_shape == codec.shape


def test_hard_alpha_and_palettes_hold_for_every_decoded_image():
    x = torch.rand(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    palette = np.array([[0, 0, 0], [250, 10, 20], [240, 240, 240]], np.uint8)
    soft = Pixels((4, 5, 6)).decode(x)
    images = Pixels((4, 5, 6), has_hard_alpha=True, palette=palette).decode(x)
    is_opaque = soft[..., 3, :, :] > 127
    assert torch.equal(images[..., 3, :, :], is_opaque * torch.tensor(255, dtype=torch.uint8))
    pixels = images[..., :3, :, :].movedim(-3, -1)
    assert not pixels[~is_opaque].any()
    assert set(map(tuple, pixels[is_opaque].tolist())) == set(map(tuple, palette.tolist()))
    assert torch.equal(
        Pixels((4, 5, 6), has_hard_alpha=True).decode(x)[..., :3, :, :],
        soft[..., :3, :, :] * is_opaque[..., None, :, :],
    )
    gray = Pixels((1, 2, 2), has_hard_alpha=True)  # an override that has no effect is refused elsewhere
    assert gray.decode(torch.zeros(1, 1, 2, 2)).tolist() == [[[[128, 128], [128, 128]]]]
