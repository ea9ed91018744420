"""What a user can get wrong, and what they are told: what is wrong, where, and what to do. Never a traceback.

Most cases call the command in this process with Hydra's start replaced, so that what is let through does not train.
"""

import contextlib
import fcntl
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lit import __main__
from diffusion_lit.cli import launch
from diffusion_lit.config.groups import CONF
from diffusion_lit.config.value_types import FOLDER_NAME
from diffusion_lit.runs import checkpoints
from diffusion_lit.system.errors import UserError
from tests.cases import each
from tests.runs import TINY, run


class Accepted(Exception):
    """The checks let a command line pass."""


@pytest.fixture
def typed(monkeypatch, tmp_path, capsys):
    """Type a command in an empty folder; returns what it printed, having ended with `code` and made nothing."""

    def start_of_hydra(**settings):
        raise Accepted

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(launch, "hydra_main", start_of_hydra)

    def type_(*words: object, code: int = 2) -> str:
        monkeypatch.setattr(sys, "argv", ["diffusion-lit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        printed = capsys.readouterr()
        assert ended.value.code == code, printed.err
        assert printed.err.startswith("error: ")
        assert "Traceback" not in printed.err
        assert printed.out == ""
        assert os.listdir(here) == []
        return printed.err

    return type_


@pytest.fixture
def passes(typed, monkeypatch):
    """Type a command that the checks must let pass."""

    def type_(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["diffusion-lit", *map(str, words)])
        with pytest.raises(Accepted):
            __main__.main()

    return type_


def picture(path: Path, size: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((size, size)).save(path)
    return path


# ------------------------------------------------------------------------------------------ the command line

CASES = [
    # unknown names
    ("experiment=cifar10", "experiment=cifar10: not found (did you mean cifar10_cond or cifar10_snr_x0 or cifa"),
    ("experiment=null", "experiment=null: not found (did you mean none?). Choose one of digits, celeba, cifar1"),
    ("model=unet_smal", "model=unet_smal: not found (did you mean unet_small?). Choose one of unet_small, cont"),
    ("sampler=dim", "sampler=dim: not found (did you mean ddim?). Choose one of dpmpp_sde, ddim, ddpm, deis, d"),
    ("optimizer=sgd", "optimizer=sgd: not found. Choose one of adamw, adam"),
    ("ema=null", "ema=null: not found (did you mean none?). Choose one of power, constant, none, rising"),
    ("data={a:1}", 'data={"a": 1}: not found. Choose one of image_folder, arrays, celeba, cifar10, concat, dat'),
    ("experiment=[a,b]", 'experiment=["a", "b"]: not found. Choose one of digits, celeba, cifar10_cond, cifar1'),
    ("experiment=", "experiment=: not found. Choose one of digits, celeba, cifar10_cond, cifar10_snr_x0, cifar"),
    ("max_step=3", "max_step: no such key (did you mean max_steps"),
    ("modle.dropout=0.1", "modle.dropout: no such group (did you mean model?)"),
    ("model.layers=3", "model.layers: no such key (did you mean model.layers_per_block?). model=unet_digits ha"),
    ("model.dropout.rate=3", "model.dropout.rate: no such key"),
    ("+new.key=1", "new.key: no such key. See --help"),
    # the right word in the wrong place
    ("lr=1", "lr: no such key (did you mean optimizer.lr?)"),
    ("batch_size=8", "batch_size: no such key (did you mean sampler.batch_size or global_batch_size?)"),
    ("steps=8", "steps: no such key (did you mean sampler.steps or max_steps"),
    ("optimizer.dropout=0.1", "optimizer.dropout: no such key (did you mean model.dropout?). optimizer=adamw h"),
    ("weighting=uniform weighting.gamma=3", "weighting.gamma: no such key. weighting=min_snr or p2 has it"),
    ("run=outputs/x", "run: no such key (did you mean run_dir"),
    # types
    ("max_steps=abc", "max_steps=abc: must be int >= 1"),
    ("max_steps=1e4", "max_steps=10000.0: must be int >= 1"),
    ("seed=1.5", "seed=1.5: must be int in [0, 9e18]"),
    ("seed=true", "seed=true: must be int in [0, 9e18]"),
    ("seed=null", "seed=null: must be int in [0, 9e18]"),
    ("seed=[1]", "seed=[1]: must be int in [0, 9e18]"),
    ("seed={a:1}", "seed={a:1}: must be one value or a list"),
    ("name=5", f"name=5: must be {FOLDER_NAME}. If it is text, quote it: 'name=\"5\"'"),
    ("optimizer.lr=fast", "optimizer.lr=fast: must be float > 0"),
    ("strategy.compile=1", "strategy.compile=1: must be auto or bool or reduce-overhead"),
    ("model.block_out_channels=3", "model.block_out_channels=3: must be list[int >= 1] x 1+. Write model."),
    ("model.block_out_channels=[a,b]", 'model.block_out_channels=["a", "b"]: must be list[int >= 1] x 1+'),
    ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: must be list[float in [0, 1)] x 2"),
    ("optimizer.betas=[0.9,1]", "optimizer.betas=[0.9, 1]: must be list[float in [0, 1)] x 2"),
    ("data.background=[0,0,256]", "data.background=[0, 0, 256]: must be list[int in [0, 255]] x 3"),
    ("accept=config", "accept=config: must be list[config | data | weights]. Write accept=[config]"),
    ("accept=[all]", 'accept=["all"]: must be list[config | data | weights]'),
    # ranges and choices
    ("optimizer.lr=-1", "optimizer.lr=-1: must be float > 0"),
    ("optimizer.lr=nan", "optimizer.lr=NaN: must be float > 0"),
    ("optimizer.lr=inf", "optimizer.lr=Infinity: must be float > 0"),
    ("label_dropout=2", "label_dropout=2: must be float in [0, 1]"),
    ("max_steps=0", "max_steps=0: must be int >= 1"),
    ("data.val_fraction=1", "data.val_fraction=1: must be float in [0, 0.9]"),
    ("data.channels=2", "data.channels=2: must be one of 1, 3, 4"),
    ("diffusion.beta_schedule=cosin", "diffusion.beta_schedule=cosin: must be one of linear, scaled_linear, cosine"),
    ("strategy.devices=2", "strategy.devices=2: strategy=single trains on one device. Use strategy=ddp"),
    # values that are missing or empty
    ("data=image_folder", "data.root: needs a value. Add data.root=..."),
    ("experiment=cifar10_cond data=image_folder", "data.root: needs a value. Add data.root=..."),
    ("data=image_folder data.root=", "data.root=: must be str, not empty"),
    ("name=", f"name=: must be {FOLDER_NAME}, not empty"),
    ("seed=", "seed=: must be int in [0, 9e18], not empty"),
    # values that do not go together
    ("sampler.steps=1001", "sampler.steps=1001: must be at most diffusion.num_train_timesteps=1000"),
    ("diffusion=ddpm diffusion.zero_terminal_snr=true", "diffusion.prediction_type=epsilon: with diffusion.zero_termi"),
    ("diffusion.beta_start=0.5", "diffusion.beta_start=0.5: must be at most diffusion.beta_end=0.02"),
    ("global_batch_size=10 strategy.accumulate=3", "global_batch_size=10: must be a multiple of strategy.accumul"),
    ("trainer.sync_batchnorm=true", "trainer.sync_batchnorm=true: PyTorch's SyncBatchNorm joins processes on GPUs"),
    ("lr_schedule=staircase lr_schedule.cycles=1", "learning rate of lr_schedule=staircase never falls. Set the num"),
    ("lr_schedule.name=linear", "lr_schedule.name=linear: fixed by the choice of lr_schedule"),
    ("lr_schedule.power=2", "lr_schedule.power: no such key (did you mean ema.power?). lr_schedule=polynomial has it"),
    # arguments of lightning.Trainer, callbacks, transforms
    ("trainer.max_steps=3", "trainer.max_steps: set by diffusion_lit. Use max_steps"),
    ("+trainer.callbacks=[]", "trainer.callbacks: set by diffusion_lit. Use +callbacks.<name>._target_="),
    ("+trainer.min_step=3", "trainer.min_step: lightning.Trainer has no such argument (did you mean trainer.min_steps"),
    ("trainer.min_steps=3", "trainer.min_steps: no such key. trainer=default has fast_dev_run, limit_train_bat"),
    ("trainer.max_time=3", "trainer.max_time=3: must be one of null, DD:HH:MM:SS"),
    ("trainer.fast_dev_run=0", "trainer.fast_dev_run=0: must be bool or int >= 1"),
    ("trainer.limit_val_batches=2.5", "trainer.limit_val_batches=2.5: must be null or int >= 1 or float in (0, 1]"),
    ("trainer.limit_train_batches=3 strategy.accumulate=2", "must be a multiple of strategy.accumulate=2"),
    ("+callbacks.stop.monitor=val/loss seed=x", "seed=x: must be int in [0, 9e18]"),
    ("callbacks.stop.patience=3", "callbacks.stop.patience: no such key. See --help. Add a new argument with +"),
    ("data.transforms=[{a:3}]", 'data.transforms=[{"a": 3}]: must be list[class]'),
    ("data=dataset", "data.dataset: needs a value. Add data.dataset=..."),
    ("max_epochs=0", "max_epochs=0: must be null or float > 0"),
    ("max_steps=5 max_epochs=2", "max_steps and max_epochs: both set the length of the run. Use one of the two"),
    ("ema.update_every=9 max_steps=5", "ema.update_every=9: must be at most max_steps=5, or the EMA stays untr"),
    ("label_dropout=0 guidance_scale=2", "guidance needs the unconditional model"),
    ("model.num_classes=3", "model.num_classes=3: follows data.num_classes. Set that instead"),
    ("model=dit model.num_classes=3", "model.num_classes=3: follows data.num_classes. Set that instead"),
    ("model=context_unet model.num_train_timesteps=9", "model.num_train_timesteps=9: follows diffusion.num_train_tim"),
    ("sampler.serves=[flow]", "sampler=dpmpp_sde: serves flow processes, and this one is discrete. Use ddim, d"),
    ("diffusion=edm sampler=flow_euler", "sampler=flow_euler: serves flow processes, and this one is edm. Use"),
    ("diffusion=flow diffusion.prediction_type=epsilon", "diffusion.prediction_type=epsilon: with diffusion=flow the"),
    ("diffusion=flow sampler=deis sampler.prediction_type=epsilon", "sampler.prediction_type=epsilon: not possible"),
    ("diffusion=flow diffusion.beta_start=1", "diffusion.beta_start: no such key. diffusion=cosine or"),
    ("diffusion=flow diffusion.process=edm", "diffusion.process=edm: fixed by the choice of diffusion"),
    ("diffusion=edm diffusion.sigma_min=90", "diffusion.sigma_min=90: must be less than diffusion.sigma_max=80"),
    ("diffusion=edm sampler.steps=1001", "sampler.steps=1001: must be at most 1000, the number of noise levels"),
    ("diffusion.timestep_distribution=normal", "must be one of uniform, stratified, logit_normal, stratified_"),
    ("sampler=euler_a sampler.prediction_type=sample", "sampler.prediction_type=sample: must be one of epsilon, v_pre"),
    (
        "diffusion=flow model=unet2d model.time_embedding_type=learned",
        "model.time_embedding_type=learned: needs discrete timesteps. Use positional",
    ),
    # grammar, flags, interpolations
    ("lr=[", "lr=[: cannot be parsed (no viable alternative at input '['). If it is text, quote it: 'lr=\"[\"'"),
    ("max_steps", "max_steps: must have the form key=value"),
    ("name=${", "name=${: cannot be parsed (extraneous input '{' expecting <EOF>). If it is text, quote it: "),
    ("data.root=/a(b)", "If it is text, quote it: 'data.root=\"/a(b)\"'"),
    ("~seed", "~seed: only arguments of a class can be removed, such as ~optimizer.betas"),
    ("~ema", "~ema: only arguments of a class can be removed"),
    ("+seed=1", "+seed=1: the key exists. Write seed=1"),
    ("++seed=1", "++seed=1: the key exists. Write seed=1"),
    ("--lr=3", "without dashes. The overrides of this project:\n    python -m diffusion_lit.train optimizer.lr=3"),
    ("--lr 3", "python -m diffusion_lit.train optimizer.lr=3"),
    ("max_steps=${epochs}", "max_steps=${epochs}: Interpolation key 'epochs' not found"),
    ("seed=${max_steps} max_steps=${seed}", "Recursive interpolation"),
    ("max_steps=${name}", "max_steps=digits: must be int >= 1"),
    ("--multirun hydra/launcher=ray seed=0,1", "Could not find 'hydra/launcher/ray'"),
    ("--multirun hydra/launcher=ray seed=0,1", 'pip install "diffusion_lit[sweeps]"'),
    ("--config-dir nowhere", "--config-dir nowhere: no such folder"),
    # classes
    ("model._target_=os.system", "model._target_=os.system: fixed by the choice of model. Choose another"),
    # sweeps
    ("seed=1,2", "seed=1,2: several values need --multirun. Write a list as key=[a,b]"),
    ("--multirun seed=1,2,x", "seed=x: must be int in [0, 9e18]"),
    ("--multirun sampler=ddim,ddpm,dim", "sampler=dim: not found (did you mean ddim?). Choose one of dpmpp_sde"),
    ("max_steps=3 --multirun optimizer.lr=choice(1,-1)", "optimizer.lr=-1: must be float > 0"),
    ("--multirun diffusion.prediction_type=sample,epsilon diffusion.zero_terminal_snr=false,true", "pure noise"),
    ("--multirun weighting=min_snr,uniform weighting.gamma=3", "weighting.gamma: no such key. weighting=min_snr"),
    ("--multirun optimizer.lr=interval(-1,1)", "optimizer.lr=-1.0: must be float > 0"),
    ("--multirun seed=interval(0,3)", "seed=3.0: must be int in [0, 9e18]. Write seed=int(interval(0,3))"),
    ("--multirun seed=int(interval(0,3))", "seed=int(interval(0,3)): the basic sweeper does not support interval()"),
    ("--multirun seed=range(3,1)", "seed=range(3,1): the sweep has no values"),
    ("hydra.mode=MULTIRUN seed=1,x", "seed=x: must be int in [0, 9e18]"),
    ("--multirun optimizer.lr=interval(0.1,1)", "optimizer.lr=interval(0.1,1): the basic sweeper does not support"),
    ("--multirun hydra/sweeper=optuna seed=0,1", "metric=class_accuracy: higher is better. Add hydra.sweeper."),
    (
        "--multirun hydra/sweeper=optuna metric=val/loss hydra.sweeper.direction=maximize seed=0,1",
        "metric=val/loss: lower is better. Add hydra.sweeper.direction=minimize",
    ),
    ("--multirun seed=0,1 hydra.sweep.dir=a/${hydra.job.num}", "hydra.sweep.dir: "),
    ("metric=", "metric=: must be null or str, not empty"),
]  # fmt: skip


NETWORK_CASES = [  # said by the classes, so torch is imported; no folder is made
    ("data.image_size=9", "model: image_size=9: must be a multiple of 2, the network halves images 1 time"),
    ("model=unet_small model.block_out_channels=[32,64,64] data.image_size=10", "must be a multiple of 4, the"),
    ("model.norm_num_groups=7", "block_out_channels=[32, 32]: must be a multiple of 7, norm_num_groups"),
    ("model.norm_num_groups=0", "model.norm_num_groups=0: must be int >= 1"),
    ("model.layers_per_block=0", "model.layers_per_block=0: must be int >= 1"),
    ("model.dropout=2", "model.dropout=2: must be float in [0, 1]"),
    ("model.attention_levels=[1] model.attention_head_dim=24", "block_out_channels=[32]: must be a multiple of 24"),
    ("model.middle_attention=true model.attention_head_dim=64", "block_out_channels=[32]: must be a multiple of 64"),
    ("model.attention_levels=[2]", "attention_levels=[2]: the network has levels 0 to 1"),
    ("model.block_out_channels=[]", "model.block_out_channels=[]: must be list[int >= 1] x 1+"),
    ("model=unet2d model.down_block_types=[DownBlock2D]", "down_block_types has 1 entries, block_out_channels="),
    ("model=unet2d model.up_block_types=[UpBlock]", 'up_block_types=["UpBlock"]: must be list[UpBlock2D | '),
    ("model=unet2d model.attention_head_dim=1000", "attention_head_dim=1000: must be at most"),
    ("model=unet2d model.block_out_channels=[32,32,8,32] model.norm_num_groups=32", "must be a multiple of 32"),
    ("model=unet2d model.act_fn=tanh", "act_fn=tanh: must be one of silu, gelu, relu, mish"),
    ("model=unet2d data.image_size=12", "image_size=12: must be a multiple of 8"),
    ("model=context_unet data.image_size=10", "image_size=10: must be a multiple of 4, the network halves images 2"),
    ("model=context_unet model.features=12", "features=12: must be a multiple of 8, the groups of the norms"),
    ("model=context_unet model.norm=layer", "norm=layer: must be one of group, batch"),
    ("model=simple_unet data.image_size=10", "image_size=10: must be a multiple of 4"),
    ("model=simple_unet model.widths=[8]", "widths=[8]: must be list[int >= 1] x 2+"),
    ("model=simple_unet model.widths=[8,16]", "attention_levels=[0, 1, 2]: the network has levels 0 to 0"),
    ("model=dit data.image_size=9", "image_size=9: must be a multiple of 2, the size of a patch"),
    ("model=dit model.heads=5", "width=192: must be a multiple of 5, the number of heads"),
    ("optimizer._target_=torch.optim.SGD", "optimizer.betas: torch.optim.SGD has no such argument, it has lr"),
    ("optimizer._target_=torch.optim.Sgd", "_target_=torch.optim.Sgd: class not found"),
    ("+optimizer.momentum=0.9", "optimizer.momentum: torch.optim.AdamW has no such argument"),
    ("+callbacks.stop._target_=os.system", "_target_=os.system: not a class that a configuration may build"),
    ("+callbacks.stop.monitor=val/loss", "callbacks.stop: add callbacks.stop._target_=package.Class"),
    (
        "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping",
        "callbacks.stop: lightning.pytorch.callbacks.EarlyStopping needs monitor. Add +callbacks.stop.monitor=...",
    ),
    (
        "data.transforms=[{_target_:torchvision.transforms.v2.ColorJitter,bright:1}]",
        "data.transforms[0].bright: torchvision.transforms.v2.ColorJitter has no such argument",
    ),
]  # fmt: skip


NO_TORCH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
sys.modules["torch"] = None  # an import of it would raise
from diffusion_lit.__main__ import main
for line in json.loads(sys.stdin.read()):
    sys.argv, told, printed, code = ["diffusion-lit", "train", *line.split()], io.StringIO(), io.StringIO(), 0
    with redirect_stderr(told), redirect_stdout(printed):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([line, code, told.getvalue(), printed.getvalue()]))
"""


def pairs() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Every case of one key and value with the next one of another key, and with the eighth one after it."""
    plain = [case for case in CASES if case[0].count("=") == 1 and not set(case[0]) & set(" ,~+-")]
    values = [case for case in plain if not (CONF / key_of(case)).is_dir()]  # what a wrong choice holds is not judged
    neighbours = [*itertools.pairwise(values), *zip(values, values[8:], strict=False)]
    return [(a, b) for a, b in neighbours if key_of(a) != key_of(b)]


def key_of(case: tuple[str, str]) -> str:
    return case[0].partition("=")[0].split(".")[0].replace("max_epochs", "max_steps")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """Exit code, message and other text for every case and pair, from a process that cannot import torch."""
    here = tmp_path_factory.mktemp("here")
    lines = [line for line, _ in CASES] + [f"{a[0]} {b[0]}" for a, b in pairs()]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH], cwd=here, input=json.dumps(lines), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert os.listdir(here) == []
    return {line: answer for line, *answer in map(json.loads, done.stdout.splitlines())}


@each(("line", "told"), CASES, ids=[line for line, _ in CASES])
def test_train_refuses(answers, line, told):
    code, said, printed = answers[line]
    assert (code, printed) == (2, ""), said
    assert said.startswith("error: ")
    assert told in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 12


@each(("one", "other"), pairs(), ids=[f"{a[0]} {b[0]}" for a, b in pairs()])
def test_train_tells_two_faults_at_once(answers, one, other):
    code, said, _ = answers[f"{one[0]} {other[0]}"]
    assert code == 2, said
    assert [told for _, told in (one, other) if told not in said] == [], said


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "run: needs a value. Add run=..."),
        ("run= num_images=4", "run=: must be str, not empty"),
        ("run=x run=y lr=3", "no such folder"),
        ("checkpoint=newest", "checkpoint=newest: must be last or best or int >= 0"),
        ("device=gpu", "device=gpu: must be one of auto, cpu, mps, cuda, cuda:<n>"),
        ("weights=raw", "weights=raw: must be one of ema, net"),
        ("num_images=0", "num_images=0: must be int >= 1"),
        ("gif=1", "gif=1: must be bool"),
        ("--multirun run=y,z", "run=y,z: one run at a time"),
        ("model=unet", "model: no such key"),
        ("sampler=dim", "sampler=dim: not found (did you mean ddim?)"),
    ],
)
def test_sample_refuses(typed, line, told):
    assert told in typed("sample", *line.split(), code=4 if "run=x" in line else 2)


