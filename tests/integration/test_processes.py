"""Every process through the commands."""

import pytest
import torch

from tests.runs import TINY, run

# --------------------------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("process", ["flow", pytest.param("edm", marks=pytest.mark.slow)])
def test_commands_take_every_process(process, tmp_path):
    words = ["data=synthetic", "data.image_size=8", "model=unet_digits", *TINY, "max_steps=4", "sampler.steps=2"]
    words += [f"diffusion={process}", "weighting=uniform", "diffusion.timestep_distribution=stratified"]
    words += [{"flow": "sampler=flow_heun", "edm": "sampler=heun"}[process]]
    words += ["val_every=2", "sample_every=4", "checkpoint_every=2", "log_every=1"]
    printed = run("train", *words, "run_dir=whole", cwd=tmp_path)
    assert {"flow": "flow matching, velocity", "edm": "EDM, edm"}[process] in printed
    run("train", *words, "run_dir=part", "max_steps=2", cwd=tmp_path)
    run("train", "resume=part", "max_steps=4", cwd=tmp_path)
    ends = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "part")]
    assert all(torch.equal(ends[0]["state_dict"][key], ends[1]["state_dict"][key]) for key in ends[0]["state_dict"])
    run("sample", "run=whole", "num_images=2", "sampler=unipc", "sampler.steps=3", "out=made", "gif=true", cwd=tmp_path)
    assert len(list((tmp_path / "made").glob("0*.png"))) == 2
    printed = run("visualize", "run=whole", "samplers=[euler]", "images_per_class=1", cwd=tmp_path)
    assert all(
        f"{name}.png" in printed for name in ("forward", "panels", "schedule", "denoising", "samplers", "curves")
    )


def test_a_run_is_not_sampled_by_a_sampler_of_another_process(tiny_run, tmp_path):
    printed = run("sample", f"run={tiny_run}", "sampler=flow_euler", cwd=tmp_path, code=2)
    assert "sampler=flow_euler: serves flow processes, and this one is discrete" in printed
