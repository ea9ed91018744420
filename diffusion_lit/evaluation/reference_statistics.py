"""Mean and covariance of the features of real images, all that a Fréchet distance needs of them, as a file.

The file is an `.npz` with `mu` and `sigma`, as EDM's fid.py and pytorch-fid read and
write it. Here it also holds `N`, `features`, `digest`, `resize` and `fingerprint`,
which others leave out.
"""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.evaluation.distances import Moments
from diffusion_lit.evaluation.tensor_cache import digest_tensors
from diffusion_lit.system.errors import ConfigError, DataError
from diffusion_lit.system.files import write_atomically

INCEPTION_FEATURES = 2048  # of the files of other projects


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of the features of real images, and what is known about them. None is unknown.

    Args:
        moments: mean and covariance of the features.
        num_images: number of images.
        features: name of the feature extractor.
        digest: of its weights.
        resize: how images are resized, for the data and for the features.
        fingerprint: of the images.
        file: name of the file.
    """

    moments: Moments
    num_images: int | None = None
    features: str | None = None
    digest: str | None = None
    resize: str | None = None
    fingerprint: str | None = None
    file: str = ""

    @property
    def shape(self) -> tuple[int | None, int]:
        """Return the number of images and of features."""
        return self.num_images, len(self.moments.mean)

    @property
    def unknown(self) -> list[str]:
        """Return what the file does not say."""
        names = {"num_images": "number of images", "features": "features", "resize": "resize", "fingerprint": "images"}
        return [text for name, text in names.items() if getattr(self, name) is None]

    def project(self, mean: Tensor, basis: Tensor) -> "ReferenceStatistics":
        """Return the statistics of the features in a basis (D, n), less a mean (D,)."""
        return replace(self, moments=self.moments.project(mean, basis))

    def to(self, device: torch.device) -> "ReferenceStatistics":
        """Return the statistics on a device."""
        return replace(self, moments=Moments(*[x.to(device) for x in self.moments]))

    def describe(self) -> dict[str, object]:
        """Return the entries of result.json."""
        digest = digest_tensors(dict(zip(("mu", "sigma"), self.moments, strict=True)))
        known = {"images": self.num_images, "data": self.fingerprint}
        return {"statistics": self.file, "digest": digest, **known, "unknown": self.unknown}


RealFeatures = Tensor | ReferenceStatistics  # features (M, D), or what is known of them


def unwrap(real: RealFeatures) -> Tensor | Moments:
    """Return what distances take."""
    return real.moments if isinstance(real, ReferenceStatistics) else real


def save_statistics(statistics: ReferenceStatistics, path: Path) -> None:
    """Write statistics to an .npz file."""
    facts = {"N": statistics.num_images}
    facts |= {name: getattr(statistics, name) for name in ("features", "digest", "resize", "fingerprint")}
    known = {name: np.array(value) for name, value in facts.items() if value is not None}
    mean, cov = (x.cpu().numpy() for x in statistics.moments)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path, concurrent=True) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, mu=mean, sigma=cov, **known)


def load_statistics(path: Path) -> ReferenceStatistics:
    """Read statistics of here, of EDM or of pytorch-fid.

    Raises:
        UserError: exit 3 for a file that holds none.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name in ("mu", "sigma")}
            num_images = int(file["N"]) if "N" in file else None
            facts = {name: str(file[name]) for name in ("features", "digest", "resize", "fingerprint") if name in file}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise _invalid(path, f"not an .npz file of statistics ({error})") from None
    if not {"mu", "sigma"} <= arrays.keys():
        raise _invalid(path, "has no mu and sigma")
    mean, cov = arrays["mu"], arrays["sigma"]
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise _invalid(path, f"mu {mean.shape} and sigma {cov.shape} are not (D,) and (D, D)")
    if not all(np.issubdtype(x.dtype, np.floating) and np.isfinite(x).all() for x in (mean, cov)):
        raise _invalid(path, "mu or sigma is not finite")
    if not np.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * np.abs(cov).max(initial=0)) or (cov.diagonal() < 0).any():
        raise _invalid(path, "sigma is not a covariance")
    moments = Moments(*[torch.from_numpy(x.astype(np.float64)) for x in (mean, cov)])
    return ReferenceStatistics(moments, num_images, **facts, file=path.name)


def _invalid(path: Path, reason: str) -> DataError:
    advice = "Choose a file of save_statistics=, of EDM's fid.py or of pytorch-fid"
    return DataError(f"reference_statistics={path}: {reason}. {advice}")


def check_statistics(statistics: ReferenceStatistics, features: str, digest: str, resize: str, size: int) -> None:
    """Raise UserError (exit 2) if statistics are of other features than those of the generated images.

    Args:
        statistics: of real images.
        features: name of the feature extractor.
        digest: of its weights.
        resize: how images are resized.
        size: number of features.
    """
    expected, where = len(statistics.moments.mean), f"reference_statistics={statistics.file}"
    if statistics.features not in (None, features):
        other = statistics.features
        raise ConfigError(f"{where}: of features {other}, not {features}. Add features={other}")
    if expected != size:
        advice = "features=inception" if expected == INCEPTION_FEATURES else "the features that it was made with"
        message = f"{where}: of {expected:,} features, but features={features} gives {size:,}. Add {advice}"
        raise ConfigError(message)
    advice = "Write it again with save_statistics="
    if statistics.resize not in (None, resize):
        message = f"{where}: resized to {statistics.resize}, but here to {resize}. {advice}"
        raise ConfigError(message)
    if statistics.digest not in (None, digest):
        message = f"{where}: of {features} with weights {statistics.digest}, but here {digest}. {advice}"
        raise ConfigError(message)
