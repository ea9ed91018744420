"""A loss that is no number: its step is skipped as if by hand, and a run of too many says where it began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.diffusion.randomness import flip_images
from diffusion_lit.imaging.grids import to_float
from diffusion_lit.runs import checkpoints, step_record
from diffusion_lit.runs.build import make_diffusion, make_network
from diffusion_lit.runs.stored_config import read_model_config
from diffusion_lit.training import ema as averaging
from diffusion_lit.training.callbacks.non_finite_guard import LossWindow
from tests.equal_runs import SETTINGS, assert_equal_runs, last_checkpoint
from tests.runs import run, signal_at_step, start, trace

# the loss of images at these positions is no number; batches are of 12
PRELUDE = """
from diffusion_lit.training.module import DiffusionModule
step = DiffusionModule.training_step
def faulty(self, batch, index):
    factor = float("nan") if batch["position"] in {positions} else 1.0
    return step(self, batch, index) * factor
DiffusionModule.training_step = faulty
"""
# the same steps left out by hand: neither optimizer nor average is called for them
BY_HAND = """
import torch
from diffusion_lit.training import ema
from diffusion_lit.training.module import DiffusionModule
step, adam, update = DiffusionModule.training_step, torch.optim.AdamW.step, ema.update_ema
now = 0
def noted(self, batch, index):
    global now
    now = batch["position"]
    return step(self, batch, index)
def adam_step(self, closure):
    before = [p.detach().clone() for group in self.param_groups for p in group["params"]]
    loss = closure()
    return loss if now in {positions} else adam(self)
DiffusionModule.training_step, torch.optim.AdamW.step = noted, adam_step
ema.update_ema = lambda *args: None if now in {positions} else update(*args)
"""
STEPS = [12 * step for step in (5, 6, 9)]  # of batches that begin there
WORDS = [*SETTINGS, "max_steps=16", "log_every=4", "val_every=0", "sample_every=0", "model=context_unet"]
WORDS = [word for word in WORDS if not word.startswith("model.")] + ["model.features=8", "model.norm=batch"]
WORDS += ["experiment=none", "data=digits", "ema_snapshot_every=4"]


def test_skipped_steps_leave_no_trace_and_a_resumed_run_skips_them_too(tmp_path):
    """Weights, moments, step counts, average and running statistics, against a run that leaves the steps out by hand;
    then against one that was killed between them."""
    skipping, by_hand, broken = tmp_path / "skipping", tmp_path / "by_hand", tmp_path / "broken"
    fault = PRELUDE.format(positions=STEPS)
    told = run("train", *WORDS, f"run_dir={skipping}", cwd=tmp_path, prelude=fault)
    assert "2 of the last 4" in told
    assert "1 of the last 4" in told
    rows = trace(skipping)
    assert [float(row["train/skipped"]) for row in rows] == [0, 2, 1, 0]
    assert all(float(row["train/loss"]) > 0 for row in rows)
    run("train", *WORDS, f"run_dir={by_hand}", cwd=tmp_path, prelude=BY_HAND.format(positions=STEPS))
    one, other = last_checkpoint(skipping), last_checkpoint(by_hand)
    moments = [checkpoint["optimizer_states"][0]["state"].values() for checkpoint in (one, other)]
    assert all(state["step"] == 13 for state in moments[0])
    for a, b in zip(*moments, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    trained = [key for key in one["state_dict"] if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in trained)
    counts = [value for key, value in one["state_dict"].items() if key.startswith("net.") and "num_batches" in key]
    assert counts
    assert {int(count) for count in counts} == {13}
    process = start("train", *WORDS, "log_every=1", f"run_dir={broken}", cwd=tmp_path, prelude=fault)
    assert signal_at_step(6, process, broken, number=15) == 143
    assert 60 < checkpoints.list_steps(broken)[-1] * 12 < 16 * 12
    run("train", f"resume={broken}", "log_every=1", cwd=tmp_path, prelude=fault)
    ours, theirs = last_checkpoint(skipping), last_checkpoint(broken)
    for key, value in ours["state_dict"].items():
        assert torch.equal(value, theirs["state_dict"][key]), key


@pytest.mark.slow
def test_a_signal_between_two_rows_keeps_what_was_skipped(tmp_path):
    words = [word for word in SETTINGS if not word.startswith("log_every")]
    words += ["max_steps=120", "log_every=60", "checkpoint_every=60", "val_every=0", "sample_every=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fault = PRELUDE.format(positions=[12 * step for step in range(61, 66)])
    run("train", *words, f"run_dir={whole}", cwd=tmp_path, prelude=fault)
    stop = (
        fault
        + """
