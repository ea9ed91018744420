"""Help and the composed config, as the commands print them."""

import os
import subprocess
import sys

from omegaconf import OmegaConf

from tests.runs import run


def test_a_configuration_is_shown_as_it_is_trained(tmp_path):
    printed = run("train", "experiment=minecraft_skins", "model=unet_small", "--cfg", "job", cwd=tmp_path)
    shown = OmegaConf.create(printed)
    assert list(shown.model.block_out_channels) == [32, 32, 64, 64]  # of 64x64 pixels
    assert "down_block_types" not in shown.model


def test_reading_help_needs_no_torch(tmp_path):
    """All in one interpreter: what one command imports, the last check finds."""
    shown = {
        ("train", "--help"): "experiment   digits",
        ("train", "--cfg", "job", "data=image_folder"): "root: ???",
        ("train", "--cfg", "job", "seed=7"): "seed: 7",
        ("sample", "--help"): "run: ???",
        ("sample", "--cfg", "job"): "run: ???",
        (): "diffusion-lit train ...",
    }
    code = (
        "import sys\nfrom diffusion_lit.__main__ import main\n"
        f"for arguments in {list(shown)}:\n"
        "    sys.argv = ['diffusion-lit', *arguments]\n"
        "    print('----')\n"
        "    main()\n"
        "assert not {'torch', 'lightning', 'diffusers', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for text, printed in zip(shown.values(), done.stdout.split("----\n")[1:], strict=True):
        assert text in printed
    assert os.listdir(tmp_path) == []
