"""Starting from weights that exist: what was loaded computes what it computed, or it is said what does not fit."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion_lit import train
from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.expand import expand_overrides
from diffusion_lit.config.groups import CONF
from diffusion_lit.runs import checkpoints, warm_start
from diffusion_lit.runs.build import make_network
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.system.errors import UserError
from tests.cases import each
from tests.runs import run

SIZE = 8
DATA = ["data=synthetic", "data.image_size=8", "sampler.steps=2", "data.classifier_images=0", "global_batch_size=4"]
STILL = ["optimizer.lr=1.0e-30", "lr_schedule.warmup_steps=0"]  # one step with it changes no bit of a weight


@pytest.fixture(autouse=True)
def _resolver():
    OmegaConf.register_new_resolver("hex", lambda digits: "0" * digits, replace=True)


def unet(channels: int = 3, classes: int | None = None, **arguments) -> UNet2DModel:
    """A small one in which no argument that weights do not show has its default."""
    torch.manual_seed(7)
    settings = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "act_fn": "gelu"}
    settings |= {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    settings |= {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}
    settings |= {"in_channels": channels, "out_channels": channels, "num_class_embeds": classes, "sample_size": 16}
    return UNet2DModel(**settings | arguments).eval()


def recipe(*words: object) -> dict:
    config = compose_configs("train", [*DATA, "data.labels=none", *map(str, words)])[0]
    return warm_start.resolve_training_config(config)[0]


def same_shape(channels: int = 3) -> list[str]:
    """A network for `init_from` of `unet()`, with the same arguments."""
    return [
        "model=unet2d", f"data.channels={channels}", "diffusion=ddpm", "model.block_out_channels=[8,16]",
        "model.down_block_types=[DownBlock2D,AttnDownBlock2D]", "model.up_block_types=[AttnUpBlock2D,UpBlock2D]",
        "model.norm_num_groups=4", "model.attention_head_dim=4", "model.layers_per_block=1", "model.act_fn=gelu",
        "model.flip_sin_to_cos=false", "model.freq_shift=1", "model.downsample_padding=0",
    ]  # fmt: skip


def filled(config: dict) -> tuple[nn.Module, str]:
    torch.manual_seed(0)
    net = make_network(config)
    return net.eval(), warm_start.load_initial_weights(net, config)


def noise(channels: int = 3) -> tuple[Tensor, Tensor]:
    t = torch.tensor([0, 9, 700])
    return torch.randn(len(t), channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), t


@torch.no_grad()
def out(net: nn.Module, x_t: Tensor, t: Tensor, y: int = 0) -> Tensor:
    """Of one of ours, or of diffusers' own."""
    labels = torch.full((len(x_t),), y)
    if not isinstance(net, UNet2DModel):
        return net(x_t, t, labels)
    return net(x_t, t, class_labels=labels if net.class_embedding is not None else None).sample


def refused(code: int, *words: object) -> str:
    with pytest.raises(UserError) as told:
        filled(recipe(*words))
    assert told.value.exit_code == code
    return str(told.value)


# ------------------------------------------------------------------------------------------ every kind of file


def folder(net, path):
    net.save_pretrained(path)


def folder_of_pickles(net, path):
    net.save_pretrained(path, safe_serialization=False)


def pipeline(net, path):
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(path)


def saved(wrap=lambda state: state, prefix=""):
    return lambda net, path: torch.save(wrap({prefix + k: v for k, v in net.state_dict().items()}), path)


KINDS = {
    "folder": ("unet", folder),
    "bin": ("unet", folder_of_pickles),
    "pipeline": ("model", pipeline),
    "safetensors": ("a.safetensors", lambda net, path: save_file(net.state_dict(), path)),
    "pth": ("a.pth", saved()),
    "pt, as a part": ("a.pt", saved(prefix="unet.")),
    "of DataParallel": ("a.bin", saved(prefix="module.")),
    "of a wrapped part": ("a.pth", saved(lambda state: {"model_state": state, "config": "lr: 3"}, "module.unet.")),
    "state_dict": ("a.pth", saved(lambda state: {"state_dict": state}, "model.net.")),
    "model": ("a.ckpt", saved(lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {}}})),
    "ema": ("a.pth", saved(lambda state: {"ema": state, "model": {k: 0 * v for k, v in state.items()}})),
    "ema inside": ("a.pth", saved(lambda state: state | {f"net.{k[4:]}": 0 * v for k, v in state.items()}, "ema.")),
    "ema in safetensors": (
        "a.safetensors",
        lambda net, path: save_file(
            {f"{of}.{k}": v * (of == "ema") for k, v in net.state_dict().items() for of in ("ema", "net")},
            path,
        ),
    ),
    "before zip": (
        "a.pth",
        lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    ),
}  # fmt: skip


