"""The LightningDataModule: source -> uint8 store -> endless stream of batches."""

import lightning as L

from diffusion_lit.data.store import ImageStore, load_splits
from diffusion_lit.data.stream import Batches
from diffusion_lit.data.streaming import Streamed
from diffusion_lit.system.errors import Exit, UserError


class ImageDataModule(L.LightningDataModule):
    """Decodes everything once in `setup` and serves batches by position; resumes at the trainer's step.

    Args:
        source: see `diffusion_lit.data.sources.folder`.
        config: the `data` group (decoding, `val_fraction`, `cache_dir`).
        seed: of the run; decides the order.
        micro_batch_size: images per device and forward pass.
        accept_changed_data: train on although the pictures are not those the checkpoint was made with.
    """

    def __init__(self, source, config: dict, seed: int, micro_batch_size: int, accept_changed_data: bool = False):
        super().__init__()
        self.source, self.config, self.seed = source, config, seed
        self.micro_batch_size, self.accept_changed_data = micro_batch_size, accept_changed_data
        self.train: ImageStore | Streamed | None = None
        self.val: ImageStore | None = None  # None: nothing is held out

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            self.train, self.val = load_splits(self.source, self.config)

    def global_batch(self, step: int) -> dict:
        """All images of the optimizer step after `step` finished ones, of every rank and micro-batch."""
        size = self.micro_batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        batches = Batches(self.train, self.seed, size, step=lambda: step, image_size=self.config["image_size"])
        return next(iter(batches))

    def train_dataloader(self) -> Batches:
        trainer = self.trainer
        return Batches(
            self.train,
            self.seed,
            self.micro_batch_size,
            step=lambda: trainer.global_step,
            accumulate=trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world=trainer.world_size,
            image_size=self.config["image_size"],
        )

    def state_dict(self) -> dict:
        return {"fingerprint": self.train.fingerprint, "images": len(self.train)}

    def load_state_dict(self, state: dict) -> None:
        if state["fingerprint"] == self.train.fingerprint or self.accept_changed_data:
            return
        raise UserError(
            Exit.CHECKPOINT,
            f"the training pictures have changed since this run was saved ({state['images']:,} pictures then, "
            f"{len(self.train):,} now); put them back, or add accept=[data] to train on with the new ones",
        )
