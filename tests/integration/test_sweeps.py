"""Sweeps: one folder of jobs, whatever becomes of single ones; its table, its picture, and sweepers that optimise."""

import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_lit.cli import summary
from diffusion_lit.figures.sweep_results import plot_sweep
from diffusion_lit.runs import run_dir, stored_config, sweeps
from tests.runs import last_step, run, start, trace
from tests.sweeps import DIVERGING, OPTUNA, QUICK, is_figure_drawn, rows_of

# ------------------------------------------------------------------------------------------ folders written by hand


def write_sweep(sweep: Path, space: dict[str, list], result_of) -> Path:
    """A job for every combination; `result_of` gives its result.json from its values, or nothing."""
    for number, values in enumerate(itertools.product(*space.values())):
        job = sweep / str(number)
        job.mkdir(parents=True)
        words = [f"{key}={value}" for key, value in zip(space, values, strict=True)]
        run_dir.append_command(job, ["max_steps=3", *words])
        result = result_of(*values)
        if result:
            run_dir.write_result(job, result)
    return sweep


def finished(value: float | None, **more) -> dict:
    return {"status": "finished", "exit_code": 0, "val/loss": value, **more}


FAILED = {"status": "failed", "exit_code": 6, "error": "the loss is nan"}


def test_swept_keys_are_those_with_more_than_one_value(tmp_path):
    space = {"weighting": ["snr", "p2"], "ema": ["none"], "model.attention_levels": ["[]", "[1,2]"], "seed": [0, 1]}
    jobs = sweeps.list_jobs(write_sweep(tmp_path, space, lambda *values: None))
    assert sweeps.find_swept_keys(jobs) == ["weighting", "model.attention_levels", "seed"]
    assert jobs[2].overrides["model.attention_levels"] == "[1,2]"


def test_a_job_that_was_resumed_is_the_same_job(tmp_path):
    write_sweep(tmp_path, {"seed": [0, 1]}, lambda seed: finished(1.0))
    run_dir.append_command(tmp_path / "1", ["max_steps=3", "seed=1", "resume=x/1", "run_dir=x/1", "accept=[data]"])
    assert sweeps.find_swept_keys(sweeps.list_jobs(tmp_path)) == ["seed"]


def test_a_row_for_each_job_in_its_order_with_all_of_its_result(tmp_path):
    results = [finished(0.1 * k, class_accuracy=None, many=[1, 2]) for k in range(12)]
    results[3], results[10] = FAILED, None
    write_sweep(tmp_path, {"seed": list(range(12))}, lambda seed: results[seed])
    sweeps.write_sweep_results(tmp_path)
    rows = rows_of(tmp_path)
    names = ["job", "seed", "status", "exit_code", "val/loss", "class_accuracy", "error", "folder"]
    assert list(rows[0]) == names
    assert [row["job"] for row in rows] == [row["seed"] for row in rows] == [str(k) for k in range(12)]
    assert [float(row["val/loss"]) for k, row in enumerate(rows) if k not in (3, 10)] == [
        result["val/loss"] for k, result in enumerate(results) if k not in (3, 10)
    ]  # to the last digit
    assert (rows[3]["status"], rows[3]["exit_code"], rows[3]["error"]) == ("failed", "6", "the loss is nan")
    assert (rows[10]["status"], rows[10]["exit_code"], rows[10]["val/loss"]) == ("unfinished", "", "")
    assert Path(rows[7]["folder"]) == tmp_path / "7"


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_interval_is_students(n):
    from scipy import stats

    numbers = [math.sin(k) for k in range(n)]
    mean, half = sweeps.compute_mean_interval(numbers)
    low, high = stats.t.interval(0.95, n - 1, loc=sum(numbers) / n, scale=stats.sem(numbers))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-12)


def test_the_interval_of_two_in_closed_form_and_of_one_there_is_none():
    # Student's t with one degree of freedom is Cauchy's: its 97.5 % point is tan(0.475 pi)
    assert sweeps.compute_mean_interval([1.0, 3.0]) == (2.0, pytest.approx(math.tan(0.475 * math.pi)))
    assert sweeps.compute_mean_interval([4.0]) == (4.0, None)
    assert sweeps.compute_mean_interval([]) == (None, None)


