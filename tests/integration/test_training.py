"""One word changes one thing: every choice trains, in this process, and changes what it says it changes."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.groups import CONF
from diffusion_lit.data.batches import stream_indices
from diffusion_lit.data.datamodule import datamodule_from_config
from diffusion_lit.diffusion.randomness import draw_random_numbers
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.build_run import make_module
from diffusion_lit.training.launch_run import fit
from tests.cases import each
from tests.equal_runs import assert_equal_runs
from tests.networks import every_model, small_overrides
from tests.runs import TINY, run, trace
from tests.trained import SHORT, losses, train


@pytest.fixture(autouse=True)
def _resolver():

    OmegaConf.register_new_resolver("hex", lambda digits: "0" * digits, replace=True)


def choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> list[float]:

    OmegaConf.register_new_resolver("hex", lambda digits: "0" * digits, replace=True)
    return losses(tmp_path_factory.mktemp("default"))


@each("weighting", [name for name in choices("weighting") if name != "min_snr"])
def test_every_weighting_trains_and_gives_its_own_losses(tmp_path, default, weighting):
    found = losses(tmp_path, f"weighting={weighting}")
    assert np.isfinite(found).all()
    assert found[0] != default[0]


OF_OTHERS = {"flow_euler", "flow_heun", "heun"}  # for processes that are not the default one


@each("sampler", [name for name in choices("sampler") if name not in {"ddim", *OF_OTHERS}])
def test_every_sampler_previews_and_leaves_training_alone(tmp_path, default, sampler):
    assert losses(tmp_path, f"sampler={sampler}", "sampler.steps=3") == default
    assert (tmp_path / "samples" / "step-00000004.png").exists()


@each(
    "word",
    [
        "diffusion.prediction_type=epsilon",
        "diffusion.prediction_type=sample",
        "diffusion.beta_schedule=linear",
        "diffusion.beta_schedule=scaled_linear",
        "diffusion.zero_terminal_snr=true",
        "diffusion.loss=l1",
        "diffusion=ddpm",
        "diffusion.num_train_timesteps=100",
        "seed=1",
        "label_dropout=0.9",
        "data.flip=0.9",
    ],
)
def test_one_word_changes_the_loss(tmp_path, default, word):
    found = losses(tmp_path, word)
    assert np.isfinite(found).all()
    assert found != default


@pytest.mark.parametrize("word", ["sample_every=2", "val_every=1", "ema=none", "guidance_scale=3"])
def test_what_is_watched_does_not_change_what_is_learned(tmp_path, default, word):
    assert losses(tmp_path, word) == default


def test_without_an_average_there_is_one_network(tmp_path):
    train(tmp_path, "ema=none")
    state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path))["state_dict"]
    for key in [key for key in state if key.startswith("net.")]:
        assert torch.equal(state[key], state[key.replace("net.", "ema.", 1)])
    config, _ = resolve_data(compose_configs("train", [*SHORT, "ema=none"])[0])
    module = make_module(config)
    assert module.ema is module.net


def test_bf16_mixed_stays_close_to_fp32_and_keeps_weights_in_fp32(tmp_path, default):
    found = losses(tmp_path, "strategy.precision=bf16-mixed")
    assert found != default  # autocast was on
    np.testing.assert_allclose(found, default, rtol=0.02)
    assert all(float(row["train/grad_norm"]) > 0 for row in trace(tmp_path))
    state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path))["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_two_steps_are_those_of_a_plain_loop(tmp_path):
    """Written out with torch alone: the gradient is that of the mean loss, once, and clipped before AdamW's step."""
    words = [
        *SHORT,
        "max_steps=2",
        "checkpoint_every=2",
        "trainer.gradient_clip_val=0.5",
        "data.flip=0",
        "label_dropout=0",
    ]
    rows = train(tmp_path, *words[len(SHORT) :])
    config, source = resolve_data(compose_configs("train", words)[0])
    module, data = make_module(config), datamodule_from_config(source, config["data"], config["seed"], 12)
    data.setup()
    net, settings = module.net, config["optimizer"]
    optimizer = torch.optim.AdamW(net.parameters(), betas=settings["betas"], weight_decay=settings["weight_decay"])
    for step in range(2):
        index = stream_indices(config["seed"], 12 * step, 12, len(data.train)).numpy()
        x0 = torch.from_numpy(data.train.images[index]).float() / 127.5 - 1
        draws = draw_random_numbers(config["seed"], 12 * step, 12, module.codec.shape, torch.device("cpu"))
        t = (draws.u_timestep * 1000).long()
        alpha, sigma = (
            table[t].float()[:, None, None, None] for table in (DiscreteProcess().alpha, DiscreteProcess().sigma)
        )
        v = alpha * draws.eps - sigma * x0
        out = net(alpha * x0 + sigma * draws.eps, t, torch.from_numpy(data.train.labels[index]))
        snr = DiscreteProcess().snr[t]
        weight = snr.clamp(max=5.0) / (snr + 1)  # min-SNR on v (Hang et al. 2023)
        loss = (weight * (out - v).square().flatten(1).mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = float(rows[step]["train/lr"])
        optimizer.step()
        assert float(rows[step]["train/loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(rows[step]["train/grad_norm"]) == pytest.approx(norm.item(), rel=1e-4)
        assert norm > 0
    saved = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path))["state_dict"]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(saved[f"net.{name}"], value, rtol=1e-4, atol=1e-6)


@pytest.fixture
def graphs(monkeypatch) -> list:
    """Return the graphs that are compiled, and run as they are: inductor takes a minute on a CPU."""
    found, original = [], torch.nn.Module.compile
    torch.compiler.reset()

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, options: original(net, backend=backend))
    return found


