"""A small classifier of the training images, whose features and classes generated images are measured by.

It serves images that no photograph network fits, and needs no download.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation.intervals import fixed_permutation

CODE_DIGEST = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()  # part of the cache key
STEPS, BATCH, RATE = 500, 64, 5e-3
NUM_FEATURES = 64


def premultiply_alpha(images: Tensor) -> Tensor:
    """Return uint8 (N, C, H, W) as float in [0, 1], colors times alpha: hidden colors must not count."""
    x = images.float() / 255
    return torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1) if x.shape[1] == 4 else x


class Classifier(nn.Module):
    """Three convolutions and two linear layers. `forward` returns the features between these."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        layers, width_in = [], channels
        for width, pool in ((32, True), (64, True), (64, False)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2, ceil_mode=True)] * pool
            width_in = width
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 64, NUM_FEATURES), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 64) of images uint8 (N, C, H, W)."""
        return self.body(premultiply_alpha(images) - 0.5)


def train_classifier(train: ImageStore, num_classes: int, flip: bool, device: torch.device) -> Classifier:
    """Train the classifier on images shifted by at most a sixteenth of their width.

    With `flip` half of the batches are flipped left to right. The result is the same for the
    same images on the same machine; no other generator is touched.
    """
    height, width = train.images.shape[2:]
    margin = max(1, width // 16)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        torch.manual_seed(0)
        net = Classifier(train.images.shape[1], num_classes).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        steps_per_epoch = max(1, len(train) // BATCH)
        for step in range(STEPS):
            epoch, k = divmod(step, steps_per_epoch)
            index = fixed_permutation(len(train), epoch)[k * BATCH : (k + 1) * BATCH].numpy()
            images = F.pad(torch.from_numpy(train.images[index]).to(device), [margin] * 4, mode="replicate")
            top, left, coin = torch.randint(0, 2 * margin + 1, (3,), generator=generator).tolist()
            images = images[..., top : top + height, left : left + width]
            images = images.flip(-1) if flip and coin % 2 else images
            labels = torch.from_numpy(train.labels[index]).to(device)
            loss = F.cross_entropy(net.head(net(images)), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)
