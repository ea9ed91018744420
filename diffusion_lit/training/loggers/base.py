"""Loggers: where a run can be watched besides its folder. They are given the rows of metrics.csv and the pictures of
samples/ as these are written, and none of them ever ends a run."""

import logging
import re
import shlex
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from diffusion_lit.config.schema import METRICS
from diffusion_lit.config.secrets import one_line, without_secrets
from diffusion_lit.config.targets import build, locate
from diffusion_lit.runs.run_dir import shown
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger(__name__)


def check(config: dict) -> None:
    """Raises UserError (exit 2) if the logger of a `logger` group needs a package that is not here."""
    needs = locate(config["_target_"]).needs
    if needs and not find_spec(needs):
        raise UserError(
            Exit.CONFIG, f'logger={needs} needs a package that is not here: pip install "diffusion_lit[{needs}]"'
        )


class Shielded:
    """A run's logger. What goes wrong in it is told once and switches it off; the run and its own files go on.

    As a context it is finished when the block ends, however that is.
    """

    def __init__(self, logger):
        self.logger, self.on = logger, False

    def start(self, run: Path, config: dict, step: int) -> None:
        """Begin, or go on with a run of which `step` optimizer steps are done; what it logged past them is void."""
        self.on = True
        self._call(self.logger.start, run, config, step)

    def scalars(self, step: int, row: dict[str, float]) -> None:
        """A row of metrics.csv."""
        self._call(self.logger.scalars, step, panels(row))

    def picture(self, step: int, key: str, path: Path, caption: str) -> None:
        """A PNG or GIF."""
        self._call(self.logger.picture, step, key, path, caption)

    def summary(self, result: dict) -> None:
        """What is in result.json."""
        self._call(self.logger.summary, result)

    def finish(self, exit_code: int) -> None:
        self._call(self.logger.finish, exit_code)
        self.on = False

    def __enter__(self) -> "Shielded":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.finish(0 if error is None else int(getattr(error, "exit_code", 1)))

    def _call(self, method, *arguments) -> None:
        if not self.on:
            return
        try:
            method(*arguments)
        except UserError:  # the second Ctrl-C
            raise
        except Exception as error:
            self.on = False
            log.warning("%s is switched off, the run goes on: %s", type(self.logger).__name__, one_line(error))
            with suppress(Exception):
                self.logger.finish(1)


def make_logger(config: dict, first: bool = True) -> Shielded:
    """From a `logger` group; only the first rank has one that does anything."""
    return Shielded(build(config) if first else Files())


PANELS = {
    r"val_(ema|raw)_snr<(.+)": r"val_\1_by_log_snr/below_\2",
    r"val_(ema|raw)_snr>(.+)": r"val_\1_by_log_snr/above_\2",
    r"val_(ema|raw)_snr(.+)\.\.(.+)": r"val_\1_by_log_snr/\2_to_\3",
    r"val_(.+)": r"val/\1",
    rf"({'|'.join(name for names in METRICS.values() for name in names)})": r"metrics/\1",
    r"(images_per_second|seconds|memory_gib)": r"speed/\1",
    r"(.+)": r"train/\1",
}


def panels(row: dict[str, float]) -> dict[str, float]:
    """Columns of metrics.csv as group/name, which is how charts are grouped; without what is not a number.

    >>> panels({"loss": 1.0, "val_ema_snr-8..-6": 2.0, "val_ema_snr<-8": float("nan")})
    {'train/loss': 1.0, 'val_ema_by_log_snr/-8_to_-6': 2.0}
    """
    return {_panel(column): float(value) for column, value in row.items() if value == value}


def _panel(column: str) -> str:
    return next(re.sub(pattern, name, column) for pattern, name in PANELS.items() if re.fullmatch(pattern, column))


# ------------------------------------------------------------------------------------------------ the loggers


class Files:
    """`logger=none` and `logger=csv`: the files of the run folder are all there is."""

    needs = None

    def start(self, run: Path, config: dict, step: int) -> None: ...

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, key: str, path: Path, caption: str) -> None: ...

    def summary(self, result: dict) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class TensorBoard:
    """`logger=tensorboard`: event files in <run>/tensorboard."""

    needs = "tensorboard"
    writer = None

    def start(self, run: Path, config: dict, step: int) -> None:
        from omegaconf import OmegaConf
        from torch.utils.tensorboard import SummaryWriter

        # purged is what has this step or a later one
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        text = OmegaConf.to_yaml(OmegaConf.create(without_secrets(config)))
        self.writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), step)
        log.info("watch      tensorboard --logdir %s", shlex.quote(str(shown(run / "tensorboard"))))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, step: int, key: str, path: Path, caption: str) -> None:
        """The file as it is, so that a GIF moves."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, encoded_image_string=path.read_bytes())
        value = Summary.Value(tag=key, image=image, metadata=SummaryMetadata(summary_description=caption))
        self.writer.file_writer.add_summary(Summary(value=[value]), step)
        self.writer.flush()

    def summary(self, result: dict) -> None:
        for name, value in result.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(f"result/{name}", value, result["steps"])

    def finish(self, exit_code: int) -> None:
        if self.writer:
            self.writer.close()
