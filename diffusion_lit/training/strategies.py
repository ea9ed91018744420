"""From a `strategy` group to what Lightning's Trainer takes: one device, DP, DDP."""

import logging

import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from torch import nn

from diffusion_lit.distributed import collectives, process_group

log = logging.getLogger(__name__)


class DataParallelStrategy(SingleDeviceStrategy):
    """One process, several GPUs: `torch.nn.DataParallel` around the network alone.

    Each forward pass splits the batch, copies the network to the other devices and gathers the outputs; loss, average
    and optimizer live on the first one. Lightning 2 has no such strategy; its name here is "dp".
    """

    strategy_name = "dp"

    def __init__(self, parallel_devices: list[torch.device] | None = None, **plugins):
        super().__init__(device="cpu", **plugins)  # the devices are set by the Trainer
        self.parallel_devices = parallel_devices

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[0]

    def setup(self, trainer) -> None:
        super().setup(trainer)
        self.lightning_module.replicate(nn.DataParallel(self.lightning_module.net, self.parallel_devices))

    def teardown(self) -> None:
        self.lightning_module.replicate(None)
        super().teardown()


class DeterministicDDPStrategy(DDPStrategy):
    """DDP in which every step adds up gradients in the same order.

    DDP sorts its buckets anew after the first backward pass it sees. Among three processes or more, another order gives
    other last bits, so the first step of a resumed run would not be the step of the unbroken one. Here a pass on blank
    images goes before the first step.
    """

    def configure_ddp(self) -> None:
        super().configure_ddp()
        module = self.lightning_module
        buffers = [buffer.clone() for buffer in module.buffers()]
        count = module.trainer.datamodule.batch_size
        image = torch.zeros(count, *module.codec.image_shape, dtype=torch.uint8, device=self.root_device)
        label = torch.zeros(count, dtype=torch.int64, device=self.root_device)
        log_steps, module.log_steps = module.log_steps, False  # the Trainer does not take logs yet
        self.training_step({"image": image, "y": label, "index": label, "position": 0}, 0).backward()
        module.log_steps = log_steps
        module.zero_grad(set_to_none=True)
        for buffer, value in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def validation_step(self, *args, **kwargs):
        """Skip DDP's forward, which synchronizes buffers and would wait for ranks that have fewer batches."""
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)


# Lightning would look for SLURM, refuse jobs of several tasks and handle their signals; we do that ourselves.
ALONE = {"plugins": [LightningEnvironment()]}
StrategyRegistry.register("dp", DataParallelStrategy, description=DataParallelStrategy.__doc__)


def trainer_arguments(strategy: dict, net: nn.Module) -> dict:
    """What a Trainer takes of devices and processes; says so where it falls back to one device."""
    return {"accelerator": strategy["accelerator"]} | STRATEGIES[strategy["name"]](strategy, net)


def _single(strategy: dict, net: nn.Module) -> dict:
    return {"devices": 1, "strategy": "auto"} | ALONE


def _dp(strategy: dict, net: nn.Module) -> dict:
    count = process_group.count_local_devices(strategy)
    if count > 1 and torch.cuda.is_available() and strategy["accelerator"] in ("auto", "gpu", "cuda"):
        return {"devices": count, "strategy": "dp"} | ALONE
    log.info("note       strategy=dp needs two GPUs or more; here it trains on one device, as strategy=single does")
    return _single(strategy, net)


def _ddp(strategy: dict, net: nn.Module) -> dict:
    if collectives.world_size() == 1:
        log.info("note       strategy=ddp finds one device here; it trains as strategy=single does")
        return _single(strategy, net)
    here, nodes = process_group.resolve_processes(strategy)
    batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    return {
        "devices": here,
        "num_nodes": nodes,
        "strategy": DeterministicDDPStrategy(
            cluster_environment=TorchElasticEnvironment(),  # the processes have met already
            broadcast_buffers=batch_norm,  # else the buffers are tables, the same everywhere
            gradient_as_bucket_view=True,
        ),
    }


STRATEGIES = {"single": _single, "dp": _dp, "ddp": _ddp}
