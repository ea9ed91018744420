"""What the commands import, in interpreters of their own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_lit.data.sources.digits import Digits

ROOT = Path(__file__).parents[2]


def loaded_after(code: str) -> set[str]:
    """Modules in memory after some code, in a fresh interpreter."""
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return set(out.stderr.split())


def test_the_commands_start_without_torch():
    loaded = loaded_after(
        "import diffusion_lit.train, diffusion_lit.sample, diffusion_lit.evaluate, diffusion_lit.audit, "
        "diffusion_lit.visualize, diffusion_lit.replay, diffusion_lit.__main__"
    )
    assert not loaded & {"torch", "lightning", "diffusers", "numpy", "sklearn", "wandb"}


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("sample", ["num_images=1", "sampler.steps=1"]),
        ("evaluate", ["num_images=20", "sampler.steps=1"]),
        pytest.param("visualize", ["what=[panels,curves]"], marks=pytest.mark.slow),
    ],
)
def test_sampling_does_not_pay_for_lightning(digits_run, tmp_path, verb, words):
    words = [f"run={digits_run}", *words, f"out={tmp_path / 'out'}"]
    code = f"sys.argv = ['{verb}', *{words}]\nfrom diffusion_lit.{verb} import main\nmain()"
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "wandb", "torchmetrics"}
    assert verb != "sample" or "sklearn" not in loaded


# ------------------------------------------------------------------------------------------ digits


def test_the_digits_are_those_of_scikit_learn_which_is_not_imported_for_them():
    code = "import sys; from diffusion_lit.data.sources.digits import Digits; Digits().splits()"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('sklearn' in sys.modules)"], check=True)
    parts, truth = Digits().splits(), load_digits()
    images, labels = (
        np.concatenate([getattr(parts[k], name) for k in ("train", "val")]) for name in ("pictures", "labels")
    )
    np.testing.assert_array_equal(images, np.round(truth.images * 255 / 16))
    np.testing.assert_array_equal(labels, truth.target)
    assert (len(parts["val"].labels), images.dtype, labels.dtype) == (359, np.uint8, np.int64)
