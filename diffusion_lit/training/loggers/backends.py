"""Logger backends: where a run can be watched, besides the files of its folder.

A backend gets the rows of metrics.csv and the images of samples/ as they are written.
`RunLogger` wraps it, so that no error of a backend ends the run. Steps are finished
optimizer steps. W&B has a module of its own.
"""

import logging
import shlex
from importlib.util import find_spec
from pathlib import Path

from diffusion_lit.config.secrets import redact_secrets
from diffusion_lit.config.targets import locate
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import ConfigError

log = logging.getLogger(__name__)


def require_package(config: dict) -> None:
    """Raise UserError (exit 2) if the backend of a `logger` group needs a package that is not installed."""
    target = str(config["_target_"])
    package = locate(target).package if target.startswith("diffusion_lit.") else None  # others fail when they are built
    if package and not find_spec(package):
        message = f'logger={package}: the package is not installed. Run: pip install "diffusion_lit[{package}]"'
        raise ConfigError(message)


class LoggerBackend:
    """Base class of the backends. Each method does nothing unless a backend defines it.

    Attributes:
        package: the package that must be installed, or None.
    """

    package: str | None = None

    def start(self, run: Path, config: dict, step: int) -> None:
        """Begin a run, or resume it after `step` steps: what it logged for later steps is void."""

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers."""

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        """Log a PNG or GIF file."""

    def log_result(self, result: dict) -> None:
        """Log the content of result.json."""

    def finish(self, exit_code: int) -> None:
        """Close the backend."""


class FilesOnly(LoggerBackend):
    """`logger=none` and `logger=csv`: only the files that the run folder has anyway."""


class TensorBoard(LoggerBackend):
    """`logger=tensorboard`: event files in <run>/tensorboard."""

    package = "tensorboard"
    writer = None

    def start(self, run: Path, config: dict, step: int) -> None:
        """Open an event file and log the configuration."""
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an earlier start logged for this step and later ones
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        text = OmegaConf.to_yaml(OmegaConf.create(redact_secrets(config)))
        self.writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), step)
        log.info("watch      tensorboard --logdir %s", shlex.quote(str(display_path(run / "tensorboard"))))

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers and flush, so that they can be watched."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        """Log the bytes of the file, which keeps a GIF animated."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        with Image.open(path) as image:
            width, height = image.size
        encoded = Summary.Image(height=height, width=width, encoded_image_string=path.read_bytes())
        value = Summary.Value(tag=key, image=encoded, metadata=SummaryMetadata(summary_description=caption))
        self.writer.file_writer.add_summary(Summary(value=[value]), step)
        self.writer.flush()

    def log_result(self, result: dict) -> None:
        """Log the numbers in result.json."""
        for name, value in result_numbers(result).items():
            self.writer.add_scalar(name, value, result["steps"])

    def finish(self, exit_code: int) -> None:
        """Close the event file."""
        if self.writer:
            self.writer.close()


class LightningBackend(LoggerBackend):
    """Any logger of `lightning.pytorch.loggers`, or of a package that follows its interface."""

    def __init__(self, logger):
        self.logger = logger

    @property
    def experiment(self) -> object:
        """Return the object that the logger writes to."""
        return self.logger.experiment

    def start(self, run: Path, config: dict, step: int) -> None:
        """Log the configuration as hyperparameters."""
        self.logger.log_hyperparams(redact_secrets(config))

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers and save."""
        self.logger.log_metrics(values, step=step)
        self.logger.save()

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        """Log a PNG file, if the logger takes images."""
        if hasattr(self.logger, "log_image") and path.suffix == ".png":
            self.logger.log_image(key, [str(path)], step=step, caption=[caption])

    def log_result(self, result: dict) -> None:
        """Log the numbers in result.json."""
        self.logger.log_metrics(result_numbers(result), step=result["steps"])

    def finish(self, exit_code: int) -> None:
        """Finalize the logger."""
        self.logger.finalize("success" if exit_code == 0 else "failed")


def result_numbers(result: dict) -> dict[str, float]:
    """Return the numbers in result.json, under result/."""
    return {f"result/{name}": value for name, value in result.items() if isinstance(value, int | float)}
