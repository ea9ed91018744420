"""Sampling from a trained network.

- `generate`: the sampling loop
- `samplers`: diffusers schedulers on the noise levels of a process
- `guidance`: classifier-free guidance, autoguidance, guidance intervals
- `editing`: SDEdit, RePaint, interpolation between seeds
- `labels`, `request`: which images to generate
- `previews`: grids and GIFs of samples
"""
