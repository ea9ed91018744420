"""Lightning's door to our checkpoint files."""

from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from diffusion_lit.runs import checkpoints


class CheckpointFiles(CheckpointIO):
    """Files are written whole or not at all, and read as plain data."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        checkpoints.write(checkpoint, path)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return checkpoints.read(path, "cpu")

    def remove_checkpoint(self, path) -> None:
        path.unlink(missing_ok=True)
