"""Parts that `python -m benchmarks rounds` tries; one that wins moves into the package."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.networks.unet import UNet

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic (Jordan et al. 2024)


class UnshuffledUNet(nn.Module):
    """A UNet on blocks of pixels: each block is a pixel with `block`^2 times the channels.

    Args:
        image_size: each side a multiple of `block` and of the halvings after it.
        channels: of the image.
        num_classes: as for UNet.
        block: pixels of a block side.
        block_out_channels: channels of each level, as for UNet.
        arguments: of UNet.
    """

    def __init__(
        self,
        image_size: ImageSize,
        channels: int,
        num_classes: int,
        block: int,
        block_out_channels: Sequence[int],
        **arguments,
    ):
        sides = height_width(image_size)
        if any(side % block for side in sides):
            raise ValueError(f"image_size={image_size} is no multiple of block={block}")
        super().__init__()
        self.block = block
        size = [side // block for side in sides]
        self.inner = UNet(size, channels * block**2, num_classes, block_out_channels, **arguments)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W) of noisy images x_t (B, C, H, W), times t (B,) and labels y (B,)."""
        return pixel_shuffle(self.inner(pixel_unshuffle(x_t, self.block), t, y), self.block)


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for all other parameters.

    PyTorch's own Muon takes matrices alone. Here a convolution (O, I, H, W) is a matrix (O, I H W).
    An update of Muon is scaled to the root mean square of one of AdamW, so that both have one
    learning rate (Liu et al. 2025, section 2.2).

    Args:
        parameters: to optimize.
        lr: learning rate of both.
        betas: of AdamW.
        momentum: of Muon, with Nesterov's correction.
        eps: of AdamW, added to the denominator.
        smallest: a matrix with fewer rows or columns, as of the first and the last convolution, is AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        eps: float = 1e-8,
        smallest: int = 16,
    ):
        kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            is_matrix = parameter.ndim > 1 and min(parameter.flatten(1).shape) >= smallest
            kinds[is_matrix].append(parameter)
        groups = [{"params": found, "is_matrix": is_matrix} for is_matrix, found in kinds.items() if found]
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        """Apply a step to every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self.step_muon if group["is_matrix"] else self.step_adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)
        return loss

    def step_muon(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(mean, group["momentum"]).flatten(1)
        scale = 0.2 * max(matrix.shape) ** 0.5
        parameter.add_(orthogonalize(matrix).view(parameter.shape), alpha=-group["lr"] * scale)

    def step_adam(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state, (beta, beta_square) = self.state[parameter], group["betas"]
        if not state:
            state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter), "steps": 0}
        state["steps"] += 1
        mean = state["mean"].lerp_(gradient, 1 - beta) / (1 - beta ** state["steps"])
        square = state["square"].lerp_(gradient.square(), 1 - beta_square) / (1 - beta_square ** state["steps"])
        parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about U V^T of a matrix U S V^T (M, N) by Newton-Schulz iterations: singular values of 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).contiguous()
