"""`python -m diffusion_lit.app run=<folder>`: a page on this machine, to try a trained model in a browser."""

import logging
import os
import shutil
import tempfile
import threading
from collections import deque
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from diffusion_lit import export, sample
from diffusion_lit.cli.launch import launch
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger("diffusion_lit.app")
QUEUE = 8  # visitors that wait at most; one is served at a time
TRAINING = 20_000  # pictures that are looked through for neighbours at most
KEPT = 64  # requests whose files are there to be downloaded
CSS = "img { image-rendering: pixelated }"


def main() -> None:
    launch("app", app, prepare=sample.with_the_runs_sampler, check=check)


def check(config: DictConfig) -> None:
    if not find_spec("gradio"):
        raise UserError(Exit.CONFIG, 'the page needs gradio: pip install "diffusion_lit[app]"')
    export.check(OmegaConf.merge({"push": None}, config))


def app(config: DictConfig) -> None:
    """Serve the page until Ctrl-C. Nothing but what it made itself can be read through it."""
    from diffusion_lit.runs.load import as_asked
    from diffusion_lit.web.session import Studio

    model = as_asked(OmegaConf.merge(export.NO_GUIDE, config), log.warning)
    studio = Studio(model, training_pictures(model) if config.neighbours else None)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"GRADIO_TEMP_DIR": home, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        os.chdir(home)  # gradio serves files of the folder it is started in
        page = page_of(studio, model, Path(home))
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1", server_port=config.port or None, share=False, quiet=True, inbrowser=False,
                prevent_thread_lock=True, allowed_paths=[], max_file_size="1mb", show_error=False, css=CSS,
                footer_links=[], run_history=False,
            )  # fmt: skip
        except OSError as error:
            raise UserError(Exit.OUTPUT, f"port={config.port}: {error}; another one is port=0") from None
        log.info("open       %s   (Ctrl-C ends it)", address)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def training_pictures(model):
    """Those of the run if they are where they were, uint8 (M, C, H, W), else None; also if it never kept them."""
    import torch

    from diffusion_lit.config.compose import source_of
    from diffusion_lit.data.store import centre, load_splits

    data = model.config["data"]
    if "_target_" not in data or data.get("streaming") == "every_epoch":
        return None
    try:
        train = centre(load_splits(source_of(data), data)[0], data["image_size"])
    except (UserError, OSError) as error:
        log.warning("neighbours the training pictures are not shown: %s", str(error).splitlines()[0])
        return None
    return torch.from_numpy(train.images[:TRAINING].copy())


def page_of(studio, model, home: Path):
    """The page: what can be asked on the left, what was made on the right."""
    import gradio as gr

    from diffusion_lit.web.session import ALL, IMAGES, SCALE, Asked

    sampler, folders = model.config["sampler"], deque()
    steps = min(sampler["steps"] or studio.most_steps, studio.most_steps)

    def made(label, count, seed, sampler_name, steps, scale, progress=gr.Progress()):  # noqa: B008
        def on_step(done: int, total: int) -> None:
            progress((done, total), desc="denoising", unit="steps")

        try:
            asked = Asked(label, whole(count), whole(seed), sampler_name, whole(steps), scale)
            found = studio.make(asked, on_step)
        except (ValueError, UserError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        png, gif = written(found, home, folders)
        last = len(found.frames) - 1
        slider = gr.Slider(maximum=max(1, last), value=last, interactive=last > 0)
        near = studio.neighbours(found.images)
        return found.frames[-1], slider, found.frames, near, gr.DownloadButton(value=png), gr.DownloadButton(value=gif)

    def at(frames, k):
        return frames[min(whole(k), len(frames) - 1)] if frames else None

    with gr.Blocks(title=str(model.config["name"]), analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## {escaped(str(model.config['name']))}")
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
                picture = gr.Image(**shows)
                slider = gr.Slider(0, 1, value=1, step=1, label="from noise to image", interactive=False)
                with gr.Row():
                    png, gif = gr.DownloadButton("PNG"), gr.DownloadButton("GIF")
                with gr.Column(visible=studio.vectors is not None):
                    gr.Markdown("Made, and behind each the training images with the nearest pixels:")
                    near = gr.Image(**shows)
        asked = [label, count, seed, name, number, scale]
        shown = [picture, slider, frames, near, png, gif]
        # preprocess=False: the studio looks at what was asked, and says it without a traceback in the terminal
        button.click(made, asked, shown, concurrency_limit=1, api_name="generate", preprocess=False)
        slider.input(at, [frames, slider], picture, show_progress="hidden", api_name=False, trigger_mode="always_last")
    return page.queue(max_size=QUEUE, default_concurrency_limit=1)


def written(made, home: Path, folders: deque) -> tuple[str, str]:
    """images.png and denoising.gif in a folder of their own; the oldest folders go."""
    from diffusion_lit.imaging.grids import save_gif

    folder = Path(tempfile.mkdtemp(dir=home))
    folders.append(folder)
    while len(folders) > KEPT:
        shutil.rmtree(folders.popleft(), ignore_errors=True)
    made.frames[-1].save(folder / "images.png")
    save_gif(made.frames, folder / "denoising.gif")
    return str(folder / "images.png"), str(folder / "denoising.gif")


def whole(value: object) -> object:
    """3.0 as 3; what is no whole number as it is, to be refused by name."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def escaped(text: str) -> str:
    """As Markdown shows it literally."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+-.!<>|" else sign for sign in text)


if __name__ == "__main__":
    main()
