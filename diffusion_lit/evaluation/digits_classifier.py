"""The classifier of the digits, whose weights come with the package: its numbers are the same on every machine.

`python -m benchmarks.digits_classifier` trains it again and writes the weights.
"""

from pathlib import Path

from torch import Tensor

from diffusion_lit.evaluation.tensor_cache import digest_tensors, read_tensors
from diffusion_lit.system.errors import DataError

WEIGHTS = Path(__file__).with_suffix(".safetensors")
ADVICE = "Install diffusion_lit again"


def load_digits_classifier(fingerprint: str, num_classes: int, flip: bool) -> dict[str, Tensor] | None:
    """Return the weights if the classifier is that of the digits, else None.

    Args:
        fingerprint: of the training images.
        num_classes: of the run.
        flip: whether the run mirrors images.

    Raises:
        UserError: exit 3 for weights that are damaged.
    """
    weights, stored = read_tensors(WEIGHTS, ADVICE)
    if digest_tensors(weights) != stored.get("digest"):
        raise DataError(f"{WEIGHTS} is damaged (checksum). {ADVICE}")
    expected = describe_training(fingerprint, num_classes, flip)
    return weights if expected.items() <= stored.items() else None


def describe_training(fingerprint: str, num_classes: int, flip: bool) -> dict[str, str]:
    """Return what the weights depend on, as the metadata of their file."""
    return {"data": fingerprint, "classes": str(num_classes), "flip": str(flip)}
