"""A small classifier of the training pictures, by which generated ones are judged: where no network for photographs
fits, or none can be downloaded.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lit.data.store import ImageStore
from diffusion_lit.evaluation.intervals import shuffled

RECIPE = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8).hexdigest()  # one that is cached may be of another
STEPS, BATCH, RATE = 500, 64, 5e-3
WIDTH = 64  # of the features


def premultiplied(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) to float in [0, 1]; colours times alpha, for what cannot be seen must not count."""
    x = images.float() / 255
    return torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1) if x.shape[1] == 4 else x


class Classifier(nn.Module):
    """Three convolutions and two linear layers, the features between these: uint8 (N, C, H, W) to (N, 64)."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        widths = [channels, 32, 64, 64]
        stages = []
        for k, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            stages += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            stages += [nn.MaxPool2d(2, ceil_mode=True)] if k < 2 else []
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 64, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(premultiplied(images) - 0.5)


def trained_classifier(train: ImageStore, num_classes: int, flip: bool, device: torch.device) -> Classifier:
    """Trained on windows of the pictures moved by at most a sixteenth of their size, mirrored half of the time if they
    are in training. The same for the same pictures on the same machine; no other generator is touched.
    """
    height, width = train.images.shape[2:]
    room = max(1, width // 16)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        torch.manual_seed(0)
        net = Classifier(train.images.shape[1], num_classes).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        per_epoch = max(1, len(train) // BATCH)
        for step in range(STEPS):
            epoch, place = divmod(step, per_epoch)
            index = shuffled(len(train), epoch)[place * BATCH : (place + 1) * BATCH].numpy()
            images = F.pad(torch.from_numpy(train.images[index]).to(device), [room] * 4, mode="replicate")
            down, across, mirrored = torch.randint(0, 2 * room + 1, (3,), generator=generator).tolist()
            images = images[..., down : down + height, across : across + width]
            images = images.flip(-1) if flip and mirrored % 2 else images
            labels = torch.from_numpy(train.labels[index]).to(device)
            loss = F.cross_entropy(net.head(net(images)), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)
