"""Training from Python with a plain Lightning Trainer: the script of docs/python.md, and a DataLoader of one's own."""

import re
import runpy
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from diffusion_lit import DiffusionModule, ImageDataModule, Pipeline
from diffusion_lit.data.sources.digits import Digits
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.weighting import MinSNR
from diffusion_lit.networks.unet import UNet
from diffusion_lit.system.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
LOGGED = ("train/loss", "val/loss", "val/loss_raw", "val/error")


@pytest.mark.parametrize("fast", [False, True])
def test_the_script_of_the_page_runs_as_it_stands(tmp_path, monkeypatch, fast):
    script = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert len(script.splitlines()) <= 30
    if fast:
        script = script.replace("L.Trainer(", "L.Trainer(fast_dev_run=True, ")
    (tmp_path / "script.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("script.py")
    assert names["trainer"].global_step == (1 if fast else 4 * 23)
    assert all(name in names["trainer"].callback_metrics for name in LOGGED)
    assert names["images"].shape == (20, 1, 8, 8)
    assert names["images"].dtype == torch.uint8
    assert (tmp_path / "three.png").exists()
    assert bool(names["best"].best_model_path) != fast


class Pairs(Dataset):
    """(image, label) of 40 images that are a function of their index."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        image = torch.randint(256, (1, 8, 8), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        return image, k % 10


def make_module(**settings) -> DiffusionModule:
    torch.manual_seed(0)
    net = UNet(8, 1, 10, [8, 8], [], norm_num_groups=4, layers_per_block=1)
    diffusion = Diffusion(DiscreteProcess(), "v_prediction", MinSNR(gamma=5.0))
    return DiffusionModule(net, diffusion, (1, 8, 8), class_names=[str(k) for k in range(10)], **settings)


def fit(module: DiffusionModule, *data, **arguments) -> L.Trainer:
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    resume = {key: arguments.pop(key) for key in ("ckpt_path", "weights_only") if key in arguments}
    trainer = L.Trainer(**quiet | {"enable_checkpointing": False} | arguments)
    trainer.fit(module, *data, **resume)
    return trainer


def test_a_plain_data_loader_under_max_epochs(tmp_path):
    module = make_module()
    loader = DataLoader(Pairs(), batch_size=8)
    best, stop = ModelCheckpoint(tmp_path, monitor="val/loss"), EarlyStopping("val/loss", patience=5)
    trainer = fit(module, loader, loader, max_epochs=3, callbacks=[stop, best], enable_checkpointing=True)
    assert trainer.global_step == 15
    assert all(name in trainer.callback_metrics for name in LOGGED)
    assert float(best.best_model_score) <= float(trainer.callback_metrics["val/loss"])
    checkpoint = torch.load(best.best_model_path, weights_only=True)  # plain data
    loaded = make_module()
    loaded.load_state_dict(checkpoint["state_dict"])
    assert Pipeline(loaded)(num_images=2, progress=False)[0].size == (8, 8)


def test_images_may_be_floats_and_come_without_labels():
    """uint8 and the same images in [-1, 1], pairs and dicts: the same weights."""
    images = torch.stack([Pairs()[k][0] for k in range(40)])
    labels = torch.arange(40) % 10
    floats = images.float() / 127.5 - 1
    forms = {
        "pairs": [(images[k : k + 8], labels[k : k + 8]) for k in range(0, 40, 8)],
        "floats": [(floats[k : k + 8], labels[k : k + 8]) for k in range(0, 40, 8)],
        "dicts": [{"image": images[k : k + 8], "y": labels[k : k + 8], "position": k} for k in range(0, 40, 8)],
    }
    weights = {}
    for name, batches in forms.items():
        module = make_module()
        fit(module, DataLoader(batches, batch_size=None), max_steps=4)
        weights[name] = torch.cat([p.detach().flatten() for p in module.net.parameters()])
    assert torch.equal(weights["pairs"], weights["floats"])
    assert torch.equal(weights["pairs"], weights["dicts"])
    fit(make_module(), DataLoader(list(images), batch_size=8), max_steps=2)


def test_clipping_by_value_is_that_of_torch():
    """The gradient that reaches SGD is clipped entry by entry, and without clipping it is larger."""
    steps = {}
    for value in (None, 1e-4):
        module = make_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
        before = [p.detach().clone() for p in module.net.parameters()]
        fit(
            module, DataLoader(Pairs(), batch_size=8), max_steps=1,
            gradient_clip_val=value, gradient_clip_algorithm="value",
        )  # fmt: skip
        after = module.net.parameters()
        steps[value] = torch.cat([(a - b).abs().flatten() for a, b in zip(after, before, strict=True)])
    assert steps[1e-4].max() <= 1e-4 + 1e-6
    assert steps[None].max() > 1e-3
    clipped = steps[None].clamp(max=1e-4)
    torch.testing.assert_close(steps[1e-4], clipped, rtol=0, atol=1e-6)


def test_a_module_is_called_as_its_network():
    module = make_module()
    fit(module, DataLoader(Pairs(), batch_size=8), max_steps=3)
    x_t, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 7])
    with torch.no_grad():
        assert torch.equal(module(x_t, t, y), module.ema(x_t, t, y))  # as sampling and validation do
        assert not torch.equal(module(x_t, t, y), module.net(x_t, t, y))


def test_shapes_that_do_not_fit_are_named():
    module = make_module()
    module.image_shape = (3, 8, 8)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\)"):
        fit(module, DataLoader(Pairs(), batch_size=8), max_steps=1)


def test_a_datamodule_of_a_source_resumes_by_position(tmp_path):
    """A plain Trainer, stopped in the middle of an epoch and resumed, ends with the weights of an unbroken one."""
    states = []
    for stops in ((6,), (4, 6)):
        module, path = make_module(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)), None
        for stop in stops:
            data = ImageDataModule(Digits(), image_size=8, channels=1, batch_size=300)
            trainer = L.Trainer(
                max_steps=stop, enable_checkpointing=False, accelerator="cpu", logger=False, enable_progress_bar=False,
                enable_model_summary=False, num_sanity_val_steps=0,
            )  # fmt: skip
            trainer.fit(module, data, ckpt_path=path, weights_only=True)
            path = tmp_path / f"at{stop}.ckpt"
            trainer.save_checkpoint(path)
            module = make_module(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)) if stop != stops[-1] else module
        states.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
    assert torch.equal(*states)


def two_groups(parameters) -> torch.optim.Optimizer:
    """Return AdamW without weight decay, and with half of the rate, of vectors."""
    kinds: dict[bool, list] = {True: [], False: []}
    for parameter in parameters:
        kinds[parameter.ndim > 1].append(parameter)
    groups = [{"params": kinds[True]}, {"params": kinds[False], "lr": 5e-4, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)


def test_parameter_groups_of_an_optimizer_are_resumed_each_with_its_settings(tmp_path):
    def train(steps: int, **resume) -> tuple[DiffusionModule, L.Trainer]:
        module = make_module(optimizer=two_groups, lr_schedule=lambda n: 1 / (n + 1))
        data = ImageDataModule(Digits(), image_size=8, channels=1, batch_size=300)
        return module, fit(module, data, max_steps=steps, num_sanity_val_steps=0, **resume)

    train(4)[1].save_checkpoint(tmp_path / "at4.ckpt")
    resumed, trainer = train(6, ckpt_path=tmp_path / "at4.ckpt", weights_only=True)
    whole, _ = train(6)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    matrices, vectors = trainer.optimizers[0].param_groups
    assert (matrices["lr"], vectors["lr"]) == pytest.approx((1e-3 / 7, 5e-4 / 7), rel=1e-12)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)


def test_other_parameter_groups_than_those_of_the_checkpoint_are_named(tmp_path):
    loader = DataLoader(Pairs(), batch_size=8)
    fit(make_module(optimizer=two_groups), loader, max_steps=1).save_checkpoint(tmp_path / "at1.ckpt")
    with pytest.raises(UserError, match="or of other parameter groups"):
        fit(make_module(), loader, max_steps=2, ckpt_path=tmp_path / "at1.ckpt", weights_only=True)