def test_all_faults_are_told_at_once(typed):
    words = {
        "lr=1": "optimizer.lr",
        "batch_size=8": "global_batch_size",
        "seed=1.5": "seed=1.5: must",
        "label_dropout=2": "label_dropout=2: must",
        "model=unte": "unet_small",
        "ema=pwer": "power",
        "sampler.steps=2000": "num_train_timesteps=1000",
        "name=[": "name=[: cannot be parsed",
        "--x": "--x: unknown flag",
    }
    printed = typed("train", *words)
    assert [told for told in words.values() if told not in printed] == []
    assert len(printed.splitlines()) == 1 + 9


def test_a_faulty_choice_makes_no_further_faults(typed):
    """What a group would hold is not known, so its keys are not judged."""
    assert len(typed("train", "data=folder", "data.root=x", "sampler=dim", "sampler.tau=1").splitlines()) == 1 + 2
    assert len(typed("train", "experiment=mine", "data.root=x", "seed=x").splitlines()) == 1 + 2
    assert len(typed("train", "data=image_folder", "data.root=/a(b)").splitlines()) == 1 + 1


@pytest.mark.parametrize(
    "line",
    [
        "lr_schedule.warmup_fraction=0.1 data.num_classes=10 trainer.gradient_clip_val=null guidance_scale=0",
        "sample_every=${checkpoint_every} name=x_${seed}",
        "seed=1 --multirun weighting=glob(*) optimizer.lr=0.1,0.2",
        "hydra.job.name=other --multirun seed=range(0,3)",
        "--multirun hydra/launcher=joblib hydra.launcher.n_jobs=2 seed=0,1",
        "--multirun hydra/sweeper=optuna hydra.sweeper.direction=maximize optimizer.lr=tag(log,interval(0.0001,0.01))",
    ],
)
def test_train_lets_pass(passes, line):
    passes("train", *line.split())


