"""Editing images by SDEdit and RePaint, and interpolating between seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from diffusion_lit.data.device_images import copy_to_device
from diffusion_lit.data.originals import Originals
from diffusion_lit.diffusion.codecs import Codec
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.seeds import InterpolatedSeed, Seed


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Return the spherical interpolation from a (fraction 0) to b (fraction 1) (Shoemake 1985).

    It keeps the length of Gaussian noise, which linear interpolation would reduce
    to one that the network never saw. a and b have one shape and must not be
    parallel.
    """
    first, second = a.double(), b.double()
    angle = torch.acos((first * second).sum() / (first.norm() * second.norm()))
    return (((1 - fraction) * angle).sin() * first + (fraction * angle).sin() * second).div(angle.sin()).to(a.dtype)


def initial_noise(seed: Seed, shape: Sequence[int]) -> tuple[Tensor, Generator]:
    """Return unit noise on the CPU, and the generator for further noise.

    For an interpolated seed the generator is that of the nearer one.
    """
    if isinstance(seed, InterpolatedSeed):
        (a, generator_a), (b, generator_b) = initial_noise(seed.first, shape), initial_noise(seed.second, shape)
        return slerp(a, b, seed.fraction), generator_a if seed.fraction < 0.5 else generator_b
    generator = Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), generator


@dataclass(frozen=True)
class Edit:
    """Changes given images: SDEdit (Meng et al. 2022), with a mask RePaint (Lugmayr et al. 2022, algorithm 1).

    Args:
        x0: original of each image, float32 (N, C, H, W) as `Codec.encode` returns it.
        strength: fraction of the sampler's steps to run, the last ones, in (0, 1]. They start
            from the original with the noise of the first of them. At 1 they start from pure
            noise, and without a mask the original has no effect.
        mask: bool (H, W), True where the image is generated. Elsewhere x is, after every step,
            the original with new noise of the level reached, and finally the original itself.
        repaint_repeats: how often each step but the last is run, with noise added in between,
            so that generated and kept parts fit: the paper's U, with jumps of one step.
    """

    x0: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    repaint_repeats: int = 1

    def select(self, members: Sequence[int], device: torch.device) -> "Edit":
        """Return the edit of some of the images, on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, x0=self.x0[torch.tensor(members)].to(device), mask=mask)

    def step_indices(self, steps: int) -> list[int]:
        """Return which of the sampler's steps to run, in order; at least the last.

        >>> Edit(torch.zeros(1, 1, 1, 1), strength=0.6, repaint_repeats=2).step_indices(5)
        [2, 2, 3, 3, 4]
        """
        first = steps - max(1, round(self.strength * steps))
        return [k for k in range(first, steps - 1) for _ in range(self.repaint_repeats)] + [steps - 1]

    def restore_known(
        self, x: Tensor, diffusion: Diffusion, t: Tensor | None, generators: Sequence[Generator]
    ) -> Tensor:
        """Return x (B, C, H, W) at times t (B,), or at the end (None), with the original outside the mask."""
        if self.mask is None:
            return x
        known = self.x0 if t is None else diffusion.add_noise(self.x0, t, draw_noise_like(x, generators))
        return torch.where(self.mask, x, known)


def make_edit(
    originals: Originals, indices: Sequence[int], strength: float | None, repaint_repeats: int, codec: Codec
) -> Edit:
    """Return the edit of `sample`; image k changes original `indices[k]`.

    A strength of None is 0.6, which changes an image and leaves it recognizable, and 1 with a
    mask.
    """
    x0 = codec.encode(torch.from_numpy(originals.images[list(indices)]))
    mask = None if originals.mask is None else torch.from_numpy(originals.mask)
    return Edit(x0, strength or (0.6 if mask is None else 1.0), mask, repaint_repeats)


def renoise(x: Tensor, diffusion: Diffusion, s: Tensor, t: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Return x_t ~ q(x_t | x_s) of x_s (B, C, H, W) at the less noisy times s (B,)."""
    before, after = diffusion.coefficients(s), diffusion.coefficients(t)
    ratio = after.alpha / before.alpha
    added = (after.sigma**2 - (ratio * before.sigma) ** 2).clamp(min=0).sqrt()
    return ratio[:, None, None, None] * x + added[:, None, None, None] * draw_noise_like(x, generators)


def draw_noise_like(x: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Return unit noise of the shape of x (B, C, H, W), each image's from its own CPU generator."""
    noise = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
    return copy_to_device(noise, x.device)
