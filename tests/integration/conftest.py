"""Integration tests run commands, as forks or in this process."""

import shutil

import pytest

from diffusion_lit.data.datamodule import ImageDataModule
from tests import forks


@pytest.fixture(autouse=True, scope="module")
def _validation_as_in_forks():
    """Runs in this process validate on the images that forks validate on: tests compare the two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ImageDataModule.__init__.__kwdefaults__, "val_images", forks.VALIDATION_IMAGES)
        yield


@pytest.fixture(scope="module")
def browser():
    """Return a Chromium; without one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs a Chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()
