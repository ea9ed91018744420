"""What images are compared by. Every extractor takes uint8 images and says what it is; what takes long is kept in a
folder, under the fingerprints of all that it was made of.
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
from diffusion_lit.evaluation.classifier import RECIPE, Classifier, premultiplied, trained_classifier
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.system.files import write_atomically
from diffusion_lit.system.platform import lock

BATCH = 250
COMPONENTS = 64


@dataclass(frozen=True)
class Pictures:
    """The training pictures of a run, all of one size, and those held out."""

    train: ImageStore
    val: ImageStore | None
    num_classes: int
    flip: bool
    resample: str
    device: torch.device


def pictures_of(train: ImageStore, val: ImageStore | None, data: dict, device: torch.device) -> Pictures:
    """Of the splits of a `data` group; where training cuts windows out of larger pictures, their centres."""
    train = center_crop(train, data["image_size"])
    return Pictures(train, val, data["num_classes"], data["flip"] > 0, data["resample"], device)


@dataclass(frozen=True)
class Extractor:
    """Images uint8 (N, C, H, W), an array or a tensor, to features float32 (N, D) on the CPU.

    Args:
        name: `features=` of the command.
        network: of a batch.
        digest: of its weights; features of another digest are other features.
        facts: what else a reader of its numbers should know.
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

    def of(self, store: ImageStore, pictures: Pictures) -> Tensor:
        """Features of a whole split, from the cache if it has them."""
        made_of = {"data": store.fingerprint, "resample": pictures.resample, "extractor": self.digest}
        return kept(f"features-{self.name}", made_of, lambda: {"features": self(store.images)})["features"]


# ------------------------------------------------------------------------------------------- the extractors


def classifier(pictures: Pictures) -> Extractor:
    """The layer before the last of a small network, trained on the training pictures and their labels.

    Its facts have the share of held-out pictures that it judges right, `class_accuracy_real`.
    """
    train = pictures.train
    made_of = {"data": train.fingerprint, "resample": pictures.resample, "recipe": RECIPE, "flip": str(pictures.flip)}

    def trained() -> dict[str, Tensor]:
        return trained_classifier(train, pictures.num_classes, pictures.flip, pictures.device).state_dict()

    net = Classifier(train.images.shape[1], pictures.num_classes)
    net.load_state_dict(kept("classifier", made_of, trained))
    net.to(pictures.device).eval()
    found = Extractor("classifier", net, digest_of(net.state_dict()), pictures.device)
    if pictures.val:
        judged = classes(found, found(pictures.val.images)).numpy()
        found.facts["class_accuracy_real"] = float(np.mean(judged == pictures.val.labels))
    return found


def classes(judge: Extractor, features: Tensor) -> Tensor:
    """The classes (N,) that a classifier sees in its features."""
    return judge.network.head(features.to(judge.device)).argmax(1).cpu()


def pixels(pictures: Pictures) -> Extractor:
    """The first 64 principal components of the training pixels, for pictures without labels: layout and colours, and
    nothing of what is shown. Larger pictures are shrunk to 16 px first.
    """
    x = small(torch.from_numpy(np.ascontiguousarray(pictures.train.images)), 16).double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    basis = vectors[:, -COMPONENTS:].flip(1)
    share = (values[-COMPONENTS:].sum() / values.sum().clamp(min=1e-12)).item()
    mean, basis = mean.float().to(pictures.device), basis.float().to(pictures.device)
    digest = digest_of({"mean": mean, "basis": basis})
    return Extractor(
        "pixels", lambda images: (small(images, 16) - mean) @ basis, digest, pictures.device, {"variance_kept": share}
    )


def inception(pictures: Pictures) -> Extractor:
    """The 2048 pooled features of Inception-v3 as TensorFlow trained it, the only ones whose distance is called FID.

    Grey is repeated, transparent pictures are laid on white; torchmetrics resizes to 299 px.

    Raises:
        UserError: exit 3 if its weights can neither be found nor downloaded.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        net = NoTrainInceptionV3("inception-v3-compat", ["2048"])
    except (OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise UserError(
            Exit.DATA,
            f"features=inception: its weights cannot be downloaded ({error}); put its file "
            f"weights-inception-2015-12-05-6726825d.pth (github.com/toshas/torch-fidelity) into {folder}, or take "
            "features=classifier or pixels",
        ) from None
    net.to(pictures.device).requires_grad_(False)
    return Extractor("inception", lambda images: net(rgb(images)), digest_of(net.state_dict()), pictures.device)


EXTRACTORS: dict[str, Callable[[Pictures], Extractor]] = {
    "classifier": classifier, "pixels": pixels, "inception": inception,
}  # fmt: skip


def small(images: Tensor, most: int) -> Tensor:
    """uint8 (N, C, H, W) to vectors (N, D) in [0, 1], colours times alpha; larger ones shrunk to `most` px."""

    def of(images: Tensor) -> Tensor:
        x = premultiplied(_channels_first(images))
        return (F.adaptive_avg_pool2d(x, most) if x.shape[-1] > most else x).flatten(1)

    return torch.cat([of(part) for part in images.split(BATCH)])  # large pictures are floats a few at a time


def _channels_first(images: Tensor) -> Tensor:
    """(N, C, H, W) so in memory too, wherever it came from: the layout decides how sums are rounded."""
    return images.clone(memory_format=torch.contiguous_format)


def rgb(images: Tensor) -> Tensor:
    """uint8 (N, 1, 3 or 4, H, W) to uint8 (N, 3, H, W)."""
    if images.shape[1] == 4:
        seen = premultiplied(images)
        return ((seen[:, :3] + 1 - seen[:, 3:]) * 255).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


# ------------------------------------------------------------------------------------------------ the cache


def kept(kind: str, made_of: dict[str, str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from a file of the cache ($DIFFUSION_LIT_CACHE, else ~/.cache/diffusion_lit), made and written if it is
    not there. A cache that cannot be written is done without.

    Raises:
        UserError: exit 3 for a file that is damaged or was made of something else than its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(os.environ.get("DIFFUSION_LIT_CACHE", "~/.cache/diffusion_lit")).expanduser()
    path = folder / f"{kind}-{hashlib.blake2b(_words(made_of).encode(), digest_size=8).hexdigest()}.safetensors"
    with _alone(path):
        if path.exists():
            return _read(path, made_of)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in make().items()}
        with suppress(OSError, SafetensorError), write_atomically(path, many=True) as beside:
            save_file(tensors, beside, made_of)
        return tensors


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While one process makes a file others wait, and find it made: trained on a GPU a second time, a classifier is not
    quite the same. A folder that cannot be written is done without.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock(stack.enter_context(open(path.with_suffix(".lock"), "ab")).fileno(), wait=True)
        yield


def _read(path: Path, made_of: dict[str, str]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            found, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(Exit.DATA, f"{path} is damaged ({error}): remove it, and it is made again") from None
    if found != made_of:
        told = ", ".join(f"{key} {found.get(key)}" for key in made_of if found.get(key) != made_of[key])
        words = _words(made_of)
        raise UserError(Exit.DATA, f"{path} is stale: it was made of {told}, not of {words}; remove it")
    return tensors


def _words(made_of: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(made_of.items()))


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Of weights, or of anything else that has names."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
