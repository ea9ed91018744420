"""`python -m diffusion_lit.export` and those who read its folders: the same pixels, and no place of this machine."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from diffusion_lit import Pipeline
from diffusion_lit.config import overrides
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs import publish
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.runs.run_dir import read_yaml
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.system.errors import Exit, UserError
from tests.runs import TINY, run

QUICK = [*TINY, "max_steps=4", "val_every=0", "sample_every=0", "checkpoint_every=2", "sampler.batch_size=8"]


@pytest.fixture(scope="module")
def digits(tiny_run, tmp_path_factory) -> Path:
    """A run on the digits that has hardly begun, measured, and its export beside it."""
    home = tmp_path_factory.mktemp("digits")
    shutil.copytree(tiny_run, home / "run", symlinks=True)
    run("evaluate", "run=run", "num_images=40", "metrics=[kid,class_accuracy]", cwd=home)
    run("export", "run=run", "out=out", "license=mit", 'data_license="CC0, Ada [et al.]"', cwd=home)
    return home


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "p.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8))
    return path


def pixels(folder: Path) -> np.ndarray:
    """The images that `sample` wrote."""
    return np.stack([np.array(Image.open(file)) for file in sorted(folder.glob("0*.png"))])


def sampled(model: Path, out: Path, *words: str) -> np.ndarray:
    run("sample", f"run={model}", "num_images=10", "seed=3", f"out={out}", *words, cwd=out.parent)
    return pixels(out)


# ------------------------------------------------------------------------------------------ the same pixels


def test_checkpoint_folder_and_pipeline_make_the_same_bytes(digits, tmp_path):
    from_run = sampled(digits / "run", tmp_path / "a")
    assert np.array_equal(from_run, sampled(digits / "out", tmp_path / "b"))
    pipeline = Pipeline.from_pretrained(digits / "out")
    assert pipeline.class_names == [str(digit) for digit in range(10)]
    images = pipeline(num_images=10, seed=3)
    assert np.array_equal(from_run, np.stack([np.array(image) for image in images]))
    as_arrays = pipeline(num_images=10, seed=3, output_type="np")
    assert as_arrays.shape == (10, 8, 8, 1)
    assert np.array_equal(from_run, (as_arrays[..., 0] * 255).round().astype(np.uint8))
    as_tensor = pipeline(num_images=10, seed=3, output_type="pt")
    assert torch.equal(as_tensor, torch.from_numpy(as_arrays).permute(0, 3, 1, 2))
    one = pipeline(classes=["3"], num_images=2, seed=3, output_type="np")
    assert not np.array_equal(one[0], one[1])
    for asked, told in (
        ({"classes": [12]}, "not a class of this run"),
        ({"output_type": "jpg"}, "must be one of pil, np"),
    ):
        with pytest.raises(ValueError, match=told):
            pipeline(**asked)


def test_half_precision_files_are_half_as_large_and_the_grid_is_theirs(digits):
    """The grid shows the rounded weights, and diffusion_lit and diffusers compute with them in float32."""
    run("export", "run=run", "out=half", "dtype=float16", cwd=digits)
    files = [digits / out / "unet" / "diffusion_pytorch_model.safetensors" for out in ("out", "half")]
    sizes, (full, half) = [file.stat().st_size for file in files], map(load_file, files)
    assert sizes[1] < 0.6 * sizes[0]
    assert all(torch.equal(half[name], full[name].half()) for name in full)
    net = TrainedModel.from_run(digits / "half").net
    assert all(torch.equal(value, full[name].half().float()) for name, value in net.unet.state_dict().items())
    run("export", "run=half", "out=again", cwd=digits)  # exported once more, from the rounded weights alone
    with Image.open(digits / "half" / "grid.png") as grid, Image.open(digits / "again" / "grid.png") as again:
        assert np.array_equal(np.array(grid), np.array(again))


def test_the_card_of_a_continued_run_has_the_settings_it_ended_with(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    steps = read_model_config(tmp_path / "run")["max_steps"] + 1
    run("train", "resume=run", f"max_steps={steps}", "sample_every=0", cwd=tmp_path)
    run("export", "run=run", "out=out", cwd=tmp_path)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    words = next(line for line in card.splitlines() if line.startswith("| command |")).split()
    assert [word for word in words if word.startswith(("max_steps=", "resume="))] == [f"max_steps={steps}"]


def test_the_card_has_the_command_without_paths_and_the_seconds(digits):
    card = (digits / "out" / "README.md").read_text(encoding="utf-8")
    command = next(line for line in card.splitlines() if line.startswith("| command |"))
    assert "`python -m diffusion_lit.train " in command
    assert str(digits) not in card
    seconds = json.loads((digits / "run" / "result.json").read_text(encoding="utf-8"))["seconds"]
    assert f"| cost | {seconds:,.0f} s |" in card
    assert "| seed | 0 |" in card
    assert r"| license of the data | CC0, Ada \[et al.\] |" in card


def test_an_earlier_checkpoint_costs_the_seconds_until_it(tiny_run, tmp_path):
    run("export", f"run={tiny_run}", "checkpoint=2", "out=out", cwd=tmp_path)
    until = {int(row["step"]): float(row["seconds"]) for row in read_metrics(tiny_run / "metrics.csv")}
    assert read_yaml(tmp_path / "out" / "config.yaml")["exported"]["seconds"] == until[2] < until[4]


@pytest.mark.parametrize(
    "words",
    [
        ["diffusion=flow", "weighting=uniform", "guidance_scale=2"],
        ["diffusion=edm", "weighting=uniform"],
        ["model=dit", "model.width=16", "model.depth=1", "model.heads=2"],
        ["sampler=unipc", "sampler.steps=4", "guidance_scale=1.5", "guidance_interval=[0.2,0.8]"],
    ],
    ids=["flow", "edm", "dit", "guided"],
)
def test_every_process_and_network_is_exported(tmp_path, words):
    tiny = QUICK if not any(word.startswith("model=") for word in words) else [w for w in QUICK if "model." not in w]
    run("train", *tiny, *words, "run_dir=run", cwd=tmp_path)
    run("export", "run=run", "out=out", cwd=tmp_path)
    assert np.array_equal(sampled(tmp_path / "run", tmp_path / "a"), sampled(tmp_path / "out", tmp_path / "b"))
    is_ours = "model=dit" in words
    assert (tmp_path / "out" / "model_index.json").exists() != is_ours
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert ("Only diffusion_lit loads this network: DiT is not a network of diffusers." in card) == is_ours
    assert ("With diffusers and torch alone" in card) != is_ours
    assert f'library_name: "{"diffusion_lit" if is_ours else "diffusers"}"' in card  # whose button the hub shows


@pytest.mark.parametrize(
    "words",
    [
        ["diffusion.prediction_type=epsilon", "diffusion=ddpm"],
        pytest.param(["diffusion.prediction_type=v_prediction"], marks=pytest.mark.slow),
        pytest.param(["diffusion.prediction_type=sample", "diffusion=sprites"], marks=pytest.mark.slow),
        pytest.param(
            ["diffusion.prediction_type=v_prediction", "diffusion.zero_terminal_snr=true", "sampler.clip_x0=false"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["epsilon", "v", "sample", "zero terminal snr"],
)
def test_diffusers_own_pipeline_makes_the_same_images(tmp_path, pictures, words):
    words = [*words, "diffusion.num_train_timesteps=40", "sampler=ddpm", "sampler.steps=40"]
    run("train", *QUICK, "data=arrays", f"data.images={pictures}", "data.image_size=8", "experiment=none",
        "model=unet_digits", *words, "run_dir=run", cwd=tmp_path)  # fmt: skip
    run("export", "run=run", "out=out", cwd=tmp_path)
    ours = sampled(tmp_path / "run", tmp_path / "a")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in image_seeds(3, 10)]
    theirs = pipeline(batch_size=10, generator=generators, num_inference_steps=40, output_type="np").images
    assert np.abs(theirs - ours / 255).max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_a_pipeline_of_diffusers_is_sampled_here(tmp_path, scheduler):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    clipped = scheduler is DDPMScheduler  # its DDIM clips x0 and keeps the eps that belongs to another
    noise = scheduler(num_train_timesteps=40, beta_schedule="squaredcos_cap_v2", clip_sample=clipped)
    DDPMPipeline(network, noise).save_pretrained(tmp_path / "theirs")
    steps = 40 if scheduler is DDPMScheduler else 8
    words = [] if scheduler is DDPMScheduler else ["sampler.steps=8", "sampler.timestep_spacing=leading"]
    ours = sampled(tmp_path / "theirs", tmp_path / "a", *words)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "theirs")
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in image_seeds(3, 10)]
    theirs = pipeline(batch_size=10, generator=generators, num_inference_steps=steps, output_type="np").images
    assert np.abs(theirs - ours / 255).max() <= 1 / 255 + 1e-6
    assert not (tmp_path / "theirs" / "generated").exists()


@pytest.mark.parametrize("classes", [{"class_embed_type": "timestep", "num_class_embeds": 10}, {}], ids=str)
def test_what_the_source_projects_publish_is_sampled_here(tmp_path, classes):
    """A UNet and a scheduler beside each other, the pipeline's class nowhere to be had: classes by the sinusoidal
    projection (with SNR weights, predicting the clean image), or RGBA without classes; against a plain loop."""
    torch.manual_seed(0)
    channels = 3 if classes else 4
    network = UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **classes,
    ).eval()  # fmt: skip
    noise = DDPMScheduler(
        num_train_timesteps=40, beta_schedule="squaredcos_cap_v2", prediction_type="sample" if classes else "epsilon"
    )
    network.save_pretrained(tmp_path / "theirs" / "unet")
    noise.save_pretrained(tmp_path / "theirs" / "scheduler")
    index = {"_class_name": "ConditionalDDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"]}
    index |= {"unet": ["diffusers", "UNet2DModel"], "_diffusers_version": "0.30.0"}
    (tmp_path / "theirs" / "model_index.json").write_text(json.dumps(index))
    ours = sampled(tmp_path / "theirs", tmp_path / "a", *(["classes=[3,8]"] if classes else []))

    generators = [torch.Generator().manual_seed(seed) for seed in image_seeds(3, 10)]
    x = torch.stack([torch.randn(channels, 8, 8, generator=generator) for generator in generators])
    labels = {"class_labels": torch.tensor([3] * 5 + [8] * 5)} if classes else {}
    noise.set_timesteps(40)
    with torch.no_grad():
        for t in noise.timesteps:
            x = noise.step(network(x, t, **labels).sample, t, x, generator=generators).prev_sample
    theirs = ((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(theirs - ours / 255).max() <= 1 / 255 + 1e-6


def test_classes_of_a_foreign_network_have_no_null_label(tmp_path):
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=3,
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=10)).save_pretrained(tmp_path / "theirs")
    assert sampled(tmp_path / "theirs", tmp_path / "a", "classes=[2]").shape == (10, 8, 8)
    words = ["run=theirs", "guidance_scale=2", "out=x"]
    assert "label_dropout" in run("sample", *words, cwd=tmp_path, code=2)


# ------------------------------------------------------------------------------------------ the folder


def test_the_folder_says_what_it_is_and_nothing_of_this_machine(digits):
    out = digits / "out"
    assert {"README.md", "config.yaml", "grid.png", "model_index.json", "pipeline.py", "unet", "scheduler"} == {
        path.name for path in out.iterdir()
    } - {"palette.hex"}
    for file in (path for path in out.rglob("*") if path.suffix in (".json", ".md", ".yaml")):
        assert str(digits) not in file.read_text(), file
    card = (out / "README.md").read_text()
    result = next(json.loads(file.read_text()) for file in digits.glob("run/evaluations/*/result.json"))
    for told in (
        'license: "mit"',
        f"{result['kid']:.4g}",
        f"{result['kid_low']:.4g} to",
        "40 images generated with seed 0",
        "MinSNR",
    ):
        assert told in card, told
    config = read_model_config(out)
    assert config["exported"]["step"] == 4
    assert f"`{config['exported']['data']}`" in card
    assert "_target_" not in config["data"]


def test_what_was_not_measured_is_not_told(digits, tmp_path):
    run("export", f"run={digits / 'run'}", f"out={tmp_path / 'out'}", "sampler.steps=3", cwd=tmp_path)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated with these weights and this sampler." in card
    assert "license:" not in card
    assert read_model_config(tmp_path / "out")["sampler"]["steps"] == 3


def test_training_starts_from_a_folder(digits, tmp_path):
    printed = run("train", *QUICK, f"init_from={digits / 'out'}", "run_dir=run", cwd=tmp_path)
    assert "weights    " in printed
    assert "tensors from" in printed


def test_a_folder_is_measured_against_pictures_that_are_named(tmp_path, pictures):
    run("train", *QUICK, "data=arrays", f"data.images={pictures}", "data.image_size=8", "experiment=none",
        "model=unet_digits", "run_dir=run", cwd=tmp_path)  # fmt: skip
    run("export", "run=run", "out=out", cwd=tmp_path)
    words = ["num_images=40", "metrics=[kid]"]
    assert "add reference_data=<a folder" in run("evaluate", "run=out", *words, cwd=tmp_path, code=2)
    run("evaluate", "run=out", *words, f"reference_data={pictures}", "out=a", cwd=tmp_path)
    run("evaluate", "run=run", *words, "out=b", cwd=tmp_path)
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    assert one["kid"] == other["kid"]
    assert one["settings"]["reference"] == other["settings"]["reference"]


def test_what_is_not_whole_is_not_there(digits, tmp_path):
    prelude = (
        "import diffusion_lit.sampling.previews as p\ndef fail(*a): raise OSError(28, 'No space left on device')\n"
    )
    prelude += "p.draw_class_grid = fail"
    printed = run("export", f"run={digits / 'run'}", "out=out", cwd=tmp_path, code=75, prelude=prelude)
    assert "No space left on device" in printed
    assert list(tmp_path.iterdir()) == []
    run("export", f"run={digits / 'run'}", "out=out", cwd=tmp_path)


def test_faults_of_a_folder_are_told(digits, tmp_path):
    copy = Path(shutil.copytree(digits / "out", tmp_path / "copy"))
    assert "published model" in run("sample", f"run={copy}", "checkpoint=4", cwd=tmp_path, code=4)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights} cannot be used" in run("sample", f"run={copy}", cwd=tmp_path, code=4)
    told = run("export", f"run={digits / 'run'}", f"out={copy}", cwd=tmp_path, code=5)
    assert "is not empty. Choose a new folder" in told
    told = run("export", f"run={digits / 'run'}", "out=x", "push=me", cwd=tmp_path, code=2)
    assert "push=me: not the name of a model on the hub" in told
    np.savez(tmp_path / "p.npz", images=np.zeros((30, 8, 8), np.uint8), labels=np.arange(30) % 3)
    words = [f"run={digits / 'out'}", f"reference_data={tmp_path / 'p.npz'}"]
    assert "their classes are" in run("evaluate", *words, cwd=tmp_path, code=2)
    assert "out: needs a value. Add out=" in run("export", f"run={digits / 'run'}", cwd=tmp_path, code=2)


def test_a_folder_is_pushed(tmp_path, monkeypatch):
    """Without a network: what the hub's client is asked for, and what is told when it cannot."""
    asked = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            asked.append((name, private, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            asked.append((repo_id, folder_path))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    publish.upload_to_hub(tmp_path, "me/digits", private=True)
    assert asked == [("me/digits", True, True), ("me/digits", tmp_path)]

    def refuse(self, *args, **settings):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(Api, "create_repo", refuse)
    folder = tmp_path / "my model"
    for private, flag in ((True, " --private`"), (False, "`")):
        with pytest.raises(UserError, match="401 Client Error. .* is complete") as raised:
            publish.upload_to_hub(folder, "me/digits", private)
        assert raised.value.exit_code == Exit.INTERRUPTED
        assert str(raised.value).endswith(f"`hf upload me/digits '{folder}'{flag}")


def test_the_published_command_has_no_folder_of_yaml_files(tiny_run, monkeypatch):
    monkeypatch.setattr(overrides, "CONFIG_DIR", ["--config-dir", "/home/alice/secret/conf"])
    command = publish.describe_training(tiny_run)["command"]
    assert command.startswith("python -m diffusion_lit.train 'model.block_out_channels=")


def test_numbers_of_an_earlier_best_checkpoint_are_not_those_of_a_later_one(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run", symlinks=True)
    best, later = tmp_path / "run/checkpoints/best.ckpt", {2: 4, 4: 2}
    run("evaluate", "run=run", "checkpoint=best", "num_images=20", "metrics=[kid]", "features=pixels", cwd=tmp_path)
    run("export", "run=run", "checkpoint=best", "out=same", cwd=tmp_path)
    assert "| kernel distance |" in (tmp_path / "same" / "README.md").read_text()
    step = int(best.resolve().stem.removeprefix("step-"))
    best.unlink()
    best.symlink_to(f"step-{later[step]:08d}.ckpt")
    run("export", "run=run", "checkpoint=best", "out=other", cwd=tmp_path)
    assert "| kernel distance |" not in (tmp_path / "other" / "README.md").read_text()
