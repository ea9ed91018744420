"""Draw the figures of docs/gallery.md with the trained models: `python -m docs.gallery [<model> ...]`.

A new model is a line of `MODELS`; `python -m docs.generate` then writes the page.
"""

import argparse
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from diffusion_lit.imaging.grids import add_checkerboard, hstack_images

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "gallery"
SCALES = (0, 1, 3, 8)  # of guidance
COLOR_COUNT = 256  # of a figure in color
NOTES = {"inpainting.png": "It is not convincing where the label does not fit the upper half."}
ICON_NOTES = {
    "rows.png": "Swords lose pixels, and purple shields are brown with a purple cross.",
    "few_steps.png": "Keys and hats lose fewer pixels.",
}
TILE_NOTES = {
    "rows.png": "Dragons are noise, swords have no shape, and altars are rough.",
    "few_steps.png": "Clouds are darker and altars paler.",
}
MNIST_NOTES = {"edits.png": "Most keep the shape of the 2: few become the digit of their row."}


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Args:
        name: of its file.
        caption: what it shows.
        commands: of a shell in the checkout, which may use what earlier figures of the model wrote. "" if the figure
            needs no others.
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
        is_skin: whether an image is the texture of a figure, which the grids show from front and back.
        notes: more sentences for the caption, by the name of the figure.
    """

    rows: list[str]
    four: list[str]
    size: int
    is_prompted: bool = False
    is_skin: bool = False
    notes: dict[str, str] = field(default_factory=lambda: NOTES)

    @property
    def columns(self) -> int:
        """Return the number of edits of a row, fewer of skins, which take minutes."""
        return 4 if self.is_skin else 8

    @property
    def kept(self) -> tuple[int, str]:
        """Return how many pixels from the top inpainting keeps, and what that is."""
        return (16, "head") if self.is_skin else (self.size // 2, "upper half")


DIGITS = [str(digit) for digit in range(10)]
TILES = [
    "red potion", "green robe", "blue book", "gray stone wall", "purple cloud", "brown sword", "white altar",
    "golden dragon",
]  # fmt: skip
ICONS = [
    "purple key", "green sword", "pink hat", "purple helmet", "pink boots", "green gloves", "purple shield", "red key",
]  # fmt: skip
COLORS = ["green black", "pink white", "blue", "red black", "brown", "yellow", "gray white", "purple"]
SKIN_NOTES = {
    "rows.png": "Figures for yellow and gray white often have other colors, and faces are rough. Where the "
    "checkerboard shows inside a figure, it has a hole.",
    "guidance.png": "At scale 8 nearly everything has the color of the label. The noise of the first two columns gives "
    "figures with holes for most labels.",
    "blends.png": "In the middle the figures have holes and no legs, as in the first column of the guidance figure.",
    "edits.png": "Only details change: the green stays. With `strength=0.9` some take the color of their label.",
    "inpainting.png": "Clothes have the color of their label. They do not fit the head, which is the same in all.",
}
MODELS = {
    "icons": Model(ICONS, ICONS[:4], 16, is_prompted=True, notes=NOTES | ICON_NOTES),
    "tiles": Model(TILES, TILES[:4], 16, is_prompted=True, notes=NOTES | TILE_NOTES),
    "skins": Model(COLORS, COLORS[:4], 64, is_prompted=True, is_skin=True, notes=SKIN_NOTES),
    "mnist": Model(DIGITS, ["2", "3", "5", "8"], 28, notes=NOTES | MNIST_NOTES),
    "digits": Model(DIGITS, ["3", "8", "0", "1"], 8),
}


def list_figures(name: str, model: Model) -> list[Figure]:
    """Return the figures of a model, in the order in which they are drawn."""
    sample, key = f"python -m diffusion_lit.sample run=models/{name}", "prompt" if model.is_prompted else "classes"
    rows, four, two = (f"'{key}=[{','.join(names)}]'" for names in (model.rows, model.four, model.four[:2]))
    film = "images_per_class=3 seed=1 gif=true sampler=ddim sampler.steps=16"  # which adds no noise on the way
    guided = f"{sample} {four} images_per_class=4 same_noise=true"
    guidance = "\n".join(f"{guided} guidance_scale={scale} out={name}_guidance_{scale}" for scale in SCALES)
    init = f"init={name}_rows/{8 * model.rows.index(model.four[0]):05d}.png"
    mask = f"mask={name}_mask.png repaint_repeats=5"
    size, (top, kept) = model.size, model.kept
    paint = f"m = Image.new('L', ({size}, {size})); m.paste(255, (0, {top}, {size}, {size})); m.save('{name}_mask.png')"
    inpainting = f"{sample} {init} {mask} {four} images_per_class={model.columns} out={name}_inpainting"
    sheets = Figure(
        "sheets.png",
        "The first image of each row as the model draws it: the texture that is folded into the figure.",
        "",
        tuple(f"{name}_rows/{8 * row:05d}.png" for row in range(len(model.rows))),
    )
    student, half = f"{name}_4steps", f"{rows} images_per_class=5 out={name}_few_steps"
    few_steps = Figure(
        "few_steps.png",
        f"From the same noise: left this model, right its student models/{student}, in four evaluations.",
        f"{sample} {half}\npython -m diffusion_lit.sample run=models/{student} {half}_4",
        (f"{name}_few_steps/grid.png", f"{name}_few_steps_4/grid.png"),
    )
    return [
        Figure(
            "rows.png",
            "Samples, each from front and back." if model.is_skin else "Samples.",
            f"{sample} {rows} images_per_class=8 out={name}_rows",
            (f"{name}_rows/grid.png",),
        ),
        *([sheets] if model.is_skin else []),
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
            f"The first image of {model.four[0]} and edits of it: noised to 60 % of the schedule and denoised with "
            "the label of each row (SDEdit).",
            f"{sample} {init} strength=0.6 {four} images_per_class={model.columns} out={name}_edits",
            (f"{name}_edits/grid.png",),
        ),
        Figure(
            "inpainting.png",
            f"The same image: its {kept} is kept, the rest is generated with the label of each row.",
            f'python -c "from PIL import Image; {paint}"\n{inpainting}',
            (f"{name}_inpainting/grid.png",),
        ),
        *([few_steps] if (ROOT / "models" / student).exists() else []),
    ]


def render_gallery() -> str:
    """Return the generated part of the page: the figures of each model with their commands."""
    parts = []
    for name, model in MODELS.items():
        card = (ROOT / "models" / name / "README.md").read_text(encoding="utf-8")
        parts += [f"## {name}", next(line for line in card.splitlines() if " diffusion model of " in line)]
        for figure in list_figures(name, model):
            note = model.notes.get(figure.name, "")
            caption, image = f"{figure.caption} {note}".strip(), f"![{figure.caption}](gallery/{name}_{figure.name})"
            parts += [caption, image] + ([f"```bash\n{figure.commands}\n```"] if figure.commands else [])
    return "\n\n".join(parts) + "\n"


def draw(name: str, figure: Figure, home: Path) -> None:
    """Run the commands of a figure in a folder with models/ in it, and save what the page shows."""
    print(figure.commands, flush=True)
    subprocess.run(["bash", "-ec", figure.commands], cwd=home, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    path = FOLDER / f"{name}_{figure.name}"
    if path.suffix == ".gif":
        path.write_bytes((home / figure.files[0]).read_bytes())
        return
    image = add_checkerboard(hstack_images([Image.open(home / file) for file in figure.files]))
    if image.mode != "L":  # three times smaller
        image = image.convert("RGB").quantize(COLOR_COUNT, kmeans=1, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


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
            for figure in list_figures(name, MODELS[name]):
                draw(name, figure, Path(home))


if __name__ == "__main__":
    main()
