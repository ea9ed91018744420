"""The LightningModule: training step, validation step, optimizer and the state of a checkpoint."""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.codecs import Codec, Pixels
from diffusion_lit.diffusion.conditions import ClassCondition, Condition
from diffusion_lit.diffusion.distillation import Distillation
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.randomness import RandomNumbers, draw_random_numbers, flip_images, seed_network
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.networks.attention import use_batched_attention
from diffusion_lit.networks.compilation import compile_network, run_eagerly
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.weights import require_resumable
from diffusion_lit.sampling.previews import labels_in_rows
from diffusion_lit.system.errors import CheckpointError
from diffusion_lit.training.ema import Decay, EMAUpdater, PowerDecay
from diffusion_lit.training.noise_levels import BINS, ValidationLevels, validation_noise
from diffusion_lit.training.optimizers import replace_settings
from diffusion_lit.training.running_statistics import RunningStatistics
from diffusion_lit.training.validation_metric import LossByNoiseLevel

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = dict | Sequence[Tensor] | Tensor
DEFAULT_OPTIMIZER = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.99))
DEFAULT_DECAY = PowerDecay()


class DiffusionModule(L.LightningModule):
    """Trains `net` and keeps its EMA in `ema`, which validation, previews, sampling and export use.

    The two networks are never swapped. The module logs `train/loss`, and in validation
    `val/loss` (of the EMA), `val/loss_raw` (of `net`) and those of `LossByNoiseLevel`.

    A batch is a dict with `image` and optionally `y`, `caption`, `position` and `flip` (probability of
    mirroring), or a pair (image, label), or images alone. Images are uint8 (B, C, H, W), or
    float as `codec` encodes them: for pixels in [-1, 1].

    A non-finite gradient step is skipped: weights, optimizer state, EMA and running statistics
    of norms stay as they were. Learning rate, EMA decay and data depend on the step alone.

    Args:
        net: the network, forward(x_t, t, y); see `diffusion_lit.networks`.
        diffusion: process, prediction type, weighting and loss.
        image_shape: (C, H, W) of an image, uint8.
        class_names: names of the classes; empty for an unconditional model.
        codec: maps images to what `net` sees; None for pixels scaled to [-1, 1].
        condition: what y is; None for class labels.
        ema: decay of the update after n earlier ones, with the attribute `update_every`, the
            optimizer steps per update. None for no EMA: then `ema` is `net`.
        optimizer: returns the optimizer of the given parameters.
        lr_schedule: factor on the learning rate after n optimizer steps; None for 1.
        label_dropout: probability of the null label in training, for classifier-free
            guidance.
        seed: noise, timesteps, flips and dropped labels depend on it and on the position in
            the stream of images.
        global_batch_size: images of an optimizer step, for processes with stratified
            timesteps.
        ema_lengths: lengths of the power-function EMAs to track in addition, see
            `runs/posthoc_ema.py`.
        channels_last: store weights in this memory format.
        compile_net: apply `torch.compile` to the network; "reduce-overhead" with CUDA graphs.
        config_text: configuration of the run as yaml, stored in every checkpoint.
    """

    replicas: nn.Module | None
    learned_steps: int | None = None  # of the sampler; None: the network serves any number

    def __init__(
        self,
        net: nn.Module,
        diffusion: Diffusion,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str] = (),
        *,
        codec: Codec | None = None,
        condition: Condition | None = None,
        ema: Decay | None = DEFAULT_DECAY,
        optimizer: OptimizerFactory = DEFAULT_OPTIMIZER,
        lr_schedule: Callable[[int], float] | None = None,
        label_dropout: float = 0.1,
        seed: int = 0,
        global_batch_size: int = 1,
        ema_lengths: Sequence[float] = (),
        channels_last: bool = False,
        compile_net: bool | str = False,
        config_text: str = "",
    ):
        super().__init__()
        self.net, self.diffusion = net, diffusion
        self.ema = net if ema is None else copy.deepcopy(net).requires_grad_(False).eval()
        self.tracked_emas = nn.ModuleList(copy.deepcopy(net).requires_grad_(False) for _ in ema_lengths).eval()
        channels, height, width = image_shape
        self.image_shape, self.class_names = (channels, height, width), list(class_names)
        self.codec = codec or Pixels(self.image_shape)
        self.condition = condition or ClassCondition(len(self.class_names))
        self.decay, self.ema_lengths = ema, tuple(ema_lengths)
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        self.label_dropout, self.seed = label_dropout, seed
        self.channels_last, self.compile_net, self.config_text = channels_last, compile_net, config_text
        self.strata = diffusion.process.num_strata(global_batch_size)
        self.levels = ValidationLevels(diffusion)
        self.val_metrics = nn.ModuleDict({name: LossByNoiseLevel(self.levels) for name in ("raw", "ema")})
        self.val_losses: dict[str, float] = {}  # of the last validation
        self.log_steps = True  # False on the command line, where MetricsLog logs means over steps and ranks
        self.grad_norm = torch.zeros(())  # of the last step, before clipping
        self.is_skipped = torch.zeros((), dtype=torch.bool)  # of the last step; on the device
        self.learning_rate = 0.0  # of the last step
        self.micro_batch = 0  # micro-batches since the last optimizer step
        self.is_updating = False  # True while weights, optimizer and EMA belong to different steps
        self.replicate(None)

    def replicate(self, replicas: nn.Module | None) -> None:
        """Train through `replicas` of `net` (DataParallel) from now on, or through `net` itself if None."""
        object.__setattr__(self, "replicas", replicas)  # no submodule: checkpoints and EMA must not see it

    def setup(self, stage: str) -> None:
        """Apply memory format and compilation."""
        if self.channels_last:
            self.to(memory_format=torch.channels_last)
        if self.compile_net:
            compile_network(self.net, cuda_graphs=self.compile_net == "reduce-overhead")

    def train(self, mode: bool = True) -> "DiffusionModule":
        """Set the mode of `net`; the EMAs stay in evaluation mode."""
        super().train(mode)
        if self.ema is not self.net:
            self.ema.eval()
        self.tracked_emas.eval()
        return self

    # ------------------------------------------------------------------------------------------------ steps

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output of the EMA for noisy images."""
        return self.ema(x_t, t, y)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a micro-batch."""
        batch = self._to_dict(batch)
        images = batch["image"]
        position = batch.get("position")
        if position is None:
            index = self.global_step * self.trainer.accumulate_grad_batches + self.micro_batch
            position = self._default_position(index, len(images))
        self.micro_batch += 1
        draws = draw_random_numbers(self.seed, position, len(images), self.codec.shape, self.device, self.strata)
        seed_network(self.seed, position)
        x0 = self._encode(flip_images(images, draws, batch.get("flip", 0.0)))
        y = self.condition.drop(batch["y"], draws.u_drop, self.label_dropout)
        objective, t = self.choose_objective(draws)
        with use_batched_attention(self.net):
            loss = objective.loss(self.replicas or self.net, x0, t, draws.eps, y).mean()
        if self.log_steps:
            self.log("train/loss", loss.detach(), batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the errors of a batch, on fixed timesteps and noise, to the metrics of the EMA and of `net`."""
        batch = self._to_dict(batch)
        images, position = batch["image"], batch.get("position")
        if position is None:
            position = self._default_position(batch_idx, len(images))
        x0 = self._encode(images)
        level, square = self.levels.indices_at(position, len(x0)), x0.square().flatten(1).mean(1)
        eps = validation_noise(position, len(x0), self.codec.shape, self.device)
        t = self.levels.t[level].to(self.device)
        with run_eagerly(self.net):
            for name, net in self._validated_networks().items():
                self.val_metrics[name].update(level, self.validation_error(net, x0, t, eps, batch["y"]), square)

    def choose_objective(self, draws: RandomNumbers) -> tuple[Diffusion | Distillation, Tensor]:
        """Return what gives the loss of each image, and their times, (B,)."""
        return self.diffusion, self.diffusion.process.sample_times(draws.u_timestep)

    def validation_error(self, net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        """Return the unweighted error of each image, (B,), at times t of `levels`."""
        return self.diffusion.error(net, x0, t, eps, y)

    def on_validation_epoch_end(self) -> None:
        """Log the losses of the EMA and of `net`."""
        losses = {}
        for name in self._validated_networks():
            losses[name] = self.val_metrics[name].compute()
            self.val_metrics[name].reset()
        ema, raw = losses["ema"], losses.get("raw", losses["ema"])
        self.val_losses = {"val/loss": ema["loss"], "val/loss_raw": raw["loss"]}
        self.val_losses |= {f"val/{name}": ema[name] for name in ("error", "bits_per_dim")}
        for name, loss in (("ema", ema), ("raw", raw)):
            by_bin = zip(BINS, loss["bins"], strict=True)
            self.val_losses |= {f"val/{name}_log_snr/{bin}": value for bin, value in by_bin}
        self.log_dict(self.val_losses, logger=self.log_steps)

    def _validated_networks(self) -> dict[str, nn.Module]:
        return {"ema": self.ema} if self.ema is self.net else {"raw": self.net, "ema": self.ema}

    def _default_position(self, index: int, count: int) -> int:
        """Return the position in the stream of images of batch `index` of this rank, of `count` images."""
        return (index * self.trainer.world_size + self.global_rank) * count

    def _to_dict(self, batch: Batch) -> dict:
        """Return the batch as a dict with `image` (B, C, H, W) and `y`, as the condition reads it."""
        if isinstance(batch, Tensor):
            batch = {"image": batch}
        elif not isinstance(batch, dict):
            batch = dict(zip(("image", "y"), batch, strict=False))
        images = batch["image"]
        shape = self.image_shape if images.dtype == torch.uint8 else self.codec.shape
        if images.shape[1:] != shape:
            raise ValueError(f"images of shape {tuple(images.shape[1:])}, but the module was made for {shape}")
        return batch | {"y": self.condition.read_batch(batch)}

    def _encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images) if images.dtype == torch.uint8 else images

    # ------------------------------------------------------------------------------------------------ optimizer

    def configure_optimizers(self):
        """Return the optimizer of `net`, with the learning-rate schedule by step if there is one."""
        optimizer = self.make_optimizer(self.net.parameters())
        if self.lr_schedule is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip as the Trainer is set, keep the norm and skip the step if it is not finite."""
        self.is_updating = True  # Lightning's own clipping refuses fused optimizers under AMP
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm([p.grad for p in weights])
        self.is_skipped = ~self.grad_norm.isfinite()  # gradients are summed over the ranks, so all ranks agree
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(weights, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, self.grad_norm)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = self.is_skipped.float()  # its kernel then changes nothing, without a sync
        elif self.trainer.precision != "16-mixed" and self.is_skipped:  # with 16-mixed the GradScaler skips
            optimizer.zero_grad(set_to_none=True)  # an optimizer leaves weights without a gradient unchanged

    def on_train_start(self) -> None:
        """Collect the tensors to update after each step, now that the networks are on their device."""
        self.micro_batch = 0
        self.ema_updater = EMAUpdater(self.net, self.ema, self.decay, self.tracked_emas, self.ema_lengths)
        self.running_statistics = RunningStatistics(self.net)

    def optimizer_step(self, epoch, batch_idx, optimizer, closure=None) -> None:
        """Update weights and EMA. Not in a batch hook, so that every checkpoint holds the EMA of its step."""
        self.learning_rate = optimizer.param_groups[0]["lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self.micro_batch = 0
        self.running_statistics.end_step(self.is_skipped)
        self.ema_updater.update(self.global_step + 1, self.is_skipped)
        self.is_updating = False

    # ------------------------------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add the configuration of the run."""
        checkpoint["config"] = self.config_text

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Keep the optimizer state of the checkpoint, with the settings and learning rate of this module.

        Raises:
            UserError: exit 4 for weights, parameter groups, or EMAs for `ema_length`, that do not fit.
        """
        if bool(self.tracked_emas) != any(name.startswith("tracked_emas.") for name in checkpoint["state_dict"]):
            raise CheckpointError(
                "`ema_snapshot_every`: a run tracks EMAs for `ema_length` from its first step on, or never. "
                "Leave the key as it was when the run started."
            )
        require_resumable(checkpoint, self.state_dict())
        if checkpoint.get("optimizer_states"):
            groups = self.make_optimizer(self.net.parameters()).param_groups
            replace_settings(checkpoint, groups, self.lr_schedule)

    # ------------------------------------------------------------------------------------------------ sampling

    def sample(
        self, num_images: int = 16, labels: Sequence[int] | None = None, seed: int = 0, **settings: Any
    ) -> Tensor:
        """Return images uint8 (num_images, C, H, W) of the EMA; image k depends on the seed, k and its label.

        Args:
            num_images: number of images.
            labels: class of each image; None for about as many of each class.
            seed: seed of the initial noise.
            settings: of `TrainedModel.from_module`, such as `sampler` and `guidance`.
        """
        if labels is None:
            labels = labels_in_rows(list(range(len(self.class_names))) or [0], num_images)
        return TrainedModel.from_module(self, **settings).generate(list(labels), image_seeds(seed, num_images))
