"""Training speed against an accelerate loop and against denoising-diffusion-pytorch's Trainer, with the same UNet of
1.1 M, batch and folder of images; measured as in `benchmarks.peers`.

The loop is what diffusers' training tutorial shows: images decoded and flipped by transforms in a DataLoader, AdamW, a
schedule, clipping, no EMA. The Trainer has its own Adam, and an EMA update every ten steps.
"""

import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import compose_config, print_table, require_packages, save_blurred_noise
from benchmarks.peers import HEADER, compare, train_overrides
from diffusion_lit.runs.build import make_network

NETWORK, LAST, IMAGES = ("model.layers_per_block=1",), 20, 2_000
LOAD_UNET = """
import json, sys
import torch
from diffusers import UNet2DModel
config, images, out = sys.argv[1:]
unet = UNet2DModel.from_config(json.load(open(config, encoding="utf-8")))
"""
ACCELERATE_LOOP = """
from accelerate import Accelerator
from datasets import load_dataset
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

preprocess = transforms.Compose([
    transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize([0.5], [0.5]),
])
dataset = load_dataset("imagefolder", data_dir=images, split="train")
dataset.set_transform(lambda rows: {"x": [preprocess(image.convert("RGB")) for image in rows["image"]]})
loader = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)
scheduler = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
lr_schedule = get_cosine_schedule_with_warmup(optimizer, 500, 1000)
accelerator = Accelerator()
unet, optimizer, loader, lr_schedule = accelerator.prepare(unet, optimizer, loader, lr_schedule)
for epoch in range(10):
    for batch in loader:
        x0 = batch["x"]
        eps, t = torch.randn_like(x0), torch.randint(1000, (len(x0),))
        with accelerator.accumulate(unet):
            loss = F.mse_loss(unet(scheduler.add_noise(x0, eps, t), t).sample, eps)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            lr_schedule.step()
            optimizer.zero_grad()
"""
TRAINER = """
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

class Net(torch.nn.Module):
    channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 3, 3, False, False

    def __init__(self):
        super().__init__()
        self.unet = unet

    def forward(self, x, t, x_self_cond=None):
        return self.unet(x, t).sample

Trainer(
    GaussianDiffusion(Net(), image_size=32), images, train_batch_size=64, train_num_steps=100, calculate_fid=False,
    save_and_sample_every=10**6, results_folder=out,
).train()
"""


PROGRAMS = {"an accelerate loop": ACCELERATE_LOOP, "denoising-diffusion-pytorch": TRAINER}


def measure_rows(home: Path) -> Iterator[list[str]]:
    images = save_blurred_noise(home / "images", IMAGES, 32, "png")
    overrides = train_overrides(images, 32, NETWORK)
    config = home / "unet.json"
    config.write_text(json.dumps(dict(make_network(compose_config(*overrides)[0]).unet.config)), encoding="utf-8")
    program = home / "program.py"
    for name, code in PROGRAMS.items():
        program.write_text(LOAD_UNET + code, encoding="utf-8")
        yield compare(name, overrides, lambda out: [program, config, images, out], home, LAST)


def main(arguments: Namespace) -> None:
    require_packages("accelerate", "denoising_diffusion_pytorch")
    with tempfile.TemporaryDirectory() as home:
        print_table(HEADER, measure_rows(Path(home)))
