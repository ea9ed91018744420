"""A small UNet whose decoder is scaled by a class vector, so that classes can be blended."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.networks.checks import check_halvings, check_multiple

CONV_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(8, channels),
    "batch": nn.BatchNorm2d,
}


class ContextUnet(nn.Module):
    """The network of the course "How Diffusion Models Work" (S. Zhou, A. Ng 2023).

    Two halvings with one vector for the entire image in between, and no attention.
    At two levels of the decoder the channels are scaled by the class and shifted by
    the time; the encoder gets neither. With num_classes 0 nothing is scaled.

    372,867, 1,480,963, 5,902,851 and 23,569,411 parameters for 32, 64, 128 and 256
    features, 3 channels, 5 classes and images of 16x16, with either norm. Larger
    images take (4 features^2) (image_size / 4)^2 in place of 16 of these.

    Args:
        image_size: a multiple of 4 on each axis.
        channels: of the image.
        num_classes: the label num_classes is the null label.
        features: channels of the finest level, a multiple of 8.
        norm: "group", or "batch" as in the course, where images of all noise levels
            share statistics, which are poor in small batches.
        num_train_timesteps: T; the network gets the time as (t + 1) / T.
    """

    supports_blends = True

    def __init__(
        self, image_size: ImageSize, channels: int, num_classes: int, features: int, norm: str, num_train_timesteps: int
    ):
        check_halvings(image_size, 2)
        check_multiple(8, "the groups of the norms", features=features)
        super().__init__()
        self.num_classes, self.num_train_timesteps = num_classes, num_train_timesteps

        def make_convs(width_in: int, width: int) -> list[nn.Module]:
            return [make_two_convs(width_in, width, norm), make_two_convs(width, width, norm)]

        fine, coarse, (height, width) = features, 2 * features, height_width(image_size)
        quarter = height // 4, width // 4
        self.shortcut = nn.Conv2d(channels, fine, 1, bias=False)
        self.first = make_two_convs(channels, fine, norm)
        self.down1 = nn.Sequential(*make_convs(fine, fine), nn.MaxPool2d(2))
        self.down2 = nn.Sequential(*make_convs(fine, coarse), nn.MaxPool2d(2))
        self.to_vector = nn.Sequential(nn.AvgPool2d(quarter), nn.GELU())
        enlarge = nn.ConvTranspose2d(coarse, coarse, quarter, quarter)
        self.from_vector = nn.Sequential(enlarge, nn.GroupNorm(8, coarse), nn.ReLU())
        self.up1 = nn.Sequential(nn.ConvTranspose2d(2 * coarse, fine, 2, 2), *make_convs(fine, fine))
        self.up2 = nn.Sequential(nn.ConvTranspose2d(2 * fine, fine, 2, 2), *make_convs(fine, fine))
        conv1, conv2 = nn.Conv2d(2 * fine, fine, 3, padding=1), nn.Conv2d(fine, channels, 3, padding=1)
        self.out = nn.Sequential(conv1, nn.GroupNorm(8, fine), nn.ReLU(), conv2)
        self.time1, self.time2 = make_embedding(1, coarse), make_embedding(1, fine)
        if num_classes:
            self.context1, self.context2 = make_embedding(num_classes, coarse), make_embedding(num_classes, fine)

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"features": 8}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W).

        Args:
            x_t: noisy images, (B, C, H, W).
            t: timesteps, (B,).
            y: labels (B,) int64, or blends (B, num_classes) float32.
        """
        time = ((t + 1) / self.num_train_timesteps)[:, None]
        scale1: Tensor | float = 1.0
        scale2: Tensor | float = 1.0
        if self.num_classes:
            context = self.context(y)
            scale1, scale2 = _per_channel(self.context1(context)), _per_channel(self.context2(context))
        x = (self.shortcut(x_t) + self.first(x_t)) / 2**0.5
        half = self.down1(x)
        quarter = self.down2(half)
        up = self.from_vector(self.to_vector(quarter))
        up = self.up1(torch.cat([scale1 * up + _per_channel(self.time1(time)), quarter], 1))
        up = self.up2(torch.cat([scale2 * up + _per_channel(self.time2(time)), half], 1))
        return self.out(torch.cat([up, x], 1))

    def context(self, y: Tensor) -> Tensor:
        """Return labels one-hot, float32 (B, num_classes), the null label as zeros, and blends as they are."""
        return y if y.is_floating_point() else F.one_hot(y, self.num_classes + 1)[:, :-1].float()


def make_two_convs(channels_in: int, channels: int, norm: str) -> nn.Sequential:
    """Return two 3x3 convolutions, each with norm and GELU."""
    layers: list[nn.Module] = []
    for inputs in (channels_in, channels):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), CONV_NORMS[norm](channels), nn.GELU()]
    return nn.Sequential(*layers)


def make_embedding(inputs: int, channels: int) -> nn.Sequential:
    """Return a hidden layer of `channels` with GELU, and a linear layer."""
    return nn.Sequential(nn.Linear(inputs, channels), nn.GELU(), nn.Linear(channels, channels))


def _per_channel(values: Tensor) -> Tensor:
    """Return values (B, C) as (B, C, 1, 1)."""
    return values[:, :, None, None]
