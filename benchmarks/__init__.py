"""Timings: `python -m benchmarks` makes all tables. No part of the package or of its tests."""
