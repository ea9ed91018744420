"""Help and the composed config, as the commands print them."""

import os
import subprocess
import sys

from omegaconf import OmegaConf

from tests.cases import each
from tests.runs import run


def test_a_configuration_is_shown_as_it_is_trained(tmp_path):
    printed = run("train", "experiment=minecraft_skins", "model=unet_small", "--cfg", "job", cwd=tmp_path)
    shown = OmegaConf.create(printed)
    assert list(shown.model.block_out_channels) == [32, 64, 64]
    assert "down_block_types" not in shown.model


@each(
    ("words", "shows"),
    [
        (["train", "--help"], "experiment  digits"),
        (["train", "--cfg", "job", "data=image_folder"], "root: ???"),
        (["train", "--cfg", "job", "seed=7"], "seed: 7"),
        (["sample", "--help"], "run: ???"),
        (["sample", "--cfg", "job"], "run: ???"),
        ([], "diffusion-lit train ..."),
    ],
    ids=" ".join,
)
def test_reading_help_needs_no_torch(tmp_path, words, shows):
    code = (
        f"import sys; sys.argv = {['diffusion-lit', *words]!r}\n"
        "try:\n    from diffusion_lit.__main__ import main; main()\n"
        "finally:\n    assert not {'torch', 'lightning', 'diffusers', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert shows in done.stdout
    assert os.listdir(tmp_path) == []
