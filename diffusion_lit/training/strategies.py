"""Choose the strategy of Lightning's Trainer: one device, DataParallel, or DDP with a fixed order of sums.

Lightning 2 has no DataParallel strategy, so one is registered here. Its DDP strategy
rebuilds the gradient buckets after the first step, which changes the last bits of the sums
and breaks bit-exact resuming; the subclass avoids that.
"""

import logging

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from torch import nn

from diffusion_lit.distributed import collectives, process_group

log = logging.getLogger(__name__)


class DataParallelStrategy(SingleDeviceStrategy):
    """One process on several GPUs: `torch.nn.DataParallel` around the network, registered as "dp".

    Each forward pass splits the batch, copies the network to the other devices and gathers
    the outputs. Loss, EMA and optimizer stay on the first device.
    """

    strategy_name = "dp"

    def __init__(self, parallel_devices: list[torch.device] | None = None, **plugins):
        super().__init__(device="cpu", **plugins)  # the Trainer sets parallel_devices
        self.parallel_devices = parallel_devices

    @property
    def root_device(self) -> torch.device:
        """Return the device of the weights."""
        return self.parallel_devices[0]

    def setup(self, trainer) -> None:
        """Replicate the network."""
        super().setup(trainer)
        self.lightning_module.replicate(nn.DataParallel(self.lightning_module.net, self.parallel_devices))

    def teardown(self) -> None:
        """Train through the network itself again."""
        self.lightning_module.replicate(None)
        super().teardown()


class DeterministicDDPStrategy(DDPStrategy):
    """DDP that sums gradients in the same order in every step.

    DDP rebuilds its buckets after the first backward pass. With three or more processes
    another order changes the last bits, so the first step of a resumed run would differ
    from the same step of an unbroken one. Therefore a backward pass on blank images
    precedes the first step.
    """

    def configure_ddp(self) -> None:
        """Wrap the module and run the extra backward pass."""
        super().configure_ddp()
        module = self.lightning_module
        buffers = [buffer.clone() for buffer in module.buffers()]
        count = module.trainer.datamodule.batch_size
        image = torch.zeros(count, *module.codec.image_shape, dtype=torch.uint8, device=self.root_device)
        label = torch.zeros(count, dtype=torch.int64, device=self.root_device)
        log_steps, module.log_steps = module.log_steps, False  # the Trainer cannot log yet
        self.training_step({"image": image, "y": label, "index": label, "position": 0}, 0).backward()
        module.log_steps = log_steps
        module.zero_grad(set_to_none=True)
        for buffer, value in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def validation_step(self, *args, **kwargs):
        """Bypass DDP's forward, which synchronizes buffers and would wait for ranks with fewer batches."""
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


# Otherwise Lightning detects SLURM, refuses jobs of several tasks and installs signal handlers. Here
# distributed/slurm.py and callbacks/graceful_stop.py do that.
WITHOUT_SLURM = {"plugins": [LightningEnvironment()]}
StrategyRegistry.register("dp", DataParallelStrategy, description=DataParallelStrategy.__doc__)


def device_arguments(strategy: dict, net: nn.Module) -> dict:
    """Return the Trainer's arguments for devices and processes; log a note on falling back to one device."""
    accelerator = {"accelerator": strategy["accelerator"]}
    if strategy["name"] == "dp":
        count = process_group.count_local_devices(strategy)
        if count > 1 and torch.cuda.is_available() and strategy["accelerator"] in ("auto", "gpu", "cuda"):
            return accelerator | {"devices": count, "strategy": "dp"} | WITHOUT_SLURM
        log.info("note       strategy=dp needs two GPUs or more: training on one device")
    elif strategy["name"] == "ddp":
        if collectives.world_size() > 1:
            return accelerator | _ddp_arguments(strategy, net)
        log.info("note       strategy=ddp finds one device here: training on one device")
    return accelerator | {"devices": 1, "strategy": "auto"} | WITHOUT_SLURM


def _ddp_arguments(strategy: dict, net: nn.Module) -> dict:
    devices, nodes = process_group.resolve_processes(strategy)
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    ddp = DeterministicDDPStrategy(
        cluster_environment=TorchElasticEnvironment(),  # the process group exists already
        broadcast_buffers=has_batch_norm,  # other buffers are constant tables
        gradient_as_bucket_view=True,
    )
    return {"devices": devices, "num_nodes": nodes, "strategy": ddp}
