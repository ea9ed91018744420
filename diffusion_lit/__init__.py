"""Train image diffusion models from one command line: PyTorch Lightning, Hydra, diffusers."""

import os

__version__ = "0.1.0"

# Idle threads of PyTorch's CPU kernels spin for milliseconds before they sleep. On a machine that does anything else
# besides, they take the cores from the threads that have work, and a run becomes many times slower. This short a spin
# costs nothing on an idle machine (BENCHMARKS.md). OpenMP reads it when torch is loaded, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
