"""Odd command lines end in one message that says what to do, before anything starts, and leave nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lit import __main__
from diffusion_lit.cli import hydra_flags, launch
from diffusion_lit.config.value_types import FOLDER_NAME, quote
from tests.cases import each
from tests.runs import TINY, run, start

LONG = "n" * 300
MODEL = Path(__file__).parents[2] / "models" / "digits"
CASES = [  # arguments, exit code, part of the message
    # sweeps are counted before they are made
    (["train", "--multirun", "seed=range(1,1000000000)"], 2, "999,999,999 values are too many, at most 1,000"),
    (["train", "--multirun", "seed=shuffle(range(1,1000000000))"], 2, "999,999,999 values are too many"),
    (["train", "--multirun", "optimizer.lr=range(0.1,1,1e-12)"], 2, "900,000,000,000 values are too many"),
    (["train", "--multirun", "seed=range(0,inf)"], 2, "start, stop and step must be finite numbers"),
    (["train", "--multirun", "seed=range(0,3),1"], 2, "seed=range(0,3),1: a range, glob or sort cannot be one value"),
    (["train", "--multirun", "seed=sort(3,1),2"], 2, "Write all values, such as key=0,1,2"),
    (["train", "--multirun", "seed=0,,1"], 2, "seed=0,,1: cannot be parsed (a value is missing beside a comma)"),
    (["train", "--multirun", "seed=0,1,"], 2, "(a value is missing beside a comma)"),
    (["train", "--multirun", "seed=rang(0,3)"], 2, "cannot be parsed (Unknown function 'rang')"),
    (["train", "--multirun", "seed=rang({a:1})"], 2, "cannot be parsed (Unknown function 'rang')"),
    (["train", "--multirun", "seed=range(0,99)", "max_steps=range(1,99)"], 2, "9,702 jobs are too many"),
    (["train", "--multirun", "metric=nope", "seed=0,1"], 2, "metric=nope: no such number in result.json"),
    (["train", "--multirun", "metric=fd", "seed=0,1"], 2, "Add metrics_every=1200 'metrics=[fd]'"),
    (["train", "--multirun", "seed=0,1", "hydra.sweep.dir=/proc/x"], 5, "hydra.sweep.dir=/proc/x cannot be made"),
    (["train", "--multirun", "seed=0,1", "hydra.sweep.subdir=x"], 2, "the jobs of a sweep are numbered"),
    *[  # one job twice, or two jobs into one folder
        (["train", "--multirun", *values], 2, f"{' '.join(values)}: {fault}. Write each value once")
        for values, fault in [
            (["seed=1,1"], "job 2 repeats job 1"),
            (["seed=0,1,1"], "job 3 repeats job 2"),
            (["seed=0,1", "seed=0,1"], "job 3 repeats job 1"),
            (["optimizer.lr=1e-3,0.001"], "job 2 repeats job 1"),
            (["weighting=snr,snr", "seed=0,1"], "job 3 repeats job 1"),
        ]
    ],
    (["train", "--multirun", "seed=0,1", "run_dir=x"], 2, "run_dir=x: the jobs of a sweep are numbered folders in one"),
    (["audit", "--multirun", "data=synthetic", "data.image_size=8,16"], 2, "two jobs write to one place. Sweep out="),
    (["sample", "--multirun", f"run={MODEL}", "seed=0,1", "out=x"], 2, "two jobs write to one place. Sweep out="),
    (["export", "--multirun", f"run={MODEL}", "dtype=float16,float32", "out=x"], 2, "two jobs write to one place"),
    (["evaluate", "--multirun", f"run={MODEL}", "seed=0,1", "out=x"], 2, "out=x: the jobs of a sweep are numbered"),
    # numbers that nothing can serve
    (["train", "global_batch_size=1e12"], 2, "Write global_batch_size=1000000000000"),
    (["train", "global_batch_size=1000000000000"], 2, "too large, at most 1000000"),
    (["train", "sampler.batch_size=1000000000"], 2, "too large"),
    (["train", "max_steps=1000000000000000000000"], 2, "less than 2^63"),
    (["train", "data.image_size=1000000"], 2, "data.image_size=1000000: too large"),
    (["train", "diffusion.num_train_timesteps=20000000000"], 2, "must be int in [2, 100000]"),
    (["train", "metric=nope"], 2, "metric=nope: no such number in result.json"),
    (["sample", "run=nowhere", "num_images=10000000000"], 4, "num_images=10000000000: too large, at most 100000000"),
    (["evaluate", "run=nowhere", "shards=1000000000000", "out=x"], 4, "shards=1000000000000: too large"),
    (["train", "logger=wandb", "logger.project=a/b"], 2, "logger.project=a/b: must not contain /"),
    # names and folders
    (["train", f"name={LONG}"], 2, f"name={LONG}: must be {FOLDER_NAME}"),
    *[
        (["train", f"name={quote(name)}"], 2, f"name={name}: must be {FOLDER_NAME}")
        for name in ("../x", "/x", "a/b", "a\\b", ".", "..", "é" * 128)
    ],
    (["train", "--multirun", "seed=0,1", "name=../x"], 2, f"name=../x: must be {FOLDER_NAME}"),
    (["train", "resume=auto", "name=../x"], 2, f"name=../x: must be {FOLDER_NAME}"),
    (["train", "plan=true", "name=../x"], 2, f"name=../x: must be {FOLDER_NAME}"),
    (["visualize", "name=../x"], 2, f"name=../x: must be {FOLDER_NAME}"),
    (["train", 'name="a\nb"'], 2, f"name=a\\nb: must be {FOLDER_NAME}"),
    (["train", 'name="a\x1b[31mb"'], 2, f"name=a\\x1b[31mb: must be {FOLDER_NAME}"),
    (["train", f"run_dir={LONG}/x"], 2, "has 300 bytes, a name has at most 255"),
    (["train", "run_dir=/proc/x"], 5, "run_dir=/proc/x cannot be made"),
    (["sample", f"run={LONG}"], 2, "File name too long"),
    # quotes to copy
    (["train", "data.root=/home/josé"], 2, """'data.root="/home/josé"'"""),
    (["train", "data.root=a,b"], 2, "several values need --multirun"),
    (["train", "data.root=a&b"], 2, """'data.root="a&b"'"""),
    (["train", "name=1e3"], 2, """'name="1e3"'"""),
    (["train", "name=1_000"], 2, """'name="1_000"'"""),
    (["train", "name=null"], 2, f"name=null: must be {FOLDER_NAME}"),
    (["train", "data=image_folder", "data.root=cost ${money} $5"], 2, """'data.root="cost \\${money} $5"'"""),
    (["train", "data=image_folder", "data.root='${'"], 2, "If it is text, write"),
    (["train", "data=image_folder", "data.root='caf\udce9'"], 2, "has bytes that are not UTF-8"),
    # flags and keys of Hydra
    (["train", "--resolve"], 2, "need --cfg"),
    (["train", "--package", "model"], 2, "need --cfg"),
    (["train", "--cfg", "job", "--package", "modle"], 2, "--package modle: no such group (did you mean model?)"),
    (["train", "--config-name", "x"], 2, "a command has one configuration"),
    (["train", "--config-path", "x"], 2, "a command has one configuration"),
    (["train", "--experimental-rerun", "x"], 2, "Use resume=<run>"),
    (["train", "--shell-completion"], 2, "install=<shell>"),
    (["train", "--run", "--multirun", "seed=0,1"], 2, "exclude each other"),
    (["train", "hydra.output_subdir=.hydra"], 2, "cannot be changed"),
    (["train", "hydra/job_logging=none"], 2, "cannot be changed"),
    (["train", "seed@x=1"], 2, "@x cannot be set"),
    # a folder where an override should be, or a key of another choice
    (["train", "/usr"], 2, "/usr: must have the form key=value. For this folder: data=image_folder data.root=/usr"),
    (["train", "data=/usr"], 2, "For this folder: data=image_folder data.root=/usr"),
    (["train", "data.root=/usr"], 2, "data.root: no such key. data=image_folder or "),
    (["train", "sampler=ddpm", "sampler.eta=1"], 2, "sampler.eta: no such key. sampler=ddim"),
    (["train", "--ema=0", "--batch=0"], 2, "without a counterpart or a value: --ema"),
    # files and links where a folder should be
    (["train", "run_dir=/etc/passwd"], 5, "run_dir=/etc/passwd cannot be made: /etc/passwd is not a folder ("),
    (["train", "run_dir=/proc/self/fd/none/x"], 5, "cannot be made"),
    # names of other projects
    (["train", "latent=true"], 2, "Networks see pixels"),
    (["train", "learning_rate=1"], 2, "Use optimizer.lr="),
    (["sample", "run=nowhere", "labels=[1]"], 4, "Use classes="),
]  # fmt: skip


@each(("arguments", "code", "told"), CASES, ids=[" ".join(arguments)[:80] for arguments, _, _ in CASES])
def test_an_odd_command_line_is_one_message(arguments, code, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffusion-lit", *arguments])
    monkeypatch.setattr(launch, "hydra_main", lambda **settings: pytest.fail("it has started"))
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (code, ""), printed.err
    assert printed.err.startswith("error: ")
    assert told in printed.err
    assert "Traceback" not in printed.err
    assert os.listdir(tmp_path) == []


@each(
    ("error", "code", "told"),
    [
        (RuntimeError("why\nConfig search path: x"), 2, "error: hydra: why\n"),
        (AssertionError(), 2, "error: hydra: AssertionError\n"),
        (FileNotFoundError(2, "No such file", "/proc/x"), 5, "error: /proc/x: No such file\n"),
        (SystemExit(1), 2, ""),
    ],
)
def test_what_hydra_raises_before_the_job_is_a_message(error, code, told, capsys):
    def decorate(job):
        def fail():
            raise error

        return fail

    with pytest.raises(SystemExit) as ended:
        hydra_flags.start_hydra(decorate, print)()
    assert (ended.value.code, capsys.readouterr().err) == (code, told)
    assert hydra_flags.FULL_ERROR not in os.environ


def test_what_a_job_raises_stays_what_it_is():
    def fail(config):
        raise RuntimeError("of the job")

    with pytest.raises(RuntimeError, match="of the job"):
        hydra_flags.start_hydra(lambda job: lambda: job(None), fail)()


def test_a_folder_with_an_interpolation_in_its_name(tmp_path):
    """It is trained on with ${ escaped, the run can be read again, and its other spellings leave nothing."""
    root = tmp_path / "cost ${money} $5"
    root.mkdir()
    from PIL import Image

    for k in range(6):
        Image.effect_noise((8, 8), 50 + k).save(root / f"{k}.png")
    words = [*TINY, "data=image_folder", "data.image_size=8", "max_steps=1", "run_dir=run", "hydra.job.name=x"]
    printed = run("train", *words, "data.root=cost ${money} $5", cwd=tmp_path, code=2)
    assert not (tmp_path / "run").exists()
    advice = printed.split("write ")[-1].strip().strip("'")
    run("train", *words, advice, cwd=tmp_path)
    assert (tmp_path / "run" / "train.log").exists()
    run("sample", "run=run", "num_images=1", "out=s", cwd=tmp_path)
    assert "is complete" in run("train", "resume=run", cwd=tmp_path)


def test_a_removed_working_directory(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    process = start("train", cwd=here, prelude="import os; os.rmdir(os.getcwd())")
    printed, _ = process.communicate(timeout=120)
    assert (process.returncode, printed.count("\n")) == (5, 1)
    assert "the working directory was deleted" in printed


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--info"]])
def test_only_the_beginning_is_read(arguments, tmp_path):
    """As by `| head`: no traceback, exit 0."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "diffusion_lit.train", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert (process.wait(timeout=120), errors) == (0, "")


def test_the_benchmarks_list_themselves():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "  growth " in done.stdout


def test_debug_warns_of_no_warm_up_that_it_made_itself(tmp_path):
    printed = run("train", "experiment=cifar10_cond", "debug=on", cwd=tmp_path)
    assert "warm-up" not in printed
    assert "$" not in "".join(path.name for path in (tmp_path / "outputs" / "debug").iterdir())