@each("kind", KINDS)
def test_what_is_loaded_computes_what_it_computed(tmp_path, kind):
    name, save = KINDS[kind]
    original = unet()
    save(original, tmp_path / name)
    net, told = filled(recipe(*same_shape(), f"init_from={tmp_path / name}"))
    assert torch.equal(out(net, *noise()), out(original, *noise()))
    assert "warning" not in told
    count = len(original.state_dict())
    assert told.startswith(f"weights    {count} of {count} tensors from {tmp_path / name}")


def test_names_without_their_prefixes_are_still_different():
    for file in (CONF / "model").glob("*.yaml"):
        if file.stem != "pretrained":
            with torch.device("meta"):
                names = list(make_network(recipe(f"model={file.stem}", "data.image_size=32")).state_dict())
            assert len({warm_start._normalize(name) for name in names}) == len(names), file.stem


def test_files_of_old_diffusers_are_read_as_diffusers_reads_them(tmp_path):
    unet().save_pretrained(tmp_path, safe_serialization=False)
    (file,) = tmp_path.glob("*.bin")
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = {}
    for name, tensor in torch.load(file, weights_only=True).items():
        for new, old in names.items():
            name = name.replace(new, old)
        state[name] = tensor
    assert sum("proj_attn" in name for name in state) == 8
    torch.save(state, file)
    net, _ = filled(recipe(*pretrained(tmp_path)))
    assert torch.equal(out(net, *noise()), out(UNet2DModel.from_pretrained(tmp_path, use_safetensors=False), *noise()))


def test_the_same_weights_in_another_network_are_warned_of(tmp_path):
    """freq_shift, padding and the like have no weights: everything fits and yet it is not the network it was."""
    pipeline(unet(), tmp_path)
    net, told = filled(recipe(*same_shape(), "model.freq_shift=0", "diffusion=cosine", f"init_from={tmp_path}"))
    assert (
        "warning    they were made with diffusion.beta_schedule=linear (here cosine), "
        "diffusion.prediction_type=epsilon (here v_prediction), model.freq_shift=1 (here 0)" in told
    )
    assert not torch.equal(out(net, *noise()), out(unet(), *noise()))


# ------------------------------------------------------------------------------------------ what cannot be read