def test_means_are_over_seeds_of_finished_jobs_the_best_first(tmp_path):
    values = {("a", 0): 3.0, ("a", 1): 5.0, ("b", 0): 2.0, ("b", 1): math.nan, ("c", 0): 1.0, ("c", 1): 9.0}

    def result_of(word, seed):
        value = values[word, seed]
        return FAILED | {"val/loss": 0.0} if word == "c" and seed == 0 else finished(value, class_accuracy=value)

    jobs = sweeps.list_jobs(write_sweep(tmp_path, {"weighting": ["a", "b", "c"], "seed": [0, 1]}, result_of))
    lower = sweeps.group_jobs(jobs, ["weighting"], "val/loss")
    assert [(g.values[0], g.numbers, g.mean) for g in lower] == [
        ("b", [2.0], 2.0), ("a", [3.0, 5.0], 4.0), ("c", [9.0], 9.0),
    ]  # fmt: skip
    higher = sweeps.group_jobs(jobs, ["weighting"], "class_accuracy")
    assert [g.values[0] for g in higher] == ["c", "a", "b"]


def test_what_a_sweeper_gets():
    assert sweeps.compute_objective(finished(0.5), "val/loss") == 0.5
    for bad in (finished(None), finished(math.nan), FAILED | {"val/loss": 0.1}, {}):
        assert sweeps.compute_objective(bad, "val/loss") == math.inf
        assert sweeps.compute_objective(bad, "class_accuracy") == -math.inf


def test_a_table_of_many_lines_is_whole_in_a_pipe(tmp_path, capsys):
    space = {"weighting": [f"a_weighting_with_a_long_name_{k}" for k in range(45)], "optimizer.lr": ["0.00123456789"]}
    write_sweep(tmp_path, space | {"seed": [0, 1]}, lambda word, lr, seed: finished(int(word.split("_")[-1]) + seed))
    summary.summarize_sweep(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["weighting", "n", "val/loss", "±", "95", "%", "not", "finished"]
    first = ["a_weighting_with_a_long_name_0", "2", "0.5", "6.3531"]
    assert lines[1].split() == [*first, "<-", "not", "clearly", "best"]
    assert lines[45].split()[:3] == ["a_weighting_with_a_long_name_44", "2", "44.5"]
    assert is_figure_drawn(tmp_path)


def test_failures_are_told_with_their_reason(tmp_path, capsys):
    write_sweep(tmp_path, {"seed": [0, 1, 2]}, lambda seed: [FAILED, None, finished(1.0)][seed])
    summary.summarize_sweep(tmp_path)
    printed = capsys.readouterr().out
    assert "failed     0 (seed=0): the loss is nan\nunfinished 1 (seed=1)\n" in printed


def test_a_metric_that_no_result_has(tmp_path, capsys):
    write_sweep(tmp_path, {"seed": [0, 1]}, lambda seed: finished(1.0, class_accuracy=None, grid="x.png"))
    for metric in ("fid", "class_accuracy", "grid"):
        summary.summarize_sweep(tmp_path, metric)
        told = (
            f"no result has a number '{metric}'. Choose one of val/loss: python -m diffusion_lit.cli.summary {tmp_path}"
        )
        assert told in capsys.readouterr().out
    assert not (tmp_path / "results.png").exists()
    assert len(rows_of(tmp_path)) == 2


def test_the_summary_by_hand(tmp_path):
    write_sweep(tmp_path / "sweep", {"seed": [0, 1]}, lambda seed: finished(seed, class_accuracy=0.5 + seed))
    assert "mean of class_accuracy over n seeds" in run("cli.summary", "sweep", "class_accuracy", cwd=tmp_path)
    assert is_figure_drawn(tmp_path / "sweep")
    assert "not the folder of a sweep" in run("cli.summary", "nowhere", cwd=tmp_path, code=4)


# ------------------------------------------------------------------------------------------ the picture

SPACES = {
    "names": {"weighting": ["snr", "min_snr"], "ema": ["power", "none"], "seed": [0, 1, 2]},
    "many names": {
        "weighting": ["uniform", "snr", "truncated_snr", "snr_plus_one", "min_snr", "soft_min_snr", "p2", "sigmoid"],
        "diffusion.prediction_type": ["epsilon", "sample", "v_prediction"],
        "seed": [0, 1],
    },
    "rates": {"optimizer.lr": ["0.0001", "0.0003", "0.001", "0.01"], "ema": ["power", "none"], "seed": [0, 1]},
    "panels": {"weighting": ["snr", "p2", "x0"], "ema": ["power", "none"], "sampler": ["ddim", "ddpm"], "seed": [0]},
    "one job": {"seed": [7]},
    "seeds": {"seed": [7, 8, 9]},
}  # fmt: skip


def drawn(tmp_path: Path, space: dict[str, list], result_of=lambda *values: finished(1 + len(repr(values)) % 7)):
    """The figure of a sweep, laid out, with its groups."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    jobs = sweeps.list_jobs(write_sweep(tmp_path, space, result_of))
    keys = [key for key in sweeps.find_swept_keys(jobs) if key != "seed"]
    groups = sweeps.group_jobs(jobs, keys, "val/loss")
    figure = plot_sweep(groups, keys, "val/loss", "a sweep")
    FigureCanvasAgg(figure).draw()
    return figure, groups


def shown_labels(axis) -> list:
    """Labels of the ticks within the limits."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SPACES)
def test_a_picture_can_be_read(tmp_path, name):
    figure, _ = drawn(tmp_path, SPACES[name])
    whole = figure.bbox.padded(1)
    for ax in figure.axes:
        texts = [text for axis in (ax.xaxis, ax.yaxis) for text in (axis.label, *shown_labels(axis))]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        assert all(whole.contains(*box.min) and whole.contains(*box.max) for box in boxes)
        names = sorted((text.get_window_extent() for text in shown_labels(ax.yaxis)), key=lambda box: box.y0)
        assert all(below.y1 < above.y0 for below, above in itertools.pairwise(names))
    titles = " ".join(ax.get_xlabel() + ax.get_ylabel() for ax in figure.axes)
    assert "val/loss (lower is better)" in titles
    assert figure.get_suptitle().startswith("a sweep\n")
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert all(box.x0 >= ax.bbox.x1 for ax in figure.axes)


def test_numbers_far_apart_are_on_a_logarithmic_axis(tmp_path):
    (ax,) = drawn(tmp_path / "a", SPACES["rates"])[0].axes
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "optimizer.lr")
    (ax,) = drawn(tmp_path / "b", {"optimizer.lr": ["0.001", "0.002"]})[0].axes
    assert ax.get_xscale() == "linear"


