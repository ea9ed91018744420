"""Draw the figures of docs/gallery.md with the trained models: `python -m docs.gallery [<model> ...]`.

A new model is a line of `MODELS`; `python -m docs.generate` then writes the page.
"""

import argparse
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffusion_lit.imaging.grids import hstack_images

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "gallery"
SCALES = (0, 1, 3, 8)  # of guidance


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Args:
        name: of its file.
        caption: what it shows.
        commands: of a shell in the checkout, which may use what earlier figures of the model wrote.
        files: what they write; several are shown side by side.
    """

    name: str
    caption: str
    commands: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A trained model in models/, and what to show of it.

    Args:
        rows: names of classes, or prompts, of the samples.
        four: some of the rows. The film is of the first two, the first is edited.
        size: of its images in pixels.
        is_prompted: whether rows are prompts.
    """

    rows: list[str]
    four: list[str]
    size: int
    is_prompted: bool = False


DIGITS = [str(digit) for digit in range(10)]
TILES = [
    "red potion", "green robe", "blue book", "gray stone wall", "purple cloud", "brown sword", "white altar",
    "golden dragon",
]  # fmt: skip
ICONS = [
    "purple key", "green sword", "pink hat", "purple helmet", "pink boots", "green gloves", "purple shield", "red key",
]  # fmt: skip
MODELS = {
    "icons": Model(ICONS, ICONS[:4], 16, is_prompted=True),
    "tiles": Model(TILES, TILES[:4], 16, is_prompted=True),
    "mnist": Model(DIGITS, ["2", "3", "5", "8"], 28),
    "digits": Model(DIGITS, ["3", "8", "0", "1"], 8),
}


def list_figures(name: str, model: Model) -> list[Figure]:
    """Return the figures of a model, in the order in which they are drawn."""
    sample, key = f"python -m diffusion_lit.sample run=models/{name}", "prompt" if model.is_prompted else "classes"
    rows, four, two = (f"'{key}=[{','.join(names)}]'" for names in (model.rows, model.four, model.four[:2]))
    film = "images_per_class=4 seed=1 gif=true sampler=ddim sampler.steps=16"  # which adds no noise on the way
    guided = f"{sample} {four} images_per_class=4 same_noise=true"
    guidance = "\n".join(f"{guided} guidance_scale={scale} out={name}_guidance_{scale}" for scale in SCALES)
    init = f"init={name}_rows/{8 * model.rows.index(model.four[0]):05d}.png"
    mask = f"mask={name}_mask.png repaint_repeats=5"
    size, half = model.size, model.size // 2
    paint = (
        f"m = Image.new('L', ({size}, {size})); m.paste(255, (0, {half}, {size}, {size})); m.save('{name}_mask.png')"
    )
    inpainting = f"{sample} {init} {mask} {four} images_per_class=8 out={name}_inpainting"
    return [
        Figure(
            "rows.png",
            "Samples.",
            f"{sample} {rows} images_per_class=8 out={name}_rows",
            (f"{name}_rows/grid.png",),
        ),
        Figure(
            "film.gif",
            "From noise to images.",
            f"{sample} {two} {film} out={name}_film",
            (f"{name}_film/denoising.gif",),
        ),
        Figure(
            "guidance.png",
            f"Guidance scale {', '.join(map(str, SCALES))} from the same noise: 0 ignores the label, 1 is no guidance.",
            guidance,
            tuple(f"{name}_guidance_{scale}/grid.png" for scale in SCALES),
        ),
        Figure(
            "blends.png",
            "Blends from one row to the next, from the same noise.",
            f"{sample} {four} interpolate=true num_images=13 out={name}_blends",
            (f"{name}_blends/grid.png",),
        ),
        Figure(
            "edits.png",
            f"The first image of {model.four[0]} and edits of it: noise is added, and the last 60 % of the steps are "
            "repeated with the label of each row.",
            f"{sample} {init} strength=0.6 {four} images_per_class=8 out={name}_edits",
            (f"{name}_edits/grid.png",),
        ),
        Figure(
            "inpainting.png",
            "The same image, its lower half masked, then generated with the label of each row. It is not convincing "
            "where the label does not fit the upper half.",
            f'python -c "from PIL import Image; {paint}"\n{inpainting}',
            (f"{name}_inpainting/grid.png",),
        ),
    ]


def render_gallery() -> str:
    """Return the generated part of the page: the figures of each model with their commands."""
    parts = []
    for name, model in MODELS.items():
        card = (ROOT / "models" / name / "README.md").read_text(encoding="utf-8")
        parts += [f"## {name}", next(line for line in card.splitlines() if " diffusion model of " in line)]
        for figure in list_figures(name, model):
            image = f"![{figure.caption}](gallery/{name}_{figure.name})"
            parts += [figure.caption, image, f"```bash\n{figure.commands}\n```"]
    return "\n\n".join(parts) + "\n"


def draw(name: str, home: Path) -> None:
    """Run the commands of a model in an empty folder with models/ in it, and save what the page shows."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for figure in list_figures(name, MODELS[name]):
        print(figure.commands, flush=True)
        subprocess.run(["bash", "-ec", figure.commands], cwd=home, env=environment, check=True)
        path = FOLDER / f"{name}_{figure.name}"
        if path.suffix == ".gif":
            path.write_bytes((home / figure.files[0]).read_bytes())
        else:
            images = [Image.open(home / file) for file in figure.files]
            hstack_images(images).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.gallery", description="Draw the figures of docs/gallery.md.")
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}; all without one")
    models = parser.parse_args().models
    if unknown := [name for name in models if name not in MODELS]:
        parser.error(f"unknown model {unknown[0]}. Choose from {', '.join(MODELS)}")
    FOLDER.mkdir(exist_ok=True)
    for name in models or MODELS:
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "models").symlink_to(ROOT / "models")
            draw(name, Path(home))


if __name__ == "__main__":
    main()
