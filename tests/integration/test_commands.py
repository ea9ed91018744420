"""The commands as a shell runs them: pipes, strange paths, keys pressed twice."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from diffusion_lit.config.overrides import format_override, read_override
from diffusion_lit.runs import checkpoints, run_dir
from diffusion_lit.system import console
from tests.cases import each
from tests.equal_runs import assert_equal_runs
from tests.runs import TINY, last_step, run, signal_at_step, start

QUICK = [*TINY, "max_steps=4", "checkpoint_every=2", "val_every=0", "sample_every=0"]


def test_a_sweep_is_no_resume_and_no_run_trains_over_another(tmp_path):
    run("train", *QUICK, "run_dir=one", cwd=tmp_path)
    for word in ("--multirun", "hydra.mode=MULTIRUN"):
        assert "continues one run" in run("train", "resume=one", word, "seed=0,1", cwd=tmp_path, code=2)
    assert "one is not empty" in run("train", *QUICK, "run_dir=one", cwd=tmp_path, code=5)
    # Hydra's own words reach the same folder past ours
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    assert "mine is not empty" in run("train", *QUICK, "hydra.run.dir=mine", cwd=tmp_path, code=5)
    assert (tmp_path / "mine" / "letter").read_text() == "dear"


@each("text", ["plain", "it's", "a=b, c", "[x]", "\\\\'", "end\\\\", "mid\\\\dle", "ü ${x} {y}", "3", "'"])
def test_text_is_quoted_so_that_hydra_reads_it_back(text):
    assert str(read_override("key", [format_override("key", text)])) == text


def arguments_of(command: str) -> list[str]:
    """Return the arguments of `python -m diffusion_lit.<verb> ...`, split by a shell, from the verb on."""
    split = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    python, flag, module, *overrides = split.stdout.split("\0")[:-1]
    assert (python, flag) == ("python", "-m")
    return [module.removeprefix("diffusion_lit."), *overrides]


def test_a_path_with_every_sign_trains_resumes_and_samples_as_the_last_lines_say(tmp_path):
    strange = tmp_path / "it's, a=b [ü] \\ x"
    process = start("train", *QUICK, "max_steps=500", format_override("run_dir", strange), cwd=tmp_path)
    while process.poll() is None and last_step(strange) < 3:
        time.sleep(0.01)
    process.terminate()
    printed = process.communicate()[0]
    assert process.returncode == 143, printed
    command = printed.strip().splitlines()[-1].partition("To continue: ")[2]
    last = checkpoints.list_steps(strange)[-1] + 1
    printed = run(*arguments_of(command), f"max_steps={last}", cwd=tmp_path)
    assert checkpoints.list_steps(strange)[-1] == last
    command = printed.strip().splitlines()[-1].partition("more       ")[2]
    run(*arguments_of(command), "num_images=1", cwd=tmp_path)


def test_a_closed_pipe_does_not_end_a_run(tmp_path):
    """As with `| head -n 1`."""
    process = start("train", *QUICK, "run_dir=run", cwd=tmp_path)
    assert os.read(process.output, 1)
    os.close(process.output)
    process.wait(timeout=120)
    assert run_dir.read_result(tmp_path / "run")["status"] == "finished"


def test_the_second_ctrl_c_ends_at_once(tmp_path):
    process = start("train", *QUICK, "sample_every=2", "sampler=ddpm", "run_dir=run", cwd=tmp_path)
    while process.poll() is None and last_step(tmp_path / "run") < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert "Traceback" not in printed


def test_ctrl_c_saves_and_ends_with_130(tmp_path):
    process = start("train", *QUICK, "max_steps=500", "run_dir=run", cwd=tmp_path)
    assert signal_at_step(3, process, tmp_path / "run", signal.SIGINT) == 130
    assert run_dir.read_result(tmp_path / "run")["status"] == "interrupted"
    assert checkpoints.list_steps(tmp_path / "run")[-1] >= 3


def test_who_is_killed_in_a_preview_goes_on_from_its_step(tmp_path):
    kill = "import os, diffusion_lit.training.callbacks.sample_previews as previews\n"
    kill += "previews.SamplePreviews._draw = lambda *args: os.kill(os.getpid(), 9)"
    run("train", *QUICK, "max_steps=4", "sample_every=2", "checkpoint_every=2", "run_dir=whole", cwd=tmp_path)
    words = ["max_steps=4", "sample_every=2", "checkpoint_every=2", "run_dir=run"]
    run("train", *QUICK, *words, cwd=tmp_path, code=-9, prelude=kill)
    assert checkpoints.list_steps(tmp_path / "run") == [2]
    run("train", "resume=run", cwd=tmp_path)
    for name in ("step-00000002.png", "step-00000004.png"):
        assert (tmp_path / "run/samples" / name).read_bytes() == (tmp_path / "whole/samples" / name).read_bytes()


def test_long_work_without_a_terminal_is_told_in_lines(monkeypatch, caplog):
    monkeypatch.setattr(console, "FIRST_LINE", 0)
    with caplog.at_level("INFO"), console.progress_bar("sampling") as bar:
        task = bar.add_task("", total=50)
        for _ in range(50):
            bar.advance(task)
    assert [line.partition(" |")[0] for line in caplog.messages] == ["sampling 1/50"]  # the next one in 30 seconds
    caplog.clear()
    monkeypatch.setattr(console, "LATER_LINES", 0)
    with caplog.at_level("INFO"), console.announce("measuring fd"):  # a step that takes long
        time.sleep(2.5)
    assert len(caplog.messages) == 2
    assert re.fullmatch(r"measuring fd \| \d\.\d s so far", caplog.messages[0]), caplog.messages
    assert [console.format_duration(seconds) for seconds in (7, 119, 120, 7140, 7200, 172800, 864000)] == [
        "7.0 s", "119 s", "2 min", "119 min", "2 h 0 min", "2 days 0 h", "10 days",
    ]  # fmt: skip


def test_a_folder_of_runs_is_its_newest_run_with_a_checkpoint(tmp_path):
    for name in ("a", "b", "c"):
        run("train", *QUICK, "max_steps=1", f"run_dir=outputs/digits/{name}", cwd=tmp_path)
    shutil.rmtree(tmp_path / "outputs/digits/c/checkpoints")
    requests = {
        "sample": "num_images=1",
        "evaluate": "num_images=20 metrics=[colors]",
        "export": "out=model",
        "visualize": "what=[curves]",
    }
    for verb, words in requests.items():
        printed = run(verb, "run=outputs/digits", *words.split(), cwd=tmp_path)
        assert "run=outputs/digits: a folder of runs, using its newest outputs/digits/b" in printed
    for folder in ("generated", "evaluations", "figures"):
        assert (tmp_path / "outputs/digits/b" / folder).is_dir()
    (tmp_path / "outputs/digits/a/non_finite_step.ckpt").write_bytes(b"")
    assert "using its newest outputs/digits/a" in run("replay", "run=outputs/digits", cwd=tmp_path, code=4)
    hint = "it has no config.yaml. The newest run in it is outputs/digits/c"
    assert f"outputs is not a run folder: {hint}" in run("sample", "run=outputs", cwd=tmp_path, code=4)


def test_a_missing_run_and_a_wrong_key_are_both_reported(tmp_path):
    printed = run("export", "run=outputs/x", "pusj=1", "out=y", "sampler.steps=3", cwd=tmp_path, code=4)
    assert "outputs/x: no such folder" in printed
    assert "pusj: no such key (did you mean push?)" in printed
    assert "sampler" not in printed


def test_a_warm_up_longer_than_the_run_is_told(tmp_path):
    printed = run("train", *QUICK, "run_dir=run", "lr_schedule.warmup_steps=121", cwd=tmp_path)
    assert "the warm-up of 121 steps is longer than the run" in printed


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(tmp_path):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100 * 1024, 100 * 1024))"  # < a checkpoint
    run("train", *QUICK, "max_steps=2", "run_dir=run", cwd=tmp_path)
    printed = run("train", "resume=run", "max_steps=4", cwd=tmp_path, code=75, prelude=limit)
    assert "step-00000004.ckpt cannot be written" in printed
    assert "Traceback" not in printed
    assert checkpoints.find_damage(checkpoints.select_checkpoint(tmp_path / "run")) is None
    run("train", "resume=run", cwd=tmp_path)


@pytest.mark.parametrize("word", ["strategy.accelerator=cuda", "strategy.accelerator=mps"])
def test_an_accelerator_that_is_not_there(tmp_path, word):
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    printed = run("train", *QUICK, word, "run_dir=run", cwd=tmp_path, code=2)
    assert "error: strategy: " in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


WITHOUT_POSIX = """
import os
from diffusion_lit.system import platform as platforms
platforms.fcntl = platforms.resource = None
del os.posix_fallocate
def symlink(*args, **kwargs):
    raise PermissionError("a required privilege is not held")
os.symlink = symlink
"""


def test_what_a_system_lacks_is_done_without(tmp_path):
    words = [*TINY, "run_dir=run", "data.cache_dir=cache", "checkpoint_every=1", "sample_every=1"]
    run("train", *words, "max_steps=1", cwd=tmp_path, prelude=WITHOUT_POSIX)
    run("train", "resume=run", "max_steps=2", cwd=tmp_path, prelude=WITHOUT_POSIX)
    run("train", *words, "max_steps=2", "run_dir=whole", cwd=tmp_path)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