def test_verbs(typed):
    assert "trian: no such command (did you mean train?)\nusage:" in typed("trian")


# ------------------------------------------------------------------------------------------ yaml files of ones own


def own(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / "own" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return tmp_path / "own"


HEAD = "# @package _global_\ndefaults:\n  - override /data: digits\n  - override /model: unet_digits\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "nme: x\n", "experiment=mine: nme: no such key (did you mean name"),
        (
            HEAD + "optimizer:\n  lrr: 1\n",
            "AdamW has no such argument (did you mean optimizer.lr?)",
        ),
        (HEAD + "optimizer:\n  lr: -1\n", "optimizer.lr=-1: must be float > 0"),
        (HEAD + "seed:\n", "seed=null: must be int in [0, 9e18]"),
        (
            HEAD + "ema: none\n",
            "ema is a config group. Choose it under `defaults:` with `- override /ema: none`",
        ),
        (HEAD.replace("unet_digits", "unte"), "Could not find 'model/unte'"),
        (HEAD.replace("/model", "/modle"), "Could not override 'modle'"),
        ("optimizer:\n  lr: 1\n", "experiment=mine: its first line must be # @package _global_"),
        (HEAD + "optimizer: [1\n", 'own/experiment/mine.yaml", line 6'),
        (HEAD + "optimizer:\n\tlr: 1\n", 'own/experiment/mine.yaml", line 6'),
    ],
)
def test_a_users_experiment_with_a_mistake(typed, tmp_path, text, told):
    folder = own(tmp_path, "experiment/mine", text)
    assert told in typed("train", "--config-dir", folder, "experiment=mine")


