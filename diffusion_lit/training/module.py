"""The LightningModule: one training step, one validation step, and what a checkpoint holds."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.codecs import Codec, Pixels
from diffusion_lit.diffusion.conditions import ClassCondition, Condition
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.randomness import draw_random_numbers, flip_images, seed_network
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs import posthoc_ema
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.previews import labels_in_rows
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training import ema as averaging
from diffusion_lit.training.noise_levels import BINS, ValidationLevels, validation_noise
from diffusion_lit.training.validation_metric import LossByNoiseLevel

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
DEFAULT_OPTIMIZER = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.99))
DEFAULT_DECAY = averaging.PowerDecay()


class DiffusionModule(L.LightningModule):
    """Trains `net`; `ema`, its exponential moving average, is what validation, previews, sampling and export use.

    The two are never swapped. Logs `train/loss`, and in validation `val/loss`, `val/loss_raw` (of `net`), `val/error`
    and the loss by noise level. Batches are dicts with `image` and optionally `y`, `position` and `flip_images`
    (probability of mirroring), pairs of (image, label), or images: uint8 (B, *shape), or float as `codec` encodes
    them, for pixels in [-1, 1].

    A step whose gradient is not finite is skipped: weights, optimizer state, EMA and running statistics of norms stay
    as they were. Learning rate, EMA decay and data are functions of the step and go on.

    Args:
        net: the network, forward(x_t, t, y); see `diffusion_lit.networks`.
        diffusion: process, prediction type, weighting and loss.
        shape: (C, H, W) of an image.
        class_names: names of the classes; empty for an unconditional model.
        codec: what `net` sees of an image; None for its pixels, scaled to [-1, 1].
        condition: what y is; None for class labels.
        ema: decay of the EMA for the update after n earlier ones, n = 0, 1, ..., with `update_every`, the optimizer
            steps from one update to the next; None for no EMA, then `ema` is `net`.
        optimizer: makes the optimizer of the parameters.
        lr_schedule: factor on the learning rate of the step after n finished ones; None for a constant rate.
        label_dropout: probability of the null label in training, for classifier-free guidance.
        seed: noise, timesteps, flips and dropped labels are functions of it and the position in the stream of images.
        global_batch_size: images of an optimizer step, for processes with stratified timesteps.
        ema_lengths: lengths of the power-function EMAs that are tracked besides, see `runs/posthoc_ema.py`.
        channels_last: store weights in that memory format.
        compile_net: apply `torch.compile` to the network.
        config_text: configuration of the run as yaml, stored in every checkpoint.
    """

    replicas: nn.Module | None

    def __init__(
        self,
        net: nn.Module,
        diffusion: Diffusion,
        shape: tuple[int, int, int],
        class_names: Sequence[str] = (),
        *,
        codec: Codec | None = None,
        condition: Condition | None = None,
        ema: averaging.Decay | None = DEFAULT_DECAY,
        optimizer: MakeOptimizer = DEFAULT_OPTIMIZER,
        lr_schedule: Callable[[int], float] | None = None,
        label_dropout: float = 0.1,
        seed: int = 0,
        global_batch_size: int = 1,
        ema_lengths: Sequence[float] = (),
        channels_last: bool = False,
        compile_net: bool = False,
        config_text: str = "",
    ):
        super().__init__()
        self.net, self.diffusion = net, diffusion
        self.ema = net if ema is None else copy.deepcopy(net).requires_grad_(False).eval()
        self.tracked_emas = nn.ModuleList(copy.deepcopy(net).requires_grad_(False) for _ in ema_lengths).eval()
        channels, height, width = shape
        self.shape, self.class_names = (channels, height, width), list(class_names)
        self.codec = codec or Pixels(self.shape)
        self.condition = condition or ClassCondition(len(self.class_names))
        self.decay, self.ema_lengths = ema, tuple(ema_lengths)
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        self.label_dropout, self.seed = label_dropout, seed
        self.channels_last, self.compile_net, self.config_text = channels_last, compile_net, config_text
        self.strata = diffusion.process.num_strata(global_batch_size)
        levels = ValidationLevels(diffusion)
        self.levels = levels
        self.val_metrics = nn.ModuleDict({name: LossByNoiseLevel(levels) for name in ("raw", "ema")})
        self.log_steps = True  # a run of the command line logs rows of means over steps and ranks instead
        self.grad_norm = torch.zeros(())  # of the last step, before clipping
        self.skipped = torch.zeros((), dtype=torch.bool)  # whether the last step was skipped; on the device
        self.learning_rate = 0.0  # of the last step
        self.micro_batch = 0  # micro-batches since the last optimizer step
        self.tensors: list[averaging.Tensors] = []  # of the network, its EMA and the tracked ones, in training
        self.statistics: list[Tensor] = []  # running statistics of norms
        self.kept: list[Tensor] = []  # their values after the last finite step
        self.in_update = False  # whether weights, optimizer and EMA are not all of the same step now
        self.replicate(None)

    def replicate(self, replicas: nn.Module | None) -> None:
        """Train through `replicas` of `net` (DataParallel) from here on, or through `net` itself again."""
        # not as a child: names in checkpoints, the EMA and the optimizer know nothing of it
        object.__setattr__(self, "replicas", replicas)

    def setup(self, stage: str) -> None:
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.compile_net:
            self.net.compile()  # in place: names in checkpoints stay as they are

    def train(self, mode: bool = True) -> "DiffusionModule":
        super().train(mode)
        if self.ema is not self.net:
            self.ema.eval()
        self.tracked_emas.eval()
        return self

    # ------------------------------------------------------------------------------------------------ steps

    def training_step(self, batch: dict | Sequence[Tensor] | Tensor, batch_idx: int) -> Tensor:
        images, y, start, mirrored = self._unpack(batch, self._position)
        self.micro_batch += 1
        draws = draw_random_numbers(self.seed, start, len(images), self.codec.shape, self.device, self.strata)
        seed_network(self.seed, start)
        x0 = self._encode(flip_images(images, draws, mirrored))
        y = self.condition.drop(y, draws.drop, self.label_dropout)
        t = self.diffusion.process.sample_times(draws.timestep)
        loss = self.diffusion.loss(self.replicas or self.net, x0, t, draws.eps, y).mean()
        if self.log_steps:
            self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def validation_step(self, batch: dict | Sequence[Tensor] | Tensor, batch_idx: int) -> None:
        images, y, start, _ = self._unpack(
            batch, lambda count: (batch_idx * self._world_size + self.global_rank) * count
        )
        x0 = self._encode(images)
        level = self.levels.at(start, len(x0))
        eps = validation_noise(start, len(x0), self.codec.shape, self.device)
        t = self.levels.t[level].to(self.device)
        for name, net in self._validated().items():
            self.val_metrics[name].update(level, self.diffusion.error(net, x0, t, eps, y))

    def on_validation_epoch_end(self) -> None:
        losses = {name: self.val_metrics[name].compute() for name in self._validated()}
        for name in self._validated():
            self.val_metrics[name].reset()
        raw, ema = losses.get("raw", losses["ema"]), losses["ema"]
        row = {"val/loss": ema["loss"], "val/loss_raw": raw["loss"], "val/error": ema["error"]}
        for name, loss in (("ema", ema), ("raw", raw)):
            row |= {f"val/{name}_log_snr/{bin}": value for bin, value in zip(BINS, loss["bins"], strict=True)}
        self.val_row = row
        self.log_dict(row, logger=self.log_steps)

    def _validated(self) -> dict[str, nn.Module]:
        return {"ema": self.ema} if self.ema is self.net else {"raw": self.net, "ema": self.ema}

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size

    def _position(self, count: int) -> int:
        """Return the place in the stream of images of a micro-batch that does not say it itself."""
        step = self.global_step * self.trainer.accumulate_grad_batches + self.micro_batch
        return (step * self._world_size + self.global_rank) * count

    def _unpack(self, batch: dict | Sequence[Tensor] | Tensor, position: Callable[[int], int]):
        """Return images (B, C, H, W), labels int64 (B,), position of the first, probability of a flip."""
        if isinstance(batch, Tensor):
            batch = {"image": batch}
        elif not isinstance(batch, dict):
            batch = dict(zip(("image", "y"), batch, strict=False))
        images = batch["image"]
        shape = self.shape if images.dtype == torch.uint8 else self.codec.shape
        if images.shape[1:] != shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])}, but the module was made for {shape}")
        y = batch.get("y")
        if y is None:
            y = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        start = batch["position"] if "position" in batch else position(len(images))
        return images, y, start, batch.get("flip", 0.0)

    def _encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images) if images.dtype == torch.uint8 else images

    # ------------------------------------------------------------------------------------------------ optimizer

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.net.parameters())
        if self.lr_schedule is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip as the Trainer was set to, and keep the norm; Lightning's own refuses fused optimizers under AMP."""
        self.in_update = True
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm([p.grad for p in weights])
        self.skipped = ~self.grad_norm.isfinite()  # of the sum over all ranks, so they agree
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(weights, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, self.grad_norm)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = self.skipped.float()  # its kernel then changes nothing, and nobody waits
        elif self.trainer.precision != "16-mixed" and self.skipped:  # there the scaler skips the step
            optimizer.zero_grad(set_to_none=True)  # an optimizer leaves weights without a gradient as they are

    def on_train_start(self) -> None:
        self.micro_batch = 0
        self.tensors = [averaging.split_tensors(net) for net in (self.net, self.ema, *self.tracked_emas)]
        norms = [module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.kept = [buffer.clone() for buffer in self.statistics]

    def optimizer_step(self, epoch, batch_idx, optimizer, closure=None) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self.micro_batch = 0
        for buffer, kept in zip(self.statistics, self.kept, strict=True):
            kept.copy_(torch.where(self.skipped, kept, buffer))
            buffer.copy_(kept)
        net, ema, *averages = self.tensors
        if self.decay is not None:  # here and not in a batch hook, so that every checkpoint holds this step's EMA
            updates, since = divmod(self.global_step + 1, self.decay.update_every)
            if since == 0:
                averaging.update_ema(ema, net, self.decay(updates - 1), self.skipped)
        for average, length in zip(averages, self.ema_lengths, strict=True):
            averaging.update_ema(average, net, posthoc_ema.compute_decay(length, self.global_step + 1), self.skipped)
        self.in_update = False

    def forget_step(self) -> None:
        """Restore the running statistics of the last finished step, after one that ended before its update."""
        for buffer, kept in zip(self.statistics, self.kept, strict=True):
            buffer.copy_(kept)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["config"] = self.config_text

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Keep the optimizer's state of the checkpoint, with the settings and the learning rate of today's module.

        Raises:
            UserError: exit 4 for EMAs that were not tracked from the first step on, or would not be any longer.
        """
        if bool(self.tracked_emas) != any(name.startswith("tracked_emas.") for name in checkpoint["state_dict"]):
            raise UserError(
                Exit.CHECKPOINT,
                "`ema_snapshot_every`: a run tracks EMAs for `ema_length` from its first step on, or never. "
                "Leave the key as it was when the run started.",
            )
        if not checkpoint.get("optimizer_states"):
            return
        (settings,) = self.make_optimizer(self.net.parameters()).param_groups
        base = settings["lr"]
        rate = base * self.lr_schedule(checkpoint["global_step"]) if self.lr_schedule else base
        settings = {key: value for key, value in settings.items() if key != "params"}
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group |= settings | {"lr": rate, "initial_lr": base}
        for schedule in checkpoint["lr_schedulers"]:
            schedule |= {"base_lrs": [base], "_last_lr": [rate]}

    def sample(
        self, num_images: int = 16, labels: Sequence[int] | None = None, seed: int = 0, **settings: Any
    ) -> Tensor:
        """Return images uint8 (num_images, C, H, W) of the EMA; image k depends on the seed, k and its label.

        Args:
            labels: a class for each image; None for about as many of each class.
            settings: those of `TrainedModel.from_module`, such as `sampler` and `guidance`.
        """
        if labels is None:
            labels = labels_in_rows(list(range(len(self.class_names))) or [0], num_images)
        return TrainedModel.from_module(self, **settings).generate(list(labels), image_seeds(seed, num_images))


def checkpoint_bytes(module: DiffusionModule) -> int:
    """Return about the size of a checkpoint: weights, two moments of Adam and the EMAs, in float32."""
    copies = 3 + (module.ema is not module.net) + len(module.tracked_emas)
    return 4 * copies * sum(p.numel() for p in module.net.parameters())


def snapshot_bytes(module: DiffusionModule, config: dict) -> int:
    """Return about the size of all EMA snapshots of a run, in half precision."""
    every = config["ema_snapshot_every"]
    count = config["max_steps"] // every if every else 0
    return 2 * count * len(module.tracked_emas) * sum(p.numel() for p in module.net.parameters())
