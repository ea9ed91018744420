"""The logger of a run, as Lightning's Trainer takes it. It never ends the run."""

import logging
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import Logger

from diffusion_lit.config.secrets import format_exception, hide_paths
from diffusion_lit.config.targets import build
from diffusion_lit.system.errors import ConfigError, UserError
from diffusion_lit.training.loggers.backends import FilesOnly, LightningBackend

log = logging.getLogger(__name__)


class RunLogger(Logger):
    """Passes everything on to a backend. The first error of the backend is logged and switches it off.

    Use it as a context manager: the backend is finished when the block ends, whatever the
    reason.

    Args:
        backend: a backend with the methods of `LoggerBackend`.
    """

    def __init__(self, backend):
        super().__init__()
        self.backend, self.is_on = backend, False

    @property
    def name(self) -> str:
        """Return the class of the backend."""
        return type(self.backend).__name__

    @property
    def version(self) -> None:
        """Return None: the run folder is the version."""

    @property
    def experiment(self) -> object:
        """Return the object that the backend writes to, for callbacks of users; None if it has none."""
        return getattr(self.backend, "experiment", None)

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing: `start` logs the configuration of the run."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log what callbacks of users log by `self.log`. Lightning counts their steps from 0."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values:
            self.log_row((step or 0) + 1, values)

    def start(self, run: Path, config: dict, step: int) -> None:
        """Begin a run, or resume it after `step` optimizer steps. Backends get no absolute paths."""
        self.is_on = True
        self._call(self.backend.start, run, hide_paths(config), step)

    def log_row(self, step: int, row: dict[str, float]) -> None:
        """Log a row of metrics.csv without its NaN values."""
        values = {name: float(value) for name, value in row.items() if value == value}
        self._call(self.backend.log_scalars, step, values)

    def log_file(self, step: int, key: str, path: Path, caption: str) -> None:
        """Log a PNG or GIF file."""
        self._call(self.backend.log_image, step, key, path, caption)

    def log_result(self, result: dict) -> None:
        """Log the content of result.json."""
        self._call(self.backend.log_result, result)

    def finish(self, exit_code: int) -> None:
        """Close the backend; once closed, do nothing."""
        self._call(self.backend.finish, exit_code)
        self.is_on = False

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.finish(0 if error is None else int(getattr(error, "exit_code", 1)))

    def _call(self, method, *arguments) -> None:
        if not self.is_on:
            return
        try:
            method(*arguments)
        except UserError:  # the second Ctrl-C
            raise
        except Exception as error:
            self.is_on = False
            log.warning("%s is switched off, the run continues: %s", self.name, format_exception(error))
            with suppress(Exception):
                self.backend.finish(1)


def make_logger(config: dict, is_rank_zero: bool = True) -> RunLogger:
    """Return the logger of a `logger` group: one of our backends or any Lightning logger. Only rank 0 logs.

    Raises:
        UserError: exit 2 if the logger cannot be created.
    """
    try:
        backend = build(config) if is_rank_zero else FilesOnly()
    except UserError:
        raise
    except Exception as error:  # its package is missing, or it refuses an argument
        message = f"logger._target_={config['_target_']} cannot be created: {format_exception(error)}"
        raise ConfigError(message) from None
    return RunLogger(LightningBackend(backend) if isinstance(backend, Logger) else backend)
