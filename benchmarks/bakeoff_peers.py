"""Other programs as processes of their own, for `benchmarks.bakeoff`: `bakeoff_peers.py <function> <JSON>`.

It imports nothing of diffusion_lit, and from each program its own network, loss, training loop and sampler.
"""

import json
import pickle
import random
import runpy
import sys
from pathlib import Path

import numpy as np
import torch

SIZE, CHUNK = 32, 250  # px, images that are sampled at once


def set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run_script(script: str, arguments: list[str], seed: int, steps: int) -> None:
    """Run diffusers' training script with a seed, which it has no option for, and a schedule that ends with the steps.

    By itself the schedule ends after --num_epochs, which are whole epochs.
    """
    from diffusers import optimization

    set_seed(seed)
    get_scheduler = optimization.get_scheduler
    optimization.get_scheduler = lambda *args, **more: get_scheduler(*args, **more | {"num_training_steps": steps})
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


# ------------------------------------------------------------------------------ denoising-diffusion-pytorch


def make_ddp(objective: str = "pred_v", evaluations: int | None = None) -> torch.nn.Module:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    net = Unet(24, dim_mults=(1, 2, 4))
    return GaussianDiffusion(net, image_size=SIZE, objective=objective, sampling_timesteps=evaluations)


def count_ddp() -> None:
    print(count_parameters(make_ddp().model))


def train_ddp(images: str, out: str, steps: int, batch: int, seed: int, trial: dict) -> None:
    from denoising_diffusion_pytorch import Trainer

    set_seed(seed)
    settings = dict(trial)
    diffusion = make_ddp(settings.pop("objective", "pred_v"))
    quiet = {"calculate_fid": False, "save_and_sample_every": 10 * steps, "results_folder": out}
    trainer = Trainer(diffusion, images, train_batch_size=batch, train_num_steps=steps, **quiet, **settings)
    trainer.train()
    torch.save(trainer.ema.ema_model.state_dict(), f"{out}/ema.pt")


def sample_ddp(out: str, file: str, count: int, evaluations: int, seed: int, trial: dict) -> None:
    diffusion = make_ddp(trial.get("objective", "pred_v"), evaluations)
    diffusion.load_state_dict(torch.load(f"{out}/ema.pt", weights_only=True))
    diffusion.eval()
    torch.manual_seed(seed)
    chunks = [diffusion.sample(batch_size=n) for n in chunk_sizes(count)]
    save_images(file, torch.cat(chunks) * 255 + 0.5)


# ------------------------------------------------------------------------------ NVlabs' EDM


def network_arguments(precond: str, dropout: float, augment: float) -> dict:
    """Return what its train.py gives to a network of --arch=ddpmpp, but narrower and with fewer blocks."""
    encoder = {"embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard"}
    shape = {"channel_mult_noise": 1, "resample_filter": [1, 1], "model_channels": 32, "channel_mult": [1, 2, 2]}
    name = {"edm": "EDMPrecond", "vp": "VPPrecond"}[precond]
    network = {"class_name": f"training.networks.{name}", "model_type": "SongUNet", "num_blocks": 2, "dropout": dropout}
    return network | encoder | shape | ({"augment_dim": 9} if augment else {})


def count_edm(edm: str) -> None:
    sys.path.insert(0, edm)
    import dnnlib

    arguments = network_arguments("edm", 0.0, 0.0)
    net = dnnlib.util.construct_class_by_name(**arguments, img_resolution=SIZE, img_channels=3)
    print(count_parameters(net))


def allow_cpu() -> None:
    """Replace what its training loop needs of CUDA, of several processes and of an older torch."""
    from torch_utils import misc

    torch.nn.parallel.DistributedDataParallel = lambda net, device_ids: net
    torch.cuda.max_memory_allocated = torch.cuda.max_memory_reserved = lambda device: 0
    torch.cuda.reset_peak_memory_stats = lambda: None
    torch.utils.data.Sampler.__init__ = lambda self, data_source: None
    misc.check_ddp_consistency = lambda module: None


def train_edm(edm: str, images: str, out: str, steps: int, batch: int, seed: int, trial: dict) -> None:
    """Run its training loop as train.py would, on the CPU. Its warm-up, of ten million images, is a tenth of the steps.

    Dropout and augmentation are 0 unless the trial has them; without augmentation images are mirrored.
    """
    sys.path.insert(0, edm)
    from training.training_loop import training_loop

    allow_cpu()
    precond, dropout, augment = (trial.get(*pair) for pair in (("precond", "edm"), ("dropout", 0.0), ("augment", 0.0)))
    data = {"class_name": "training.dataset.ImageFolderDataset", "path": images, "use_labels": False, "cache": True}
    pipe = {"xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1, "p": augment}
    training_loop(
        run_dir=out,
        dataset_kwargs=data | {"resolution": SIZE, "xflip": not augment},
        data_loader_kwargs={"num_workers": 1, "prefetch_factor": 2},
        network_kwargs=network_arguments(precond, dropout, augment),
        loss_kwargs={"class_name": f"training.loss.{precond.upper()}Loss"},
        optimizer_kwargs={"class_name": "torch.optim.Adam", "lr": trial["lr"], "betas": [0.9, 0.999], "eps": 1e-8},
        augment_kwargs={"class_name": "training.augment.AugmentPipe"} | pipe if augment else None,
        seed=seed,
        batch_size=batch,
        total_kimg=(steps - 0.5) * batch / 1000,
        lr_rampup_kimg=steps / 10 * batch / 1000,
        kimg_per_tick=10**9,
        snapshot_ticks=10**9,
        state_dump_ticks=None,
        device=torch.device("cpu"),
    )


def sample_edm(edm: str, out: str, file: str, count: int, evaluations: int, seed: int, trial: dict) -> None:
    """Draw images by its sampler, Heun's method, in at least as many evaluations of the network."""
    sys.path.insert(0, edm)
    from generate import edm_sampler

    with open(max(Path(out).glob("network-snapshot-*.pkl")), "rb") as snapshot:
        ema = pickle.load(snapshot)["ema"]
    torch.manual_seed(seed)
    chunks = []
    with torch.no_grad():
        for n in chunk_sizes(count):
            noise = torch.randn(n, 3, SIZE, SIZE)
            chunks.append(edm_sampler(ema, noise, num_steps=evaluations // 2 + 1))
    save_images(file, torch.cat(chunks) * 127.5 + 128)


# ------------------------------------------------------------------------------ shared


def count_parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def chunk_sizes(count: int) -> list[int]:
    return [min(CHUNK, count - start) for start in range(0, count, CHUNK)]


def save_images(file: str, levels: torch.Tensor) -> None:
    """Save levels of 0 to 255, cut to integers, as uint8 (N, H, W, C)."""
    np.save(file, levels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())


FUNCTIONS = {
    function.__name__: function
    for function in (run_script, count_ddp, train_ddp, sample_ddp, count_edm, train_edm, sample_edm)
}

if __name__ == "__main__":
    FUNCTIONS[sys.argv[1]](**json.loads(sys.argv[2]))