def test_nothing_in_a_file_is_run(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    torch.save({"state_dict": unet().state_dict(), "more": Evil()}, tmp_path / "a.pth")
    with open(tmp_path / "b.pth", "wb") as file:
        pickle.dump(Evil(), file, protocol=2)
    with open(tmp_path / "d.pth", "wb") as file:
        pickle.dump(Evil(), file, protocol=4)
    torch.save(unet(), tmp_path / "c.pth")  # a whole network: reading it runs whatever its class is
    for name, needed in {"a": "posix.system", "b": "posix.system", "c": "diffusers.models"}.items():
        told = refused(4, *same_shape(), f"init_from={tmp_path / name}.pth")
        assert f"{name}.pth needs {needed}" in told
        assert "save the state_dict() alone" in told
        assert "\n" not in told
    assert "d.pth is damaged, or was not written by torch.save" in refused(
        4, *same_shape(), f"init_from={tmp_path / 'd.pth'}"
    )
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_files_are_named(tmp_path, suffix):
    path, whole = tmp_path / f"a{suffix}", io.BytesIO()
    if suffix == ".pth":
        torch.save(unet().state_dict(), whole)
    else:
        save_file(unet().state_dict(), path)
        whole.write(path.read_bytes())
    for content in (whole.getvalue()[: len(whole.getvalue()) // 2], whole.getvalue()[:9], b"", b"no weights at all"):
        path.write_bytes(content)
        told = refused(4, *same_shape(), f"init_from={path}")
        assert told.startswith(f"{path} is damaged")
        assert "\n" not in told


def test_a_file_without_weights(tmp_path):
    for k, held in enumerate(([1, 2], {"epoch": 3}, {"ema": {"decay": 0.9}}, {"model": {0: torch.ones(1)}})):
        torch.save(held, tmp_path / f"{k}.pth")
        assert "holds no weights by name" in refused(4, *same_shape(), f"init_from={tmp_path / f'{k}.pth'}")


def test_places_without_weights_are_refused_before_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    unet().save_pretrained("bare")
    (tmp_path / "bare" / "diffusion_pytorch_model.safetensors").unlink()
    for word, told in {
        "init_from=no/such/thing": "init_from=no/such/thing: no such file or folder",
        "init_from=./nothing": "init_from=./nothing: no such file or folder",
        "init_from=a/b.pth": "init_from=a/b.pth: no such file or folder",
        "init_from=empty": "init_from=empty: neither a run nor a diffusers model, it has no config.json",
        "init_from=bare": "no weights in it, such as bare/diffusion_pytorch_model.safetensors",
        "init_from=text.txt": "init_from=text.txt: must end in .ckpt, .safetensors, .pth, .pt, .bin",
        "init_from=some/one": "no such file or folder, and HF_HUB_OFFLINE is set and it was never downloaded. "
        "Download it on another machine and set init_from=<folder>",
    }.items():
        with pytest.raises(UserError) as error:
            warm_start.check_initial_weights(recipe(*same_shape(), word))
        assert error.value.exit_code == 4
        assert told in str(error.value)
        assert "\n" not in str(error.value)


def test_a_model_of_the_hub_that_was_downloaded_before(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--some--one"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    pipeline(unet(), kept / "snapshots" / ("0" * 40))
    for words in ([*same_shape(), "init_from=some/one"], ["model=pretrained", "model.path=some/one"]):
        net, _ = filled(recipe(*words))
        assert torch.equal(out(net, *noise()), out(unet(), *noise()))


# ------------------------------------------------------------------------------------------ what does not fit


def test_the_difference_is_told_and_the_rest_can_be_loaded(tmp_path):
    state = unet().state_dict()
    gone = sorted(name for name in state if name.startswith("mid_block."))
    changed = {name: tensor for name, tensor in state.items() if name not in gone}
    changed |= {"new.weight": torch.ones(2), "conv_out.weight": torch.ones(3, 4, 3, 3), "conv_out.bias": torch.ones(())}
    torch.save(changed, tmp_path / "a.pth")
    words = [*same_shape(), f"init_from={tmp_path / 'a.pth'}"]
    told = refused(4, *words).splitlines()
    fitting = len(state) - len(gone) - 2
    assert told == [
        f"init_from={tmp_path / 'a.pth'}: weights of another network ({fitting} of {len(state)} tensors fit):",
        f"  missing there ({len(gone)}): {', '.join(gone[:5])} and {len(gone) - 5} more",
        "  unknown here (1): new.weight",
        "  other shapes (2): conv_out.bias 3 here, scalar there, conv_out.weight 3x8x3x3 here, 3x4x3x3 there",
        "choose the model that it was made with, or load the rest with accept=[weights]",
    ]
    net, said = filled(recipe(*words, "accept=[weights]"))
    fresh = filled(recipe(*same_shape()))[0].unet.state_dict()
    for name, tensor in net.unet.state_dict().items():
        wanted = state if name in changed and not name.startswith("conv_out") else fresh
        assert torch.equal(tensor, wanted[name]), name
    assert f"weights    {fitting} of {len(state)} tensors" in said
    assert f"missing there ({len(gone)}): {gone[0]}" in said
    assert "unknown here (1): new.weight" in said


def test_weights_of_which_nothing_fits_are_not_accepted(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    told = refused(4, *same_shape(), f"init_from={tmp_path / 'a.pth'}", "accept=[weights]")
    assert "(0 of " in told
    assert "accept" not in told


# ------------------------------------------------------------------------------------------ model=pretrained


def pretrained(path: Path, *words: object) -> list[str]:
    return ["model=pretrained", f"model.path={path}", "diffusion=ddpm", *map(str, words)]


@pytest.mark.parametrize("save", [folder, folder_of_pickles, pipeline])
def test_a_pretrained_network_is_the_one_that_was_saved(tmp_path, save):
    original = unet(mid_block_scale_factor=2.0, resnet_time_scale_shift="scale_shift", time_embedding_dim=24)
    save(original, tmp_path)
    config = recipe(*pretrained(tmp_path))
    net, told = filled(config)
    assert torch.equal(out(net, *noise()), out(original, *noise()))
    assert "warning" not in told
    assert net.unet.config.sample_size == config["data"]["image_size"] == SIZE
    fresh, _ = filled(recipe(*pretrained(tmp_path, "model.take=architecture")))
    assert {n: p.shape for n, p in fresh.named_parameters()} == {n: p.shape for n, p in net.named_parameters()}
    assert not torch.equal(out(fresh, *noise()), out(original, *noise()))


def test_an_average_that_diffusers_saved_is_a_network(tmp_path):
    average = EMAModel(unet().parameters(), use_ema_warmup=True, model_cls=UNet2DModel, model_config=unet().config)
    average.save_pretrained(tmp_path)
    assert "inv_gamma" in (tmp_path / "config.json").read_text()  # no argument of the network
    net, _ = filled(recipe(*pretrained(tmp_path)))
    assert torch.equal(out(net, *noise()), out(unet(), *noise()))


def test_alpha_is_added_to_a_network_of_colours(tmp_path):
    unet().save_pretrained(tmp_path)
    net, _ = filled(recipe(*pretrained(tmp_path, "data.channels=4")))
    (x_t, t), (rgb, _) = noise(4), noise(3)
    x_t[:, :3] = rgb
    torch.testing.assert_close(out(net, x_t, t)[:, :3], out(unet(), rgb, t), atol=1e-6, rtol=1e-5)
    assert torch.equal(out(net, x_t, t)[:, 3], torch.zeros(3, SIZE, SIZE))
    out_alpha = net(x_t, t, torch.zeros(3, dtype=torch.long))[:, 3]
    out_alpha.sum().backward()
    assert net.unet.conv_out.weight.grad[3].abs().max() > 0  # and it learns


def test_alpha_is_left_out_and_colours_become_grey_and_grey_colours(tmp_path):
    originals = {channels: unet(channels) for channels in (1, 3, 4)}
    for channels, net in originals.items():
        net.save_pretrained(tmp_path / str(channels))

    def adapted(there: int, here: int) -> nn.Module:
        return filled(recipe(*pretrained(tmp_path / str(there), f"data.channels={here}")))[0]

    close = {"atol": 1e-6, "rtol": 1e-5}
    rgb, t = noise(3)
    grey, transparent = rgb[:, :1], torch.cat([rgb, torch.zeros_like(rgb[:, :1])], 1)
    torch.testing.assert_close(out(adapted(4, 3), rgb, t), out(originals[4], transparent, t)[:, :3], **close)
    of_rgb = out(originals[3], grey.expand(-1, 3, -1, -1), t).mean(1, keepdim=True)
    torch.testing.assert_close(out(adapted(3, 1), grey, t), of_rgb, **close)
    of_rgba = out(originals[4], torch.cat([grey.expand(-1, 3, -1, -1), 0 * grey], 1), t)[:, :3].mean(1, keepdim=True)
    torch.testing.assert_close(out(adapted(4, 1), grey, t), of_rgba, **close)
    of_grey = out(originals[1], rgb.mean(1, keepdim=True), t).expand(-1, 3, -1, -1)
    torch.testing.assert_close(out(adapted(1, 3), rgb, t), of_grey, **close)
    both = out(adapted(1, 4), torch.cat([rgb, grey], 1), t)
    torch.testing.assert_close(both, torch.cat([of_grey, 0 * grey], 1), **close)


def test_classes_are_added_kept_and_left_out(tmp_path):
    """Ten classes here, the null label is number 10."""
    for name, classes in {"none": None, "ten": 10, "ours": 11, "six": 6}.items():
        unet(classes=classes).save_pretrained(tmp_path / name)
    unet(class_embed_type="timestep").save_pretrained(tmp_path / "numbers")

    def net_of(name: str, labels: str = "auto") -> nn.Module:
        return filled(recipe(*pretrained(tmp_path / name), f"data.labels={labels}"))[0]

    added = net_of("none")
    for y in (0, 7, 10):
        assert torch.equal(out(added, *noise(), y), out(unet(), *noise()))
    added(*noise(), torch.tensor([1, 2, 3])).sum().backward()
    assert (added.unet.class_embedding.weight.grad[1:4].abs().amax(1) > 0).all()  # zeros that learn
    original = unet(classes=10)
    completed = net_of("ten")
    assert torch.equal(out(completed, *noise(), 7), out(original, *noise(), 7))
    table = completed.unet.class_embedding.weight
    torch.testing.assert_close(table[10], original.class_embedding.weight.mean(0))
    assert torch.equal(out(net_of("ours"), *noise(), 10), out(unet(classes=11), *noise(), 10))
    numbers = unet(class_embed_type="timestep")
    assert torch.equal(out(net_of("numbers"), *noise(), 4), out(numbers, *noise(), 4))
    told = refused(4, *pretrained(tmp_path / "six"), "data.labels=auto")
    assert "other shapes (1): class_embedding.weight 11x32 here, 6x32 there" in told
    assert net_of("six", labels="none").unet.class_embedding is None


@each(
    ("change", "code", "told"),
    [
        ({"_class_name": "UNet2DConditionModel"}, 2, "is a UNet2DConditionModel, not a UNet2DModel"),
        ({"_class_name": None}, 2, "is a model of an unknown class, not a UNet2DModel"),
        ({"out_channels": 6}, 2, "has 3 input and 6 output channels"),
        ({"time_embedding_type": "fourier"}, 2, "is conditioned on noise levels"),
        ({"class_embed_type": "identity"}, 2, "has class_embed_type=identity, which takes vectors"),
        (
            {"block_out_channels": [8] * 5},
            2,
            "image_size=8: must be a multiple of 16, the network halves",
        ),
        ({"of_tomorrow": 1}, 2, "cannot build the network: "),
        ({"down_block_types": ["Wonder"] * 2}, 2, 'down_block_types=["Wonder", "Wonder"]: must be'),
        (None, 4, "config.json is damaged"),
    ],
)
def test_networks_that_cannot_be_taken(tmp_path, change, code, told):
    unet().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
    assert told in refused(code, *pretrained(tmp_path), "data.labels=auto")


def test_debug_keeps_the_layout_and_makes_it_small(tmp_path):
    big = unet(block_out_channels=(64, 128), norm_num_groups=32, attn_norm_num_groups=16, layers_per_block=3)
    big.save_pretrained(tmp_path)
    (config,) = compose_configs("train", expand_overrides([*DATA, *pretrained(tmp_path), "debug=on"], None))
    net, told = filled(warm_start.resolve_training_config(config)[0])
    assert told is None
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in big.parameters()) / 50
    assert net.unet.config.down_block_types == ["DownBlock2D", "AttnDownBlock2D"]
    assert out(net, *noise(), 3).shape == (3, 3, SIZE, SIZE)


# ------------------------------------------------------------------------------------------ whole runs


def fit(path: Path, *words: object) -> dict:
    words = [*DATA, *map(str, words), f"run_dir={path}"]
    config, source = warm_start.resolve_training_config(compose_configs("train", words)[0])
    path.mkdir(exist_ok=True)
    train.fit(config, source, path, words)
    return checkpoints.load_checkpoint(checkpoints.select_checkpoint(path))


def part(state: dict, which: str) -> dict[str, Tensor]:
    return {k.removeprefix(which): v for k, v in state["state_dict"].items() if k.startswith(which)}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_run_begins_with_the_average_of_another_and_needs_it_no_more(tmp_path):
    small = ["model.block_out_channels=[8,8]", "model.norm_num_groups=4", "model.attention_levels=[]", "log_every=1"]
    small += ["model.attention_head_dim=8", "ema.power=0.1"]
    first = fit(tmp_path / "first", *small, "max_steps=3", "optimizer.lr=0.01", "lr_schedule.warmup_steps=0")
    assert not torch.equal(*(part(first, f"{which}.")["unet.conv_in.weight"] for which in ("net", "ema")))
    sources = [tmp_path / "first", checkpoints.checkpoint_path(tmp_path / "first", 3)]
    wanted = TrainedModel.from_run(tmp_path / "first").generate([0, 3], [1, 2])
    for number, source in enumerate(sources):
        second = fit(tmp_path / str(number), *small, *STILL, "max_steps=1", "seed=5", f"init_from={source}")
        for which in ("net.", "ema."):
            assert_equal(part(second, which), part(first, "ema."))
        assert second["global_step"] == 1
        assert torch.equal(TrainedModel.from_run(tmp_path / str(number)).generate([0, 3], [1, 2]), wanted)
    shutil.rmtree(tmp_path / "first")
    again = [*small, *STILL, "seed=5", f"resume={tmp_path / '1'}", "max_steps=2", f"init_from={sources[1]}"]
    assert_equal(part(fit(tmp_path / "1", *again), "net."), part(first, "ema."))
    with pytest.raises(UserError, match=f"init_from: {sources[1]} in the run, elsewhere now"):
        train.check_train(
            compose_configs("train", [*DATA, *again, f"run_dir={tmp_path / '1'}", "init_from=elsewhere"])[0]
        )


def test_a_new_source_of_an_older_run_is_refused(tmp_path):
    fit(tmp_path / "run", "max_steps=1")
    config = read_model_config(tmp_path / "run")
    del config["init_from"]
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    words = [*DATA, "max_steps=2", f"resume={tmp_path / 'run'}", f"run_dir={tmp_path / 'run'}"]
    train.check_train(compose_configs("train", words)[0])
    with pytest.raises(UserError, match="init_from: None in the run, elsewhere now"):
        train.check_train(compose_configs("train", [*words, "init_from=elsewhere"])[0])


def test_a_pretrained_run_outlives_the_folder_it_came_from(tmp_path):
    """Two processes start from RGB weights with RGBA pictures; then the folder is gone."""
    pipeline(unet(), tmp_path / "there")
    words = [*DATA, *pretrained("there"), "data.channels=4", *STILL, "max_steps=1", "run_dir=run", "log_every=1"]
    printed = run("train", *words, "strategy=ddp", "strategy.devices=2", "strategy.accelerator=cpu", cwd=tmp_path)
    count = len(unet().state_dict()) + 1  # the table of classes
    assert f"weights    {count} of {count} tensors from there/unet/diffusion_pytorch_model.safetensors" in printed
    shutil.rmtree(tmp_path / "there")
    model = TrainedModel.from_run(tmp_path / "run")
    (x_t, t), (rgb, _) = noise(4), noise(3)
    x_t[:, :3] = rgb
    torch.testing.assert_close(out(model.net, x_t, t, 3)[:, :3], out(unet(), rgb, t), atol=1e-6, rtol=1e-5)
    run("train", "resume=run", "max_steps=2", "strategy=single", cwd=tmp_path)
    assert checkpoints.list_steps(tmp_path / "run")[-1] == 2
    run("sample", "run=run", "num_images=2", "out=made", "checkpoint=1", cwd=tmp_path)
    assert (tmp_path / "made" / "grid.png").exists()


def test_weights_that_do_not_fit_leave_no_run(tmp_path):
    unet().save_pretrained(tmp_path / "there")
    printed = run("train", *DATA, "init_from=there", "run_dir=run", cwd=tmp_path, code=4)
    assert "error: init_from=there: weights of another network" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_looking_for_weights_needs_no_torch(tmp_path):
    unet().save_pretrained(tmp_path)
    words = [*DATA, *pretrained(tmp_path), f"run_dir={tmp_path / 'run'}"]
    code = (
        "import sys\nfrom diffusion_lit import train\nfrom diffusion_lit.config.compose import compose_configs\n"
        "import diffusion_lit.runs\nfrom types import SimpleNamespace\n"
        # the last check builds the network, with torch
        "train.import_torch = lambda: None\n"
        "sys.modules['diffusion_lit.runs.build'] = SimpleNamespace(check_network=lambda facts: None)\n"
        f"train.check_train(compose_configs('train', {words!r})[0])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
