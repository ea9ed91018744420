"""Train image diffusion models from one command line: PyTorch Lightning, Hydra, diffusers."""

import os
from importlib import import_module

__version__ = "0.1.0"
__all__ = ["DiffusionModule", "ImageDataModule", "Pipeline"]

_MODULES = {
    "DiffusionModule": "diffusion_lit.training.module",
    "ImageDataModule": "diffusion_lit.data.datamodule",
    "Pipeline": "diffusion_lit.runs.pipeline",
}

# Idle threads of PyTorch's CPU kernels spin for milliseconds before they sleep. On a busy machine
# they take cores from threads that have work, and a run becomes many times slower. This short spin
# costs nothing on an idle machine (BENCHMARKS.md). OpenMP reads the variable when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> object:
    """Import a public class when it is first used, because importing torch takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
