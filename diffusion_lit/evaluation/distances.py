"""Fréchet and kernel distance of two sets of features, (N, D) of generated and (M, D) of real images."""

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Measurement, fixed_permutation

IMAGES_PER_FEATURE = 5  # below that the Fréchet distance is mostly bias
KERNEL_IMAGES = 10_000  # real images of the kernel distance, at most: M x M numbers are computed
KERNEL_ROWS = 500  # rows of a kernel matrix at a time


def frechet_distance(x: Tensor, y: Tensor) -> Measurement:
    """Return the Fréchet distance of the Gaussians with the mean and covariance of each set.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017).
    It grows as N falls, so it compares sets of equal size.

    The influence of an image at distance c from its mean is 2 c.(m_x - m_y) + c.(1 - T) c less
    its mean, where T is the linear map that transports S_x to S_y: T is the derivative of
    2 tr(S_x S_y)^(1/2) by S_x (Takatsu 2011).
    """
    (mean_x, cov_x), (mean_y, cov_y) = _moments(x), _moments(y)
    cross, transport = _transport(cov_x, cov_y)
    _, transport_back = _transport(cov_y, cov_x)
    shift = mean_x - mean_y
    value = shift @ shift + cov_x.trace() + cov_y.trace() - 2 * cross

    def influences(images: Tensor, mean: Tensor, shift: Tensor, transport: Tensor) -> Tensor:
        offset = images.double() - mean
        change = 2 * offset @ shift + (offset * (offset - offset @ transport)).sum(1)
        return change - change.mean()

    generated = influences(x, mean_x, shift, transport)
    return Measurement(value.item(), generated, influences(y, mean_y, -shift, transport_back))


def extrapolated_frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the Fréchet distance of infinitely many images, from its values at N and N / 2 images.

    The bias is close to a / N + b / M, so that 2 FD(N, M) - FD(N/2, M/2) has none (compare Chong &
    Forsyth 2020, who fit a line through 15 sizes). The second number is a mean over halves. It
    can be below 0.
    """
    splits, halves = (4 if x.shape[1] <= 256 else 1), []
    for seed in range(splits):
        parts = (z[fixed_permutation(len(z), seed)].tensor_split(2) for z in (x, y))
        halves += [_frechet(a, b) for a, b in zip(*parts, strict=True)]
    return 2 * _frechet(x, y) - sum(halves) / len(halves)


def _frechet(x: Tensor, y: Tensor) -> float:
    (mean_x, cov_x), (mean_y, cov_y) = _moments(x), _moments(y)
    root = _square_root(cov_y)
    cross = torch.linalg.eigvalsh(root @ cov_x @ root).clamp(min=0).sqrt().sum()
    return ((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and unbiased covariance (D, D), float64."""
    x = x.double()
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def _square_root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _transport(cov_x: Tensor, cov_y: Tensor) -> tuple[Tensor, Tensor]:
    """Return tr(S_x S_y)^(1/2) and T with T S_x T = S_y.

    T = R (R S_x R)^(-1/2) R with R = S_y^(1/2).
    """
    root = _square_root(cov_y)
    values, vectors = torch.linalg.eigh(root @ cov_x @ root)
    values = values.clamp(min=0).sqrt()
    # features without variance have no influence
    inverse = torch.where(values > 1e-7 * values.max(), 1 / values, 0)
    root = root @ vectors
    return values.sum(), root * inverse @ root.T


def find_principal_components(real: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return mean and first principal components of real features (M, D), float64.

    Args:
        real: the features.
        n: number of components.

    Returns:
        (D,) and (D, n).
    """
    mean, cov = _moments(real)
    return mean, torch.linalg.eigh(cov).eigenvectors[:, -n:].flip(1)


def kernel_distance(x: Tensor, y: Tensor) -> Measurement:
    """Return KID, with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    It is the unbiased squared maximum mean discrepancy over all pairs of images
    (Gretton et al. 2012, eq. 3), the estimate of smallest variance without bias;
    published KID is often its mean over subsets of 1,000. The influence of an image
    is twice its mean kernel with the other images of its set, less that with the
    other set (Hoeffding 1948). For equal distributions, where influences vanish,
    intervals are up to 1.4 times too wide.

    Of more than 10,000 real images a fixed random choice is used.
    """
    if len(y) > KERNEL_IMAGES:
        chosen = fixed_permutation(len(y))[:KERNEL_IMAGES]
        part = kernel_distance(x, y[chosen])
        real = torch.zeros(len(y), dtype=torch.double)
        real[chosen] = part.real * (len(y) / KERNEL_IMAGES)  # the standard error stays that of the chosen ones
        return Measurement(part.value, part.generated, real)
    x, y = x.double(), y.double()
    within_x, within_y = ((_sum_kernels(z, z)[0] - _kernel(z.square().sum(1), z)) / (len(z) - 1) for z in (x, y))
    to_y, to_x = _sum_kernels(x, y)
    to_y, to_x = to_y / len(y), to_x / len(x)
    value = within_x.mean() + within_y.mean() - 2 * to_y.mean()
    generated, real = 2 * (within_x - to_y), 2 * (within_y - to_x)
    return Measurement(value.item(), generated - generated.mean(), real - real.mean())


def _kernel(products: Tensor, x: Tensor) -> Tensor:
    return (products / x.shape[1] + 1).pow_(3)


def _sum_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the kernels of each image of x with those of y, (N,), and the other way round, (M,)."""
    of_x, of_y = [], torch.zeros(len(y), dtype=x.dtype, device=x.device)
    for rows in x.split(KERNEL_ROWS):
        kernels = _kernel(rows @ y.T, y)
        of_x.append(kernels.sum(1))
        of_y += kernels.sum(0)
    return torch.cat(of_x), of_y
