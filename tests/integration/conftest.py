"""Integration tests run commands, as forks or in this process."""

import pytest

from tests import forks


@pytest.fixture(autouse=True)
def _validation_as_in_forks(monkeypatch):
    """Runs in this process validate on the images that forks validate on: tests compare the two."""
    monkeypatch.setattr("diffusion_lit.training.noise_levels.LEVELS_PER_BIN", forks.LEVELS_PER_BIN)
