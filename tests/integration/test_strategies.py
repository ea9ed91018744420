"""Several devices: DDP and DP train what one device trains, stop and go on as one, and leave nothing behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.groups import CONF
from diffusion_lit.data.datamodule import ImageDataModule
from diffusion_lit.distributed import collectives, process_group
from diffusion_lit.networks.unet import UNet
from diffusion_lit.runs import checkpoints
from diffusion_lit.training import build_run, strategies
from diffusion_lit.training.launch_run import fit
from tests.equal_runs import SETTINGS, assert_equal_runs, last_checkpoint
from tests.forks import ranks_of
from tests.ranks import DDP, SHORT, WANDB, assert_same_training
from tests.replicas import CPUReplicas, replicate
from tests.runs import TINY, run, run_module, signal_at_step, start, trace


def followers(pid: int) -> list[int]:
    """Return the processes that rank 0 with this process id has started and that are still there."""
    mark = f"{process_group.STARTED_BY_US}={pid}".encode()
    found = ranks_of(pid)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != pid:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while followers(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not followers(pid)


# ---------------------------------------------------------------------------------------------- DDP


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    run("train", *SHORT, f"run_dir={folder}", cwd=folder.parent)
    return folder


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_train_as_one(tmp_path, single, accumulate):
    printed = run(
        "train", *SHORT, *DDP, f"strategy.accumulate={accumulate}", f"run_dir={tmp_path / 'two'}", cwd=tmp_path
    )
    assert_same_training(single, tmp_path / "two")
    assert printed.count("step 8/8") == 1
    assert "in each of 2 processes" in printed
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(path.name for path in single.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


def test_ranks_share_one_global_batch_and_end_with_equal_weights(tmp_path):
    """By torchrun: each rank's noise is its slice of what one process draws; weights and average are equal bits."""
    words = [*SHORT, *WANDB, "seed=5"]
    both, alone = tmp_path / "both", tmp_path / "alone"
    both.mkdir(), alone.mkdir()
    printed = run_module(*TORCHRUN, "-m", "tests.rank_digests", str(both), *words, "strategy=ddp", cwd=tmp_path)
    run_module("tests.rank_digests", str(alone), *words, cwd=tmp_path)
    zero, one = (json.loads((both / f"rank{k}.json").read_text()) for k in (0, 1))
    whole = json.loads((alone / "rank0.json").read_text())
    assert zero["net"] == one["net"]
    assert zero["ema"] == one["ema"]
    assert zero["net"] != zero["ema"]
    assert len(whole["draws"]) == 8
    for a, b, c in zip(
        zero["draws"][1:], one["draws"][1:], whole["draws"], strict=True
    ):  # [0]: DeterministicDDPStrategy's
        assert a[3] + b[3] == c[3]  # timesteps
        assert (a[0], b[0]) == (c[0], c[0] + 6)
        assert a[2] != b[2]  # never the same noise
    runs = list((tmp_path / "outputs" / "digits").iterdir())
    assert len(runs) == 2  # one folder for both ranks, one for the single process
    assert printed.count("step 8/8") == 1
    assert [len(list(folder.glob("wandb/offline-run-*"))) for folder in runs] == [1, 1]


def test_samples_and_held_out_losses_do_not_depend_on_the_number_of_processes(tmp_path):
    """With weights that do not move, so that nothing but the sharing of work is left to differ."""
    words = [*TINY, "max_steps=2", "val_every=1", "sample_every=1", "optimizer.lr=1e-38", "data.classifier_images=40"]
    words += ["sampler.batch_size=16", "metrics_every=2", "metrics_images=40"]  # five chunks a network
    run("train", *words, f"run_dir={tmp_path / 'one'}", cwd=tmp_path)
    run("train", *words, *DDP, f"run_dir={tmp_path / 'two'}", cwd=tmp_path)
    for a, b in zip(trace(tmp_path / "one"), trace(tmp_path / "two"), strict=True):
        assert {key: b[key] for key in ("kid", "class_accuracy")} == {key: a[key] for key in ("kid", "class_accuracy")}
        held_out = [key for key in a if key.startswith("val/")]
        assert len(held_out) > 20
        for key in held_out:  # batches of 64 images and of 32
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-5, nan_ok=True)
    for grid in (tmp_path / "one" / "samples").iterdir():
        assert grid.read_bytes() == (tmp_path / "two" / "samples" / grid.name).read_bytes()
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["class_accuracy"] == two["class_accuracy"]


