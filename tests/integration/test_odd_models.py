"""Models that strangers wrote: each is understood, or refused by name in one message."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from diffusion_lit.config.plain_yaml import parse_plain_yaml
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs import warm_start
from diffusion_lit.runs.build import check_network, make_network
from diffusion_lit.runs.checkpoints import save_checkpoint
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.run_dir import read_yaml
from diffusion_lit.system.errors import UserError
from tests.cases import each
from tests.runs import TINY, run

UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A small pipeline as diffusers saves it."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks)
    path = tmp_path_factory.mktemp("pipeline") / "theirs"
    DDPMPipeline(net, DDPMScheduler(num_train_timesteps=10)).save_pretrained(path)
    return path


def change_json(file: Path, change: dict) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | change
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}), encoding="utf-8")


def refusal(folder: Path) -> str:
    """Return the exit code and the message with which a model is refused, within a few seconds."""
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        TrainedModel.from_run(folder, device="cpu").generate([0], [0])
    assert time.monotonic() - started < 10
    return f"{int(caught.value.exit_code)} {caught.value}"


# ------------------------------------------------------------------------------------------ folders of diffusers


@each(
    ("file", "change", "message"),
    [
        (INDEX, {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}, "2 .*vqvae .VQModel. is not supp"),
        (INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "2 .*its vae"),
        (INDEX, {"_class_name": "KarrasVePipeline"}, "2 .*KarrasVePipeline is not supported"),
        (INDEX, {"_class_name": ...}, "2 .*_class_name=None"),
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "2 .*FlowMatchEulerDiscreteScheduler"),
        (SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "2 .*EDMEulerScheduler is not supported"),
        (SCHEDULER, {"_class_name": ...}, "2 .*_class_name=None is not supported"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "2 .*beta_schedule=sigmoid is not supported, only linear"),
        (SCHEDULER, {"trained_betas": [0.1] * 10}, "2 .*trained_betas="),
        (SCHEDULER, {"prediction_type": "flow_prediction"}, "2 .*prediction_type=flow_prediction"),
        (SCHEDULER, {"variance_type": "learned_range"}, "2 .*variance_type=learned_range"),
        (SCHEDULER, {"thresholding": True}, "2 .*thresholding=true"),
        (SCHEDULER, {"clip_sample_range": 2.0}, "2 .*clip_sample_range=2.0"),
        (SCHEDULER, {"steps_offset": 1}, "2 .*steps_offset=1"),
        (SCHEDULER, {"_class_name": "DDIMScheduler", "set_alpha_to_one": False}, "2 .*set_alpha_to_one=false"),
        (SCHEDULER, {"use_dynamic_shifting": True}, "2 .*use_dynamic_shifting is an unknown key"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "2 .*epsilon is ill-posed"),
        (SCHEDULER, {"num_train_timesteps": 2 * 10**10}, "2 .*num_train_timesteps=20000000000: must be int in"),
        (SCHEDULER, {"num_train_timesteps": "10"}, "2 .*num_train_timesteps=10: must be int"),
        (SCHEDULER, {"beta_start": [0.1]}, "2 .*beta_start="),
        (SCHEDULER, {"beta_end": float("nan")}, "2 .*beta_end=NaN"),
        (UNET, {"sample_size": ...}, "2 .*image_size=null: must be int"),
        (UNET, {"in_channels": -3, "out_channels": -3}, "2 .*channels=-3: must be one of 1, 3, 4"),
        (UNET, {"sample_size": 9}, "2 .*image_size=9: must be a multiple of 2"),
        (UNET, {"sample_size": [8, 10**11]}, "75 .*one image of .* too large for this machine"),
        (UNET, {"block_out_channels": [8, -8]}, "2 .*block_out_channels="),
        (UNET, {"block_out_channels": [10**6, 10**6]}, "2 .*GiB of memory are free"),
        (UNET, {"block_out_channels": [4 * 10**30, 8]}, "2 .*model"),
        (UNET, {"layers_per_block": 10**9}, "2 .*more than 10,000 tensors"),
        (UNET, {"num_class_embeds": 10**12}, "2 .*num_class_embeds=1000000000000"),
        (UNET, {"num_class_embeds": 3}, "4 .*missing there .1.: class_embedding.weight"),
        (UNET, {"act_fn": "softsign"}, "2 .*act_fn=softsign"),
        (UNET, {"fourier_scale": 3}, "2 .*unexpected keyword argument 'fourier_scale'"),
    ],
)
def test_a_pipeline_is_refused_by_name(pipeline, tmp_path, file, change, message):
    folder = Path(shutil.copytree(pipeline, tmp_path / "odd"))
    change_json(folder / file, change)
    told = refusal(folder)
    assert re.match(message, told, re.DOTALL), told


@each(
    ("change", "message"),
    [
        ({"in_channels": -3, "out_channels": -3, "sample_size": ...}, None),  # follow from the data
        ({"block_out_channels": ...}, None),
        ({"block_out_channels": [8, -8]}, "block_out_channels"),
        ({"layers_per_block": "2"}, "layers_per_block=2: must be int"),
        ({"norm_eps": float("nan")}, "norm_eps=NaN"),
        ({"time_embedding_type": "fourier"}, "conditioned on noise levels"),
    ],
)
def test_the_architecture_of_a_stranger_is_checked(pipeline, tmp_path, change, message):
    folder = Path(shutil.copytree(pipeline, tmp_path / "odd"))
    change_json(folder / UNET, change)
    model = {"path": str(folder), "take": "narrow", "image_size": 8, "channels": 3, "num_classes": 0}
    config = {"model": model, "data": {"num_classes": 0}}
    if message is None:
        assert set(warm_start.resolve_architecture(config)["model"]["architecture"]["block_out_channels"]) == {8}
    else:
        with pytest.raises(UserError, match=message):
            warm_start.resolve_architecture(config)


@each("content", [b"", b"[]", b"[" * 10**5, b"\xff\xfe{}", b'{"a": NaN'])
def test_a_damaged_file_of_a_pipeline_is_named(pipeline, tmp_path, content):
    for name in (UNET, SCHEDULER, INDEX):
        folder = Path(shutil.copytree(pipeline, tmp_path / name.partition("/")[0]))
        (folder / name).write_bytes(content)
        assert re.match(rf"4 \S*{name} is damaged", refusal(folder))
        (folder / name).unlink()
        assert refusal(folder).startswith("4 ")


@each(
    "change",
    [
        {"_class_name": "DDIMScheduler", "clip_sample": False, "variance_type": ...},
        {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large", "timestep_spacing": "trailing"},
        {"beta_schedule": "scaled_linear", "prediction_type": "sample"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": False},
    ],
)
def test_what_is_understood_makes_the_images_of_diffusers(pipeline, tmp_path, change):
    folder = Path(shutil.copytree(pipeline, tmp_path / "theirs"))
    change_json(folder / SCHEDULER, change)
    is_ddim = change.get("_class_name") == "DDIMScheduler"
    scheduler = (DDIMScheduler if is_ddim else DDPMScheduler).from_pretrained(folder, subfolder="scheduler")
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    theirs = (DDIMPipeline if is_ddim else DDPMPipeline)(unet, scheduler)
    theirs.set_progress_bar_config(disable=True)
    model = TrainedModel.from_run(folder, device="cpu")
    steps = model.evaluations
    generators = [torch.Generator().manual_seed(seed) for seed in image_seeds(3, 2)]
    images = theirs(batch_size=2, generator=generators, num_inference_steps=steps, output_type="np").images
    ours = model.generate([0, 0], image_seeds(3, 2)).permute(0, 2, 3, 1).numpy()
    assert abs(images - ours / 255).max() <= 1 / 255 + 1e-6


def test_a_pipeline_whose_code_is_not_at_hand_is_refused_by_name(pipeline, tmp_path):
    folder = Path(shutil.copytree(pipeline, tmp_path / "odd"))
    change_json(folder / INDEX, {"_class_name": ["my_pipeline", "MyPipeline"]})
    printed = run("sample", "run=odd", "num_images=1", "sampler.steps=2", "out=out", cwd=tmp_path, code=2)
    assert "MyPipeline is not supported, DDPMPipeline and DDIMPipeline and ConditionalDDPMPipeline are" in printed
    change_json(folder / INDEX, {"_class_name": "DDPMPipeline"})
    printed = run("sample", "run=odd", "num_images=1", "sampler.steps=2", "out=out", cwd=tmp_path)
    assert "run=odd: a DDPMPipeline, sampled with sampler=ddpm" in printed


# ------------------------------------------------------------------------------------------ weights


def set_nan(weight):
    weight[0, 0, 0, 0] = float("nan")
    return weight


ODD_WEIGHTS = {
    "not finite .NaN": set_nan,
    "not finite": lambda weight: weight * float("inf"),
    "type int32": lambda weight: weight.to(torch.int32),
    "type complex64": lambda weight: weight.to(torch.complex64),
    "type bool": lambda weight: weight > 0,
}


@each("message", ODD_WEIGHTS)
def test_weights_are_finite_numbers_in_every_loader(pipeline, tmp_path, message):
    folder = Path(shutil.copytree(pipeline, tmp_path / "odd"))
    state = load_file(folder / WEIGHTS)
    save_file(state | {"conv_in.weight": ODD_WEIGHTS[message](state["conv_in.weight"])}, folder / WEIGHTS)
    assert re.match(rf"4 \S*{WEIGHTS} cannot be used: 1 of .* {message}.*: conv_in.weight", refusal(folder))
    config = {"init_from": str(folder), "accept": [], "model": {}, "diffusion": {}}
    net = UNet2DModel.from_pretrained(pipeline, subfolder="unet")
    with pytest.raises(UserError, match=f"conv_in.weight|{message}"):
        warm_start.load_initial_weights(net, config)


def test_weights_of_another_floating_type_are_read(pipeline, tmp_path):
    folder = Path(shutil.copytree(pipeline, tmp_path / "half"))
    save_file({name: value.half() for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert TrainedModel.from_run(folder, device="cpu").generate([0], [0]).shape == (1, 3, 8, 8)


def test_tensors_without_data_of_their_size_are_refused(tiny_run, tmp_path):
    """A file of a few bytes may hold a tensor that pretends any size, or one without values."""
    own = make_network(OmegaConf.to_container(OmegaConf.load(tiny_run / "config.yaml"))).state_dict()
    for odd in (torch.zeros(1).expand(10**12), torch.zeros(8, device="meta"), torch.zeros(8).to_sparse()):
        folder = tmp_path / str(odd.layout)[6:] / odd.device.type
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(tiny_run / "config.yaml", folder)
        state = {f"ema.{name}": value for name, value in own.items()} | {"ema.unet.conv_in.bias": odd}
        torch.save({"state_dict": state}, folder / "checkpoints" / "step-00000001.ckpt")
        assert refusal(folder).startswith("4 ")
        config = {"init_from": str(folder), "accept": ["weights"], "model": {}, "diffusion": {}}
        with pytest.raises(UserError, match=r"unet\.conv_in\.bias|conv_in\.bias"):
            warm_start.load_initial_weights(make_network(read_yaml(folder / "config.yaml")), config)


def test_a_checkpoint_that_is_not_finite_is_not_resumed(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    path = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    good = torch.load(path, weights_only=True)
    bad_moment = torch.load(path, weights_only=True)
    bad_moment["optimizer_states"][0]["state"][0]["exp_avg"][:] = float("nan")
    state, name = good["state_dict"], "net.unet.conv_in.weight"
    for checkpoint, message in (
        (good | {"state_dict": state | {name: state[name].to(torch.int32)}}, f"have type int32.*: {name}"),
        (bad_moment, "the optimizer state .* not finite .NaN or infinite.: exp_avg"),
    ):
        save_checkpoint(checkpoint, path)
        assert re.search(message, run("train", "resume=run", "max_steps=6", cwd=tmp_path, code=4))


def test_images_that_are_not_finite_are_not_drawn(tiny_run):
    model = TrainedModel.from_run(tiny_run, device="cpu")
    with torch.no_grad():
        model.net.unet.conv_out.bias[0] = 3e38
        model.net.unet.conv_out.weight *= 1e38
    with pytest.raises(UserError, match="2 of 2 images are not finite"):
        model.with_sampler(model.sampler.__class__(**vars(model.sampler) | {"clip_x0": False})).generate([0, 1], [0, 1])


# ------------------------------------------------------------------------------------------ stored configurations


def bomb(levels: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
    return "\n".join(lines) + "\n"


@each(
    ("text", "message"),
    [
        (bomb(), "more than 50,000 values"),
        ("a: &a [*a]", "more than 50,000 values"),
        ("a: *b", "more than 50,000 values"),
        ("a: " + "[" * 500 + "]" * 500, "nested more than 32 levels"),
        ("a: " + "[" * 10**5, "nest"),
        ("a: " + "x" * 2**21, "more than 1,048,576"),
        ("sampler:\n  serves: ['${oc.env:HOME}']", r"sampler\.serves\.0 has an interpolation"),
        ("model: {'${oc.env:HOME}': 1}", "has an interpolation"),
        ("guidance_scale: ${seed}", "guidance_scale has an interpolation"),
        ("a: !!python/name:os.system x", "could not determine a constructor"),
        ("- a", "must be a mapping"),
        ("", "must be a mapping"),
        ("{a: 1}\n---\n{b: 2}", "single document"),
        ("a: 1\na: 2", "duplicate key"),
        ("\0", "control characters"),
        ("a: " + "9" * 5000, "digits"),
    ],
)
def test_yaml_of_a_stranger_is_plain_and_small(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert caught.value.exit_code == 4
    assert time.monotonic() - started < 1


def test_names_and_paths_may_have_any_signs():
    tree = {"name": "a ${b", "data": {"root": "cost ${money} $5", "class_names": ["${x}", "1e3"]}, "lr": 1e-4}
    text = "name: 'a ${b'\ndata: {root: 'cost ${money} $5', class_names: ['${x}', '1e3']}\nlr: 1e-4"
    assert parse_plain_yaml(text) == tree
    parse_plain_yaml(text)["data"]["root"] = "changed"
    assert parse_plain_yaml(text) == tree  # every reader has a tree of its own
    assert parse_plain_yaml("a: &x [1]\nb: *x") == {"a": [1], "b": [1]}


@each(
    ("change", "message"),
    [
        ({"model.channels": -3}, "2 .*model.channels=-3: must equal data.channels=1"),
        ({"data.image_size": "8"}, "2 .*data.image_size=8: must be int"),
        ({"data.class_names": ["a"]}, "2 .*data.class_names: has 1 different names, and data.num_classes=10"),
        ({"data.class_names": ["a"] * 10}, "2 .*data.class_names: has 1 different names"),
        ({"data.class_names": 3}, "2 .*data.class_names=3"),
        ({"data.num_classes": 10**12}, "2 .*data.class_names: has 10"),
        ({"data": ["a"]}, "4 .*it has no data with keys"),
        ({"run_dir": 3, "model": "unet"}, "4 .*it has no model with keys"),
        ({"data.render": ...}, None),
        ({"weighting": ...}, "2 .*weighting: must be a mapping"),
        ({"guidance_scale": "x"}, "2 .*guidance_scale=x"),
        ({"name": "../../x"}, "2 .*name=../../x: must be a folder name"),
        ({"label_dropout": ...}, "2 .*label_dropout: missing"),
        ({"diffusion.num_train_timesteps": 2 * 10**10}, "2 .*diffusion.num_train_timesteps"),
        ({"diffusion.beta_schedule": "zigzag"}, "2 .*diffusion.beta_schedule=zigzag"),
        ({"diffusion.process": "levy"}, "2 .*diffusion"),
        ({"diffusion.zigzag": 1}, "2 .*zigzag"),
        ({"sampler._target_": "diffusers.UNet2DModel"}, "2 .*not a scheduler"),
        ({"sampler.batch_size": 0}, "2 .*sampler.batch_size=0"),
        ({"weighting._target_": "torch.optim.Adam"}, "2 .*params"),
        ({"model._target_": "diffusion_lit.diffusion.weighting.Uniform"}, "2 .*"),
        ({"model.block_out_channels": [80000, 80000]}, "2 .*GiB of memory are free"),
    ],
)
def test_values_of_a_stored_configuration_are_checked(tiny_run, tmp_path, change, message):
    config = OmegaConf.to_container(OmegaConf.load(tiny_run / "config.yaml"))
    for key, value in change.items():
        group, _, name = key.rpartition(".")
        target = config[group] if group else config
        target.pop(name, None) if value is ... else target.update({name: value})
    (tmp_path / "checkpoints").symlink_to(tiny_run / "checkpoints")
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    if message is None:
        assert TrainedModel.from_run(tmp_path, device="cpu").generate([0], [0]).shape == (1, 1, 8, 8)
    else:
        assert re.match(message, told := refusal(tmp_path), re.DOTALL), told


def test_no_variable_of_the_environment_leaves_the_machine(tiny_run, tmp_path, monkeypatch):
    """Neither by config.yaml nor by the command line that a run stores."""
    monkeypatch.setenv("MY_SECRET", "open sesame")
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("clip_x0: true", "clip_x0: ${oc.env:MY_SECRET}"), encoding="utf-8")
    for verb, *overrides in (["sample"], ["export", "out=out"], ["evaluate"]):
        printed = run(verb, "run=run", *overrides, cwd=tmp_path, code=4)
        assert "sampler.clip_x0 has an interpolation" in printed
        assert "open sesame" not in printed
    config.write_text(text, encoding="utf-8")
    with open(tmp_path / "run" / "command.txt", "a", encoding="utf-8") as file:
        file.write("python -m diffusion_lit.train " + " ".join(TINY) + " 'name=${oc.env:MY_SECRET}'\n")
    run("train", "resume=run", "max_steps=6", cwd=tmp_path)
    assert "name: digits" in config.read_text(encoding="utf-8")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"open sesame" in path.read_bytes()]


@each(
    "model",
    [
        {"_target_": "diffusion_lit.networks.dit.DiT", "patch_size": 1, "width": 64, "depth": 10**9, "heads": 1,
         "mlp_ratio": 4.0},
        {"_target_": "diffusion_lit.networks.dit.DiT", "patch_size": 1, "width": 10**6, "depth": 1, "heads": 1,
         "mlp_ratio": 4.0},
        {"_target_": "diffusion_lit.networks.context_unet.ContextUnet", "features": 8, "norm": "group",
         "num_train_timesteps": 10, "image_size": 4 * 10**6},
        {"_target_": "diffusion_lit.networks.unet.UNet", "block_out_channels": [8], "attention_levels": [],
         "norm_num_groups": 4, "num_classes": 10**12},
    ],
)  # fmt: skip
def test_a_network_is_counted_before_it_is_built(model):
    random = torch.get_rng_state()
    with pytest.raises(UserError, match="of memory are free|more than 10,000 tensors") as caught:
        check_network({"model": {"image_size": 8, "channels": 3, "num_classes": 2} | model})
    assert caught.value.exit_code == 2
    assert torch.equal(random, torch.get_rng_state())