def test_a_sampler_for_another_process(typed, tmp_path):
    text = (CONF / "sampler" / "ddim.yaml").read_text().replace("[discrete, flow, edm]", "[flow]")
    folder = own(tmp_path, "sampler/mine", text)
    told = "sampler=mine: serves flow processes, and this one is discrete. Use ddim, ddpm, deis"
    assert told in typed("train", "--config-dir", folder, "sampler=mine")


def test_a_file_that_would_hide_behind_ours(typed, tmp_path):
    folder = own(tmp_path, "model/unet", "_target_: diffusion_lit.networks.unet.UNet\n")
    assert "rename model/unet.yaml, conf/ has that name" in typed("train", "--config-dir", folder)


@pytest.mark.parametrize(
    ("name", "told"), [("os.system", "not a class that a configuration may build"), ("nowhere.Net", "No module named")]
)
def test_a_class_of_ones_own_that_is_none(typed, tmp_path, name, told):
    folder = own(tmp_path, "ema/mine", f"_target_: {name}\n")
    printed = typed("train", "--config-dir", folder, "ema=mine")
    assert f"_target_={name}: " in printed
    assert told in printed


# ------------------------------------------------------------------------------------------ data


@pytest.fixture
def data_fault(typed, tmp_path):
    """The message for data.root = tmp_path / "in"."""
    return lambda *words: typed("train", "data=image_folder", f"data.root={tmp_path / 'in'}", *words, code=3)


