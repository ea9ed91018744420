"""`train distill=<method> distill.teacher=<run>`: students that know their steps, resume and share work exactly."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DiffusionPipeline
from PIL import Image

from diffusion_lit import Pipeline
from diffusion_lit.diffusion.seeds import image_seeds
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.runs.stored_config import GUIDANCE_KEYS, read_model_config
from diffusion_lit.runs.teacher import insert_teacher_recipe
from diffusion_lit.web.session import ImageSession, Request
from tests.equal_runs import assert_equal_runs, last_checkpoint
from tests.ranks import DDP, assert_same_training
from tests.runs import TINY, run

STUDENT = ["distill.teacher_steps=4", "distill.stages=[2,1]", "max_steps=8", "checkpoint_every=2", "val_every=2"]
STUDENT += ["sample_every=4", "keep_checkpoints=9", "data.classifier_images=0", "log_every=1"]
STUDENT += ["strategy.precision=32-true"]  # on every machine


@pytest.fixture(scope="module")
def student(tiny_run, tmp_path_factory) -> Path:
    """A student of two stages, beside its teacher."""
    home = tmp_path_factory.mktemp("students")
    shutil.copytree(tiny_run, home / "teacher", symlinks=True)
    run("train", "distill=progressive", "distill.teacher=teacher", *STUDENT, "run_dir=student", cwd=home)
    return home / "student"


def weights(path: Path, which: str) -> dict:
    return checkpoints.extract_network_state(checkpoints.load_checkpoint(path), which)


def is_equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() != set() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_resumed_across_a_stage_equals_one_that_was_not_stopped(student, tmp_path):
    whole, home = student, student.parent
    for step in (2, 4):  # within a stage, and at the end of one
        broken = tmp_path / f"broken{step}"
        shutil.copytree(whole, broken, symlinks=True)
        for file in broken.glob("checkpoints/step-*.ckpt"):
            if int(file.stem.partition("-")[2]) > step:
                file.unlink()
        (broken / "result.json").unlink()
        teacher = home / "teacher"
        teacher.rename(home / "gone")  # it is in the checkpoint
        try:
            run("train", f"resume={broken}", cwd=tmp_path)
        finally:
            (home / "gone").rename(teacher)
        assert_equal_runs(whole, broken)
    before, after, last = (checkpoints.checkpoint_path(whole, step) for step in (4, 6, 8))
    assert is_equal(weights(before, "teacher"), weights(checkpoints.select_checkpoint(home / "teacher"), "ema"))
    assert is_equal(weights(after, "teacher"), weights(before, "ema"))
    assert is_equal(weights(last, "teacher"), weights(before, "ema"))
    assert not is_equal(weights(last, "ema"), weights(before, "ema"))


def test_two_processes_distill_as_one(student, tmp_path):
    words = ["distill=progressive", "distill.teacher=teacher", *STUDENT, *DDP, f"run_dir={tmp_path / 'two'}"]
    run("train", *words, cwd=student.parent)
    assert_same_training(student, tmp_path / "two")


def test_a_student_knows_its_steps(student, tmp_path):
    home = student.parent
    assert "distill.teacher" not in (home / "teacher" / "command.txt").read_text()
    rates = [read_model_config(run)["optimizer"]["lr"] for run in (student, home / "teacher")]
    assert rates[0] == rates[1] / 5
    for checkpoint, steps in (("2", 2), ("4", 2), ("6", 1), ("last", 1)):
        run("sample", f"run={student}", f"checkpoint={checkpoint}", "num_images=2", f"out=s{checkpoint}", cwd=tmp_path)
        manifest = json.loads((tmp_path / f"s{checkpoint}" / "manifest.json").read_text())
        assert manifest["sampler"]["steps"] == steps
        assert manifest["distilled"] == {"method": "progressive", "teacher": "teacher"}
        model = TrainedModel.from_run(student, checkpoint)
        assert model.evaluations == steps
    for words, fault in (
        (["sampler.steps=2"], "sampler.steps=2: a distilled model has learned steps=1. Leave it out"),
        (["sampler=dpmpp_2m"], "sampler=dpmpp_2m: a distilled model has learned sampler=ddim"),
        (["guidance_scale=2"], "guidance_scale=2: guidance needs the unconditional model"),
    ):
        assert fault in run("sample", f"run={student}", *words, cwd=tmp_path, code=2)
    measured = ["num_images=40", "metrics=[kid]"]
    run("evaluate", f"run={home / 'teacher'}", *measured, cwd=tmp_path)
    printed = run("evaluate", f"run={student}", *measured, "out=e", cwd=tmp_path)
    assert json.loads((tmp_path / "e" / "result.json").read_text())["nfe"] == 1
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith(("student ", "teacher "))] in (
        [["student", "ddim"], ["teacher", "dpmpp_sde"]],
        [["teacher", "dpmpp_sde"], ["student", "ddim"]],
    )
    assert Image.open(tmp_path / "e" / "pareto.png").width > 100
    session = ImageSession(model)
    assert list(session.samplers) == ["ddim"]
    with pytest.raises(ValueError, match="learned steps=1"):
        session.generate(Request("all classes", 2, 0, "ddim", 2, 1.0))
    assert len(session.generate(Request("all classes", 2, 0, "ddim", 1, 1.0)).frames) == 1


def test_an_exported_student_makes_the_same_images(student, tmp_path):
    run("export", f"run={student}", "checkpoint=4", "out=out", cwd=tmp_path)
    run("sample", "run=out", "num_images=10", "seed=3", "out=ours", cwd=tmp_path)
    images = [np.array(image) for image in Pipeline.from_pretrained(tmp_path / "out")(num_images=10, seed=3)]
    ours = [np.array(Image.open(file)) for file in sorted((tmp_path / "ours").glob("0*.png"))]
    assert np.array_equal(images, ours)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| distilled | method progressive, teacher teacher |" in card
    assert str(student.parent) not in card + (tmp_path / "out" / "config.yaml").read_text()
    fault = "sampler.steps=1: a distilled model has learned steps=2"
    assert fault in run("sample", "run=out", "sampler.steps=1", cwd=tmp_path, code=2)
    path = str(tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(path, custom_pipeline=path, trust_remote_code=True)
    assert np.array_equal(ours, [np.array(image) for image in pipeline(num_images=10, seed=3).images])
    with pytest.raises(ValueError, match="num_inference_steps=4: this model has learned 2 alone"):
        pipeline(num_images=1, num_inference_steps=4)


def test_plain_diffusers_samples_an_unconditional_student_of_flow_or_cosine_noise(tmp_path):
    """A DDIMPipeline of diffusers with that many steps, from the same noise, makes the same images."""
    teacher = [*TINY, "data=synthetic", "data.image_size=8", "data.channels=1", "data.labels=none", "max_steps=2"]
    run("train", *teacher, "model=unet_digits", "sample_every=0", "run_dir=teacher", cwd=tmp_path)
    words = ["distill=progressive", "distill.teacher=teacher", "distill.teacher_steps=8", "distill.stages=[4,2]"]
    run("train", *words, "max_steps=4", "sample_every=0", "run_dir=student", cwd=tmp_path)
    run("export", "run=student", "out=out", cwd=tmp_path)
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    (seed,) = image_seeds(0, 1)
    model = TrainedModel.from_run(tmp_path / "student")
    theirs = pipeline(
        generator=torch.Generator().manual_seed(seed), num_inference_steps=2, use_clipped_model_output=True,
        output_type="np",
    ).images  # fmt: skip
    ours = model.generate([0], [seed]).permute(0, 2, 3, 1).numpy() / 255
    assert np.abs(ours - theirs).max() < 1 / 255


@pytest.mark.parametrize("process", ["flow", "edm"])
def test_students_of_continuous_processes(tmp_path, process):
    words = [*TINY, f"diffusion={process}", "max_steps=2", "sample_every=0", "val_every=0", "guidance_scale=2"]
    words += ["guidance_interval=[0.2,0.8]", "guidance_rescale=0.5"]
    run("train", *words, "run_dir=teacher", cwd=tmp_path)
    words = ["distill=progressive", "distill.teacher=teacher", "distill.teacher_steps=4", "distill.stages=[2,1]"]
    words += ["distill.guidance_rescale=0.7"] * (process == "edm")
    run("train", *words, "max_steps=4", "val_every=2", "run_dir=student", cwd=tmp_path)
    distill = read_model_config(tmp_path / "student")["distill"]
    guidance = {key: distill[key] for key in GUIDANCE_KEYS}
    rescale = 0.7 if process == "edm" else 0.5
    assert guidance == {"guidance_scale": 2, "guidance_interval": [0.2, 0.8], "guidance_rescale": rescale}
    assert last_checkpoint(tmp_path / "student")["global_step"] == 4
    run("export", "run=student", "out=out", cwd=tmp_path)
    assert TrainedModel.from_run(tmp_path / "out").evaluations == 1


def test_a_published_model_teaches_as_its_run_does(student, tmp_path):
    run("export", f"run={student.parent / 'teacher'}", "out=model", cwd=tmp_path)
    run("train", "distill=progressive", "distill.teacher=model", *STUDENT, "run_dir=student", cwd=tmp_path)
    ours, theirs = (last_checkpoint(path) for path in (student, tmp_path / "student"))
    assert is_equal(ours["state_dict"], theirs["state_dict"])
    config = (tmp_path / "model" / "config.yaml").read_text()
    (tmp_path / "model" / "config.yaml").write_text(config.replace("  command: ", "  comment: "))
    printed = run("train", "distill=progressive", "distill.teacher=model", "run_dir=other", cwd=tmp_path, code=2)
    assert "distill.teacher=model: this model does not say how it was trained" in printed


def test_debug_leaves_network_and_process_of_the_teacher_to_its_student(student, tmp_path):
    teacher = ["distill=progressive", f"distill.teacher={student.parent / 'teacher'}"]
    words = [*teacher, "distill.teacher_steps=4", "distill.stages=[2]", "debug=on", "max_steps=1", "run_dir=out"]
    run("train", *words, cwd=tmp_path)
    assert read_model_config(tmp_path / "out")["model"] == read_model_config(student)["model"]


def test_a_student_tracks_no_ema_over_its_stages(student):
    words = ["distill=progressive", f"distill.teacher={student.parent / 'teacher'}"]
    assert "ema_snapshot_every=0" in insert_teacher_recipe(words)
    assert "ema_snapshot_every=2" in insert_teacher_recipe([*words, "ema_snapshot_every=2"])
    assert "ema_snapshot_every=0" not in insert_teacher_recipe([*words, "ema_snapshot_every=2"])


def test_what_cannot_be_distilled_is_refused_in_words(student, tmp_path):
    home, half = student.parent, tmp_path / "half"
    teacher = ["distill=progressive", f"distill.teacher={home / 'teacher'}"]
    shutil.copytree(student, half, symlinks=True)
    for step in checkpoints.list_steps(half)[2:]:  # after the first stage
        checkpoints.checkpoint_path(half, step).unlink()
    checkpoints.link_checkpoint(checkpoints.checkpoint_path(half, 4), "last.ckpt")
    for words, code, fault in (
        (["distill=progressive"], 2, "distill=progressive: needs one run to learn from. Add distill.teacher=<run"),
        (["distill=progressive", "distill.teacher=nowhere"], 4, "nowhere: no such folder"),
        (
            [*teacher, "model.dropout=0.1", "diffusion.beta_schedule=linear"],
            2,
            "diffusion.beta_schedule=linear: the te",
        ),
        ([*teacher, "model.block_out_channels=[8,16]"], 2, "model.block_out_channels=[8, 16]: the teacher has [8, 8]"),
        ([*teacher, "distill.guidance_interval=[0.8,0.2]"], 2, "distill.guidance_interval=[0.8, 0.2]: the lower noise"),
        (
            [*teacher, "distill.teacher_steps=2000", "distill.stages=[1000]"],
            2,
            "distill.teacher_steps=2000: must be at most 1000, the noise levels of the process",
        ),
        (
            ["distill=progressive", f"distill.teacher={student}"],
            2,
            "distill.teacher_steps=16: student has learned 1 steps. They cannot be halved, so choose another teacher",
        ),
        (
            ["distill=progressive", f"distill.teacher={half}", "distill.stages=[8]"],
            2,
            "distill.teacher_steps=16: half has learned 2 steps. Add distill.teacher_steps=2 distill.stages=[1]",
        ),
        (
            [*teacher, "max_steps=40", "ema.update_every=11"],
            2,
            "ema.update_every=11: must be at most the steps of a stage, 10, or the EMA stays untrained",
        ),
        ([*teacher, "sampler=dpmpp_2m"], 2, "sampler=dpmpp_2m: a distilled model has learned sampler=ddim"),
        ([f"resume={student}", "max_steps=16"], 4, "max_steps: 8 in the run, 16 now"),
    ):
        assert fault in run("train", *words, cwd=tmp_path, code=code), words
    assert not (tmp_path / "outputs").exists()
