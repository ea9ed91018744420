"""Lightning's door to our checkpoint files."""

from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import UserError


class CheckpointFiles(CheckpointIO):
    """Files are written whole or not at all, and read as plain data.

    `error` is why the last one could not be written, or None. It is not raised in the middle of a save, where the other
    ranks wait.
    """

    error: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        self.error = None
        try:
            checkpoints.save_checkpoint(checkpoint, path)
        except UserError as error:
            self.error = error

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return checkpoints.load_checkpoint(path, "cpu")

    def remove_checkpoint(self, path) -> None:
        path.unlink(missing_ok=True)
