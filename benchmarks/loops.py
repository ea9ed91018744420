"""Images a second beside a loop that somebody writes with accelerate, and beside the Trainer of
denoising-diffusion-pytorch, in turns, all three with the same UNet of 1.1 M, batch and folder of pictures.

Measured as `benchmarks.peers` does. The loop has what
tutorials have: pictures decoded and flipped by transforms in a DataLoader, AdamW, a schedule, clipping, and no average;
that Trainer has its own Adam, and an average every ten steps.
"""

import json
import tempfile
from pathlib import Path

from benchmarks.measure import config_of, need, table
from benchmarks.peers import HEAD, in_turns, pictures, row, words_of
from diffusion_lit.runs.build import make_network

OURS, LAST = ("model.layers_per_block=1",), 20
NETWORK = """
import json, sys
import torch
from diffusers import UNet2DModel
config, pictures, out = sys.argv[1:]
unet = UNet2DModel.from_config(json.load(open(config)))
"""
BY_HAND = """
from accelerate import Accelerator
from datasets import load_dataset
from diffusers import DDPMScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

look = transforms.Compose([
    transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
    transforms.Normalize([0.5], [0.5]),
])
images = load_dataset("imagefolder", data_dir=pictures, split="train")
images.set_transform(lambda rows: {"x": [look(image.convert("RGB")) for image in rows["image"]]})
loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
noise = DDPMScheduler(num_train_timesteps=1000)
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
rate = get_cosine_schedule_with_warmup(optimizer, 500, 1000)
accelerator = Accelerator()
unet, optimizer, loader, rate = accelerator.prepare(unet, optimizer, loader, rate)
for epoch in range(10):
    for batch in loader:
        x0 = batch["x"]
        eps, t = torch.randn_like(x0), torch.randint(1000, (len(x0),))
        with accelerator.accumulate(unet):
            loss = F.mse_loss(unet(noise.add_noise(x0, eps, t), t).sample, eps)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            rate.step()
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
    GaussianDiffusion(Net(), image_size=32), pictures, train_batch_size=64, train_num_steps=100, calculate_fid=False,
    save_and_sample_every=10**6, results_folder=out,
).train()
"""


def main() -> None:
    need("accelerate", "denoising_diffusion_pytorch")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = pictures(home / "pictures", 32)
        words = words_of(folder, 32, OURS)
        (home / "unet.json").write_text(json.dumps(dict(make_network(config_of(*words)[0]).unet.config)))
        loop = home / "loop.py"
        for told, code in (("a loop with accelerate", BY_HAND), ("denoising-diffusion-pytorch", TRAINER)):
            loop.write_text(NETWORK + code)
            rows.append(row(told, in_turns(words, lambda out: [loop, home / "unet.json", folder, out], home, LAST)))
    table(HEAD, rows)
