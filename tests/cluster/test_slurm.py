"""A real SLURM of two nodes: training over both by srun, queued again by signals and preemption, and sweeps."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffusion_lit.distributed.slurm import choose_port, export_torchrun_environment, first_host, parse_tasks_per_node
from tests.cluster.hosts import train_unforked
from tests.cluster.slurm import ROOT, Slurm, slurm
from tests.equal_runs import assert_equal_runs, assert_equal_training
from tests.ranks import DDP
from tests.runs import TINY, last_step, trace
from tests.sweeps import DIVERGING, OPTUNA, QUICK, is_figure_drawn, rows_of

# long enough for SLURM, which looks at time limits every half minute
LONG = [*TINY, "max_steps=1500", "log_every=20", "checkpoint_every=500", "val_every=500", "sample_every=750"]
LONG += ["model.dropout=0.1", "data.flip=0.5", "lr_schedule.warmup_steps=400", "seed=3"]
HERE = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--partition=low"]


# -------------------------------------------------------------------------------------- the environment of srun

STEP = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NODELIST": "gpu[07-08,11]", "SLURM_NODEID": "1",
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "5",
}  # fmt: skip
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch) -> dict[str, str]:
    environment = dict(STEP)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(os, "isatty", lambda number: False)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    return environment


def test_a_step_of_several_tasks_gets_torchruns_variables(environment):
    export_torchrun_environment()
    assert [environment[key] for key in TORCHRUN[:5]] == ["3", "5", "1", "2", "gpu07"]
    assert environment["MASTER_PORT"] == str(16000 + 7 * 77 + 2)


def test_tasks_that_write_unbuffered_have_a_terminal_to_write_to(environment, monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda number: number == 1)
    export_torchrun_environment()
    assert environment["RANK"] == "3"


def test_the_environment_can_name_another_meeting_point(environment):
    environment |= {"MASTER_ADDR": "login", "MASTER_PORT": "1"}
    export_torchrun_environment()
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"], environment["RANK"]) == ("login", "1", "3")


def test_one_node_meets_at_itself(environment):
    environment |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "5", "SLURM_NODEID": "0"}
    export_torchrun_environment()
    assert environment["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("case", ["script of sbatch", "one task", "torchrun", "a shell"])
def test_what_is_a_run_of_its_own(environment, monkeypatch, case):
    if case == "script of sbatch":
        for key in [key for key in environment if key.startswith("SLURM_STEP")]:
            del environment[key]
    environment |= {"one task": {"SLURM_STEP_NUM_TASKS": "1"}, "torchrun": {"RANK": "0"}}.get(case, {})
    if case == "a shell":
        monkeypatch.setattr(os, "isatty", lambda number: number == 0)
    before = dict(environment)
    export_torchrun_environment()
    assert environment == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("b,a[1-2]", "b"),
        ("r[1-2]n[03-4]-x", "r1n03-x"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_tasks_of_each_node():
    assert parse_tasks_per_node("8") == [8]
    assert parse_tasks_per_node("4(x2),3,1(x3)") == [4, 4, 3, 1, 1, 1]


def test_no_two_jobs_of_a_node_meet_at_one_port():
    ports = {choose_port(job, step) for job in range(500, 2700) for step in range(7)}
    assert len(ports) == 2200 * 7
    assert min(ports) >= 1024
    assert max(ports) < 32768


# ------------------------------------------------------------------------------------------ a real one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The unbroken run, of two processes that rank 0 starts itself."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    train_unforked("experiment=digits", *LONG, *DDP, f"run_dir={folder}", cwd=folder.parent)
    return folder


def submitted(cluster: Slurm, here: Path, name: str) -> tuple[str, Path]:
    """The example as it is, after its first steps; the job's number and the run folder."""
    script = str(ROOT / "examples" / "slurm" / "train.sbatch")
    job = cluster(
        "sbatch", "--parsable", f"--job-name={name}", *HERE, script, "experiment=digits", *LONG, cwd=here
    ).strip()
    cluster.until(lambda: any(last_step(path) > 100 for path in here.glob(f"outputs/{name}/*")), "training", 200)
    (folder,) = (here / "outputs" / name).iterdir()
    return job, folder