def test_no_such_folder(data_fault):
    assert "/in: folder not found" in data_fault()


def test_a_folder_without_pictures(data_fault, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("none yet")
    assert "/in: no images found.\n  left out: .txt files: 1 (" in data_fault()


def test_empty_class_folders_are_named(data_fault, tmp_path):
    picture(tmp_path / "in" / "cats" / "1.png")
    picture(tmp_path / "in" / "dogs" / "1.png")
    for name in ("birds", "fish"):
        (tmp_path / "in" / name).mkdir()
    told = "class folders without images: birds, fish. Add images, remove the folders, or set data.labels=none"
    assert told in data_fault()


@pytest.mark.parametrize("split", ["", "train", "val"])
def test_loose_pictures_beside_class_folders(data_fault, tmp_path, split):
    for folder in ("train/a", "train/b", "val/a", "val/b") if split else ("a", "b"):
        picture(tmp_path / "in" / folder / "1.png")
    picture(tmp_path / "in" / split / "loose.png")
    assert f"{tmp_path / 'in' / split}: has images outside of the class folders" in data_fault()


def test_val_with_other_classes_than_train(data_fault, tmp_path):
    for folder in ("train/a", "train/b", "val/a", "val/c"):
        picture(tmp_path / "in" / folder / "1.png")
    assert "/in/val: classes that are not in the train folder: c" in data_fault()


def test_val_without_classes_or_pictures(data_fault, tmp_path):
    for folder in ("train/a", "train/b"):
        picture(tmp_path / "in" / folder / "1.png")
    (tmp_path / "in" / "val").mkdir()
    assert "/in/val: no images found" in data_fault()
    picture(tmp_path / "in" / "val" / "1.png")
    assert "/in/val: has images outside of the class folders" in data_fault()


def test_splits_without_train(data_fault, tmp_path):
    picture(tmp_path / "in" / "test" / "1.png")
    assert "has test but no train folder" in data_fault()


def test_splits_and_other_folders(data_fault, tmp_path):
    """As classes they would be trained on together with what is held out."""
    for name in ("train/a", "train/b", "test/a", "other"):
        picture(tmp_path / "in" / name / "1.png")
    assert "has train, test and beside them other. Move other elsewhere" in data_fault()


def test_num_classes_that_disagrees(data_fault, typed, tmp_path):
    assert "data.num_classes=11, but the source has 10 classes" in typed("train", "data.num_classes=11", code=3)
    picture(tmp_path / "in" / "1.png")
    assert "data.num_classes=2, but the source has no classes" in data_fault("data.num_classes=2")


def test_what_is_fine(passes, tmp_path):
    picture(tmp_path / "in" / "1.png")
    passes("train", "data=image_folder", f"data.root={tmp_path / 'in'}")
    for name in ("a", "b"):
        picture(tmp_path / "splits" / "train" / name / "1.png")
    picture(tmp_path / "splits" / "val" / "a" / "1.png")
    passes("train", "data=image_folder", f"data.root={tmp_path / 'splits'}", "data.num_classes=2")


def test_pictures_that_cannot_be_read_are_named_and_leave_no_run(tmp_path):
    """Found while decoding, after the run folder was made: it goes again."""
    for k in range(5):
        picture(tmp_path / "in" / f"good{k}.png")
    for k in range(12):
        (tmp_path / "in" / f"bad{k:02d}.jpg").write_text("<html>404</html>")
    printed = run("train", *TINY, "data=image_folder", "data.root=in", "data.val_fraction=0", cwd=tmp_path, code=3)
    assert "error: 12 of 17 images cannot be read. Repair or remove them:\n  in/bad00.jpg: " in printed
    assert "in/bad09.jpg: cannot be read as an image" in printed
    assert "bad10" not in printed
    assert "and 2 more" in printed
    assert "Traceback" not in printed
    assert [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()] == []


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A run of 4 steps on 8 pictures in two classes, checkpoints at 2 and 4, and what it printed in printed.txt."""
    folder = tmp_path_factory.mktemp("finished")
    for k in range(8):
        picture(folder / "in" / "ab"[k % 2] / f"{k}.png")
    words = [*TINY, "data=image_folder", "data.root=in", "data.image_size=8", "sample_every=0"]
    printed = run("train", *words, "max_steps=4", "checkpoint_every=2", "run_dir=run", cwd=folder)
    (folder / "run" / "printed.txt").write_text(printed)
    return folder / "run"


@pytest.fixture
def a_run(finished, tmp_path) -> Path:
    """A copy to break, beside its pictures."""
    shutil.copytree(finished.parent / "in", tmp_path / "here" / "in", dirs_exist_ok=True)
    return shutil.copytree(finished, tmp_path / "a_run", symlinks=True)


@pytest.fixture
def refused(typed, finished, monkeypatch):
    """Go on with a run where its pictures are, in vain."""

    def type_(*words: object, code: int = 4) -> str:
        return typed("train", *words, f"data.root={finished.parent / 'in'}", code=code)

    return type_


def test_fewer_pictures_than_a_batch_is_said_and_trained(finished):
    printed = (finished / "printed.txt").read_text()
    assert "note       8 images are fewer than global_batch_size=12: a batch repeats some" in printed
    assert checkpoints.list_steps(finished) == [2, 4]


def test_resume_of_what_is_no_run(typed, tmp_path):
    assert "nowhere: no such folder" in typed("train", "resume=nowhere", code=4)
    (tmp_path / "empty").mkdir()
    assert "empty is not a run folder" in typed("train", f"resume={tmp_path / 'empty'}", code=4)
    assert "empty is not a run folder" in typed("sample", f"run={tmp_path / 'empty'}", code=4)


def test_without_a_checkpoint_there_is_nothing_to_sample_and_a_resume_starts_at_step_0(typed, finished, tmp_path):
    bare = shutil.copytree(finished, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints", "result.json"))
    assert "bare has no checkpoint yet" in typed("sample", f"run={bare}", code=4)
    printed = run("train", f"resume={bare}", f"data.root={finished.parent / 'in'}", cwd=tmp_path)
    assert "bare has no checkpoint yet: starting from step 0" in printed
    assert checkpoints.list_steps(bare) == [2, 4]


@pytest.mark.parametrize(("file", "text"), [("config.yaml", "seed: ["), ("config.yaml", "- 1"), ("command.txt", "")])
def test_a_run_folder_with_a_damaged_file(refused, finished, tmp_path, file, text):
    damaged = shutil.copytree(finished, tmp_path / "damaged", symlinks=True)
    (damaged / file).write_text(text)
    assert f"{file} is damaged" in refused(f"resume={damaged}")


def test_nothing_is_trained_over_and_nothing_of_a_users_is_removed(typed, tmp_path, monkeypatch):
    """A folder with anything in it is no place for a new run, whatever else goes wrong."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    assert "mine is not empty" in typed("train", f"run_dir={mine}", code=5)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.png").write_text("no picture")
    typed("train", "data=image_folder", f"data.root={bad}", f"run_dir={mine}", code=5)
    assert (mine / "letter.txt").read_text() == "dear"
    assert "cannot be made" in typed("train", "run_dir=/dev/null/x", code=5)


