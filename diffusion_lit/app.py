"""`python -m diffusion_lit.app run=<folder>`: try a trained model in the browser, on a page served by this machine."""

import logging
import os
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from diffusion_lit.cli.launch import launch
from diffusion_lit.runs import sample_request
from diffusion_lit.system.errors import ConfigError, OutputError, raise_faults

log = logging.getLogger("diffusion_lit.app")
CSS = "img { image-rendering: pixelated }"


def main() -> None:
    """Run the command."""
    launch("app", app, prepare=sample_request.insert_stored_sampler, check=check_app)


def check_app(config: DictConfig) -> None:
    """Raise UserError (exit 2) without gradio, or if the run cannot be sampled as requested."""
    if not find_spec("gradio"):
        raise ConfigError('the page needs gradio: pip install "diffusion_lit[app]"')
    run_config = sample_request.read_requested_config(config)
    faults = sample_request.find_sampling_faults(config, run_config)
    raise_faults("the run cannot be sampled with these settings:", faults)
    sample_request.check_palette(config, run_config)


def app(config: DictConfig) -> None:
    """Serve the page until Ctrl-C. Visitors can read only files that the page generated, and write none."""
    from diffusion_lit.runs.fast_sampling import speed_up
    from diffusion_lit.runs.load import load_requested_model
    from diffusion_lit.web.sample_command import SampleCommand
    from diffusion_lit.web.session import MAX_IMAGES, ImageSession, load_training_images

    model = speed_up(load_requested_model(config, log.warning), config, MAX_IMAGES)
    session = ImageSession(model, load_training_images(model, config.accept) if config.neighbors else None)
    command = SampleCommand(session, config)
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"GRADIO_TEMP_DIR": home, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        os.chdir(home)  # gradio serves files of the working directory
        from starlette.middleware import Middleware

        from diffusion_lit.web.guard import LocalRequestsOnly
        from diffusion_lit.web.interface import build_page  # gradio reads the environment on import

        page = build_page(session, model, Path(home), command.format)
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1", server_port=config.port or None, share=False, quiet=True, inbrowser=False,
                prevent_thread_lock=True, allowed_paths=[], max_file_size="1mb", show_error=False, css=CSS,
                footer_links=[], run_history=False, app_kwargs={"middleware": [Middleware(LocalRequestsOnly)]},
            )  # fmt: skip
        except OSError as error:
            raise OutputError(f"port={config.port}: {error}. port=0 takes any free port") from None
        log.info("open       %s   (stop with Ctrl-C)", address)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    main()