import os, signal
def stopping(self, batch, index):
    if batch["position"] == 12 * 70:
        os.kill(os.getpid(), signal.SIGTERM)
    return faulty(self, batch, index)
DiffusionModule.training_step = stopping
"""
    )
    assert "SIGTERM" in run("train", *words, f"run_dir={broken}", cwd=tmp_path, prelude=stop, code=143)
    assert checkpoints.list_steps(broken)[-1] == 71
    run("train", f"resume={broken}", cwd=tmp_path, prelude=fault)
    assert [float(row["train/skipped"]) for row in trace(broken)] == [0, 5]
    run("train", f"resume={whole}", "sample_every=0", cwd=tmp_path)
    assert_same_rows_and_states(whole, broken)


def assert_same_rows_and_states(one: Path, other: Path) -> None:
    for folder in (one, other):
        (folder / "samples").mkdir(exist_ok=True)
    assert_equal_runs(one, other)


def test_always_no_number_leaves_a_record_that_needs_no_data(tmp_path):
    folder = tmp_path / "run"
    words = [*SETTINGS, "max_steps=40", f"run_dir={folder}", "strategy.accumulate=2"]
    fault = PRELUDE.format(positions=list(range(12 * 6, 12 * 40, 6)))
    told = run("train", *words, cwd=tmp_path, prelude=fault, code=6)
    assert "at step 17 the loss is nan" in told
    assert "11 steps in a row; the last good checkpoint is step 4." in told
    assert "python -m diffusion_lit.replay run=run" in told
    assert "Traceback" not in told
    assert checkpoints.list_steps(folder) == [4]  # at 8, 12 and 16 the weights would have been those of step 6
    record = step_record.load_step_record(folder)
    assert (record["step"], record["position"], record["micro_batch"]) == (17, 12 * 16, 6)
    summary = json.loads((folder / "non_finite_step.json").read_text())
    assert [image["index"] for image in summary["images"]] == record["index"].tolist()
    assert {layer["non_finite"] for layer in summary["layers"]} == {0}  # the fault is not in the step itself
    (folder / "config.yaml").write_text("data: {}\nmodel: {}\ndiffusion: {}\nsampler: {}\n")  # it is enough by itself
    told = run("replay", f"run={folder}", cwd=tmp_path)
    assert "all are finite" in told
    assert "The run computed in float32 too" in told


def test_a_student_leaves_no_record_because_replay_knows_no_teacher(tmp_path, tiny_run):
    words = ["distill=progressive", f"distill.teacher={tiny_run}", "max_steps=8", "log_every=1", "max_skipped_steps=0"]
    told = run("train", *words, "run_dir=out", cwd=tmp_path, code=6, prelude=PRELUDE.format(positions=[0, 12]))
    assert "non-finite for 1 steps in a row; there is no checkpoint yet" in told
    assert "replay" not in told
    assert not list((tmp_path / "out").glob("non_finite_step*"))


def test_replay_names_the_layer_where_it_began(tmp_path):
    """Against a pass that stops at the layer: what goes into it is finite, what comes out is not."""
    folder = tmp_path / "run"
    words = [
        *SETTINGS,
        "optimizer.lr=1e30",
        "trainer.gradient_clip_val=null",
        "max_skipped_steps=0",
        f"run_dir={folder}",
    ]
    assert "the loss is" in run("train", *words, cwd=tmp_path, code=6)
    told = run("replay", f"run={folder}", cwd=tmp_path)
    name = told.partition("first      ")[2].split()[0]
    record, config = step_record.load_step_record(folder), read_model_config(folder)
    net, diffusion = make_network(config), make_diffusion(config)
    net.load_state_dict(record["net"])
    draws = {key: value[:12] for key, value in record["draws"].items()}
    draws = type("Numbers", (), draws)
    x0 = flip_images(to_float(record["image"]), draws, config["data"]["flip"])
    condition = ClassCondition(config["data"]["num_classes"])
    y = condition.drop(record["y"], draws.u_drop, config["label_dropout"])
    t = diffusion.process.sample_times(draws.u_timestep)

    class Reached(Exception):
        pass

    def stop(module, inputs, output):
        assert all(x.isfinite().all() for x in inputs)
        assert not output.isfinite().all()
        raise Reached

    net.get_submodule(name).register_forward_hook(stop)
    with pytest.raises(Reached), torch.no_grad():
        diffusion.loss(net, x0, t, draws.eps, y)
    before = told.split(" <- first")[0].splitlines()[2:-1]
    assert before
    assert all(line.endswith("none") for line in before)
    broken = (
        step_record.trace_forward(net_without_hooks(config, record), diffusion, config, record)
        .losses.isfinite()
        .logical_not()
    )
    for k in broken.nonzero().flatten().tolist()[:10]:
        assert f"{record['index'][k]} at t {t[k]}" in told


def net_without_hooks(config: dict, record: dict) -> torch.nn.Module:
    net = make_network(config)
    net.load_state_dict(record["net"])
    return net


def test_replay_names_parameters_whose_gradient_is_not_finite(tmp_path, caplog):
    """sqrt at zero: 0 forward, infinite backward."""
    from diffusion_lit.replay import print_backward

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    torch.nn.init.zeros_(net[1].weight)
    net(torch.ones(1, 2)).sqrt().sum().backward()
    with caplog.at_level("INFO"):
        print_backward(net, float("nan"), "32-true")
    assert "the last layer first: 1.weight, 0.bias, 0.weight" in caplog.text


def test_replay_of_a_run_that_ended_well_or_of_a_broken_record(tmp_path, tiny_run):
    assert "has no non_finite_step.ckpt" in run("replay", f"run={tiny_run}", cwd=tmp_path, code=4)
    (tiny_run / "non_finite_step.ckpt").write_text("no")
    assert "cannot be read" in run("replay", f"run={tiny_run}", cwd=tmp_path, code=4)
    (tiny_run / "non_finite_step.ckpt").unlink()


@pytest.mark.slow
def test_two_processes_skip_together_when_one_has_no_number(tmp_path):
    """The second rank's half of step 5 is positions 66 to 71; rank 0's losses are all finite."""
    folder = tmp_path / "run"
    words = [*SETTINGS, "max_steps=8", "strategy=ddp", "strategy.devices=2", f"run_dir={folder}"]
    site = tmp_path / "site"
    site.mkdir()
    # new interpreters, which run this file when they start: ranks of forked commands are forks too
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'diffusion_lit.training.build_run':\n"
        "            sys.meta_path.remove(self)\n"
        f"            exec({PRELUDE.format(positions=[66])!r}, globals())\n"
        "sys.meta_path.insert(0, Late())\n"
    )
    env = os.environ | {"PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "diffusion_lit.train", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("whose gradients were not finite") == 1
    rows = trace(folder)
    assert [float(row["train/skipped"]) for row in rows] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert all(float(row["train/loss"]) > 0 for row in rows)  # rank 0's half counts
    state = last_checkpoint(folder)
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert all(moments["step"] == 7 for moments in state["optimizer_states"][0]["state"].values())


# ---------------------------------------------------------------------------------------------- parts


def test_a_window_leaves_out_what_is_not_finite_and_goes_on_from_its_state():
    strategy = {"accumulate": 2, "precision": "32-true"}
    window = LossWindow(strategy, torch.device("cpu"))
    for losses, skipped in (((0.5, 0.25), False), ((0.5, float("nan")), True), ((float("inf"), 0.5), True)):
        for loss in losses:
            window.add(torch.tensor(loss))
        window.end_step(torch.tensor(skipped))
    again = LossWindow(strategy, torch.device("cpu"), window.state())
    for found in (window.totals(), again.totals()):
        assert found == (1.75 / 2, 2, 2)  # four losses of halves, which are two steps
    again.reset()
    assert again.state() == [[0, 0, 0, 2]]
    again.add(torch.tensor(1.0))
    again.end_step(torch.tensor(False))
    assert again.totals().non_finite_in_a_row == 0
    again.add(torch.tensor(1.0))
    again.end_step(torch.tensor(True))  # an infinite gradient of a finite loss
    assert again.totals().non_finite_in_a_row == 1
    scaled = LossWindow(strategy | {"precision": "16-mixed"}, torch.device("cpu"))
    scaled.end_step(torch.tensor(True))
    assert scaled.totals()[1:] == (1, 0)


def test_an_average_that_skips_is_left_as_it_is_and_else_is_a_lerp():
    net, average = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    before = average.weight.detach().clone()
    tensors = averaging.split_tensors(average), averaging.split_tensors(net)
    averaging.update_ema(*tensors, 0.9, torch.tensor(True))
    assert torch.equal(average.weight, before)
    averaging.update_ema(*tensors, 0.9, torch.tensor(False))
    assert torch.equal(average.weight, torch.lerp(before, net.weight, 1 - 0.9))
