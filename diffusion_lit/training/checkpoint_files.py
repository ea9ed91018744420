"""Write and read checkpoint files for Lightning, and estimate their size."""

from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.module import DiffusionModule


class CheckpointFiles(CheckpointIO):
    """Writes files completely or not at all, and reads them with `weights_only`.

    Attributes:
        error: why the last file could not be written, or None. It is not raised inside
            `Trainer.save_checkpoint`, where the other ranks wait.
    """

    error: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        """Write a checkpoint; on failure keep the error."""
        self.error = None
        try:
            checkpoints.save_checkpoint(checkpoint, path)
        except UserError as error:
            self.error = error

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        """Return the content of a checkpoint, on the CPU."""
        return checkpoints.load_checkpoint(path, "cpu")

    def remove_checkpoint(self, path) -> None:
        """Delete a checkpoint."""
        path.unlink(missing_ok=True)


def checkpoint_bytes(module: DiffusionModule) -> int:
    """Return the approximate size of a checkpoint: weights, two moments as of Adam, EMAs and teacher, in float32."""
    copies = 3 + (module.ema is not module.net) + len(module.tracked_emas) + hasattr(module, "teacher")
    return 4 * copies * sum(p.numel() for p in module.net.parameters())


def snapshot_bytes(module: DiffusionModule, config: dict) -> int:
    """Return the approximate size of all EMA snapshots of a run, in half precision."""
    every = config["ema_snapshot_every"]
    count = config["max_steps"] // every if every else 0
    return 2 * count * len(module.tracked_emas) * sum(p.numel() for p in module.net.parameters())


def required_bytes(module: DiffusionModule, config: dict) -> int:
    """Return the disk space of a run: a checkpoint, the best one and the one being written, and the EMA snapshots."""
    return 3 * checkpoint_bytes(module) + snapshot_bytes(module, config)
