"""The commands of README and pages compose.

With `-m slow` those of README and docs/usage.md run, with short training, in a folder with everything they name.
"""

import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.expand import expand_overrides
from tests.runs import TINY, address_of, run, start

ROOT = Path(__file__).parents[2]
README, USAGE = ROOT / "README.md", ROOT / "docs" / "usage.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = {"<run>": "run", "<smaller run>": "smaller", "<sweep>": "sweep"}
SHORT = [word for word in TINY if not word.startswith("sampler.")]
SHORT += ["max_steps=4", "val_every=500", "sample_every=0", "checkpoint_every=500"]
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def commands_of(page: Path) -> list[str]:
    """Return each of our commands in the bash blocks of a page, such as `train data=digits`."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:-m diffusion_lit\.|diffusion-lit )(\w+)(?: ((?:[^#&]|(?<! )#)*))?", line) for line in lines]
    return [" ".join([match[1], *(match[2] or "").split()]) for match in found if match]


def words_of(command: str) -> tuple[str, list[str]]:
    for place, name in PLACES.items():
        command = command.replace(place, name)
    verb, *words = shlex.split(command)
    return verb, words


EVERY = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
OF_README = list(dict.fromkeys(commands_of(README) + commands_of(USAGE)))


def test_the_commands_are_found():
    assert len(OF_README) > 45
    verbs = {"train", "sample", "evaluate", "export", "report", "app", "visualize", "audit"}
    assert {words_of(command)[0] for command in OF_README} == verbs


def test_every_command_composes():
    """One test for all: the yaml files of a command are read once."""
    for command in EVERY:
        verb, words = words_of(command)
        if "--config-dir" in words or verb == "cli" or (verb == "visualize" and "run=" not in command):
            continue  # test_examples runs the first kind, the slow test below the second
        if {"--help", "--cfg"} & set(words) or "distill.teacher=" in command:
            continue  # a student needs the run of its teacher, see test_distillation
        words = [word for word in words if word not in ("--multirun", "-m")]
        if "sampler.steps" in command and "sampler=" not in command:
            words.append("sampler=ddim")  # for that of the run
        assert compose_configs(verb, expand_overrides(words, None) if verb == "train" else words, complete=False), (
            command
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Return a folder with all that the README names: images, runs, a sweep, and models of the hub as folders."""
    from diffusers import UNet2DModel
    from sklearn.datasets import load_digits

    home = tmp_path_factory.mktemp("readme")
    pixels, labels = (load_digits().images * 255 / 16).astype(np.uint8), load_digits().target

    def write(k: int, folder: str, name: object, mode: str = "L", scale: int = 1) -> Path:
        file = home / folder / str(name) / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[k]).convert(mode).resize((8 * scale, 8 * scale)).save(file)
        return file.relative_to(home)

    for k in range(200):
        write(k, "my_images", labels[k])
        if k % 2:
            write(k, "icons", "gold" if k % 3 else "iron", "RGBA", 2)
        else:
            tile = home / write(k, "tiles", "dragon" if k % 3 else "potion", "RGB", 2)
            red = np.asarray(Image.open(tile)) * np.uint8([1, 0, 0])
            Image.fromarray(red).convert("RGBA").save(tile)
        write(k, "cifar10/test" if k % 4 == 0 else "cifar10/train", NAMES[labels[k]], "RGB", 4)
        write(k, "sprites", ("hero", "food", "spell")[k % 3], "RGB", 2)
        write(k, "huggan/smithsonian_butterflies_subset", ".", "RGB", 8)
    rows = [f"{write(k, 'listed', '.', scale=2)},{labels[k]}" for k in range(100)]
    for table in ("images.csv", "more.csv"):
        (home / table).write_text("\n".join(["path,label", *rows]))
    np.save(home / "sprites.npy", np.zeros((1800, 16, 16, 3), np.uint8))
    np.save(home / "labels.npy", np.eye(5)[np.arange(1800) % 5])
    Image.fromarray(pixels[3]).save(home / "three.png")
    Image.fromarray(np.uint8([[0] * 4 + [255] * 4] * 8)).save(home / "mask.png")

    network = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    UNet2DModel(sample_size=32, **network, **blocks).save_pretrained(home / "google" / "ddpm-cifar10-32")
    longer = ["max_steps=920", "checkpoint_every=100", "keep_checkpoints=99", "ema_snapshot_every=20"]
    runs = {"run": longer, "smaller": ["seed=1"]}
    for name, words in runs.items():
        run("train", *without(SHORT, words), *words, f"run_dir=outputs/digits/{name}", cwd=home)
    words = ["data=image_folder", "data.root=sprites", "data.image_size=16", "model=context_unet", "model.features=8"]
    words += ["max_steps=4", "run_dir=outputs/sprites_context/run", "global_batch_size=12", "sample_every=0"]
    run("train", *words, cwd=home)
    overrides = without(SHORT, ["data.classifier_images="])
    run("train", "--multirun", *overrides, "seed=0,1", "hydra.sweep.dir=outputs/digits/sweep", cwd=home)
    run("export", "run=outputs/digits/run", "out=me/digits", cwd=home)
    return home


def without(words: list[str], named: list[str]) -> list[str]:
    """Return the words without those of the named keys."""
    keys = {word.partition("=")[0] for word in named}
    return [word for word in words if word.partition("=")[0] not in keys]


@pytest.mark.slow
@pytest.mark.parametrize("command", OF_README)
def test_a_command_runs(world, command):
    verb, words = words_of(command.replace("n_trials=20", "n_trials=2").replace("=50000", "=500"))
    if "num_nodes=" in command or "push=" in command:
        pytest.skip("needs two machines, or an account")
    if verb == "app":
        page = start(verb, *words, "port=0", cwd=world)
        address_of(page)
        page.send_signal(signal.SIGINT)
        assert "Traceback" not in page.communicate(timeout=60)[0]
        return
    if verb == "train" and "resume=" not in command:
        is_unet = "model=" not in command and "_prompt" not in command
        small = [word for word in SHORT if is_unet or not word.startswith("model.")]
        words = [re.sub(r"^max_steps=.*", "max_steps=20", word) for word in words]
        words += without(small, words)
    if verb == "train" and "max_epochs=" in command:
        words = [re.sub("^max_epochs=.*", "max_epochs=2", word) for word in words if word != "max_steps=4"]
    if "experiment=cifar10_cond" in words and verb == "train":
        words += without(["data.root=cifar10"], words) if "debug=on" not in words else []
    printed = run(verb, *words, cwd=world)
    assert "Traceback" not in printed
