"""Timings and comparisons: `python -m benchmarks --help`. Neither the package nor its tests import this."""
