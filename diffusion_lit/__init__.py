"""Train image diffusion models from one command line: PyTorch Lightning, Hydra, diffusers."""

__version__ = "0.1.0"