def test_a_faster_layout_and_a_compiled_network_train_the_same_under_the_same_names(tmp_path, default, graphs):
    """Validation and previews, with other batch sizes and in evaluation mode, compile nothing."""
    overrides = ["strategy.channels_last=true", "strategy.compile=true", "val_every=2", "sample_every=2"]
    np.testing.assert_allclose(losses(tmp_path, *overrides), default, rtol=1e-5)
    assert len(graphs) == 1
    state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path))["state_dict"]
    assert state.keys() == make_module(resolve_data(compose_configs("train", SHORT)[0])[0]).state_dict().keys()
    assert any(value.is_contiguous(memory_format=torch.channels_last) for value in state.values() if value.ndim == 4)


def test_the_gradient_is_clipped_before_the_step(tmp_path):
    """Adam's first step is the sign of the gradient whatever its size, but two differently clipped steps differ."""
    free, clipped = (
        train(tmp_path / "free", "trainer.gradient_clip_val=null"),
        train(tmp_path / "clip", "trainer.gradient_clip_val=0.01"),
    )
    assert free[0]["train/loss"] == clipped[0]["train/loss"]
    assert free[0]["train/grad_norm"] == clipped[0]["train/grad_norm"]  # logged before clipping
    assert float(free[0]["train/grad_norm"]) > 0.01
    steps = {}
    for name in ("free", "clip"):
        state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path / name))["optimizer_states"][0][
            "state"
        ]
        steps[name] = torch.cat([value["exp_avg"].flatten() for value in state.values()]).norm()
    assert steps["clip"] < 0.01 < steps["free"]


@pytest.mark.parametrize(
    ("accumulate", "world"), [(1, 1), (4, 1), *[pytest.param(n, 2, marks=pytest.mark.slow) for n in (1, 4)]]
)
def test_the_learning_rate_counts_optimizer_steps(tmp_path, accumulate, world):
    words = ["lr_schedule=cosine", "lr_schedule.warmup_steps=2", "optimizer.lr=1.0e-3"]
    words += [f"strategy.accumulate={accumulate}", "global_batch_size=16"]
    if world == 1:
        rows = train(tmp_path, *words, "max_steps=6")
    else:
        words += [word for word in SHORT if not word.startswith(("max_steps", "global_batch_size"))]
        more = ["max_epochs=0.065", "strategy=ddp", f"strategy.devices={world}", f"run_dir={tmp_path / 'run'}"]
        run("train", *words, *more, cwd=tmp_path)
        rows = trace(tmp_path / "run")
    assert len(rows) == 6
    # the rate of the step itself: warm-up of two steps, then a cosine that would reach 0 with the seventh step
    expected = [0.5e-3, 1e-3, 1e-3, 1e-3 * (0.5 + 0.5 * 2**-0.5), 0.5e-3, 1e-3 * (0.5 - 0.5 * 2**-0.5)]
    np.testing.assert_allclose([float(row["train/lr"]) for row in rows], expected, atol=1e-9)


