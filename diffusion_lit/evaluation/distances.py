"""Fréchet and kernel distance of two sets of features, (N, D) of generated and (M, D) of real images."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_lit.evaluation.intervals import Measurement, fixed_permutation

IMAGES_PER_FEATURE = 5  # below that the Fréchet distance is mostly bias
KERNEL_IMAGES = 10_000  # real images of the kernel distance, at most: M x M numbers are computed
SUBSETS, SUBSET_IMAGES = 100, 1_000  # of the kernel distance as papers report it
ROWS = 500  # of features in double precision, and of a kernel matrix, at a time


class Moments(NamedTuple):
    """Mean (D,) and unbiased covariance (D, D) of features, float64."""

    mean: Tensor
    cov: Tensor

    def project(self, mean: Tensor, basis: Tensor) -> "Moments":
        """Return the moments of the features in a basis (D, n), less a mean (D,)."""
        return Moments((self.mean - mean) @ basis, basis.T @ self.cov @ basis)


def frechet_distance(x: Tensor, y: Tensor | Moments) -> Measurement:
    """Return the Fréchet distance of the Gaussians with the mean and covariance of each set.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017).
    It grows as N falls, so it compares sets of equal size.

    The influence of an image at distance c from its mean is 2 c.(m_x - m_y) + c.(1 - T) c less
    its mean, where T is the linear map that transports S_x to S_y: T is the derivative of
    2 tr(S_x S_y)^(1/2) by S_x (Takatsu 2011).

    Args:
        x: features (N, D).
        y: features (M, D), or their moments, without the influence of each.
    """
    (mean_x, cov_x), (mean_y, cov_y) = compute_moments(x), compute_moments(y)
    cross, transport = _transport(cov_x, cov_y)
    shift = mean_x - mean_y
    value = shift @ shift + cov_x.trace() + cov_y.trace() - 2 * cross

    def influences(images: Tensor, mean: Tensor, shift: Tensor, transport: Tensor) -> Tensor:
        offsets = (rows.double() - mean for rows in images.split(ROWS))
        parts = [2 * c @ shift + c.square().sum(1) - (c @ transport).square().sum(1) for c in offsets]
        change = torch.cat(parts).cpu()
        return change - change.mean()

    generated = influences(x, mean_x, shift, transport)
    if isinstance(y, Moments):
        return Measurement(value.item(), generated)
    _, transport_back = _transport(cov_y, cov_x)
    return Measurement(value.item(), generated, influences(y, mean_y, -shift, transport_back))


def extrapolated_frechet_distance(
    x: Tensor, y: Tensor, distance: float | None = None, labels: Tensor | None = None
) -> float:
    """Return the Fréchet distance of infinitely many images, from its values at N and N / 2 images.

    The bias is close to a / N + b / M, so that 2 FD(N, M) - FD(N/2, M/2) has none (compare Chong &
    Forsyth 2020, who fit a line through 15 sizes). The second number is a mean over halves. It
    can be below 0.

    Args:
        x: features (N, D).
        y: features (M, D).
        distance: their Fréchet distance, if it is known.
        labels: classes of x, (N,), if the number of images of each is fixed: halves have half of each class.
    """
    splits, halves = (4 if x.shape[1] <= 256 else 1), []
    labels = torch.zeros(len(x)) if labels is None else labels.cpu()
    for seed in range(splits):
        order = fixed_permutation(len(x), seed)
        order = order[labels[order].argsort(stable=True)]
        parts = (order[::2], order[1::2]), fixed_permutation(len(y), seed).tensor_split(2)
        halves += [measure_frechet_distance(x[a], y[b]) for a, b in zip(*parts, strict=True)]
    distance = measure_frechet_distance(x, y) if distance is None else distance
    return 2 * distance - sum(halves) / len(halves)


def measure_frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return the Fréchet distance alone. Influences, and so intervals, take about twice as long."""
    (mean_x, cov_x), (mean_y, cov_y) = compute_moments(x), compute_moments(y)
    root = _factor(cov_y)
    cross = torch.linalg.eigvalsh(root.T @ cov_x @ root).clamp(min=0).sqrt().sum()
    return ((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def compute_moments(x: Tensor | Moments) -> Moments:
    """Return the moments of features (N, D)."""
    if isinstance(x, Moments):
        return x
    mean = torch.stack([rows.double().sum(0) for rows in x.split(ROWS)]).sum(0) / len(x)
    cov = torch.zeros(len(mean), len(mean), dtype=torch.double, device=x.device)
    for rows in x.split(ROWS):
        offset = rows.double() - mean
        cov.addmm_(offset.T, offset)
    return Moments(mean, cov / (len(x) - 1))


def _factor(cov: Tensor) -> Tensor:
    """Return L with L L^T = S: Cholesky's, or of a singular S that of its eigenvectors, which takes longer."""
    factor, info = torch.linalg.cholesky_ex(cov)
    if info == 0:
        return factor
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()


def _transport(cov_x: Tensor, cov_y: Tensor) -> tuple[Tensor, Tensor]:
    """Return tr(S_x S_y)^(1/2) and W, where T = W W^T is the transport with T S_x T = S_y.

    T = L (L^T S_x L)^(-1/2) L^T for any L with S_y = L L^T.
    """
    root = _factor(cov_y)
    values, vectors = torch.linalg.eigh(root.T @ cov_x @ root)
    values = values.clamp(min=0).sqrt()
    # features without variance have no influence
    inverse = torch.where(values > 1e-7 * values.max(), 1 / values, 0)
    return values.sum(), root @ (vectors * inverse.sqrt())


def find_principal_components(real: Tensor | Moments, n: int) -> tuple[Tensor, Tensor]:
    """Return mean and first principal components of real features (M, D), float64.

    Args:
        real: the features, or their moments.
        n: number of components.

    Returns:
        (D,) and (D, n).
    """
    mean, cov = compute_moments(real)
    return mean, torch.linalg.eigh(cov).eigenvectors[:, -n:].flip(1)


def project(features: Tensor, mean: Tensor, basis: Tensor) -> Tensor:
    """Return features (N, D) in a basis (D, n), float64 (N, n)."""
    return torch.cat([(rows.double() - mean) @ basis for rows in features.split(ROWS)])


def kernel_distance(x: Tensor, y: Tensor, labels: Tensor | None = None) -> Measurement:
    """Return KID, with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018).

    It is the unbiased squared maximum mean discrepancy over all pairs of images
    (Gretton et al. 2012, eq. 3), the estimate of smallest variance without bias;
    `subset_kernel_distance` is what papers report. The influence of an image
    is twice its mean kernel with the other images of its set, less that with the
    other set (Hoeffding 1948). For equal distributions, where influences vanish,
    intervals are up to 1.4 times too wide.

    Of more than 10,000 real images a fixed random choice is used.

    Args:
        x: features (N, D) of generated images.
        y: features (M, D) of real images.
        labels: classes of x, (N,), if the number of images of each is fixed. Pairs of one class, of
            which there are then too few, count n / (n - 1) times, which leaves no bias. Classes of
            one image have no such pair and count as one class together, which leaves a small one.
            None: images are drawn independently.

    Raises:
        ValueError: for fewer than 2 images of a set, which have no pair.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{len(x)} generated and {len(y)} real images: a kernel distance needs at least 2 of both")
    if len(y) > KERNEL_IMAGES:
        chosen = fixed_permutation(len(y))[:KERNEL_IMAGES]
        part = kernel_distance(x, y[chosen], labels)
        real = torch.zeros(len(y), dtype=torch.double)
        real[chosen] = part.real * (len(y) / KERNEL_IMAGES)  # the standard error stays that of the chosen ones
        return Measurement(part.value, part.generated, real)
    x, y = x.double(), y.double()
    within_x, within_y = _mean_own_kernels(x, labels), _mean_own_kernels(y, None)
    to_y, to_x = _sum_kernels(x, y)
    to_y, to_x = to_y / len(y), to_x / len(x)
    value = within_x.mean() + within_y.mean() - 2 * to_y.mean()
    generated, real = (2 * (within_x - to_y)).cpu(), (2 * (within_y - to_x)).cpu()
    return Measurement(value.item(), generated - generated.mean(), real - real.mean())


def subset_kernel_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return KID as papers report it: mean and standard deviation over 100 random subsets of 1,000 images of each set.

    The mean estimates the same number as `kernel_distance` without labels, with a
    larger variance. The standard deviation is that of one subset (Binkowski et al.
    2018), no error of the mean.
    """
    generator, values = torch.Generator().manual_seed(0), []
    for _ in range(SUBSETS):
        chosen = (z[torch.randperm(len(z), generator=generator)[:SUBSET_IMAGES].to(z.device)] for z in (x, y))
        values.append(kernel_distance(*chosen).value)
    numbers = torch.tensor(values, dtype=torch.double)
    return numbers.mean().item(), numbers.std(correction=0).item()


def _kernel(products: Tensor, features: int) -> Tensor:
    return products.div_(features).add_(1).pow_(3)


def _sum_kernels(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the kernels of each image of x with those of y, (N,), and the other way round, (M,)."""
    of_x, of_y = [], torch.zeros(len(y), dtype=x.dtype, device=x.device)
    for rows in x.split(ROWS):
        kernels = _kernel(rows @ y.T, x.shape[1])
        of_x.append(kernels.sum(1))
        of_y += kernels.sum(0)
    return torch.cat(of_x), of_y


def _mean_own_kernels(x: Tensor, labels: Tensor | None) -> Tensor:
    """Return the mean kernel of each image with another draw of its distribution, (N,)."""
    sums = _sum_own_kernels(x)
    if labels is None:
        return sums / (len(x) - 1)
    _, index, count = labels.to(x.device).unique(return_inverse=True, return_counts=True)
    index[count[index] == 1] = -1
    for k in index.unique():
        members = index == k
        sums[members] += _sum_own_kernels(x[members]) / max(1, int(members.sum()) - 1)
    return sums / len(x)


def _sum_own_kernels(x: Tensor) -> Tensor:
    """Return the sum of the kernels of each image of x with the others, (N,). Each pair is computed once."""
    sums = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS]
        kernels = _kernel(rows @ x[start:].T, x.shape[1])
        kernels.diagonal().zero_()
        sums[start : start + ROWS] += kernels.sum(1)
        sums[start + ROWS :] += kernels[:, ROWS:].sum(0)
    return sums
