"""Unit tests are the inner loop: none starts a process."""

import multiprocessing.process
import os
import platform
import subprocess

import pytest

from tests import forks


@pytest.fixture(scope="session")
def _first_processes():
    """Start what is started once. Not at the top, where the process that hands out the tests would wait for it."""
    import diffusers  # noqa: F401 it and torch start processes when they are first imported

    platform.platform()  # it starts `uname`: every run notes the system it was trained on


@pytest.fixture(autouse=True)
def _no_process(_first_processes, monkeypatch):
    """A test that starts a process fails; it belongs in tests/integration."""

    def refuse(*args, **settings):
        pytest.fail("a unit test must not start a process: move it to tests/integration")

    for owner, name in [
        (subprocess.Popen, "__init__"),
        (multiprocessing.process.BaseProcess, "start"),
        (forks.Fork, "__init__"),
        *[(os, name) for name in ("fork", "posix_spawn", "system") if hasattr(os, name)],
    ]:
        monkeypatch.setattr(owner, name, refuse)