def test_epochs_are_steps_once_the_pictures_are_counted(tmp_path, caplog):
    """1.4 passes over 256 pictures in batches of 64 are 5.6 steps: six, for the rate, the average and all else."""
    words = [
        "experiment=none",
        "data=synthetic",
        "data.image_size=8",
        "global_batch_size=64",
        "ema=rising",
        "ema.decay=0.5",
    ]
    words += ["lr_schedule.warmup_fraction=0.5", "checkpoint_every=3", "val_every=2", "sample_every=3"]
    steps, epochs = tmp_path / "steps", tmp_path / "epochs"
    train(steps, *words, "max_steps=6")
    train(epochs, *words, "max_epochs=1.4")
    assert_equal_runs(steps, epochs)
    config = read_model_config(epochs)
    assert (config["max_steps"], config["max_epochs"]) == (6, 1.4)
    rows = trace(epochs)
    with caplog.at_level("INFO"):
        assert train(epochs, *words, "max_epochs=1.4", f"resume={epochs}") == rows
    assert "is complete at step 6 of 6. To continue, raise max_epochs." in caplog.text
    longer = train(epochs, *words, "max_epochs=2", f"resume={epochs}")
    assert longer[:6] == rows
    assert [row["step"] for row in longer[6:]] == ["7", "8"]


def test_a_loss_that_is_no_number_ends_the_run_and_is_never_saved(tmp_path):
    with pytest.raises(UserError, match="last good checkpoint is step") as caught:
        train(tmp_path, "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "checkpoint_every=1", "max_steps=20")
    assert caught.value.exit_code == 6
    state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path))["state_dict"]
    assert checkpoints.list_steps(tmp_path)
    assert all(value.isfinite().all() for value in state.values())


UP_AND_DOWN = ["optimizer.lr=0.1", "lr_schedule.warmup_steps=8", "ema=none"]  # the validation loss falls, then rises


def test_the_two_newest_checkpoints_and_the_best_are_kept(tmp_path):
    train(tmp_path, "checkpoint_every=1", "max_steps=8", "keep_checkpoints=2", *UP_AND_DOWN)
    steps = checkpoints.list_steps(tmp_path)
    rows = {int(row["step"]): float(row["val/loss"]) for row in trace(tmp_path)}
    best = min(rows, key=rows.get)
    assert best not in (7, 8)  # else this shows nothing
    assert (tmp_path / "checkpoints" / "best.ckpt").resolve() == checkpoints.checkpoint_path(tmp_path, best).resolve()
    assert set(steps) == {7, 8, best}


def test_the_best_checkpoint_is_one_that_exists(tmp_path):
    """Held-out loss may be measured at steps without a checkpoint; the lowest of those is no checkpoint's."""
    train(tmp_path, "val_every=1", "checkpoint_every=3", "max_steps=6", *UP_AND_DOWN)
    rows = {int(row["step"]): float(row["val/loss"]) for row in trace(tmp_path)}
    assert min(rows, key=rows.get) not in (3, 6)  # else this shows nothing
    best = min((3, 6), key=rows.get)
    assert (tmp_path / "checkpoints" / "best.ckpt").resolve() == checkpoints.checkpoint_path(tmp_path, best).resolve()


def test_without_an_average_held_out_loss_is_measured_without_dropout(tmp_path):
    words = ["ema=none", "model.dropout=0.5", "optimizer.lr=1.0e-12", "max_steps=2", "val_every=1"]
    first, second = train(tmp_path, *words)
    assert float(first["val/loss"]) == pytest.approx(float(second["val/loss"]), rel=1e-5)
    assert first["val/loss"] == first["val/loss_raw"]


