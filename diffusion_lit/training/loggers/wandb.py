"""Log to Weights & Biases: online if the server can be used, else offline; without a prompt, and within seconds."""

import errno
import logging
import os
import queue
import secrets
import shlex
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffusion_lit.config.secrets import format_exception, redact_command_line, redact_secrets
from diffusion_lit.runs.run_dir import display_path
from diffusion_lit.system.errors import UserError
from diffusion_lit.system.files import write_text_atomically
from diffusion_lit.training.loggers.backends import LoggerBackend

log = logging.getLogger(__name__)


@dataclass
class WandB(LoggerBackend):
    """`logger=wandb`: a W&B run in <run>/wandb, online if the server accepts the API key, else offline.

    Args:
        project: project of the run.
        entity: user or team; None for the default of the account.
        mode: auto (WANDB_MODE, else online if the server answers), online, offline or
            disabled.
        connect_seconds: time limit for the first answer of the server.
        init_seconds: time limit for starting the run.
        finish_seconds: time limit for the rest of the upload at the end.
    """

    project: str
    entity: str | None
    mode: str
    connect_seconds: float
    init_seconds: float
    finish_seconds: float

    run = None

    def start(self, run: Path, config: dict, step: int) -> None:
        """Start a W&B run, or resume it under its id."""
        # W&B's error reporting to itself would wait ten seconds at the end for a server that does not answer
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        mode = os.environ.get("WANDB_MODE", "auto") if self.mode == "auto" else self.mode
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # older names of W&B
        if mode == "disabled":
            return
        problem = None
        if mode != "offline":
            try:
                problem = self._find_problem(is_server_checked=mode == "auto")
                self.run = None if problem else self._init("online", run, config)
            except UserError:  # the second Ctrl-C
                raise
            except Exception as error:
                problem = format_exception(error)
                stop_service()
        self.run = self.run or self._init("offline", run, config)
        self.run.define_metric("*", step_metric="step")  # W&B's own counter cannot go back, as a resumed run does
        offline = sorted((run / "wandb").glob("offline-run-*"))  # one for each start of the run
        folders = offline if self.run.offline else [Path(self.run.sync_dir).absolute()]
        self.sync = shlex.join(["wandb", "sync", *[str(display_path(folder)) for folder in folders]])
        if self.run.offline:
            log.info("W&B        offline%s. To upload: %s", f" ({problem})" if problem else "", self.sync)
        else:
            log.info("W&B        %s", self.run.url)

    def _find_problem(self, is_server_checked: bool) -> str | None:
        """Return why the server cannot be used; None if there is a key (and, if checked, the server accepts it)."""
        import wandb
        from wandb.sdk.lib import wbauth

        address = wandb.setup(wandb.Settings(silent=True)).settings.base_url.rstrip("/")
        login = wbauth.authenticate_session(host=address, source="", prompt=False, update_session=False)
        if login is None:
            return "no API key, see wandb login"
        key = getattr(login, "api_key", None)  # an identity token has none and is not checked
        return check_api_key(address, key, self.connect_seconds) if is_server_checked and key else None

    def _init(self, mode: str, run: Path, config: dict):
        import wandb

        sweep = run.absolute().parent
        with redact_command_line():
            return wandb.init(
                dir=str(run),
                project=self.project,
                entity=self.entity,
                name=run.name,
                group=sweep.name if (sweep / "multirun.yaml").exists() else None,
                id=_run_id(run / "wandb" / "run_id"),
                resume="allow",
                mode=mode,
                config=redact_secrets(config),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,  # uncommitted changes may hold secrets
                    init_timeout=self.init_seconds,
                    finish_timeout=self.finish_seconds,
                    finish_timeout_raises=True,
                ),
            )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers.

        Raises:
            OSError: if the disk is full, which the service of W&B does not report.
        """
        if not self.run:
            return
        self.run.log({"step": step} | values)
        if shutil.disk_usage(self.run.dir).free < 4096:
            raise OSError(errno.ENOSPC, "no space left for the records of W&B", self.run.dir)

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        """Log a PNG file as an image, a GIF file as a video."""
        import wandb

        if self.run:
            kind = wandb.Video if path.suffix == ".gif" else wandb.Image
            self.run.log({"step": step, key: kind(str(path), caption=caption)})

    def log_result(self, result: dict) -> None:
        """Set the summary of the run."""
        if self.run:
            self.run.summary.update(result)

    def finish(self, exit_code: int) -> None:
        """Upload what is left, within the time limit."""
        if not self.run:
            return
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            log.warning(
                "W&B        upload incomplete after %g s. To upload the rest: %s", self.finish_seconds, self.sync
            )
            return
        except Exception:
            stop_service()
            raise
        if self.run.offline:
            log.info("W&B        to upload this run: %s", self.sync)


def stop_service() -> None:
    """End W&B's service process. After a failure the next run, and the exit handlers, would contact it again."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def check_api_key(address: str, key: str, seconds: float) -> str | None:
    """Return why the server at an address cannot be used with a key, None if it can; within a time limit."""
    answers = queue.SimpleQueue()
    # in a thread, because a name lookup may hang for longer than any timeout
    threading.Thread(target=lambda: answers.put(_query_viewer(address, key, seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return redact_secrets(f"{address} does not answer within {seconds:g} s")


def _query_viewer(address: str, key: str, seconds: float) -> str | None:
    """Query the server for the user of the key."""
    import requests

    query = {"query": "query Viewer { viewer { id } }"}
    try:
        answer = requests.post(f"{address}/graphql", json=query, auth=("api", key), timeout=seconds)
        user = answer.ok and (answer.json().get("data") or {}).get("viewer")
    except Exception as error:  # no connection, or not the JSON of a W&B server
        return redact_secrets(f"{address} gives no answer: {type(error).__name__}")
    if answer.ok or answer.status_code in (401, 403):
        return None if user else redact_secrets(f"{address} does not accept the API key")
    return redact_secrets(f"{address} answers {answer.status_code} {answer.reason}")


def _run_id(path: Path) -> str:
    """Return the W&B id of the run, stored so that a resumed run continues it."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_text_atomically(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
