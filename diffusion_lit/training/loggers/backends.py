"""Loggers: where a run can be watched besides its folder. They are given the rows of metrics.csv and the pictures of
samples/ as these are written, and none of them ever ends a run.
"""

import logging
import shlex
from importlib.util import find_spec
from pathlib import Path

from diffusion_lit.config.secrets import redact_secrets
from diffusion_lit.config.targets import locate
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import Exit, UserError

log = logging.getLogger(__name__)


def require_package(config: dict) -> None:
    """Raise UserError (exit 2) if the logger of a `logger` group needs a package that is not installed."""
    target = str(config["_target_"])
    needs = locate(target).needs if target.startswith("diffusion_lit.") else None  # others fail when they are built
    if needs and not find_spec(needs):
        raise UserError(
            Exit.CONFIG, f'logger={needs} needs a package that is not here: pip install "diffusion_lit[{needs}]"'
        )


# ------------------------------------------------------------------------------------------------ the loggers


class FilesOnly:
    """`logger=none` and `logger=csv`: the files of the run folder are all there is."""

    needs = None

    def start(self, run: Path, config: dict, step: int) -> None: ...

    def log_scalars(self, step: int, values: dict[str, float]) -> None: ...

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None: ...

    def log_result(self, result: dict) -> None: ...

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
        text = OmegaConf.to_yaml(OmegaConf.create(redact_secrets(config)))
        self.writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), step)
        log.info("watch      tensorboard --logdir %s", shlex.quote(str(display_path(run / "tensorboard"))))

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        """The file as it is, so that a GIF moves."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, encoded_image_string=path.read_bytes())
        value = Summary.Value(tag=key, image=image, metadata=SummaryMetadata(summary_description=caption))
        self.writer.file_writer.add_summary(Summary(value=[value]), step)
        self.writer.flush()

    def log_result(self, result: dict) -> None:
        for name, value in result.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(f"result/{name}", value, result["steps"])

    def finish(self, exit_code: int) -> None:
        if self.writer:
            self.writer.close()