def test_the_key_with_most_values_makes_the_axis_and_the_rest_panels(tmp_path):
    figure, _ = drawn(tmp_path, SPACES["panels"])
    assert [ax.get_title() for ax in figure.axes] == ["sampler=ddim", "sampler=ddpm"]
    assert all([text.get_text() for text in ax.get_yticklabels()] == ["snr", "p2", "x0"] for ax in figure.axes)
    (legend,) = figure.legends
    assert (legend.get_title().get_text(), [text.get_text() for text in legend.texts]) == ("ema", ["power", "none"])


def test_points_means_and_bars_are_where_the_numbers_are(tmp_path):
    figure, groups = drawn(tmp_path, {"weighting": ["a", "b"], "seed": [0, 1, 2]}, lambda w, s: finished(1.0 + s * s))
    (ax,) = figure.axes
    (bars,) = ax.containers
    ends = [tuple(segment[:, 0]) for segment in bars.lines[2][0].get_segments()]
    assert ends == [pytest.approx((g.mean - g.half_width, g.mean + g.half_width)) for g in groups]
    (points,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert sorted(points.get_xdata()) == [1, 1, 2, 2, 5, 5]


def test_failed_jobs_are_crosses_at_the_worse_edge(tmp_path):
    def result_of(word, seed):
        return FAILED if (word, seed) == ("b", 1) else finished(1.0 + seed)

    figure, _ = drawn(tmp_path, {"weighting": ["a", "b"], "seed": [0, 1]}, result_of)
    (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([1.0], [1.0])
    assert "crosses are jobs without a value" in figure.get_suptitle()


def test_a_colour_that_always_failed_is_in_the_legend(tmp_path):
    space = {"weighting": ["a", "b", "c"], "ema": ["power", "none"]}
    figure, _ = drawn(tmp_path, space, lambda word, ema: FAILED if ema == "none" else finished(1.0))
    assert [text.get_text() for text in figure.legends[0].texts] == ["power", "none"]


def test_what_optuna_tried_has_a_panel_for_each_key(tmp_path):
    for k in range(15):
        (tmp_path / str(k)).mkdir()
        run_dir.append_command(
            tmp_path / str(k), [f"optimizer.lr={0.001 * 1.3**k}", f"weighting.gamma={1 + k % 7 + k / 9}"]
        )
        run_dir.write_result(tmp_path / str(k), finished(1.0 + k))
    jobs = sweeps.list_jobs(tmp_path)
    keys = sweeps.find_swept_keys(jobs)
    figure = plot_sweep(sweeps.group_jobs(jobs, keys, "val/loss"), keys, "val/loss", "")
    assert [ax.get_xlabel() for ax in figure.axes] == ["optimizer.lr", "weighting.gamma"]
    assert all(len(line.get_xdata()) == 15 for ax in figure.axes for line in ax.lines)


# ------------------------------------------------------------------------------------------ real sweeps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Of four jobs two diverge; what was printed is in printed.txt."""
    here = tmp_path_factory.mktemp("sweep")
    printed = run("train", "--multirun", *QUICK, "weighting=snr,min_snr", *DIVERGING, "name=s", cwd=here, code=6)
    (sweep,) = (here / "outputs" / "s").iterdir()
    (sweep / "printed.txt").write_text(printed)
    return sweep


def test_a_job_that_fails_does_not_end_a_sweep_and_every_job_has_its_row(sweep):
    rows = rows_of(sweep)
    assert [(row["weighting"], row["optimizer.lr"], row["status"], row["exit_code"]) for row in rows] == [
        ("snr", "1e+30", "failed", "6"), ("snr", "0.001", "finished", "0"),
        ("min_snr", "1e+30", "failed", "6"), ("min_snr", "0.001", "finished", "0"),
    ]  # fmt: skip
    for row in rows:
        result = json.loads((sweep / row["job"] / "result.json").read_text())
        assert row | {key: "" if value is None else str(value) for key, value in result.items()} == row
    assert "at step" in rows[0]["error"]
    assert (sweep / "0" / "metrics.csv").exists()  # a run that diverged is there to be looked at
    assert is_figure_drawn(sweep)
    assert stored_config.read_model_config(sweep / "1")["run_dir"] == str(sweep / "1")


def test_a_sweep_says_what_starts_what_failed_and_what_is_best(sweep):
    printed = (sweep / "printed.txt").read_text()
    assert "job 2 of 4: weighting=snr optimizer.lr=0.001\n" in printed
    assert "job 3 of 4 ended with exit code 6\n" in printed
    assert "Traceback" not in printed
    assert "HYDRA" not in printed
    loss = {row["weighting"]: float(row["val/loss"]) for row in rows_of(sweep) if row["status"] == "finished"}
    (best,) = [line.split() for line in printed.splitlines() if "<- best" in line]
    assert best[:4] == [min(loss, key=loss.get), "0.001", "1", f"{min(loss.values()):.5g}"]


def test_a_jobs_log_holds_its_own_lines(sweep):
    for k in range(4):
        text = (sweep / str(k) / "train.log").read_text()
        assert f"job {k + 1} of 4:" in text
        assert text.count(" of 4: ") == text.count("network ") == 1


def test_a_job_equals_the_run_alone(sweep, tmp_path):
    words = ["trainer.gradient_clip_val=null", "optimizer.lr=1e-3", "weighting=min_snr", "run_dir=alone"]
    run("train", *QUICK, *words, cwd=tmp_path)
    assert trace(tmp_path / "alone") == trace(sweep / "3")


def test_sampling_sweeps_as_well(sweep, tmp_path):
    words = [f"run={sweep / '1'}", "num_images=1"]
    run("sample", "--multirun", *words, "guidance_scale=1,2", cwd=tmp_path)
    grids = list((sweep / "1" / "generated").glob("*/grid.png"))
    assert not (sweep / "1" / "generated" / "results.csv").exists()
    assert len(grids) == len({grid.read_bytes() for grid in grids}) == 2
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter").write_text("dear")
    printed = run("sample", "--multirun", *words, "out=a,b", cwd=tmp_path, code=5)
    assert "out=a is not empty" in printed
    assert "job 1 of 2 ended with exit code 5" in printed
    assert (tmp_path / "b" / "grid.png").exists()
    assert "run=x,y: one run at a time" in run("sample", "--multirun", "run=x,y", cwd=tmp_path, code=2)


@pytest.mark.slow
def test_jobs_beside_each_other(tmp_path):
    """In processes of their own: their failures count, and they share the cores."""
    from joblib import cpu_count

    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *QUICK, *DIVERGING]
    command = [sys.executable, "-m", "diffusion_lit.train", "--multirun", *words]
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 6, done.stderr
    (sweep,) = (tmp_path / "outputs" / "digits").iterdir()
    assert [row["status"] for row in rows_of(sweep)] == ["failed", "finished"]
    for k in range(2):
        assert f"on {max(1, cpu_count() // 2)} CPU threads" in (sweep / str(k) / "train.log").read_text()
    assert "step 1/3" not in done.stdout  # lines of several jobs at once cannot be read
    assert "<- best" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_sweep_and_keeps_its_table(tmp_path, number):
    process = start("train", "--multirun", *QUICK, "max_steps=3,100000,4", "log_every=1", cwd=tmp_path)
    while process.poll() is None and not any(last_step(job) for job in tmp_path.glob("outputs/digits/*/1")):
        time.sleep(0.01)
    process.send_signal(number)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, printed
    (sweep,) = (tmp_path / "outputs" / "digits").iterdir()
    assert [(row["max_steps"], row["status"]) for row in rows_of(sweep)] == [
        ("3", "finished"),
        ("100000", "interrupted"),
    ]
    assert is_figure_drawn(sweep)
    assert "Traceback" not in printed


# ------------------------------------------------------------------------------------------ real Hydra, no training

STUB = """
import json, math, os, signal, sys, time
import diffusion_lit.training.launch_run
from diffusion_lit.runs import run_dir as folder
from diffusion_lit.system.errors import Exit, UserError
def fit(config, source, run, overrides):
    folder.record_start(run, config, overrides)
    result = {"status": "finished", "exit_code": 0, "val/loss": float(config["seed"])}
    number = int(run.name)
    BODY
    folder.write_result(run, result)
    return result
diffusion_lit.training.launch_run.fit = fit
"""


def run_stubbed(here: Path, body: str, *overrides: str, code: int = 0) -> tuple[Path, str]:
    """Run `train` with its training replaced; return the folder of the sweep and what was printed."""
    printed = run("train", *overrides, cwd=here, code=code, prelude=STUB.replace("BODY", body))
    (sweep,) = here.glob("outputs/*/*")
    return sweep, printed


def test_a_bug_in_a_job_does_not_end_a_sweep(tmp_path):
    body = "number == 0 and 1 / 0"
    sweep, printed = run_stubbed(tmp_path, body, "--multirun", "seed=5,6", "metric=val/loss", code=1)
    assert printed.count("\nZeroDivisionError: division by zero\n") == 1
    assert "ZeroDivisionError: division by zero" in (sweep / "0" / "train.log").read_text()
    bad, good = rows_of(sweep)
    assert (bad["exit_code"], bad["error"]) == ("1", "ZeroDivisionError: division by zero")
    assert (good["status"], good["val/loss"]) == ("finished", "6.0")


def test_jobs_of_other_names_are_in_one_folder(tmp_path):
    sweep, _ = run_stubbed(tmp_path, "", "--multirun", "name='it, is [odd]',b", "seed=5,6", "metric=val/loss")
    assert sweep.parent.name == "it, is [odd]"
    assert [row["seed"] for row in rows_of(sweep)] == ["5", "6", "5", "6"]
    assert [row["name"].strip("'") for row in rows_of(sweep)] == ["it, is [odd]"] * 2 + ["b"] * 2


def test_a_killed_sweep_has_a_row_for_every_job_that_began(tmp_path):
    body = "number == 2 and os.kill(os.getpid(), signal.SIGKILL)"
    sweep, _ = run_stubbed(tmp_path, body, "--multirun", "seed=5,6,7,8", code=-9)
    assert [row["seed"] for row in rows_of(sweep)] == ["5", "6"]
    run("cli.summary", str(sweep), "val/loss", cwd=tmp_path)
    assert [(row["seed"], row["status"]) for row in rows_of(sweep)] == [
        ("5", "finished"), ("6", "finished"), ("7", "unfinished"),
    ]  # fmt: skip


def test_sigterm_while_nothing_trains(tmp_path):
    body = "number == 1 and (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))"
    sweep, printed = run_stubbed(tmp_path, body, "--multirun", "seed=5,6,7", "metric=val/loss", code=143)
    assert [row["status"] for row in rows_of(sweep)] == ["finished", "interrupted"]
    assert "Traceback" not in printed
    assert "interrupted 1 (seed=6)" in printed


def test_a_sweep_into_the_folder_of_another(tmp_path):
    run_stubbed(tmp_path, "", "--multirun", "seed=5,6", "hydra.sweep.dir=outputs/digits/s")
    before = (tmp_path / "outputs/digits/s/0/result.json").read_text()
    _, printed = run_stubbed(tmp_path, "", "--multirun", "seed=7,8", "hydra.sweep.dir=outputs/digits/s", code=5)
    assert "hydra.sweep.dir=outputs/digits/s: has the jobs of another sweep" in printed
    assert (tmp_path / "outputs/digits/s/0/result.json").read_text() == before


@pytest.mark.parametrize("direction", [pytest.param("minimize", marks=pytest.mark.slow), "maximize"])
def test_optuna_goes_on_over_a_failed_trial_and_keeps_its_study(tmp_path, direction):
    import optuna
    import yaml

    metric = {"minimize": "val/loss", "maximize": "class_accuracy"}[direction]
    body = (
        'result["val/loss"] = result["class_accuracy"] = abs(math.log10(config["optimizer"]["lr"]) + 3)\n'
        '    if number == 1: raise UserError(Exit.NON_FINITE, "the loss is nan")'
    )
    words = [*OPTUNA, f"hydra.sweeper.direction={direction}", f"metric={metric}", "ema=power,none"]
    storage = ["hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.study_name=s"]
    rate = "optimizer.lr=tag(log,interval(0.0001,0.01))"
    sweep, printed = run_stubbed(tmp_path, body, "--multirun", *words, *storage, rate, code=6)
    rows = rows_of(sweep)
    assert [row["status"] for row in rows] == ["finished", "failed", "finished", "finished"]
    worst = math.inf if direction == "minimize" else -math.inf
    expected = [float(row[metric]) if row[metric] else worst for row in rows]
    trials = optuna.load_study("s", f"sqlite:///{tmp_path / 'study.db'}").trials
    assert [trial.value for trial in trials] == expected
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == (min if direction == "minimize" else max)(expected)
    assert re.search(r"^job 2 of 4: .*optimizer.lr=0.0", printed, re.M)


def test_optuna_when_no_trial_has_the_metric(tmp_path):
    body = 'del result["val/loss"]'
    _, printed = run_stubbed(tmp_path, body, "--multirun", *OPTUNA, "seed=range(0,9)", "metric=val/los")
    assert "no result has a number 'val/los'" in printed
    assert "Traceback" not in printed


def test_a_sweep_of_ones_own_yaml_file(tmp_path):
    """hydra.sweeper.params: checked and counted as if it stood on the command line."""
    own = tmp_path / "own" / "experiment" / "mine.yaml"
    own.parent.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /data: digits\n  - override /model: unet_digits\n"
    own.write_text(text + "hydra:\n  sweeper:\n    params:\n      seed: 5,6\n")
    words = ["--config-dir", "own", "experiment=mine", "--multirun", "ema=power,none"]
    sweep, printed = run_stubbed(tmp_path, "", *words)
    assert len(rows_of(sweep)) == 4
    assert "job 1 of 4: seed=5 ema=power" in printed
    own.write_text(text + "hydra:\n  sweeper:\n    params:\n      seed: 5,x\n")
    assert "seed=x: must be int in [0, 9e18]" in run_stubbed(tmp_path, "", *words, code=2)[1]


# ------------------------------------------------------------------------------------------ killed sweeps


@pytest.mark.parametrize("resumed", [["resume=auto"], pytest.param(["hydra.sweep.dir=broken"], marks=pytest.mark.slow)])
def test_a_killed_sweep_is_continued_by_the_same_command(tmp_path, resumed):
    """Three real jobs: one has finished, one has begun, one is missing. The table is that of an unbroken sweep."""
    words = ["--multirun", *QUICK, "max_steps=6", "seed=5,6,7", "name=s"]
    run("train", *words, "hydra.sweep.dir=unbroken", cwd=tmp_path)
    kill = "from diffusion_lit.training.callbacks.graceful_stop import GracefulStop as G; import os\n"
    kill += "real = G.after_step\ndef killed(self, *args):\n    real(self, *args)\n"
    kill += "    if self.run.name == '1' and self.step == 4: os.kill(os.getpid(), 9)\nG.after_step = killed"
    run("train", *words, *resumed, cwd=tmp_path, code=-9, prelude=kill)
    (sweep,) = [tmp_path / "broken"] if "broken" in resumed[0] else tmp_path.glob("outputs/s/*")
    assert sorted(path.name for path in sweep.glob("[0-9]")) == ["0", "1"]
    first = (sweep / "0" / "result.json").stat().st_mtime_ns
    other = [word.replace("seed=5,6,7", "seed=8,9") for word in words]
    printed = run("train", *other, f"hydra.sweep.dir={sweep}", cwd=tmp_path, code=5)
    assert "has the jobs of another sweep" in printed
    printed = run("train", *words, *resumed, cwd=tmp_path)
    assert "job 1 of 3 has finished before" in printed
    assert (sweep / "0" / "result.json").stat().st_mtime_ns == first
    assert "resuming" in printed or "resume" in (sweep / "1" / "train.log").read_text()
    for number in "012":
        assert trace(sweep / number) == trace(tmp_path / "unbroken" / number)
    ours, theirs = rows_of(sweep), rows_of(tmp_path / "unbroken")
    assert [row["val/loss"] for row in ours] == [row["val/loss"] for row in theirs]
    assert not [path.name for path in sweep.glob(".*")]
    if resumed == ["resume=auto"]:
        printed = run("train", *words, *resumed, cwd=tmp_path, prelude=STUB.replace("BODY", "pass"))
        assert "no unfinished sweep with these overrides in outputs/s, starting a new one" in printed
        assert len(list(tmp_path.glob("outputs/s/*"))) == 2


def test_the_printed_command_continues_a_sweep_of_evaluations(sweep, tmp_path):
    """Of one run, whose sampler becomes part of the overrides, and of all runs of a sweep, which are listed."""
    kill = "import os, signal, diffusion_lit.runs.run_dir as m; real = m.write_result\n"
    kill += "def stopped(*args):\n    real(*args)\n    os.kill(os.getpid(), signal.SIGTERM)\nm.write_result = stopped"
    words = ["num_images=20", "metrics=[colors]", "features=pixels", "weights=ema,net", "accept=[data]"]
    for of in (sweep / "1", sweep):
        printed = run("evaluate", "--multirun", f"run={of}", *words, cwd=tmp_path, code=143, prelude=kill)
        (line,) = [line for line in printed.splitlines() if line.startswith("To continue: ")]
        continued = run("evaluate", *shlex.split(line)[5:], cwd=tmp_path)
        assert "job 1 of 2 has finished before" in continued or "job 1 of 4 has finished before" in continued


def test_two_processes_do_not_run_one_sweep(tmp_path):
    words = ["--multirun", "seed=5,6", "metric=val/loss", "hydra.sweep.dir=s"]
    go = tmp_path / "go"  # job 1 waits for it
    prelude = STUB.replace("BODY", f"while number == 1 and not os.path.exists({str(go)!r}): time.sleep(0.01)")
    first = start("train", *words, cwd=tmp_path, prelude=prelude)
    while not (tmp_path / "s" / "1" / "command.txt").exists():
        assert first.poll() is None
        time.sleep(0.01)
    assert "s is in use by process" in run("train", *words, cwd=tmp_path, code=5, prelude=prelude)
    go.touch()
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert [row["status"] for row in rows_of(tmp_path / "s")] == ["finished"] * 2


def test_a_sweep_of_evaluations_that_was_killed_skips_the_jobs_that_have_finished(sweep, tmp_path):
    words = ["--multirun", f"run={sweep / '1'}", "num_images=20", "metrics=[colors]", "features=pixels"]
    words += ["guidance_scale=1,2", "metric=color_distance", f"hydra.sweep.dir={tmp_path / 'e'}"]
    kill = "import os, diffusion_lit.runs.run_dir as m; real = m.write_result\n"
    kill += "def killed(out, *args):\n    if out.name == '1': os.kill(os.getpid(), 9)\n    real(out, *args)\n"
    run("evaluate", *words, cwd=tmp_path, code=-9, prelude=kill + "m.write_result = killed")
    assert "job 1 of 2 has finished before" in run("evaluate", *words, cwd=tmp_path)
    assert [row["status"] for row in rows_of(tmp_path / "e")] == ["finished"] * 2
