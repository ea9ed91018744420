"""Sampling from a trained network.

- `generate`: the sampling loop
- `samplers`: diffusers schedulers on the noise levels of a process
- `guidance`: classifier-free guidance, autoguidance, guidance intervals
- `editing`: SDEdit, RePaint, interpolation between seeds
- `labels`, `request`: which images `sample` generates, and their grid
- `previews`: grids and GIFs of samples, in training and after it
"""