@pytest.mark.parametrize("victim", [pytest.param("rank 0", marks=pytest.mark.slow), "rank 1"])
def test_a_run_of_two_processes_killed_and_resumed_equals_one_that_was_not(tmp_path, whole_ddp, victim):
    broken = tmp_path / "broken"
    process = start("train", *SETTINGS, *DDP, f"run_dir={broken}", cwd=tmp_path)
    if victim == "rank 0":
        assert signal_at_step(9, process, broken) == -signal.SIGKILL
    else:
        while len(trace(broken) if (broken / "metrics.csv").exists() else []) < 9:
            time.sleep(0.01)
        os.kill(followers(process.pid)[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 75, output
        assert "rank 1 of 2 ended with signal 9" in output
        assert "Traceback" not in output
    assert gone(process.pid)
    run("train", f"resume={broken}", cwd=tmp_path)
    assert_equal_runs(whole_ddp, broken)


@pytest.mark.slow
def test_with_more_than_two_processes_the_order_of_additions_is_kept(tmp_path):
    """Two summands have one order; from three on, DDP's buckets decide it (see DeterministicDDPStrategy)."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [*SETTINGS, "strategy=ddp", "strategy.devices=4"]
    run("train", *words, f"run_dir={whole}", cwd=tmp_path)
    process = start("train", *words, f"run_dir={broken}", cwd=tmp_path)
    assert signal_at_step(9, process, broken) == -signal.SIGKILL
    assert gone(process.pid)
    run("train", f"resume={broken}", cwd=tmp_path)
    assert_equal_runs(whole, broken)


@pytest.fixture(scope="module")
def whole_ddp(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run("train", *SETTINGS, *DDP, f"run_dir={folder}", cwd=folder.parent)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_on_all_ranks_and_the_run_goes_on_bit_for_bit(tmp_path, whole_ddp, number):
    broken = tmp_path / "broken"
    words = [*SETTINGS, *DDP, f"run_dir={broken}"]
    process = start("train", *words, cwd=tmp_path)
    assert signal_at_step(7, process, broken, number) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert gone(process.pid)
    assert checkpoints.list_steps(broken)[-1] >= 7
    run("train", f"resume={broken}", cwd=tmp_path)
    assert trace(whole_ddp) == trace(broken)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, single):
    folder = tmp_path / "run"
    run("train", *SHORT, "max_steps=4", "lr_schedule=constant", f"run_dir={folder}", cwd=tmp_path)
    run("train", f"resume={folder}", "max_steps=8", *DDP, cwd=tmp_path)
    whole = tmp_path / "whole"
    run("train", *SHORT, "lr_schedule=constant", f"run_dir={whole}", cwd=tmp_path)
    assert_same_training(whole, folder)


@pytest.mark.slow
def test_a_sweep_of_two_jobs_of_two_processes_leaves_one_folder_each_and_no_process(tmp_path, single):
    process = start("train", "--multirun", *SHORT, *DDP, *WANDB, "seed=0,1", cwd=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    (sweep,) = (tmp_path / "outputs" / "digits").iterdir()
    jobs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [job.name for job in jobs] == ["0", "1"]
    assert_same_training(single, jobs[0])
    assert trace(jobs[0]) != trace(jobs[1])
    assert len(trace(jobs[1])) == 8
    assert [len(list(job.glob("wandb/offline-run-*"))) for job in jobs] == [1, 1]
    assert gone(process.pid, 1)


@pytest.mark.slow
def test_the_loss_that_is_no_number_ends_all_ranks_and_is_told_once(tmp_path):
    words = [
        *SHORT,
        *DDP,
        "optimizer.lr=1e30",
        "trainer.gradient_clip_val=null",
        "max_steps=20",
        f"run_dir={tmp_path / 'run'}",
    ]
    process = start("train", *words, cwd=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 6, output
    assert output.count("the loss is") == 1
    assert "Traceback" not in output
    assert gone(process.pid)


BROKEN = """
import os
from diffusion_lit.networks.unet import UNet
class Broken(UNet):
    def forward(self, x_t, t, y):
        calls = self.calls = getattr(self, "calls", 0) + self.training
        if calls == 6 and os.environ["RANK"] == os.environ["BROKEN"]:
            raise {error}
        return super().forward(x_t, t, y)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "error", "code", "told"),
    [
        (0, "ValueError('an error of rank 0')", 1, "ValueError: an error of rank 0"),
        (1, "ValueError('an error of rank 1')", 1, "ValueError: an error of rank 1"),
        (1, "__import__('torch').OutOfMemoryError('CUDA out of memory')", 75, "strategy.accumulate=2 is the same"),
    ],
)
def test_an_exception_on_one_rank_ends_all_of_them(tmp_path, interpreted_ddp, monkeypatch, rank, error, code, told):
    """A network of one's own that fails in the sixth step of one rank; resumed the run equals one that did not."""
    conf, folder = tmp_path / "conf", tmp_path / "run"
    (conf / "model").mkdir(parents=True)
    (tmp_path / "broken.py").write_text(BROKEN.format(error=error))
    text = (CONF / "model" / "unet_digits.yaml").read_text()
    (conf / "model" / "broken.yaml").write_text(text.replace("diffusion_lit.networks.unet.UNet", "broken.Broken"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    streams = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": tmp_path}
    command = [sys.executable, "-m", "diffusion_lit.train", "--config-dir", str(conf)]
    monkeypatch.setenv("BROKEN", str(rank))
    process = subprocess.Popen([*command, *SETTINGS, *DDP, "model=broken", f"run_dir={folder}"], **streams)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert output.count(told) == 1, output
    assert gone(process.pid)
    monkeypatch.setenv("BROKEN", "none")
    done = subprocess.run([*command, f"resume={folder}"], timeout=120, **streams)
    assert done.returncode == 0, done.stdout
    assert_equal_runs(interpreted_ddp, folder)


@pytest.fixture(scope="module")
def interpreted_ddp(tmp_path_factory) -> Path:
    """The unbroken run in a new interpreter, which validates on all noise levels (see tests/forks.py)."""
    folder = tmp_path_factory.mktemp("interpreted") / "run"
    command = [sys.executable, "-m", "diffusion_lit.train", *SETTINGS, *DDP, f"run_dir={folder}"]
    subprocess.run(command, check=True, timeout=240, cwd=folder.parent, capture_output=True)
    return folder


def test_pictures_that_cannot_be_read_end_all_ranks(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_text("not a picture")
    words = ["data=image_folder", f"data.root={folder}", *SHORT, *DDP, f"run_dir={tmp_path / 'run'}"]
    process = start("train", *words, cwd=tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert output.count("1 of 1 images cannot be read") == 1
    assert "Traceback" not in output
    assert gone(process.pid)
    assert not (tmp_path / "run").exists()


def test_alone_every_way_of_agreeing_gives_what_was_put_in():
    assert collectives.all_reduce_max(3) == collectives.start_all_reduce_max(3)() == 3
    assert collectives.all_gather("a") == ["a"]
    assert collectives.broadcast_from_rank_zero("b") == "b"
    assert collectives.map_across_ranks(lambda k: k * k, 4) == [0, 1, 4, 9]


# ---------------------------------------------------------------------------------------------- refused, or said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy.devices=2"], "strategy=single trains on one device. Use strategy=ddp"),
        (["strategy=dp", "strategy.compile=true"], "copies the network for every batch"),
        (["strategy=dp", "strategy.num_nodes=2"], "one host. Use strategy=ddp"),
        (["strategy=ddp", "strategy.devices=5"], "global_batch_size=12: must be a multiple of strategy.devices=5"),
        (
            ["strategy=ddp", "strategy.devices=2", "strategy.accumulate=4"],
            "a multiple of strategy.devices=2 x strategy.accumulate=4",
        ),
        (["strategy=ddp", "strategy.devices=0"], "must be auto or int >= 1"),
        (["strategy=ddp", "strategy.num_nodes=2"], "torchrun --nnodes 2"),
    ],
)
def test_what_cannot_work_is_refused_in_words(tmp_path, words, said):
    output = run("train", *TINY, *words, cwd=tmp_path, code=2)
    assert said in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize(("strategy", "said"), [("dp", "needs two GPUs or more"), ("ddp", "finds one device here")])
def test_one_device_is_a_strategy_too_and_says_so(tmp_path, single, strategy, said):
    if torch.cuda.device_count() > 1:
        pytest.skip("there are several GPUs here")
    assert said in run("train", *SHORT, f"strategy={strategy}", f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert trace(tmp_path / "run") == trace(single)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=single"], "strategy=single: the launcher started 2 processes. Use strategy=ddp."),
        (["strategy=ddp", "strategy.devices=4"], "the launcher started 2 processes, 2 per node"),
        (["strategy=ddp", "--multirun", "seed=0,1"], "Use python -m instead of torchrun"),
    ],
)
def test_torchrun_for_another_number_of_processes_is_refused(tmp_path, monkeypatch, words, said):
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    assert said in run("train", *TINY, *words, cwd=tmp_path, code=2)


def test_a_finished_run_that_a_launcher_starts_again_ends_at_once_in_every_process(tmp_path, single):
    shutil.copytree(single, tmp_path / "run", symlinks=True)
    words = ["strategy=ddp", "strategy.accelerator=cpu", "resume=run"]
    printed = run_module(*TORCHRUN, "-m", "diffusion_lit.train", *words, cwd=tmp_path)
    assert printed.count("is complete at step 8 of 8") == 1, printed
    assert "experiment=cifar10_cond" in run_module(*TORCHRUN, "-m", "diffusion_lit.train", "--help", cwd=tmp_path)


WORSE = ["optimizer.lr=1e30", "trainer.gradient_clip_val=null", "max_skipped_steps=0"]


@pytest.mark.slow
def test_what_all_ranks_find_is_told_by_rank_0_before_a_launcher_ends_it(tmp_path):
    """In interpreters of their own, as a user starts them; the other tests fork theirs."""
    command = [sys.executable, "-m", *TORCHRUN, "-m", "diffusion_lit.train", *SHORT, *WORSE]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [*command, "strategy=ddp", "run_dir=run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    assert printed.count("the loss is") == 1, printed
    assert re.search(r"exitcode *: 6", printed), printed


# ---------------------------------------------------------------------------------------------- DP


def test_a_replica_without_parameters_computes_what_the_network_does():
    """UNet2DModel asks its parameters for their dtype, and a replica has none."""
    net = UNet(8, 1, 10, [8, 8], [], norm_num_groups=4, attention_head_dim=8, layers_per_block=1)
    x, t, y = torch.randn(4, 1, 8, 8), torch.arange(4), torch.arange(4)
    (replica,) = replicate(net, 1)
    torch.testing.assert_close(replica(x, t, y), net(x, t, y), rtol=0, atol=0)
    assert not [key for key in net.state_dict() if "dtype_of" in key]


def train_with_replicas(monkeypatch, folder: Path, *words: str) -> CPUReplicas:
    """A run under the DP strategy on two replicas on the CPU."""
    made = []
    monkeypatch.setattr(nn, "DataParallel", lambda net, devices: made.append(CPUReplicas(net, devices)) or made[-1])
    devices = {"accelerator": "cpu", "devices": 2, "strategy": "dp"}
    monkeypatch.setattr(build_run, "device_arguments", lambda strategy, net: dict(devices))
    config, source = resolve_data(compose_configs("train", [*words, f"run_dir={folder}"])[0])
    folder.mkdir()
    fit(config, source, folder, [])
    return made[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_replicas_train_as_one_device(tmp_path, monkeypatch, precision):
    words = [*SHORT, f"strategy.precision={precision}"]
    run("train", *words, f"run_dir={tmp_path / 'one'}", cwd=tmp_path)
    replicas = train_with_replicas(monkeypatch, tmp_path / "dp", *words, "strategy=dp")
    assert replicas.calls == 2 * 8  # two replicas in each of eight steps
    if precision == "32-true":
        assert_same_training(tmp_path / "one", tmp_path / "dp")
    one, dp = (last_checkpoint(tmp_path / name)["state_dict"] for name in ("one", "dp"))
    assert one.keys() == dp.keys()
    for key in one:
        torch.testing.assert_close(one[key], dp[key], rtol=0, atol=1e-5 if precision == "32-true" else 0.02)


def test_dp_is_a_strategy_that_lightning_knows_by_name():
    import lightning as L

    trainer = L.Trainer(strategy="dp", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy, strategies.DataParallelStrategy)
    assert trainer.world_size == 1
    assert len(trainer.strategy.parallel_devices) == 2


# ---------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize(("layer", "broadcast"), [(nn.BatchNorm2d(4), True), (nn.GroupNorm(2, 4), False)])
def test_buffers_are_broadcast_only_for_batch_norm(monkeypatch, layer, broadcast):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(process_group, "resolve_processes", lambda strategy: (2, 1))
    made = strategies.device_arguments({"name": "ddp", "accelerator": "cpu"}, nn.Sequential(nn.Conv2d(1, 4, 3), layer))
    assert made["strategy"]._ddp_kwargs["broadcast_buffers"] is broadcast


def test_the_micro_batch_is_a_share_of_the_global_batch(tmp_path, monkeypatch):
    config, source = resolve_data(compose_configs("train", [*TINY, "strategy=ddp", "strategy.accumulate=3"])[0])
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "all_reduce_max", lambda number: number)
    monkeypatch.setattr(collectives, "all_gather", lambda value: [value, value])
    data = build_run.load_data(config, source, tmp_path)
    assert isinstance(data, ImageDataModule)
    assert data.batch_size == 2
    assert list((tmp_path / "cache").glob("*/train-*.npy"))  # one file for both


ABORTS = """
import os, runpy, sys
class Aborts:
    def __del__(self):
        os.abort()
sys.modules["__main__"].last = Aborts()  # as threads of gloo do, now and then, in an interpreter that winds down
runpy.run_module("diffusion_lit.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_rank_0_ends_with_its_own_exit_code_whatever_an_interpreter_that_winds_down_does(tmp_path):
    words = [*SETTINGS, *DDP, "log_every=100", f"run_dir={tmp_path / 'run'}"]  # the signal comes between two rows
    process = subprocess.Popen(
        [sys.executable, "-c", ABORTS, *words], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert signal_at_step(4, process, tmp_path / "run", signal.SIGTERM) == 143
    assert json.loads((tmp_path / "run" / "result.json").read_text())["exit_code"] == 143
