"""The gradio page of `diffusion_lit.app` and the files that a visitor can download."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import gradio as gr
from PIL import Image

from diffusion_lit.imaging.grids import save_gif
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.system.errors import UserError
from diffusion_lit.web.session import ALL, MAX_IMAGES, MAX_SCALE, ImageSession, Request

MAX_QUEUE = 8  # waiting visitors; one is served at a time
MAX_FILES = 256 * 2**20  # bytes of generated files that are kept, the newest


class Page(gr.Blocks):
    """A page that answers values of the wrong number or type by their fault, without a traceback."""

    async def preprocess_data(self, *arguments, **settings) -> list:
        """Return the inputs of an event. Raise gr.Error if they are not those of its components."""
        try:
            return await super().preprocess_data(*arguments, **settings)
        except Exception as error:  # of gradio: ValueError, and whatever a component raises
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise gr.Error(lines[0], print_exception=False) from None


def build_page(
    session: ImageSession, model: TrainedModel, home: Path, format_command: Callable[[Request], str]
) -> gr.Blocks:
    """Return the page.

    Args:
        session: serves the requests.
        model: its model.
        home: folder for the files that a visitor can download.
        format_command: returns the command line that generates the images of a request.
    """
    generate, draw, select_frame = make_handlers(session, home, format_command)
    with Page(title=str(model.config["name"]), analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## {escape(str(model.config['name']))}")
        frames = gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                inputs = make_inputs(session, model)
                live = gr.Checkbox(session.is_student, label="draw while a slider moves")
                button = gr.Button("Generate", variant="primary")
            with gr.Column(scale=2):
                shared = {"format": "png", "type": "pil", "interactive": False, "show_label": False}
                shared["buttons"] = ["download", "fullscreen"]
                image = gr.Image(**shared)
                slider = gr.Slider(0, 1, value=1, step=1, label="denoising step", interactive=False)
                with gr.Row():
                    png, gif = gr.DownloadButton("PNG"), gr.DownloadButton("GIF")
                command = make_command_box()
                with gr.Column(visible=session.search is not None):
                    gr.Markdown("Each image, followed by its nearest training images (L2 distance of pixels):")
                    neighbors = gr.Image(**shared)
        outputs = [image, slider, frames, neighbors, png, gif, command]
        # preprocess=False: the session validates the request, gradio would print a traceback
        network = {"concurrency_limit": 1, "concurrency_id": "network", "preprocess": False}
        quiet = {"show_progress": "hidden", "trigger_mode": "always_last", "api_name": False}
        button.click(generate, inputs, outputs, api_name="generate", **network)
        for control in filter(lambda control: isinstance(control, gr.Slider), inputs):
            control.input(draw, [live, *inputs], outputs, **network, **quiet)
        slider.input(select_frame, [frames, slider], image, **quiet)
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def make_handlers(
    session: ImageSession, home: Path, format_command: Callable[[Request], str]
) -> tuple[Callable, Callable, Callable]:
    """Return the functions of the page's events: generate, draw, and select a frame.

    For the arguments see `build_page`.
    """

    def generate(label, count, seed, sampler_name, steps, scale, mix, progress=gr.Progress()):  # noqa: B008
        def on_step(done: int, total: int) -> None:
            progress((done, total), desc="denoising", unit="steps")

        remove_oldest_files(home)
        request = read_request(label, count, seed, sampler_name, steps, scale, mix)
        with errors_for_visitor():
            result = session.generate(request, on_step)
        png = write_png(result.frames[-1], home)
        save_gif(result.frames, gif := png.with_name("denoising.gif"))
        last = len(result.frames) - 1
        slider = gr.Slider(maximum=max(1, last), value=last, interactive=last > 0)
        files = gr.DownloadButton(value=str(png)), gr.DownloadButton(value=str(gif), interactive=True)
        neighbors = session.find_neighbors(result.images)
        return str(png), slider, result.frames, neighbors, *files, format_command(request)

    def draw(is_live, *values):
        if not is_live:
            return (gr.skip(),) * 7
        remove_oldest_files(home)
        request = read_request(*values)
        with errors_for_visitor():
            png = str(write_png(session.draw(request), home))
        # there are no frames and no neighbors of this image
        files = gr.DownloadButton(value=png), gr.DownloadButton(interactive=False)
        return png, gr.Slider(interactive=False), [], None, *files, format_command(request)

    def select_frame(frames, k):
        remove_oldest_files(home)
        return frames[min(to_int(k), len(frames) - 1)] if frames else None

    return generate, draw, select_frame


def read_request(label, count, seed, sampler, steps, scale, mix) -> Request:
    """Return the request with the values of the page, unchecked."""
    return Request(label, to_int(count), to_int(seed), sampler, to_int(steps), scale, mix)


@contextmanager
def errors_for_visitor() -> Iterator[None]:
    """Show the message of an error on the page, and print no traceback."""
    try:
        yield
    except (ValueError, UserError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def make_inputs(session: ImageSession, model: TrainedModel) -> list[gr.components.Component]:
    """Return the inputs of a request, in the order of `read_request`."""
    sampler, steps, guidance_scale = model.config["sampler"], session.max_steps, model.config["guidance_scale"]
    return [
        make_label_input(session),
        gr.Slider(1, MAX_IMAGES, value=MAX_IMAGES, step=1, label="images"),
        gr.Number(value=0, precision=0, minimum=0, label="seed"),
        gr.Dropdown(list(session.samplers), value=sampler["name"], label="sampler"),
        gr.Slider(1, steps, min(sampler["steps"] or steps, steps), step=1, label="steps",
                  visible=not session.is_student),
        gr.Slider(0, MAX_SCALE, value=guidance_scale, step=0.1, label="guidance scale", visible=session.has_guidance),
        gr.Slider(0, 1, value=0, step=0.01, label="mix with the next seed"),
    ]  # fmt: skip


def make_label_input(session: ImageSession) -> gr.Textbox | gr.Dropdown:
    """Return the text box of a run with prompts, else the menu of classes."""
    if session.prompts:
        return gr.Textbox(session.prompts[0], label="prompt")
    return gr.Dropdown(session.classes or [ALL], value=ALL, label="class", visible=bool(session.classes))


def make_command_box() -> gr.Code:
    """Return the box with the command line of the images above it, and a button that copies it."""
    return gr.Code(
        language="shell",
        label="the command for these images",
        lines=2,
        wrap_lines=True,
        show_line_numbers=False,
        interactive=False,
        buttons=["copy"],
    )


def write_png(image: Image.Image, home: Path) -> Path:
    """Write images.png into a new folder, and return its path."""
    image.save(path := Path(tempfile.mkdtemp(dir=home)) / "images.png")
    return path


def remove_oldest_files(home: Path, limit: int = MAX_FILES) -> None:
    """Remove the oldest files of a folder, those of gradio's cache included, until they have at most `limit` bytes."""
    files = []
    for path in home.rglob("*"):
        with suppress(OSError):  # gradio removes files too
            state = path.lstat()
            if not path.is_dir():
                files.append((state.st_mtime_ns, state.st_size, path))
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        excess -= size
        with suppress(OSError):
            path.unlink()
            if path.parent != home:
                path.parent.rmdir()  # if it is empty now


def to_int(value: object) -> object:
    """Return 3.0 as 3 and every other value unchanged: the session refuses it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def escape(text: str) -> str:
    """Return text with the special characters of Markdown escaped."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()#+-.!<>|" else sign for sign in text)
