"""A small UNet in which the class is a vector that scales the decoder, so that classes can be blended."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.networks.checks import check_choice, check_halvings, check_multiple, check_positive

NORMS = {"group": lambda channels: nn.GroupNorm(8, channels), "batch": nn.BatchNorm2d}


class ContextUnet(nn.Module):
    """`forward(x_t (B, C, H, W), t (B,), y) -> (B, C, H, W)`; y (B,) int64, num_classes is the null label, or blends of
    classes (B, num_classes) float32, where the zero vector is.

    Two halvings, one vector for the whole image in between, no attention. At two levels of the decoder the channels are
    scaled by the class and shifted by the time; the encoder knows neither. A label is a one-hot vector; half of one
    class and half of another is a vector as well. With num_classes 0 nothing is scaled.

    372,867, 1,480,963, 5,902,851 and 23,569,411 parameters for 32, 64, 128 and 256 features, 3 channels, 5 classes
    and images of 16x16, with either norm. Larger images cost (4 features^2) (image_size / 4)^2 in place of 16 of these.

    Args:
        image_size: a multiple of 4 on each axis.
        features: channels of the finest level, a multiple of 8.
        norm: "group", or "batch" as in the course that this network is known from (S. Zhou, A. Ng: How Diffusion Models
            Work, 2023), where images of all noise levels share statistics and small batches have poor ones.
        num_train_timesteps: T; the time is told as the number (t + 1) / T.
    """

    takes_blends = True  # of classes, in `sample`

    def __init__(
        self, image_size: ImageSize, channels: int, num_classes: int, features: int, norm: str, num_train_timesteps: int
    ):
        check_halvings(image_size, 2)
        check_positive(features=features)
        check_multiple(8, "the groups of the norms", features=features)
        check_choice("norm", norm, tuple(NORMS))
        super().__init__()
        self.num_classes, self.num_train_timesteps = num_classes, num_train_timesteps
        fine, coarse, quarter = features, 2 * features, tuple(side // 4 for side in height_width(image_size))
        self.shortcut = nn.Conv2d(channels, fine, 1, bias=False)
        self.first = two_convs(channels, fine, norm)
        self.down1 = nn.Sequential(two_convs(fine, fine, norm), two_convs(fine, fine, norm), nn.MaxPool2d(2))
        self.down2 = nn.Sequential(two_convs(fine, coarse, norm), two_convs(coarse, coarse, norm), nn.MaxPool2d(2))
        self.to_vector = nn.Sequential(nn.AvgPool2d(quarter), nn.GELU())
        self.from_vector = nn.Sequential(
            nn.ConvTranspose2d(coarse, coarse, quarter, quarter), nn.GroupNorm(8, coarse), nn.ReLU()
        )
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(2 * coarse, fine, 2, 2), two_convs(fine, fine, norm), two_convs(fine, fine, norm)
        )
        self.up2 = nn.Sequential(
            nn.ConvTranspose2d(2 * fine, fine, 2, 2), two_convs(fine, fine, norm), two_convs(fine, fine, norm)
        )
        self.out = nn.Sequential(
            nn.Conv2d(2 * fine, fine, 3, padding=1),
            nn.GroupNorm(8, fine),
            nn.ReLU(),
            nn.Conv2d(fine, channels, 3, padding=1),
        )
        self.time1, self.time2 = embedding(1, coarse), embedding(1, fine)
        if num_classes:
            self.context1, self.context2 = embedding(num_classes, coarse), embedding(num_classes, fine)

    @staticmethod
    def small(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"features": 8}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        time = ((t + 1) / self.num_train_timesteps)[:, None]
        scale1, scale2 = 1.0, 1.0
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
        """Labels (B,) to one-hot float32 (B, num_classes), the null label to zeros; blends as they are."""
        return y if y.is_floating_point() else F.one_hot(y, self.num_classes + 1)[:, :-1].float()


def two_convs(channels_in: int, channels: int, norm: str) -> nn.Sequential:
    """Twice: 3x3 convolution, norm, GELU."""
    layers = []
    for inputs in (channels_in, channels):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), NORMS[norm](channels), nn.GELU()]
    return nn.Sequential(*layers)


def embedding(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, channels), nn.GELU(), nn.Linear(channels, channels))


def _per_channel(values: Tensor) -> Tensor:
    """(B, C) to (B, C, 1, 1)."""
    return values[:, :, None, None]
