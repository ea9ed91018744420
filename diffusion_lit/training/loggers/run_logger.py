"""The logger of a run, as Lightning's Trainer takes it: it never ends the run."""

import logging
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import Logger

from diffusion_lit.config.secrets import format_exception, redact_secrets
from diffusion_lit.config.targets import build
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training.loggers.backends import FilesOnly

log = logging.getLogger(__name__)


class RunLogger(Logger):
    """The logger of a run, as Lightning's Trainer takes it. It never ends the run.

    What goes wrong in the logger that it wraps is reported once and switches it off; the run and its own files go on.
    Steps are finished optimizer steps. As a context it is finished when the block ends, however that is.

    Args:
        logger: with the methods of `FilesOnly`, below.
    """

    def __init__(self, logger):
        super().__init__()
        self.logger, self.is_on = logger, False

    @property
    def name(self) -> str:
        return type(self.logger).__name__

    @property
    def version(self) -> None:
        return None

    @property
    def experiment(self):
        """The object that the logger writes to, for callbacks of users; None if it has none."""
        return getattr(self.logger, "experiment", None)

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing: `start` logs the configuration of the run."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log what callbacks of users log by `self.log`; Lightning counts their steps from 0."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values:
            self.log_row((step or 0) + 1, values)

    def start(self, run: Path, config: dict, step: int) -> None:
        """Begin, or go on with a run of which `step` optimizer steps are done; what it logged past them is void."""
        self.is_on = True
        self._call(self.logger.start, run, config, step)

    def log_row(self, step: int, row: dict[str, float]) -> None:
        """Log a row of metrics.csv; values that are not numbers are left out."""
        self._call(self.logger.log_scalars, step, {name: float(value) for name, value in row.items() if value == value})

    def log_file(self, step: int, key: str, path: Path, caption: str) -> None:
        """Log a PNG or GIF."""
        self._call(self.logger.log_image, step, key, path, caption)

    def log_result(self, result: dict) -> None:
        """Log what is in result.json."""
        self._call(self.logger.log_result, result)

    def finish(self, exit_code: int) -> None:
        self._call(self.logger.finish, exit_code)
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
            log.warning("%s is switched off, the run goes on: %s", type(self.logger).__name__, format_exception(error))
            with suppress(Exception):
                self.logger.finish(1)


def make_logger(config: dict, is_first: bool = True) -> RunLogger:
    """Return the logger of a `logger` group: one of ours, or any of Lightning's; only the first rank logs anything."""
    try:
        logger = build(config) if is_first else FilesOnly()
    except UserError:
        raise
    except Exception as error:  # its package is missing, or it refuses an argument
        message = f"logger._target_={config['_target_']} cannot be created: {format_exception(error)}"
        raise UserError(Exit.CONFIG, message) from None
    return RunLogger(LightningLogger(logger) if isinstance(logger, Logger) else logger)


class LightningLogger:
    """Any logger of `lightning.pytorch.loggers`, or of a package that follows them."""

    def __init__(self, logger: Logger):
        self.logger = logger

    @property
    def experiment(self):
        return self.logger.experiment

    def start(self, run: Path, config: dict, step: int) -> None:
        self.logger.log_hyperparams(redact_secrets(config))

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        self.logger.log_metrics(values, step=step)
        self.logger.save()

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        if hasattr(self.logger, "log_image") and path.suffix == ".png":
            self.logger.log_image(key, [str(path)], step=step, caption=[caption])

    def log_result(self, result: dict) -> None:
        numbers = {f"result/{name}": value for name, value in result.items() if isinstance(value, int | float)}
        self.logger.log_metrics(numbers, step=result["steps"])

    def finish(self, exit_code: int) -> None:
        self.logger.finalize("success" if exit_code == 0 else "failed")
