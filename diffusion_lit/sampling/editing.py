"""Images from pictures, and from noise between two seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from diffusion_lit.data.originals import Originals
from diffusion_lit.diffusion.codecs import Codec
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.seeds import Between, Seed


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a, at share 0, to b, at share 1, of one shape, along the arc between them (Shoemake 1985).

    What is between vectors of one length has that length, while the straight line would cut through the inside, where
    a network that knows noise of unit variance has never been. a and b must not be parallel.
    """
    first, second = a.double(), b.double()
    angle = torch.acos((first * second).sum() / (first.norm() * second.norm()))
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * second).div(angle.sin()).to(a.dtype)


def first_noise(seed: Seed, shape: Sequence[int]) -> tuple[Tensor, Generator]:
    """Unit noise on the CPU, and the generator that goes on from there; of a place between two seeds the nearer's."""
    if isinstance(seed, Between):
        (a, near_a), (b, near_b) = first_noise(seed.first, shape), first_noise(seed.second, shape)
        return slerp(a, b, seed.share), near_a if seed.share < 0.5 else near_b
    generator = Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), generator


@dataclass(frozen=True)
class Edit:
    """What becomes of pictures: SDEdit (Meng et al. 2022), and with a mask RePaint (Lugmayr et al. 2022, algorithm 1).

    Args:
        x0: the picture of each image, float32 (N, C, H, W) in [-1, 1].
        strength: share of the sampler's steps that are done, the last ones, in (0, 1]. They start from the picture
            with the noise of the first of them; all of them start from noise alone, and without a mask the picture
            counts for nothing.
        mask: bool (H, W), true where the picture is painted anew. Elsewhere x is, after every step, the picture with
            new noise of the level reached, and after the last one the picture itself.
        resample: how often a step is done (but the last one): in between x is taken back by noise, so that what is
            painted and what is kept can settle with each other. The paper's U, with jumps of one step.
    """

    x0: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    resample: int = 1

    def of(self, members: Sequence[int], device: torch.device) -> "Edit":
        """That of a chunk of the images."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, x0=self.x0[torch.tensor(members)].to(device), mask=mask)

    def plan(self, steps: int) -> list[int]:
        """Which steps of the sampler's are done, in order; at least the last.

        >>> Edit(torch.zeros(1, 1, 1, 1), strength=0.6, resample=2).plan(5)
        [2, 2, 3, 3, 4]
        """
        first = steps - max(1, round(self.strength * steps))
        return [k for k in range(first, steps - 1) for _ in range(self.resample)] + [steps - 1]

    def kept(self, x: Tensor, diffusion: Diffusion, t: Tensor | None, generators: Sequence[Generator]) -> Tensor:
        """X of the level of t (B,), or with t None the end, with the picture where nothing is to be painted."""
        if self.mask is None:
            return x
        known = self.x0 if t is None else diffusion.add_noise(self.x0, t, new_noise(x, generators))
        return torch.where(self.mask, x, known)


def edit_of(originals: Originals, of: Sequence[int], config, codec: Codec) -> Edit:
    """Image k of original `of[k]`, by the configuration of `sample`.

    Strength null is enough to change a picture and to know it again, or under a mask everything.
    """
    x0 = codec.encode(torch.from_numpy(originals.images[list(of)]))
    mask = None if originals.mask is None else torch.from_numpy(originals.mask)
    return Edit(x0, config.strength or (0.6 if mask is None else 1.0), mask, config.resample)


def taken_back(x: Tensor, diffusion: Diffusion, s: Tensor, t: Tensor, generators: Sequence[Generator]) -> Tensor:
    """X of the level of s (B,) with so much more noise that it is of the noisier level t: q(x_t | x_s)."""
    before, after = diffusion.row(s), diffusion.row(t)
    ratio = after.alpha / before.alpha
    added = (after.sigma**2 - (ratio * before.sigma) ** 2).clamp(min=0).sqrt()
    return ratio[:, None, None, None] * x + added[:, None, None, None] * new_noise(x, generators)


def new_noise(x: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Unit noise like x (B, C, H, W), each image's from its own generator on the CPU."""
    return torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators]).to(x.device)