def test_another_network_although_the_configuration_was_accepted(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    words = [f"resume={copy}", "max_steps=6", "model.block_out_channels=[16,16]", "accept=[config]"]
    printed = run("train", *words, f"data.root={finished.parent / 'in'}", cwd=tmp_path, code=4)
    assert "the checkpoint of step 4 cannot be used: weights of another network: other shapes" in printed
    assert "Traceback" not in printed
    assert checkpoints.list_steps(copy) == [2, 4]


def test_every_damage_to_a_checkpoint_is_a_message(finished, tmp_path):
    """Cut or with flipped bytes anywhere, the archive's headers too: named, never a traceback or other weights."""
    whole = checkpoints.select_checkpoint(finished).read_bytes()
    right = checkpoints.load_checkpoint(checkpoints.select_checkpoint(finished))["state_dict"]
    dice = random.Random(0)
    path = tmp_path / "step-00000004.ckpt"
    for _ in range(200):
        damaged = bytearray(whole)
        place = dice.choice([dice.randrange(len(whole)), dice.randrange(300), len(whole) - 1 - dice.randrange(3000)])
        if dice.random() < 0.3:
            del damaged[place:]
        else:
            damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        if checkpoints.find_damage(path) is None:
            with contextlib.suppress(UserError):  # what the checksums missed, torch notices
                state = checkpoints.load_checkpoint(path)["state_dict"]
                assert all(torch.equal(state[key], value) for key, value in right.items())


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("model.block_out_channels=[16,16]", "model.block_out_channels: [8, 8] in the run, [16, 16] now"),
        ("diffusion.beta_schedule=linear", "diffusion.beta_schedule: cosine in the run, linear now"),
        ("data.channels=1", "data.channels: 3 in the run, 1 now"),
    ],
)
def test_resume_with_another_configuration(refused, passes, finished, word, told):
    printed = refused(f"resume={finished}", word)
    assert told in printed
    assert "accept=[config] to resume with the new ones" in printed
    assert len(printed.splitlines()) <= 12
    passes("train", f"resume={finished}", word, "accept=[config]", f"data.root={finished.parent / 'in'}")


