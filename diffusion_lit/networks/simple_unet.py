"""A UNet with little in it: two residual blocks and an attention at each level, from 2.3 million parameters on."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.networks.checks import check_choice, check_halvings, check_levels, check_multiple, check_positive
from diffusion_lit.networks.class_table import ClassTable

HEADS, HEAD_CHANNELS = 4, 32


class SimpleUNet(nn.Module):
    """`forward(x_t (B, C, H, W), t (B,), y (B,) int64) -> (B, C, H, W)`; y = num_classes is the null label.

    A table of num_classes + 1 rows is added to the time embedding; with num_classes 0 labels are ignored.
    Without classes and with 3 channels: 2,346,835 parameters for widths 16, 32, 64, 128 with strided convolutions,
    linear attention at all levels, cosine attention in the middle and layer norms; 33,995,395 for widths 64, 128, 256,
    512 with pixels to channels, softmax attention at levels 1 and 2 and in the middle, and RMS norms.

    Args:
        image_size: checked only; the network takes any multiple of 2^(len(widths) - 2).
        widths: channels, multiples of 8: of the first convolution, then what each level hands on. All levels but the
            last halve the image, so it is halved len(widths) - 2 times.
        downsample: "conv", 4x4 with stride 2, or "pixels", 2x2 pixels to channels and a 1x1 convolution.
        attention: of the levels in `attention_levels`: "linear" (Shen et al. 2021), "softmax" or "cosine", which
            compares directions only (Henry et al. 2020); `bottleneck_attention`: that in between, at the coarsest.
        attention_norm: before an attention (and after a linear one), over channels: "layer" or "rms".
    """

    takes_blends = True  # of rows of the table

    def __init__(
        self,
        image_size: ImageSize,
        channels: int,
        num_classes: int,
        widths: Sequence[int],
        downsample: str,
        attention: str,
        attention_levels: Sequence[int],
        bottleneck_attention: str,
        attention_norm: str,
    ):
        if len(widths) < 2:
            raise ValueError(f"widths={widths}: must be two or more")
        check_positive(widths=widths)
        check_multiple(8, "the groups of the norms", widths=widths)
        check_levels(len(widths) - 1, attention_levels=attention_levels)
        check_halvings(image_size, len(widths) - 2)
        check_choice("downsample", downsample, tuple(DOWNSAMPLES))
        check_choice("attention", attention, tuple(ATTENTIONS))
        check_choice("bottleneck_attention", bottleneck_attention, tuple(ATTENTIONS))
        check_choice("attention_norm", attention_norm, tuple(NORMS))
        super().__init__()
        first, last, time = widths[0], widths[-1], 4 * widths[0]
        levels = list(enumerate(pairwise(widths)))
        halvings = len(levels) - 1
        norm = NORMS[attention_norm]

        def attended(level: int, width: int) -> nn.Module:
            return Attention(width, ATTENTIONS[attention], norm) if level in attention_levels else nn.Identity()

        self.time = nn.Sequential(Timesteps(first, False, 1), TimestepEmbedding(first, time))
        if num_classes:
            self.class_embedding = ClassTable(num_classes + 1, time)
        self.conv_in = nn.Conv2d(channels, first, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (width, wider) in levels:
            smaller = DOWNSAMPLES[downsample] if level < halvings else _same_size
            blocks = [ResidualBlock(width, width, time), ResidualBlock(width, width, time)]
            self.down.append(nn.ModuleList([*blocks, attended(level, width), smaller(width, wider)]))
        self.middle = nn.ModuleList(
            [
                ResidualBlock(last, last, time),
                Attention(last, ATTENTIONS[bottleneck_attention], norm),
                ResidualBlock(last, last, time),
            ]
        )
        self.up = nn.ModuleList()
        for level, (width, wider) in reversed(levels):
            larger = _twice_as_large if level > 0 else _same_size
            blocks = [ResidualBlock(wider + width, wider, time), ResidualBlock(wider + width, wider, time)]
            self.up.append(nn.ModuleList([*blocks, attended(level, wider), larger(wider, width)]))
        self.last = ResidualBlock(2 * first, first, time)
        self.conv_out = nn.Conv2d(first, channels, 1)

    @staticmethod
    def small(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"widths": [8] * len(settings["widths"]), "attention_levels": settings["attention_levels"][-1:]}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        embedding = self.time(t)
        if hasattr(self, "class_embedding"):
            embedding = embedding + self.class_embedding(y)
        x = first = self.conv_in(x_t)
        skips = []
        for block1, block2, attention, downsample in self.down:
            skips.append(x := block1(x, embedding))
            skips.append(x := attention(block2(x, embedding)))
            x = downsample(x)
        block1, attention, block2 = self.middle
        x = block2(attention(block1(x, embedding)), embedding)
        for block1, block2, attention, upsample in self.up:
            x = block1(torch.cat([x, skips.pop()], 1), embedding)
            x = block2(torch.cat([x, skips.pop()], 1), embedding)
            x = upsample(attention(x))
        return self.conv_out(self.last(torch.cat([x, first], 1), embedding))


class ResidualBlock(nn.Module):
    """Convolution, norm, SiLU, plus time; convolution, norm, SiLU, plus the input."""

    def __init__(self, width_in: int, width: int, time: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU())
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU())
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out = self.first(x) + self.time(embedding)[:, :, None, None]
        return self.second(out) + self.shortcut(x)


class Attention(nn.Module):
    """x + attention(norm(x)) between all pixels, 4 heads of 32 channels."""

    def __init__(self, width: int, attend, norm: type):
        super().__init__()
        self.attend = attend
        self.norm = norm(width)
        self.qkv = nn.Conv2d(width, 3 * HEADS * HEAD_CHANNELS, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_CHANNELS, width, 1)
        self.norm_out = norm(width) if attend is linear_attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, HEADS, HEAD_CHANNELS)).flatten(4).transpose(3, 4).unbind(1)
        out = self.attend(q, k, v)  # (B, heads, pixels, channels), as are q, k and v
        return x + self.norm_out(self.out(out.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q) (softmax(k)^T v): over channels and over pixels, so that its cost grows as the pixels do."""
    q, k = q.softmax(-1) * q.shape[-1] ** -0.5, k.softmax(-2)
    return q @ (k.transpose(-1, -2) @ v)


def cosine_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, scale=10.0)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, with a gain and no offset."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(x.movedim(1, -1)).movedim(-1, 1)

    def normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain)


class ChannelRMSNorm(ChannelNorm):
    """The same without taking off the mean (Zhang & Sennrich 2019)."""

    def normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.gain.dtype), self.gain.shape, self.gain)  # autocast does so for layer norms


class PixelsToChannels(nn.Sequential):
    def __init__(self, width: int, wider: int):
        super().__init__(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, wider, 1))


def _same_size(width_in: int, width: int) -> nn.Module:
    return nn.Conv2d(width_in, width, 3, padding=1)


def _twice_as_large(width_in: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width_in, width, 3, padding=1))


DOWNSAMPLES = {"conv": lambda width, wider: nn.Conv2d(width, wider, 4, 2, 1), "pixels": PixelsToChannels}
ATTENTIONS = {
    "linear": linear_attention, "softmax": F.scaled_dot_product_attention, "cosine": cosine_attention,
}  # fmt: skip
NORMS = {"layer": ChannelNorm, "rms": ChannelRMSNorm}
