"""A plain UNet, two residual blocks and an attention at each level, from 2.3 million parameters."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.networks.checks import check_halvings, check_levels, check_multiple
from diffusion_lit.networks.class_embedding import ClassEmbedding

HEADS, HEAD_CHANNELS = 4, 32


class SimpleUNet(nn.Module):
    """A UNet whose class embedding is added to the time embedding.

    Without classes and with 3 channels: 2,346,835 parameters for widths 16, 32, 64,
        128 with
    strided convolutions, linear attention at all levels, cosine attention in the
    middle and layer norms; 33,995,395 for widths 64, 128, 256, 512 with pixels to
    channels, softmax attention at levels 1 and 2 and in the middle, and RMS norms.

    Args:
        image_size: checked only; the network takes any multiple of 2^(len(widths) -
            2).
        channels: of the image.
        num_classes: the label num_classes is the null label; with 0 labels are
            ignored.
        widths: output channels of the first convolution, then of each level;
            multiples of 8. All levels but the last halve the image.
        downsample: "conv", 4x4 with stride 2, or "pixels", 2x2 pixels to channels
            and a 1x1 convolution.
        attention: "linear" (Shen et al. 2021), "softmax" or "cosine" (Henry et al.
            2020).
        attention_levels: indices of the levels with attention, the finest is 0.
        bottleneck_attention: attention in the middle, at the coarsest resolution.
        attention_norm: norm over channels before an attention, and after a linear
            one: "layer" or "rms".
    """

    supports_blends = True

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
        check_multiple(8, "the groups of the norms", widths=widths)
        check_levels(len(widths) - 1, attention_levels=attention_levels)
        check_halvings(image_size, len(widths) - 2)
        super().__init__()
        finest, coarsest, time_channels = widths[0], widths[-1], 4 * widths[0]
        levels = list(enumerate(pairwise(widths)))
        halvings = len(levels) - 1
        norm = ATTENTION_NORMS[attention_norm]

        def make_attention(level: int, width: int) -> nn.Module:
            return Attention(width, ATTENTIONS[attention], norm) if level in attention_levels else nn.Identity()

        self.time = nn.Sequential(Timesteps(finest, False, 1), TimestepEmbedding(finest, time_channels))
        if num_classes:
            self.class_embedding = ClassEmbedding(num_classes + 1, time_channels)
        self.conv_in = nn.Conv2d(channels, finest, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (width, wider) in levels:
            make_downsample = DOWNSAMPLES[downsample] if level < halvings else _same_size
            blocks = [ResidualBlock(width, width, time_channels) for _ in range(2)]
            self.down.append(nn.ModuleList([*blocks, make_attention(level, width), make_downsample(width, wider)]))
        self.middle = nn.ModuleList([ResidualBlock(coarsest, coarsest, time_channels)])
        self.middle.append(Attention(coarsest, ATTENTIONS[bottleneck_attention], norm))
        self.middle.append(ResidualBlock(coarsest, coarsest, time_channels))
        self.up = nn.ModuleList()
        for level, (width, wider) in reversed(levels):
            make_upsample = _upsample if level > 0 else _same_size
            blocks = [ResidualBlock(wider + width, wider, time_channels) for _ in range(2)]
            self.up.append(nn.ModuleList([*blocks, make_attention(level, wider), make_upsample(wider, width)]))
        self.last = ResidualBlock(2 * finest, finest, time_channels)
        self.conv_out = nn.Conv2d(finest, channels, 1)

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"widths": [8] * len(settings["widths"]), "attention_levels": settings["attention_levels"][-1:]}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W).

        Args:
            x_t: noisy images, (B, C, H, W).
            t: times, (B,).
            y: labels (B,) int64, or blends (B, num_classes) float32.
        """
        embedding = self.time(t)
        if hasattr(self, "class_embedding"):
            embedding = embedding + self.class_embedding(y)
        x = x_in = self.conv_in(x_t)
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
        return self.conv_out(self.last(torch.cat([x, x_in], 1), embedding))


class ResidualBlock(nn.Module):
    """Two convolutions with norm and SiLU; the time is added between them, the input at the end."""

    def __init__(self, width_in: int, width: int, time_channels: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU())
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU())
        self.shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (B, width, H, W) of x (B, width_in, H, W) and an embedding (B, time_channels)."""
        out = self.first(x) + self.time(embedding)[:, :, None, None]
        return self.second(out) + self.shortcut(x)


class Attention(nn.Module):
    """x + attention(norm(x)) between all pixels, with 4 heads of 32 channels.

    Args:
        width: channels.
        attend: a value of `ATTENTIONS`.
        norm: a value of `ATTENTION_NORMS`.
    """

    def __init__(self, width: int, attend: Callable[..., Tensor], norm: type[nn.Module]):
        super().__init__()
        self.attend = attend
        self.norm = norm(width)
        self.qkv = nn.Conv2d(width, 3 * HEADS * HEAD_CHANNELS, 1, bias=False)
        self.out = nn.Conv2d(HEADS * HEAD_CHANNELS, width, 1)
        self.norm_out = norm(width) if attend is linear_attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of x of that shape."""
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (3, HEADS, HEAD_CHANNELS)).flatten(4).transpose(3, 4).unbind(1)
        out = self.attend(q, k, v)  # all of (B, heads, pixels, channels)
        return x + self.norm_out(self.out(out.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])))


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q) (softmax(k)^T v), at a cost linear in the pixels (Shen et al. 2021).

    The softmax of q is over channels, that of k over pixels.
    """
    q, k = q.softmax(-1) * q.shape[-1] ** -0.5, k.softmax(-2)
    return q @ (k.transpose(-1, -2) @ v)


def cosine_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention by the cosine of q and k, times 10 (Henry et al. 2020)."""
    return F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, scale=10.0)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel, without an offset."""

    def __init__(self, width: int):
        super().__init__(width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of x of that shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ChannelRMSNorm(nn.RMSNorm):
    """RMS norm over the channels of each pixel (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W) of x of that shape, in the dtype of the weight.

        Autocast casts so for layer norms, but not for RMS norms.
        """
        return super().forward(x.movedim(1, -1).to(self.weight.dtype)).movedim(-1, 1)


def _pixels_to_channels(width_in: int, width: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width_in, width, 1))


def _upsample(width_in: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width_in, width, 3, padding=1))


_same_size = partial(nn.Conv2d, kernel_size=3, padding=1)
DOWNSAMPLES = {"conv": partial(nn.Conv2d, kernel_size=4, stride=2, padding=1), "pixels": _pixels_to_channels}
ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "linear": linear_attention,
    "softmax": F.scaled_dot_product_attention,
    "cosine": cosine_attention,
}
ATTENTION_NORMS = {"layer": ChannelNorm, "rms": ChannelRMSNorm}
