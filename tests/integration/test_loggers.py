"""What a run shows elsewhere: real runs whose W&B and TensorBoard files are read back, and servers that fail."""

import contextlib
import http.server
import json
import os
import pty
import re
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit import train
from diffusion_lit.config.compose import compose_configs, resolve_data
from diffusion_lit.config.groups import CONF
from diffusion_lit.config.secrets import hide_paths, redact_command_line, redact_secrets
from diffusion_lit.diffusion.codecs import Pixels
from diffusion_lit.runs import run_dir as folder
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.sampling.previews import MAX_FRAMES, FrameRecorder
from diffusion_lit.system.errors import UserError
from diffusion_lit.training import ema
from diffusion_lit.training.loggers import backends
from diffusion_lit.training.loggers.backends import LoggerBackend
from diffusion_lit.training.loggers.run_logger import RunLogger
from diffusion_lit.training.loggers.wandb import check_api_key
from tests.forks import Fork
from tests.runs import TINY, last_step, run, signal_at_step, start
from tests.wandb_files import offline_runs
from tests.wandb_server import KEY, environment, server

TOKEN, HIDDEN = "hf_" + "Ab1" * 12, "hunter22hunter22"
SHORT = [*TINY, "max_steps=6", "val_every=3", "sample_every=3", "checkpoint_every=3"]


def answer_of_wandb(question: dict) -> dict:
    """The least that W&B needs to hear to run online."""
    project = {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "me"}}
    bucket = {"id": "aWQ=", "name": question.get("variables", {}).get("name"), "project": project}
    answers = {
        "viewer { id }": {"viewer": {"id": "me"}},
        "query RunResumeStatus": {"model": project | {"bucket": None}},
        "mutation UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
        "mutation CreateRunFiles": {"createRunFiles": {"runID": "aWQ=", "uploadHeaders": [], "files": []}},
    }
    return {"data": next((answers[words] for words in answers if words in question.get("query", "")), {})}


