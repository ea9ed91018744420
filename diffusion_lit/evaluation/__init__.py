"""Metrics of generated images.

- `metrics`: the metrics by name, and what they compare
- `features`: feature extractors and their cache; `classifier`: a small one of the training images
- `reference_statistics`: mean and covariance of real features as a file
- `distances`, `manifold`, `memorization`, `colors`: what the metrics compute
- `intervals`: confidence intervals
- `results`: an evaluation as text and as an image
"""
