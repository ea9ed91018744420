"""Samplers and networks for tests of sampling."""

import functools
from pathlib import Path

import torch
import yaml

from diffusion_lit.config.groups import CONF
from diffusion_lit.config.targets import locate
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.networks.unet import UNet
from diffusion_lit.sampling.samplers import Sampler, make_sampler

ALL = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(Path(CONF).glob("sampler/*.yaml"))}
# others: test_processes; lcm is for consistency models and takes few steps, and has its own test
YAMLS = {name: config for name, config in ALL.items() if "discrete" in config["serves"] and name != "lcm"}
LINEAR, COSINE = DiscreteProcess(beta_schedule="linear"), DiscreteProcess()


def sampler_of(name: str, **changes: object) -> Sampler:
    config = {**ALL[name], **changes}
    return make_sampler(config, locate(config["_target_"]))


@functools.cache
def unet() -> UNet:
    torch.manual_seed(0)
    net = UNet(8, 1, 3, block_out_channels=[16], attention_levels=[0], layers_per_block=1, norm_num_groups=4)
    return net.eval()
