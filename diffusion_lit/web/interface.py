"""The page of `diffusion_lit.app`: its inputs and outputs in gradio, and the files that can be downloaded."""

import shutil
import tempfile
from collections import deque
from pathlib import Path

import gradio as gr

from diffusion_lit.imaging.grids import save_gif
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.system.errors import UserError
from diffusion_lit.web.session import ALL, IMAGES, SCALE, Request, Result, Studio

QUEUE = 8  # visitors that wait at most; one is served at a time
KEPT = 64  # results whose files can be downloaded


def build_page(studio: Studio, model: TrainedModel, home: Path) -> gr.Blocks:
    """Return the page: inputs on the left, images on the right. `home` holds the files that can be downloaded."""
    sampler, folders = model.config["sampler"], deque()
    steps = min(sampler["steps"] or studio.most_steps, studio.most_steps)

    def generate(label, count, seed, sampler_name, steps, scale, progress=gr.Progress()):  # noqa: B008
        def on_step(done: int, total: int) -> None:
            progress((done, total), desc="denoising", unit="steps")

        try:
            request = Request(label, to_int(count), to_int(seed), sampler_name, to_int(steps), scale)
            result = studio.make(request, on_step)
        except (ValueError, UserError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        png, gif = write_files(result, home, folders)
        last = len(result.frames) - 1
        slider = gr.Slider(maximum=max(1, last), value=last, interactive=last > 0)
        near = studio.neighbours(result.images)
        files = gr.DownloadButton(value=png), gr.DownloadButton(value=gif)
        return result.frames[-1], slider, result.frames, near, *files

    def select_frame(frames, k):
        return frames[min(to_int(k), len(frames) - 1)] if frames else None

    with gr.Blocks(title=str(model.config["name"]), analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## {escape(str(model.config['name']))}")
        frames = gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                label = gr.Dropdown(studio.classes or [ALL], value=ALL, label="class", visible=bool(studio.classes))
                count = gr.Slider(1, IMAGES, value=IMAGES, step=1, label="images")
                seed = gr.Number(value=0, precision=0, minimum=0, label="seed")
                name = gr.Dropdown(list(studio.samplers), value=sampler["name"], label="sampler")
                number = gr.Slider(1, studio.most_steps, value=steps, step=1, label="steps")
                scale = gr.Slider(0, SCALE, value=model.config["guidance_scale"], step=0.1, label="guidance",
                                  visible=studio.guided)  # fmt: skip
                button = gr.Button("Generate", variant="primary")
            with gr.Column(scale=2):
                shows = {"format": "png", "type": "pil", "interactive": False, "show_label": False}
                shows["buttons"] = ["download", "fullscreen"]
                image = gr.Image(**shows)
                slider = gr.Slider(0, 1, value=1, step=1, label="from noise to image", interactive=False)
                with gr.Row():
                    png, gif = gr.DownloadButton("PNG"), gr.DownloadButton("GIF")
                with gr.Column(visible=studio.vectors is not None):
                    gr.Markdown("Made, and behind each the training images with the nearest pixels:")
                    near = gr.Image(**shows)
        inputs, outputs = [label, count, seed, name, number, scale], [image, slider, frames, near, png, gif]
        # preprocess=False: the studio checks the request itself, without a traceback in the terminal
        button.click(generate, inputs, outputs, concurrency_limit=1, api_name="generate", preprocess=False)
        slider.input(
            select_frame, [frames, slider], image, show_progress="hidden", api_name=False, trigger_mode="always_last"
        )
    return page.queue(max_size=QUEUE, default_concurrency_limit=1)


def write_files(result: Result, home: Path, folders: deque) -> tuple[str, str]:
    """Write images.png and denoising.gif into a new folder and remove the oldest folders; return both paths."""
    folder = Path(tempfile.mkdtemp(dir=home))
    folders.append(folder)
    while len(folders) > KEPT:
        shutil.rmtree(folders.popleft(), ignore_errors=True)
    result.frames[-1].save(folder / "images.png")
    save_gif(result.frames, folder / "denoising.gif")
    return str(folder / "images.png"), str(folder / "denoising.gif")


def to_int(value: object) -> object:
    """Return 3.0 as 3, and anything else as it is, for the studio to refuse."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def escape(text: str) -> str:
    """Return text as Markdown shows it literally."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+-.!<>|" else sign for sign in text)