def test_resume_with_other_lengths_and_intervals(passes, finished):
    words = ["max_steps=9", "log_every=2", "checkpoint_every=3", "sampler=ddpm", "guidance_scale=2"]
    passes("train", f"resume={finished}", *words, f"data.root={finished.parent / 'in'}")


def test_a_run_in_use(refused, finished):
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); "
        "file.truncate(0); file.write('process 7 on host x'); file.flush(); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, finished / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert "run is in use by process 7 on host x" in refused(f"resume={finished}", "max_steps=9", code=5)
    holder.communicate("\n")
    with open(finished / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_all_checkpoints_broken(refused, typed, finished, tmp_path):
    broken = shutil.copytree(finished, tmp_path / "broken", symlinks=True)
    for step in (2, 4):
        path = checkpoints.checkpoint_path(broken, step)
        path.write_bytes(path.read_bytes()[: step * 100])
    for printed in (refused(f"resume={broken}"), typed("sample", f"run={broken}", code=4)):
        assert "all checkpoints of this run are damaged" in printed
        assert "step-00000002.ckpt (damaged: " in printed
        assert "step-00000004.ckpt (damaged: " in printed


def test_a_truncated_newest_checkpoint_is_passed_over_and_named(finished, tmp_path):
    shutil.copytree(finished.parent / "in", tmp_path / "in")
    cut = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    path = checkpoints.checkpoint_path(cut, 4)
    path.write_bytes(path.read_bytes()[:-1000])
    printed = run("train", "resume=run", "max_steps=5", cwd=tmp_path)
    assert f"using step-00000002.ckpt instead of {path} (damaged: " in printed
    assert checkpoints.find_damage(checkpoints.checkpoint_path(cut, 4)) is None  # step 4 was trained and saved again
    assert checkpoints.list_steps(cut)[-1] == 5


def test_sample_asks_for_what_the_run_has(typed, finished):
    assert "has no checkpoint '3'. Choose last, best, or a step of: 2, 4" in typed(
        "sample", f"run={finished}", "checkpoint=3", code=4
    )
    assert "c: not a class of this run. Choose from 0 a, 1 b" in typed("sample", f"run={finished}", "classes=[c]")


def test_classes_refuse_arguments_that_they_do_not_take(typed):
    for line, wanted in NETWORK_CASES:
        assert wanted in typed("train", *line.split()), line


# ------------------------------------------------------------------------------------------ as a real process


def test_faults_are_told_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; sys.argv = ['diffusion-lit', 'train', 'lr=1', 'data=image_folder', 'data.root=nowhere']\n"
        "from diffusion_lit.__main__ import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    for word, exit_code in (("lr=1", 2), ("seed=1", 3)):
        command = [sys.executable, "-c", code.replace("lr=1", word)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == exit_code, done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert os.listdir(tmp_path) == []
