"""A traceback of training is short: few frames of ours stand between the command and the loss."""

import json

from tests.runs import TINY, run
from tests.structure import PACKAGE

FRAMES = 8  # `main` and `loss` counted

NOTE_FRAMES = """
import json, os, traceback
from diffusion_lit.diffusion.loss import Diffusion
def note(*given):
    with open("frames.json", "w") as file:
        json.dump([[frame.filename, frame.name] for frame in traceback.extract_stack()[:-1]], file)
    os._exit(0)
Diffusion.loss = note
"""


def test_few_frames_lead_from_the_command_to_the_loss(tmp_path):
    words = ["data=synthetic", "data.image_size=8", "model=unet_digits", *TINY, "max_steps=1", "val_every=0"]
    run("train", *words, "sample_every=0", "run_dir=run", cwd=tmp_path, prelude=NOTE_FRAMES)
    frames = json.loads((tmp_path / "frames.json").read_text())
    names = [f"{file.rpartition('/')[2]}:{name}" for file, name in frames if file.startswith(str(PACKAGE))]
    names = [*names[names.index("train.py:main") :], "loss.py:loss"]
    assert len(names) <= FRAMES, "\n".join(names)
