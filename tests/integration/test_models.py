"""The trained models in `models/`: each draws the grid of its card, is small, and says how it was made."""

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.imaging.grids import add_checkerboard
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.previews import draw_class_grid, preview_labels
from tests.structure import ROOT

MODELS = sorted(path.parent for path in (ROOT / "models").glob("*/config.yaml"))
BOUND = 2.0  # of 255, mean over the pixels: kernels of other machines round differently
MEGABYTE = 2**20


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
def test_the_model_draws_the_grid_of_its_card(folder):
    model = TrainedModel.from_run(folder)
    labels = preview_labels(len(model.class_names))
    images = model.generate(labels, image_seeds(0, len(labels)))
    grid = add_checkerboard(draw_class_grid(render_images(images, model.render), labels, model.class_names))
    with Image.open(folder / "grid.png") as shipped:
        assert shipped.size == grid.size
        difference = np.abs(np.asarray(shipped.convert("RGB"), float) - np.asarray(grid.convert("RGB"), float))
    assert difference.mean() <= BOUND


def test_models_are_small_and_their_cards_complete():
    assert MODELS
    sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in MODELS]
    assert max(sizes) <= 8 * MEGABYTE
    assert sum(sizes) <= 40 * MEGABYTE
    table = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    for folder in MODELS:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "| command | `python -m diffusion_lit.train" in card, folder
        assert "not stated" not in card, folder
        for part in ("license: ", "| kernel distance |", "| Fréchet distance of 64 components |", "| cost |"):
            assert part in card, (folder, part)
        assert f"[{folder.name}]({folder.name}/README.md)" in table
