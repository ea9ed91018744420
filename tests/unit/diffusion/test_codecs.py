"""Pixels: every uint8 survives the way to the network and back."""

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
