"""The trained models in `models/`: each draws the grid of its card, is small, and says how it was made."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.imaging.grids import add_checkerboard
from diffusion_lit.imaging.rows import describe_rows
from diffusion_lit.imaging.skins import render_images
from diffusion_lit.runs import exported_pipeline
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.labels import row_names
from diffusion_lit.sampling.previews import ROWS, draw_class_grid, preview_labels
from tests.structure import ROOT

MODELS = sorted(path.parent for path in (ROOT / "models").glob("*/config.yaml"))
EACH_MODEL = pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
COUNT = 4  # images that are sampled, evenly chosen from the grid
BOUND = 2.0  # of 255, mean over their pixels: kernels of other machines round differently
MEGABYTE = 2**20
CARD = ("license: ", "| license of the data |", "| command | `python -m diffusion_lit.train", "| cost |", "| seed |")
METRICS = ("| kernel distance |", "| Fréchet distance of 64 components |", "| copies of training images, by pixels |")


@EACH_MODEL
def test_the_model_draws_the_grid_of_its_card(folder):
    model = TrainedModel.from_run(folder)
    names = row_names(model.config)
    labels = preview_labels(len(names), model.config.get("preview_prompts") or ())
    chosen = torch.linspace(0, len(labels) - 1, COUNT).long()
    seeds = image_seeds(0, len(labels))
    sampled = model.generate([labels[k] for k in chosen], [seeds[k] for k in chosen])
    images = torch.zeros(len(labels), *sampled.shape[1:], dtype=torch.uint8)
    images[chosen] = sampled

    def draw(images: torch.Tensor) -> np.ndarray:
        title = describe_rows(len(names), ROWS).lstrip(", ")
        grid = add_checkerboard(draw_class_grid(images, labels, names, title))
        return np.asarray(grid.convert("RGB"), float)

    tiles = render_images(images, model.render)
    colors = min(3, tiles.shape[1])
    is_sampled = torch.zeros(len(labels), colors, *tiles.shape[2:], dtype=torch.uint8)
    is_sampled[chosen] = 255
    mask = draw(is_sampled) != draw(0 * is_sampled)
    with Image.open(folder / "grid.png") as shipped:
        difference = np.abs(np.asarray(shipped.convert("RGB"), float) - draw(tiles))[mask]
    assert difference.size >= COUNT * 3 * tiles[0, 0].numel()
    assert difference.mean() <= BOUND


@EACH_MODEL
def test_the_weights_are_half_precision_safetensors(folder):
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz")]
    files = list(folder.rglob("*.safetensors"))
    assert files
    for file in files:
        with safe_open(file, "np") as weights:
            types = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert "F16" in types
        assert types <= {"F16", "I64", "I32", "U8", "BOOL"}  # floats are all of half precision


@EACH_MODEL
def test_the_card_is_complete(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    missing = [part for part in (*CARD, *METRICS, *["| class accuracy |"] * has_classes(folder)) if part not in card]
    assert missing == []
    assert "not stated" not in card
    assert "not recorded" not in card
    table = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    assert f"[{folder.name}]({folder.name}/README.md)" in table


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("*/pipeline.py")), ids=lambda file: file.parent.name)
def test_its_pipeline_has_the_code_that_export_writes(file):
    shipped, exported = (path.read_text("utf-8") for path in (file, Path(exported_pipeline.__file__)))
    assert shipped.partition("SETTINGS: ")[0] == exported.partition("SETTINGS: ")[0]


def has_classes(folder) -> bool:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return bool(config["data"]["class_names"]) and not config.get("text_encoder")


def test_models_are_small():
    sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in MODELS]
    assert sizes
    assert max(sizes) <= 8 * MEGABYTE
    assert sum(sizes) <= 40 * MEGABYTE
