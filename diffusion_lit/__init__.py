"""Train image diffusion models from one command line: PyTorch Lightning, Hydra, diffusers."""

import os

__version__ = "0.1.0"

# Idle threads of PyTorch's CPU kernels wait for work by spinning, and on a machine that does anything else besides they
# spin instead of the threads that have work: 20 times slower was seen. Read when torch is loaded, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
