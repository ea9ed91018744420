"""Data sources, as the commands use them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.image_sets import make_data, make_digit_arrays, make_shades, read_shades, write_table
from tests.runs import run

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits() -> dict:
    return make_digit_arrays()


def test_the_check_of_digits_does_not_wait_for_torch(tmp_path, digits):
    np.savez(tmp_path / "keras.npz", **digits)
    code = (
        "import sys\nfrom diffusion_lit.config.compose import compose_configs, resolve_data\n"
        f"words = ['experiment=none', 'data=mnist', 'data.root={tmp_path / 'keras.npz'}']\n"
        "resolve_data(compose_configs('train', words)[0])[1].splits()\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_command_ends_with_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    printed = run("train", "data=cifar10", "data.root=file", cwd=tmp_path, code=3)
    assert printed.startswith(f"error: data=cifar10: not found in {tmp_path / 'file'} (as cifar-10-batches-py, ")
    assert len(printed.splitlines()) == 1
    printed = run("train", "data=image_folder", "data.root=null", cwd=tmp_path, code=2)
    assert printed == "error: invalid configuration:\n  data.root=null: must be str\n"


@pytest.fixture(autouse=True)
def _cache_of_datasets(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


# ------------------------------------------------------------------------------------------ splits and rows


GREY = ["data.channels=1", "data.image_size=4"]


def test_the_cache_is_found_by_another_process_and_follows_the_data(tmp_path, monkeypatch):
    path, cache = write_table(tmp_path / "set", {"image": make_shades(12)}), tmp_path / "cache"
    words = ["data=huggingface", f"data.path={path}", *GREY, f"data.cache_dir={cache}"]
    code = (
        "from diffusion_lit.config.compose import compose_configs, resolve_data\n"
        "from diffusion_lit.data.store import load_splits\n"
        f"config, source = resolve_data(compose_configs('train', ['experiment=none', *{words!r}])[0])\n"
        "load_splits(source, config['data'])\n"
        "import sys\nassert 'torch' not in sys.modules  # nor does the check wait for it"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert len(list(cache.glob("*.npy"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr("diffusion_lit.data.store.decode_images", None)  # nothing is decoded again
        make_data(*words)
    write_table(path, {"image": make_shades(13, 1)})
    data = make_data(*words)
    assert sorted(read_shades(data.train) + read_shades(data.val)) == list(range(1, 14))
    assert len(list(cache.glob("*.npy"))) == 2


def test_offline_the_command_ends_with_a_line(tmp_path):
    command = [sys.executable, "-m", "diffusion_lit.train", "data=huggingface", "data.path=someone/things"]
    for offline, why in (("0", "hub cannot be reached"), ("1", "Couldn't reach 'someone/things' on the Hub")):
        env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}  # nobody listens there
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 3
        printed = done.stdout + done.stderr
        assert printed.startswith("error: data.path=someone/things: ")
        assert why in printed
        assert len(printed.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
