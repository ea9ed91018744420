"""The LightningModule: what happens in one training step, and nothing else."""

import copy

import lightning as L
import torch
from torch import Tensor, nn

from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.randomness import draw, drop_labels, flip, seed_network
from diffusion_lit.imaging.grids import to_float
from diffusion_lit.runs import posthoc_ema
from diffusion_lit.system.errors import Exit, UserError
from diffusion_lit.training import ema as averaging
from diffusion_lit.training.optimizer import learning_rate_factor, make_optimizer, optimizer_settings


class DiffusionModule(L.LightningModule):
    """Trains `net`; `ema`, its average, is what validation, previews, sampling and export use.

    The two are never swapped. With `decay` None (`ema=none`) they are one and the same object. With
    `ema_snapshot_every` there are two more `averages`, of power profiles, for averages of any length after training.

    A step whose gradient is not finite is skipped, without waiting for the device: weights, moments and step count of
    the optimizer, the average and running statistics of norms stay as they were. Learning rate, decay and data are
    functions of the step, which is the position in the stream of images, and go on.

    Args:
        net: the network, see `diffusion_lit.networks`.
        diffusion: noise table, prediction type and weighting.
        decay: decay of the average for the update after n earlier ones, n = 0, 1, ..., with `update_every`, the
            optimizer steps from one update to the next; None for no average.
        config: the run's configuration, plain data; travels in every checkpoint as text.
    """

    def __init__(self, net: nn.Module, diffusion: Diffusion, decay, config: dict, config_text: str):
        super().__init__()
        self.net = net
        self.ema = net if decay is None else copy.deepcopy(net).requires_grad_(False).eval()
        tracked = posthoc_ema.LENGTHS if config.get("ema_snapshot_every") else ()
        self.averages = nn.ModuleList(copy.deepcopy(net).requires_grad_(False) for _ in tracked).eval()
        self.diffusion, self.decay = diffusion, decay
        self.config, self.config_text = config, config_text
        data = config["data"]
        self.shape = (data["channels"], data["image_size"], data["image_size"])
        self.null_label = data["num_classes"]
        self.strata = diffusion.table.strata(config["global_batch_size"])
        self.grad_norm = torch.zeros(())  # of the last step, before clipping
        self.skipped = torch.zeros((), dtype=torch.bool)  # whether the last step was; on the device
        self.learning_rate = 0.0  # of the last step
        self.tensors: list[averaging.Tensors] = []  # of the network, its average and the two `averages`, in training
        self.statistics, self.kept = [], []  # running ones of norms, and what they were after the last good step
        self.in_update = False  # whether weights, optimizer and average are not all of the same step now
        self.replicate(None)

    def replicate(self, replicas: nn.Module | None) -> None:
        """Train through `replicas` of `net` (DataParallel) from here on, or through `net` itself again."""
        # not as a child: names in checkpoints, the average and the optimizer know nothing of it
        object.__setattr__(self, "replicas", replicas)

    def setup(self, stage: str) -> None:
        if self.config["strategy"]["channels_last"]:
            self.to(memory_format=torch.channels_last)
        if self.config["strategy"]["compile"]:
            self.net.compile()  # in place: names in checkpoints stay as they are

    def train(self, mode: bool = True) -> "DiffusionModule":
        super().train(mode)
        if self.ema is not self.net:
            self.ema.eval()
        self.averages.eval()
        return self

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        start, count = batch["position"], len(batch["index"])
        draws = draw(self.config["seed"], start, count, self.shape, self.device, self.strata)
        seed_network(self.config["seed"], start)
        x0 = flip(to_float(batch["image"]), draws, self.config["data"]["flip"])
        y = drop_labels(batch["y"], draws, self.config["label_dropout"], self.null_label)
        t = self.diffusion.table.draw(draws.timestep)
        return self.diffusion.loss(self.replicas or self.net, x0, t, draws.eps, y).mean()

    def configure_optimizers(self):
        config, strategy = self.config["optimizer"], self.config["strategy"]
        # a fused kernel unscales fp16 gradients inside its step, after our clipping
        optimizer = make_optimizer(self.net.parameters(), config, fused=strategy["precision"] != "16-mixed")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(config, self.config["max_steps"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, *_, **__) -> None:
        self.in_update = True
        clip = self.config["optimizer"]["clip"]
        weights = optimizer.param_groups[0]["params"]
        self.grad_norm = nn.utils.clip_grad_norm_(weights, clip if clip is not None else float("inf"))
        self.skipped = ~self.grad_norm.isfinite()  # of the sum over all ranks, so they agree
        if optimizer.defaults["fused"]:
            optimizer.found_inf = self.skipped.float()  # its kernel then changes nothing; else a scaler skips the step

    def on_train_start(self) -> None:
        self.tensors = [averaging.tensors_of(net) for net in (self.net, self.ema, *self.averages)]
        norms = [module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.kept = [buffer.clone() for buffer in self.statistics]

    def optimizer_step(self, epoch, batch_idx, optimizer, closure) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        for buffer, kept in zip(self.statistics, self.kept, strict=True):
            kept.copy_(torch.where(self.skipped, kept, buffer))
            buffer.copy_(kept)
        net, ema, *averages = self.tensors
        if self.decay is not None:  # here and not in a batch hook, so that every checkpoint holds this step's average
            updates, since = divmod(self.global_step + 1, self.decay.update_every)
            if since == 0:
                averaging.update(ema, net, self.decay(updates - 1), self.skipped)
        for average, length in zip(averages, posthoc_ema.LENGTHS, strict=False):
            averaging.update(average, net, posthoc_ema.decay(length, self.global_step + 1), self.skipped)
        self.in_update = False

    def forget_step(self) -> None:
        """As after the last whole step, of a step that ended before its update."""
        for buffer, kept in zip(self.statistics, self.kept, strict=True):
            buffer.copy_(kept)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["config"] = self.config_text

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """The steps done come from the checkpoint; how the next ones are made is said by today's configuration.

        Raises:
            UserError: exit 4 for averages that were not tracked from the first step on, or would not be any longer.
        """
        if bool(self.averages) != any(name.startswith("averages.") for name in checkpoint["state_dict"]):
            asked = f"ema_snapshot_every={self.config.get('ema_snapshot_every')}"
            raise UserError(Exit.CHECKPOINT, f"{asked}: a run tracks the two averages from its first step on, or never")
        # as many micro-batches as today's `accumulate` would have taken, or it would begin in the middle of a step;
        # the last one is not yet completed, for checkpoints are written while it ends
        batches = checkpoint["global_step"] * self.config["strategy"]["accumulate"]
        # (one that was saved in the middle of a step, out of memory, has other numbers)
        for progress in ("current", "total"):
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][progress] |= {
                "ready": batches, "started": batches, "processed": batches, "completed": batches - 1
            }  # fmt: skip
        config = self.config["optimizer"]
        settings = optimizer_settings(config)
        rate = config["lr"] * learning_rate_factor(config, self.config["max_steps"])(checkpoint["global_step"])
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group |= settings | {"lr": rate, "initial_lr": config["lr"]}
        checkpoint["lr_schedulers"][0] |= {"base_lrs": [config["lr"]], "_last_lr": [rate]}


def checkpoint_bytes(module: DiffusionModule) -> int:
    """About the size of a checkpoint: weights, two moments of Adam and the averages, in float32."""
    copies = 3 + (module.ema is not module.net) + len(module.averages)
    return 4 * copies * sum(p.numel() for p in module.net.parameters())


def snapshot_bytes(module: DiffusionModule) -> int:
    """About the size of all snapshots of a run: two averages each, in half precision."""
    every = module.config.get("ema_snapshot_every")
    count = module.config["max_steps"] // every if every else 0
    return 2 * count * len(module.averages) * sum(p.numel() for p in module.net.parameters())
