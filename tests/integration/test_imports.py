"""What the commands import, in interpreters of their own."""

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_lit.data.sources.digits import Digits
from diffusion_lit.system.platform import OWN_SETTINGS
from tests.runs import TINY

ROOT = Path(__file__).parents[2]


def loaded_after(code: str) -> set[str]:
    """Modules in memory after some code, in a fresh interpreter."""
    out = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "nanobind" not in out.stderr  # of triton, if its objects are kept alive at the end
    return set(out.stderr.split())


def test_the_commands_start_without_torch():
    loaded = loaded_after(
        "import diffusion_lit.train, diffusion_lit.sample, diffusion_lit.evaluate, diffusion_lit.audit, "
        "diffusion_lit.visualize, diffusion_lit.replay, diffusion_lit.__main__"
    )
    assert not loaded & {"torch", "lightning", "diffusers", "numpy", "sklearn", "wandb"}


def arguments_of(verb: str, run: Path, *overrides: str) -> str:
    """Return the code that runs a command in this interpreter."""
    return f"sys.argv = {[verb, f'run={run}', *overrides]}\nfrom diffusion_lit.{verb} import main\nmain()\n"


def test_sampling_and_evaluation_do_not_pay_for_lightning(tiny_run, tmp_path):
    sample = arguments_of("sample", tiny_run, "num_images=1", "sampler.steps=1", f"out={tmp_path / 'a'}")
    evaluate = arguments_of("evaluate", tiny_run, "num_images=20", "sampler.steps=1", f"out={tmp_path / 'b'}")
    loaded = loaded_after(f"{sample}assert not {{'sklearn', 'torchmetrics'}} & set(sys.modules)\n{evaluate}")
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "wandb"}


def test_training_does_not_pay_for_what_it_does_not_use(tmp_path):
    settings = [
        *TINY,
        "max_steps=1",
        "sample_every=0",
        "val_every=0",
        "checkpoint_every=1",
        f"run_dir={tmp_path / 'r'}",
    ]
    train = f"sys.argv = {['train', *settings]}\nfrom diffusion_lit.train import main\nmain()\n"
    loaded = loaded_after(f"{train}import gc\nassert gc.get_freeze_count() > 100_000  # those of torch\n")
    assert "lightning" in loaded
    assert not loaded & {"wandb", "sklearn", "datasets", "pandas", "pyarrow", "gradio", "tensorboard"}


@pytest.mark.slow
def test_figures_do_not_pay_for_lightning(tiny_run, tmp_path):
    loaded = loaded_after(arguments_of("visualize", tiny_run, "what=[panels,curves]", f"out={tmp_path / 'out'}"))
    assert not loaded & {"lightning", "pytorch_lightning", "wandb", "torchmetrics"}


# ------------------------------------------------------------------------------------------ digits


def test_the_digits_are_those_of_scikit_learn_which_is_not_imported_for_them():
    code = "import sys; from diffusion_lit.data.sources.digits import Digits; Digits().splits()"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('sklearn' in sys.modules)"], check=True)
    parts, truth = Digits().splits(), load_digits()
    images, labels = (
        np.concatenate([getattr(parts[k], name) for k in ("train", "val")]) for name in ("images", "labels")
    )
    np.testing.assert_array_equal(images, np.round(truth.images * 255 / 16))
    np.testing.assert_array_equal(labels, truth.target)
    assert (len(parts["val"].labels), images.dtype, labels.dtype) == (359, np.uint8, np.int64)


# ------------------------------------------------------------------------------------------ memory

FAULTS = """
import ctypes, resource
from diffusion_lit.system.platform import keep_freed_memory
assert keep_freed_memory() == {keeps}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use(size=100 << 20):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver()[0], reason="needs glibc")
def test_a_freed_tensor_is_used_again_without_page_faults(monkeypatch):
    def count_faults(keeps: bool) -> int:
        code = FAULTS.format(keeps=keeps)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return int(done.stdout)

    for name in ("DIFFUSION_LIT_MALLOC", *OWN_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    assert count_faults(keeps=True) < 10
    monkeypatch.setenv("DIFFUSION_LIT_MALLOC", "system")
    assert count_faults(keeps=False) >= 50  # of 100 MiB, in huge pages or small ones