@pytest.mark.cluster
@pytest.mark.parametrize("how", ["its time limit", "a job of higher priority"])
def test_a_job_that_srun_started_on_two_nodes_is_queued_again_and_ends_as_if_unbroken(cluster, unbroken, tmp_path, how):
    job, folder = submitted(cluster, tmp_path, how.split()[-1])
    if how == "its time limit":
        minutes = int(cluster.job(job)["RunTime"].split(":")[1])  # less than the notice of train.sbatch is left
        cluster("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes + 2}")
        name, code = "SIGUSR1", 75
    else:
        other = cluster(
            "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1", cwd=tmp_path
        )
        name, code = "SIGTERM", 143
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", "the job is queued again")
    cluster.until((folder / "result.json").exists, "saving")  # SLURM counts a restart before the tasks have ended
    stopped = json.loads((folder / "result.json").read_text())
    assert (stopped["status"], stopped["exit_code"]) == ("interrupted", code)
    assert stopped["steps"] < 1500
    cluster.until(lambda: cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), "the job waits or runs")
    cluster("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    ended = cluster.ended(job)
    printed = (tmp_path / f"{folder.parent.name}-{job}.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), printed
    assert how == "its time limit" or cluster.ended(other.strip())["JobState"] == "COMPLETED"
    assert f"{name}: finishing this step and saving" in printed
    assert printed.count("is queued again") == (code == 75)
    assert f"task 0: Exited with exit code {code}" in printed
    assert printed.count("step 1500/1500") == 1
    assert "Traceback" not in printed
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert_equal_runs(unbroken, folder)


def run_sweep(cluster: Slurm, here: Path, *overrides: str, code: int = 0) -> tuple[Path, str]:
    """A sweep whose jobs SLURM runs, one CPU each; its folder and what it printed."""
    queue = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=1"]
    command = ["python", "-m", "diffusion_lit.train", "--multirun", *queue, *QUICK, *overrides]
    done = subprocess.run(command, cwd=here, env=cluster.env, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    (sweep,) = (here / "outputs" / "digits").iterdir()
    assert not list(sweep.glob(".ended-*"))
    return sweep, done.stdout + done.stderr


@pytest.mark.cluster
def test_a_sweep_by_submitit_ends_as_on_one_machine(cluster, tmp_path):
    sweep, printed = run_sweep(cluster, tmp_path, "weighting=snr,min_snr", "seed=0,1")
    rows = rows_of(sweep)
    assert [(row["weighting"], row["seed"], row["status"]) for row in rows] == [
        (name, seed, "finished") for name in ("snr", "min_snr") for seed in "01"
    ]
    assert len({row["val/loss"] for row in rows}) == 4
    assert is_figure_drawn(sweep)
    (best,) = [line.split() for line in printed.splitlines() if "<- " in line]  # of two seeds, perhaps not clearly
    assert (best[0] in ("snr", "min_snr"), best[1]) == (True, "2")
    train_unforked(*QUICK, "weighting=snr", "seed=1", "run_dir=alone", cwd=tmp_path)
    assert trace(tmp_path / "alone") == trace(sweep / "1")


@pytest.mark.cluster
def test_a_job_that_fails_in_the_queue_is_reported_with_its_exit_code(cluster, tmp_path):
    sweep, printed = run_sweep(cluster, tmp_path, *DIVERGING, code=6)
    assert [(row["status"], row["exit_code"]) for row in rows_of(sweep)] == [("failed", "6"), ("finished", "0")]
    assert "failed     0 (optimizer.lr=1e+30): at step" in printed
    assert "Traceback" not in printed


@pytest.mark.cluster
def test_jobs_of_a_sweep_that_are_queued_again_go_on_in_their_folders(cluster, tmp_path):
    overrides = [*LONG, "val_every=0", "sample_every=0", "max_steps=600,601"]
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(run_sweep, cluster, tmp_path, *overrides)
        jobs = {}
        for number in "01":
            cluster.until(lambda: any(map(last_step, tmp_path.glob(f"outputs/digits/*/{number}"))), "training")  # noqa: B023
            (log,) = tmp_path.glob(f"outputs/digits/*/.submitit/*_{number}/")
            jobs[number] = log.name
        cluster("scontrol", "requeue", jobs["0"])  # SIGTERM, as by preemption
        cluster("scancel", "--signal=USR1", jobs["1"])  # as before the time limit
        sweep, printed = ended.result()
    assert [(row["status"], row["steps"]) for row in rows_of(sweep)] == [("finished", "600"), ("finished", "601")]
    logs = [(sweep / number / "train.log").read_text() for number in "01"]
    assert ["SIGTERM: finishing" in logs[0], "SIGUSR1: finishing" in logs[1]] == [True, True]
    assert [text.count("resuming ") for text in logs] == [1, 1]
    train_unforked(*QUICK, *overrides[:-1], "max_steps=601", "run_dir=alone", cwd=tmp_path)
    assert_equal_training(tmp_path / "alone", sweep / "1")


def process_of(job: str) -> int:
    """Process id of a job of a sweep, `array_task`."""
    variables = dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), job.split("_"), strict=True))
    expected = {f"{key}={value}".encode() for key, value in variables.items()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, *rest = (process / "cmdline").read_bytes().split(b"\0")
            environment = {*(process / "environ").read_bytes().split(b"\0")}
        except OSError:  # it has just ended
            continue
        if b"python" in command and b"submitit.core._submit" in rest and expected <= environment:  # and not srun
            return int(process.name)
    raise ProcessLookupError(job)


@pytest.mark.cluster
@pytest.mark.parametrize(("how", "status", "code"), [("cancelled", "interrupted", 143), ("killed", "unfinished", 75)])
def test_a_job_that_ends_without_a_result_does_not_end_the_waiting_for_the_others(cluster, tmp_path, how, status, code):
    overrides = [*LONG, "val_every=0", "sample_every=0", "max_steps=600,601"]
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(run_sweep, cluster, tmp_path, *overrides, code=code)
        cluster.until(lambda: any(map(last_step, tmp_path.glob("outputs/digits/*/0"))), "training")
        (log,) = tmp_path.glob("outputs/digits/*/.submitit/*_0/")
        if how == "killed":
            os.kill(process_of(log.name), signal.SIGKILL)
        else:
            cluster("scancel", log.name)
        sweep, printed = ended.result()
    assert [row["status"] for row in rows_of(sweep)] == [status, "finished"]
    assert f"job {log.name} left no result" in printed
    assert "Traceback" not in printed


@pytest.mark.cluster
def test_optuna_searches_in_the_queue(cluster, tmp_path):
    overrides = [*OPTUNA, "hydra.sweeper.n_trials=3", "hydra.sweeper.direction=minimize"]
    sweep, printed = run_sweep(cluster, tmp_path, *overrides, "optimizer.lr=tag(log,interval(0.0001,0.01))")
    rows = rows_of(sweep)
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert len({row["optimizer.lr"] for row in rows}) == 3
    best = min(float(row["val/loss"]) for row in rows)
    assert f"best_value: {best}" in (sweep / "optimization_results.yaml").read_text()
    assert printed.count("<- best") == 1