@contextlib.contextmanager
def wandb_server(stuck: threading.Event | None = None):
    """(address, everything it was sent) of a server like W&B's; what is logged is taken once `stuck` is set."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            sent.append(body)
            if stuck and "UpsertBucket" not in body and "viewer" not in body and "RunResumeStatus" not in body:
                stuck.wait(60)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(json.dumps(answer_of_wandb(json.loads(body))).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        http_server.daemon_threads = True
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", sent
        if stuck:
            stuck.set()
        http_server.shutdown()


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory) -> Path:
    """A run with a key that no server knows, with secrets in its environment, one of which is in a path."""
    here = tmp_path_factory.mktemp("wandb")
    words = ["logger=wandb", "run_dir=run", f"data.cache_dir={here / HIDDEN}"]
    with environment(WANDB_API_KEY=KEY, MY_TOKEN=HIDDEN, HF_TOKEN=TOKEN, WANDB_BASE_URL="http://127.0.0.1:9"):
        printed = run("train", *SHORT, *words, cwd=here)
    (here / "run" / "printed.txt").write_text(printed)
    return here / "run"


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    """metrics.csv as a logger should have it."""
    rows = [
        {key: float(value) for key, value in row.items() if value not in ("", "nan")}
        for row in read_metrics(run_dir / "metrics.csv")
    ]
    return [{"step": row.pop("step")} | row for row in rows]


# ------------------------------------------------------------------------------------------------ names and secrets


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("api_key", "x"), ("wandb-api-key", "x"), ("token", "x"), ("hf_token", "x"), ("password", 1234),
        ("client_secret", "x"), ("aws_secret_access_key", "x"), ("a", KEY), ("a", f"key {KEY}"), ("a", TOKEN),
        ("a", "ghp_" + "x1" * 18), ("a", "sk-proj-" + "x1" * 20), ("a", "https://me:pw@host/x"), ("a", f"/x/{HIDDEN}"),
    ],
)  # fmt: skip
def test_secrets_are_taken_out(monkeypatch, key, value):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", HIDDEN)
    tree = {"a": [1, {key: value}], "b": {"c": [value]} if key == "a" else 1}
    assert str(value) not in str(redact_secrets(tree))
    monkeypatch.setattr(sys, "argv", ["train", f"x.{key}={value}", "seed=1"])
    with redact_command_line():
        assert sys.argv == ["train", f"x.{key}=<removed>", "seed=1"]
    assert sys.argv[1] == f"x.{key}={value}"


@pytest.mark.parametrize(
    "tree",
    [
        {
            "tokens_per_image": 64,
            "max_tokens": 8,
            "key": "x",
            "keyboard": "y",
            "secretary": "z",
            "root": "/data/hf_datasets",
        },
        {"token": None, "password": False, "url": "https://host:80/a@b", "hash": "a" * 64, "lr": 1e-3, "names": ["a"]},
    ],
)
def test_what_is_no_secret_stays(monkeypatch, tree):
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert redact_secrets(tree) == tree


def test_nothing_in_the_yaml_files_looks_like_a_secret():
    for path in CONF.rglob("*.yaml"):
        tree = OmegaConf.to_container(OmegaConf.load(path))
        assert redact_secrets(tree) == tree, path


# ------------------------------------------------------------------------------------------------ W&B, read back


def test_wandb_has_every_row_at_its_step(wandb_run):
    (logged,) = offline_runs(wandb_run)
    assert logged.rows() == rows_of(wandb_run)
    assert [row["step"] for row in logged.rows()] == [1, 2, 3, 4, 5, 6]
    assert "val/error" in logged.rows()[2]


def test_wandb_has_the_pictures_with_captions(wandb_run):
    (logged,) = offline_runs(wandb_run)
    for key, kind in (("samples/grid", "png"), ("samples/denoising", "gif")):
        pictures = logged.pictures(key)
        assert list(pictures) == [3, 6]
        for step, (data, _) in pictures.items():
            assert data == (wandb_run / "samples" / f"step-{step:08d}.{kind}").read_bytes()
    _, caption = logged.pictures("samples/grid")[6]
    assert caption == "rows: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; EMA | raw; seed 0; dpmpp_sde, 2 steps; guidance scale 1"


def test_wandb_has_configuration_result_name_and_exit_code(wandb_run):
    (logged,) = offline_runs(wandb_run)
    config = folder.read_run_config(wandb_run)
    config["data"]["cache_dir"] = "<removed>"
    assert {key: value for key, value in logged.config.items() if key != "_wandb"} == hide_paths(config)
    result = folder.read_result(wandb_run)
    assert {key: logged.summary[key] for key in result if result[key] is not None} == {
        key: value for key, value in result.items() if value is not None
    }
    assert result["val/error"] == logged.rows()[-1]["val/error"]
    assert (logged.run.display_name, logged.run.project, logged.exit_code) == ("run", "diffusion_lit", 0)
    assert logged.run.run_id == (wandb_run / "wandb" / "run_id").read_text()
    assert [hardware.cpu_count for hardware in logged.environment if hardware.cpu_count]  # scrubbed, not silenced


def test_wandb_has_no_secret(wandb_run):
    files = [path for path in wandb_run.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        assert KEY.encode() not in data, path
        assert TOKEN.encode() not in data, path
        if "wandb" in path.relative_to(wandb_run).parts:
            assert HIDDEN.encode() not in data, path


def test_without_a_server_the_run_is_offline_and_says_so_twice(wandb_run):
    printed = (wandb_run / "printed.txt").read_text()
    (logged,) = offline_runs(wandb_run)
    command = f"wandb sync run/wandb/{logged.folder.name}"
    assert printed.count(command) == 2
    assert printed.count("offline (http://127.0.0.1:9 gives no answer: ConnectionError)") == 1
    assert "wandb:" not in printed  # W&B itself is quiet


def test_a_resumed_run_is_the_same_run_there(wandb_run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(wandb_run, again, symlinks=True)
    run("train", f"resume={again}", "max_steps=8", cwd=tmp_path)
    first, second = offline_runs(again)
    assert first.run.run_id == second.run.run_id
    assert second.run.resume
    assert first.rows() + second.rows() == rows_of(again)
    assert [row["step"] for row in second.rows()] == [7, 8]


@pytest.mark.slow
def test_two_jobs_of_a_sweep_are_two_runs_of_a_group(tmp_path):
    words = [
        *SHORT,
        "logger=wandb",
        "name=two",
        "trainer.gradient_clip_val=null",
        "max_skipped_steps=0",
        "optimizer.lr=1e30,1e-3",
    ]
    run("train", "--multirun", *words, cwd=tmp_path, code=6)
    (sweep,) = (tmp_path / "outputs" / "two").iterdir()
    (bad,), (good,) = offline_runs(sweep / "0"), offline_runs(sweep / "1")
    assert bad.run.run_id != good.run.run_id
    assert (bad.run.run_group, good.run.run_group) == (sweep.name, sweep.name)
    assert (bad.exit_code, good.exit_code) == (6, 0)  # the first one diverged
    assert (bad.rows(), good.rows()) == (rows_of(sweep / "0"), rows_of(sweep / "1"))
    assert len(good.rows()) == 6


def test_a_run_outlives_the_service_of_wandb(tmp_path):
    process = start("train", *SHORT, "max_steps=30", "logger=wandb", "run_dir=run", cwd=tmp_path)
    while process.poll() is None and last_step(tmp_path / "run") < 5:
        time.sleep(0.01)
    killed = [service for service in services() if f"--pid\0{process.pid}\0" in service.read_text()]
    os.kill(int(killed[0].parent.name), signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert printed.count("WandB is switched off, the run continues: ConnectionResetError") == 1
    assert "Traceback" not in printed
    assert len(rows_of(tmp_path / "run")) == 30
    assert (tmp_path / "run" / "samples" / "step-00000030.gif").exists()


def services() -> list[Path]:
    """/proc/*/cmdline of every service of W&B; words there end with a null byte."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [path] if "wandb-core" in path.read_text() else []
    return found


# ------------------------------------------------------------------------------------------------ W&B servers


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, '{"data": {"viewer": {"id": "me"}}}', None),
        (200, '{"data": {"viewer": null}}', "does not accept the API key"),
        (200, "<html>", "gives no answer"),
        (200, "[]", "gives no answer"),
        (401, "{}", "does not accept the API key"),
        (403, "{}", "does not accept the API key"),
        (429, "{}", "answers 429 Too Many Requests"),
        (500, "{}", "answers 500 Internal Server Error"),
        (None, "", "does not answer within 0.5 s|gives no answer: ReadTimeout"),
    ],
)
def test_what_a_server_says_of_a_key(status, body, why):
    with server(status, body) as address:
        said = check_api_key(address, KEY, 0.5 if status is None else 20)
    assert said is None if why is None else re.search(why, said)


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: hanging.wait(60))
    try:
        assert check_api_key("http://some.host", KEY, 0.3) == "http://some.host does not answer within 0.3 s"
    finally:
        hanging.set()


def alone(here: Path, mode: str = "auto", finish_seconds: float = 60, terminal: int | None = None) -> SimpleNamespace:
    """Run the logger by itself in a process; return its exit code and both its outputs, if they are no terminal."""
    (here / "run").mkdir()
    with open(here / "out", "w+") as out, open(here / "err", "w+") as err, open(os.devnull) as nothing:
        files = (nothing.fileno(), out.fileno(), err.fileno()) if terminal is None else (terminal,) * 3
        command = ["tests.wandb_alone", mode, str(finish_seconds)]
        code = Fork(command, files, cwd=str(here), env=dict(os.environ), prelude="").wait(60)
        out.seek(0), err.seek(0)
        return SimpleNamespace(returncode=code, stdout=out.read(), stderr=err.read())


@pytest.mark.parametrize("what", ["closed port", "silent server", "unknown name"])
def test_a_key_and_no_network_cost_seconds(tmp_path, what):
    with contextlib.ExitStack() as stack:
        addresses = {"closed port": "http://127.0.0.1:9", "unknown name": "https://wandb.invalid"}
        address = addresses.get(what) or stack.enter_context(server(None))
        stack.enter_context(environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=address))
        started = time.perf_counter()
        done = alone(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"offline ({address} " in done.stdout
    assert time.perf_counter() - started <= 15  # a time on purpose: it is the promise, for the whole process here
    assert [row["train/loss"] for row in offline_runs(tmp_path / "run")[0].rows()] == [1.0]


def test_a_server_that_takes_the_key_and_then_fails_leaves_the_run_offline(tmp_path):
    knows_us = server(200, '{"data": {"viewer": {"id": "me"}}}')
    with knows_us as address, environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=address):
        done = alone(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "W&B        offline (" in done.stdout
    assert done.stderr == ""
    assert len(offline_runs(tmp_path / "run")[0].rows()) == 1


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_where_the_server_takes_the_key_the_run_is_online(tmp_path, mode):
    with wandb_server() as (address, sent), environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=address):
        done = alone(tmp_path, mode)
    assert done.stdout.splitlines()[0].startswith(f"W&B        {address}/me/p/runs/")
    assert "switched off" not in done.stdout
    assert "sync" not in done.stdout
    assert done.stderr == ""
    assert any('\\"train/loss\\":1' in body for body in sent)
    assert not any(KEY in body for body in sent)  # it goes into a header only


def test_the_end_of_a_run_does_not_wait_for_a_stuck_server(tmp_path):
    stuck = threading.Event()
    with wandb_server(stuck) as (address, _), environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=address):
        done = alone(tmp_path, finish_seconds=2)
        assert not stuck.is_set()
    assert done.returncode == 0
    (folder_,) = (tmp_path / "run" / "wandb").glob("run-*")
    assert f"upload incomplete after 2 s. To upload the rest: wandb sync run/wandb/{folder_.name}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_nothing_is_asked_even_at_a_terminal(tmp_path, mode):
    ours, theirs = pty.openpty()
    with environment(HOME=str(tmp_path), WANDB_BASE_URL="http://127.0.0.1:9"):
        done = alone(tmp_path, mode, terminal=theirs)
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0, said
    assert "offline (no API key, see wandb login)" in said


@pytest.mark.parametrize(
    ("variable", "mode", "on"),
    [
        ("disabled", "auto", False), ("offline", "auto", True), ("disabled", "offline", True),
        ("offline", "disabled", False), ("nonsense", "auto", False),
    ],
)  # fmt: skip
def test_the_variable_decides_for_auto_only(tmp_path, variable, mode, on):
    with environment(WANDB_MODE=variable):
        done = alone(tmp_path, mode)
    assert done.returncode == 0, done.stderr
    assert f"on {on}\n" in done.stdout
    assert len(offline_runs(tmp_path / "run")) == on
    assert ("switched off" in done.stdout) == (variable == "nonsense")


# ------------------------------------------------------------------------------------------------ TensorBoard


def test_tensorboard_has_every_row_and_picture_also_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [*SHORT, "max_steps=40", "checkpoint_every=8", "sample_every=8", "logger=tensorboard", "run_dir=run"]
    folder_ = tmp_path / "run"
    assert signal_at_step(13, start("train", *words, cwd=tmp_path), folder_) == -signal.SIGKILL
    printed = run("train", f"resume={folder_}", "max_steps=20", "accept=[config]", cwd=tmp_path)
    assert "tensorboard --logdir run/tensorboard" in printed
    events = EventAccumulator(str(folder_ / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    rows = rows_of(folder_)
    for name in {name for row in rows for name in row if name != "step"}:
        wanted = [(row["step"], np.float32(row[name])) for row in rows if name in row]
        assert [(event.step, np.float32(event.value)) for event in events.Scalars(name)] == wanted, name
    for key, kind in (("samples/grid", "png"), ("samples/denoising", "gif")):
        assert [image.step for image in events.Images(key)] == [8, 16, 20]
        for image in events.Images(key):
            assert image.encoded_image_string == (folder_ / "samples" / f"step-{image.step:08d}.{kind}").read_bytes()
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "max_steps: 40" in text
    assert events.Scalars("result/val/error")[0].value == np.float32(folder.read_result(folder_)["val/error"])


def test_a_missing_tensorboard_is_told_before_anything_starts(monkeypatch):
    (config,) = compose_configs("train", ["logger=tensorboard"])
    train.check_train(config)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "diffusion_lit\[tensorboard\]"') as caught:
        train.check_train(config)
    assert caught.value.exit_code == 2
    train.check_train(compose_configs("train", ["logger=csv"])[0])


def test_a_logger_that_cannot_write_leaves_the_run_alone(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file in the way")
    words = [*SHORT, "logger=tensorboard"]
    config, source = resolve_data(compose_configs("train", words)[0])
    assert train.fit(config, source, tmp_path, words)["status"] == "finished"
    assert caplog.text.count("TensorBoard is switched off, the run continues: FileExistsError") == 1
    assert len(rows_of(tmp_path)) == 6


# ------------------------------------------------------------------------------------------------ the shield


class Broken(LoggerBackend):
    """Fails in one of its calls, and in every `finish`."""

    def __init__(self, call: str, error: Exception):
        self.calls = []
        for name in ("start", "log_scalars", "log_image", "log_result", "finish"):
            setattr(self, name, self._method(name, error if name in (call, "finish") else None))

    def _method(self, name: str, error: Exception | None):
        def method(*_):
            self.calls.append(name)
            if error:
                raise error

        return method


def use(logger: RunLogger) -> None:
    with logger:
        logger.start(Path(), {}, 0)
        logger.log_row(1, {"train/loss": 1.0, "val/loss": float("nan")})
        logger.log_row(2, {"train/loss": 1.0})
        logger.log_file(2, "samples/grid", Path(), "")
        logger.log_result({})
        logger.finish(0)


@pytest.mark.parametrize("call", ["start", "log_scalars", "log_image", "log_result", "finish"])
def test_the_first_error_of_a_logger_is_told_once_and_is_its_last(call, caplog):
    broken = Broken(call, OSError(f"no space for {TOKEN}\nat all"))
    use(RunLogger(broken))
    assert len(caplog.messages) == 1
    assert "OSError" not in caplog.text or TOKEN not in caplog.text
    assert broken.calls.count(call) <= 2  # once, and `finish` once more to close what is open
    assert broken.calls[-1] == "finish"


def test_the_second_ctrl_c_passes_through_a_logger():
    with pytest.raises(UserError, match="stopped at once"):
        use(RunLogger(Broken("log_scalars", UserError(130, "stopped at once"))))


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ValueError(), 1), (UserError(6, "nan"), 6), (SystemExit(), 1)])
def test_a_logger_is_finished_with_how_the_run_ended(error, code):
    class Ended(LoggerBackend):
        def finish(self, exit_code):
            self.codes = [*getattr(self, "codes", []), exit_code]

    logger = RunLogger(Ended())
    with contextlib.suppress(ValueError, UserError, SystemExit), logger:
        logger.start(Path(), {}, 0)
        if error:
            raise error
    assert logger.backend.codes == [code]


# ------------------------------------------------------------------------------------------------ what is shown


def test_the_film_ends_with_the_grid(wandb_run):
    grid = np.asarray(Image.open(wandb_run / "samples" / "step-00000006.png"))
    with Image.open(wandb_run / "samples" / "step-00000006.gif") as film:
        assert film.n_frames == 2  # as many as steps
        first = np.asarray(film.convert("L"))
        film.seek(1)
        last = np.asarray(film.convert("L"))
    title = 20  # px above the average's half of a preview
    np.testing.assert_array_equal(last, grid[title : title + last.shape[0], : last.shape[1]])
    assert (first != last).mean() > 0.1


def test_a_film_holds_the_right_images_at_the_right_steps():
    film = FrameRecorder([1, 5, 6], steps=100, codec=Pixels((1, 2, 2)))
    assert len(film.steps) == MAX_FRAMES
    assert (film.steps[0], film.steps[-1]) == (0, 99)
    assert set(np.diff(film.steps)) == {2, 3}
    for first in (0, 4):  # in chunks of four; image n is grey level n, and a step brightens all
        for k in range(100):
            level = torch.arange(first, first + 4).view(4, 1, 1, 1) * 10 + k
            film(first, k, (level / 127.5 - 1).expand(4, 1, 2, 2))
    wanted = np.add.outer(film.steps, [10, 50, 60])
    np.testing.assert_array_equal(film.frames[:, :, 0, 0, 0].numpy(), wanted)


def test_distance_of_the_average(wandb_run):
    net, average = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    flat = [torch.nn.utils.parameters_to_vector(module.parameters()) for module in (average, net)]
    wanted = (flat[0] - flat[1]).norm() / flat[1].norm()
    assert ema.relative_distance(average, net) == pytest.approx(wanted.item(), rel=1e-6)
    assert ema.relative_distance(net, net) == 0
    rows = rows_of(wandb_run)
    assert rows[0]["train/ema_distance"] == 0  # the first update copies
    assert all(0 < row["train/ema_distance"] < 1 for row in rows[1:])
    assert all(0.1 < row["memory_gib"] < 1000 for row in rows)


def test_numbers_last_measured_are_in_the_result(wandb_run):
    result = json.loads((wandb_run / "result.json").read_text())
    last = read_metrics(wandb_run / "metrics.csv")[-1]
    assert [result[name] for name in ("val/loss", "val/error")] == [float(last["val/loss"]), float(last["val/error"])]