# ---------------------------------------------------------------------------------------------- own pictures


def pictures(folder: Path, count: int, mode: str = "RGB", size: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, *channels), dtype=np.uint8)).save(folder / f"{k}.png")


FOLDER = ["experiment=none", "data=image_folder", "data.image_size=16", "data.val_fraction=0.2"]


def test_class_folders_train_a_conditional_model(tmp_path):
    pictures(tmp_path / "in" / "cats", 7)
    pictures(tmp_path / "in" / "dogs", 8)
    assert np.isfinite(losses(tmp_path / "run", *FOLDER, f"data.root={tmp_path / 'in'}")).all()
    state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path / "run"))["state_dict"]
    assert len(state["net.unet.class_embedding.weight"]) == 3  # two classes and the null label


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_loose_pictures_train_an_unconditional_model_and_keep_their_channels(tmp_path, mode, channels):
    pictures(tmp_path / "in", 5, mode)  # fewer than a batch of 12
    words = [f"data.root={tmp_path / 'in'}", f"data.channels={channels}"]
    assert np.isfinite(losses(tmp_path / "run", *FOLDER, *words)).all()
    state = checkpoints.load_checkpoint(checkpoints.select_checkpoint(tmp_path / "run"))["state_dict"]
    assert not [key for key in state if "class_embedding" in key]
    assert Image.open(tmp_path / "run" / "samples" / "step-00000004.png").mode == mode


def test_changed_pictures_are_not_trained_on_unless_accepted(tmp_path):
    pictures(tmp_path / "in", 6)
    words = [*FOLDER, f"data.root={tmp_path / 'in'}"]
    train(tmp_path / "run", *words)
    (tmp_path / "in" / "3.png").unlink()
    more = [*words, "max_steps=6", f"resume={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="images have changed") as caught:
        train(tmp_path / "run", *more)
    assert caught.value.exit_code == 4
    assert len(train(tmp_path / "run", *more, "accept=[data]")) == 6


def test_cifar10_from_class_folders(tmp_path, shared_data):
    """Real pictures: class names from folders, the test folder held out, pixels as Pillow reads them."""
    with tarfile.open(shared_data / "cifar10.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(("/0000.jpg", "/0001.jpg")):
                archive.extract(member, tmp_path / "cifar10", filter="data")
    words = ["experiment=cifar10_cond", f"data.root={tmp_path / 'cifar10'}", "model.dropout=0.1"]
    config, source = resolve_data(compose_configs("train", [*SHORT, *words])[0])
    assert config["data"]["class_names"][:3] == ["airplane", "automobile", "bird"]
    (tmp_path / "run").mkdir()
    fit(config, source, tmp_path / "run", words)
    assert np.isfinite([float(row["train/loss"]) for row in trace(tmp_path / "run")]).all()
    data = datamodule_from_config(source, config["data"], 0, 1)
    data.setup()
    assert (len(data.train), len(data.val)) == (20, 20)
    with Image.open(tmp_path / "cifar10" / "train" / "bird" / "0001.jpg") as picture:
        np.testing.assert_array_equal(data.train.images[5], np.asarray(picture).transpose(2, 0, 1))
    assert data.train.labels[5] == 2


@every_model
def test_every_model_trains(tmp_path, model):
    """Two steps on the digits, by the command's own path."""
    from diffusion_lit.config.compose import resolve_data

    short = [word for word in TINY if not word.startswith("model.")]
    words = [*short, *small_overrides(model), "max_steps=2", "checkpoint_every=2", "val_every=0", "sample_every=0"]
    config, source = resolve_data(compose_configs("train", words)[0])
    fit(config, source, tmp_path, words)
    losses = [float(row["train/loss"]) for row in trace(tmp_path)]
    assert len(losses) == 2
    assert all(loss > 0 for loss in losses)
    assert (tmp_path / "samples" / "step-00000002.png").exists()
