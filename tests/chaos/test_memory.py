"""Memory that runs out: fewer images at a time in a preview; in training the last complete step is saved."""

import re

import pytest
import torch

from diffusion_lit.runs import checkpoints
from diffusion_lit.system.memory import free_cgroup_bytes, is_out_of_memory, suggest_smaller_batch
from tests.chaos.test_disks import AT_STEP
from tests.equal_runs import assert_equal_runs, assert_equal_training
from tests.runs import TINY, run

SETTINGS = [*TINY, "max_steps=12", "checkpoint_every=6", "val_every=6", "sample_every=6", "strategy.accumulate=3"]
SETTINGS += ["sampler.batch_size=16"]

# `where` runs out of memory while `fails` is true, with CUDA's message
FAILS = """
import torch
import {module} as module
owner = module{owner}
real = getattr(owner, {name!r})
calls = 0
def failing(*args, **kwargs):
    global calls
    calls += 1
    if {fails}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return real(*args, **kwargs)
setattr(owner, {name!r}, failing)
"""


def failing(module: str, name: str, fails: str, owner: str = "") -> str:
    return FAILS.format(module=module, owner=owner, name=name, fails=fails)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run("train", *SETTINGS, f"run_dir={folder}", cwd=folder.parent)
    return folder


def test_a_preview_is_made_of_fewer_images_at_a_time(unbroken, tmp_path):
    prelude = failing("diffusion_lit.sampling.generate", "_denoise", "len(args[3]) > 4")
    folder = tmp_path / "run"
    printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, prelude=prelude)
    assert "out of memory while sampling; now 8 images at a time (sampler.batch_size)" in printed
    assert "now 4 images at a time" in printed
    assert "now 2 images" not in printed
    assert_equal_training(unbroken, folder)
    grids = [sorted(path.name for path in (one / "samples").iterdir()) for one in (unbroken, folder)]
    assert grids[0] == grids[1]


def test_a_preview_for_which_there_is_no_memory_at_all_ends_no_run(unbroken, tmp_path):
    prelude = failing("diffusion_lit.sampling.generate", "_denoise", "True")
    folder = tmp_path / "run"
    printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, prelude=prelude)
    message = "the run continues: RuntimeError: OutOfMemoryError: CUDA out of memory"
    assert printed.count(message) == 3  # at steps 6 and 12, and once more at the end, where one is missing
    assert "Traceback" not in printed
    assert_equal_training(unbroken, folder)


VALIDATION = ("diffusion_lit.training.validation_metric", "update", "True", ".LossByNoiseLevel")


@pytest.mark.parametrize(
    ("where", "saved"),
    [
        (("diffusion_lit.diffusion.loss", "loss", "calls == 24", ".Diffusion"), 7),
        pytest.param(VALIDATION, 6, marks=pytest.mark.slow),
        pytest.param(("diffusion_lit.training.ema", "update_ema", "calls == 8"), 6, marks=pytest.mark.slow),
        (("diffusion_lit.diffusion.loss", "loss", "True", ".Diffusion"), None),
    ],
    ids=["third micro-batch of step 8", "measurement after step 6", "in the update of step 8", "first step"],
)
def test_training_saves_the_last_step_and_names_the_override_to_use(unbroken, tmp_path, where, saved):
    prelude, folder = failing(*where), tmp_path / "run"
    printed = run("train", *SETTINGS, f"run_dir={folder}", cwd=tmp_path, code=75, prelude=prelude)
    assert "Traceback" not in printed
    assert "strategy.accumulate=6 is the same training with 2 images at a time instead of 4" in printed
    assert checkpoints.list_steps(folder)[-1:] == ([saved] if saved else [])
    assert (f"the last good checkpoint is step {saved}" if saved else "there is no checkpoint yet") in printed
    run("train", f"resume={folder}", cwd=tmp_path)
    if "validation_metric" not in where[0]:  # the row of that step is lost
        assert_equal_runs(unbroken, folder)


def test_a_real_allocation_that_fails_is_known_as_one():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes"))


@pytest.mark.slow
def test_a_limit_on_the_address_space_is_reported(tmp_path):
    """A real one: the address space ends a little above what the process has at step 4."""
    happens = "if self.step == 4: limit()"
    prelude = """
import os, resource
os.environ["DIFFUSION_LIT_MALLOC"] = "system"  # else freed blocks are kept inside of the limit, and nothing fails
def limit():
    size = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), resource.RLIM_INFINITY))
""" + AT_STEP.format(happens=happens)
    overrides = [*TINY, "max_steps=12", "global_batch_size=1024", "sample_every=4", "sampler.batch_size=256"]
    overrides += ["model.block_out_channels=[64,64]", "val_every=0"]
    folder = tmp_path / "run"
    printed = run("train", *overrides, f"run_dir={folder}", cwd=tmp_path, code=75, prelude=prelude)
    assert "out of memory" in printed
    assert "Traceback" not in printed
    step = int(re.search(r"the last good checkpoint is step (\d+)", printed)[1])
    assert checkpoints.list_steps(folder)[-1] == step >= 4


def test_the_advice_divides_the_batch():
    config = {"global_batch_size": 12, "strategy": {"accumulate": 1}}
    assert suggest_smaller_batch(config, 1).startswith("strategy.accumulate=2 ")
    assert "with 6 images at a time instead of 12" in suggest_smaller_batch(config, 1)
    assert suggest_smaller_batch(config, 4).startswith("strategy.accumulate=3 ")
    assert suggest_smaller_batch(config | {"global_batch_size": 7}, 1).startswith("strategy.accumulate=7 ")
    assert (
        suggest_smaller_batch(config, 12) == "1 images at a time are the fewest; a smaller network or image needs less"
    )


def test_sample_reports_how_many_images_at_a_time_may_fit(unbroken, tmp_path):
    prelude, out = failing("diffusion_lit.sampling.generate", "_denoise", "True"), tmp_path / "x"
    printed = run("sample", f"run={unbroken}", "num_images=4", f"out={out}", cwd=tmp_path, code=75, prelude=prelude)
    assert "error: out of memory with 16 images at a time: add sampler.batch_size=8" in printed
    assert "Traceback" not in printed


def test_the_room_that_groups_of_processes_leave(tmp_path):
    """Of cgroups 2, as in most containers, and of 1; the group above may be the narrower one."""
    files = {
        "job/memory.max": "max", "job/memory.current": "0", "job/memory.stat": "anon 1",
        "memory.max": "5000", "memory.current": "3000", "memory.stat": "anon 1\ninactive_file 500\n",
        "memory/a/b/memory.limit_in_bytes": "900", "memory/a/b/memory.usage_in_bytes": "1000",
        "memory/a/b/memory.stat": "inactive_file 7\ntotal_inactive_file 40\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text("0::/job\n")
    assert free_cgroup_bytes(tmp_path, tmp_path / "own") == [2500]
    (tmp_path / "own").write_text("4:memory:/a/b\n3:cpuset:/\n")
    assert free_cgroup_bytes(tmp_path, tmp_path / "own")[0] == 0
    (tmp_path / "memory/a/b/memory.limit_in_bytes").write_text("2000")
    assert free_cgroup_bytes(tmp_path, tmp_path / "own")[0] == 1040
    assert free_cgroup_bytes(tmp_path / "nothing", tmp_path / "own") == []
