"""Weights & Biases: online where it can be, offline where it cannot, without a question and within seconds."""

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

log = logging.getLogger(__name__)


@dataclass
class WandB:
    """`logger=wandb`: a W&B run in <run>/wandb, online if the server takes our key, else offline. Never a question.

    Args:
        project, entity: where it appears; without an entity in the account's own.
        mode: auto (what WANDB_MODE says, else online if the server answers), online, offline or disabled.
        connect_seconds, init_seconds, finish_seconds: patience with the server: for an answer, for starting the run,
            and at the end for what is not uploaded yet.
    """

    project: str
    entity: str | None
    mode: str
    connect_seconds: float
    init_seconds: float
    finish_seconds: float

    needs = None
    run = None

    def start(self, run: Path, config: dict, step: int) -> None:
        # W&B's statistics about itself, which wait ten seconds at the end for a server that says nothing
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

        mode = os.environ.get("WANDB_MODE", "auto") if self.mode == "auto" else self.mode
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # old words of W&B
        if mode == "disabled":
            return
        why = None
        if mode != "offline":
            try:
                why = self._refusal(ask=mode == "auto")
                self.run = None if why else self._init("online", run, config)
            except UserError:  # the second Ctrl-C
                raise
            except Exception as error:
                why = format_exception(error)
                stop_service()
        self.run = self.run or self._init("offline", run, config)
        self.run.define_metric("*", step_metric="step")  # W&B's own counter never goes back, a resumed run does
        offline = sorted((run / "wandb").glob("offline-run-*"))  # one for each start of the run
        folders = offline if self.run.offline else [Path(self.run.sync_dir).absolute()]
        self.sync = shlex.join(["wandb", "sync", *[str(display_path(folder)) for folder in folders]])
        if self.run.offline:
            log.info("W&B        offline%s; to upload: %s", f" ({why})" if why else "", self.sync)
        else:
            log.info("W&B        %s", self.run.url)

    def _refusal(self, ask: bool) -> str | None:
        """Why the server cannot be used, None if there is a key (and, if asked, the server takes it)."""
        import wandb
        from wandb.sdk.lib import wbauth

        address = wandb.setup(wandb.Settings(silent=True)).settings.base_url.rstrip("/")
        login = wbauth.authenticate_session(host=address, source="", prompt=False, update_session=False)
        if login is None:
            return "no API key, see wandb login"
        key = getattr(login, "api_key", None)  # an identity token has none, and is not asked about
        return refusal(address, key, self.connect_seconds) if ask and key else None

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
                    disable_git=True,  # what is not committed may hold anything
                    init_timeout=self.init_seconds,
                    finish_timeout=self.finish_seconds,
                    finish_timeout_raises=True,
                ),
            )

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        if not self.run:
            return
        self.run.log({"step": step} | values)
        if shutil.disk_usage(self.run.dir).free < 4096:  # its service says nothing of what it cannot write
            raise OSError(errno.ENOSPC, "no room for the records of W&B", self.run.dir)

    def log_image(self, step: int, key: str, path: Path, caption: str) -> None:
        import wandb

        if self.run:
            kind = wandb.Video if path.suffix == ".gif" else wandb.Image
            self.run.log({"step": step, key: kind(str(path), caption=caption)})

    def log_result(self, result: dict) -> None:
        if self.run:
            self.run.summary.update(result)

    def finish(self, exit_code: int) -> None:
        if not self.run:
            return
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError:
            log.warning("W&B        not all was uploaded in %g s; the rest: %s", self.finish_seconds, self.sync)
            return
        except Exception:
            stop_service()
            raise
        if self.run.offline:
            log.info("W&B        to upload this run: %s", self.sync)


def stop_service() -> None:
    """End W&B's own process. One that has failed would be asked again by the next run, and at exit."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def refusal(address: str, key: str, seconds: float) -> str | None:
    """Why the server at this address cannot be used with this key, None if it can; within so many seconds."""
    answers = queue.SimpleQueue()
    # in a thread, because looking up a name may hang for longer than any timeout
    threading.Thread(target=lambda: answers.put(_answer(address, key, seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return redact_secrets(f"{address} does not answer within {seconds:g} s")


def _answer(address: str, key: str, seconds: float) -> str | None:
    """Ask the server who we are."""
    import requests

    question = {"query": "query Viewer { viewer { id } }"}
    try:
        answer = requests.post(f"{address}/graphql", json=question, auth=("api", key), timeout=seconds)
        known = answer.ok and (answer.json().get("data") or {}).get("viewer")
    except Exception as error:  # of the network, or not the JSON of a W&B server
        return redact_secrets(f"{address} gives no answer: {type(error).__name__}")
    if answer.ok or answer.status_code in (401, 403):
        return None if known else redact_secrets(f"{address} does not take the API key")
    return redact_secrets(f"{address} answers {answer.status_code} {answer.reason}")


def _run_id(path: Path) -> str:
    """Made once and kept, so that a resumed run is the same run there."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_text_atomically(path, secrets.token_hex(4))
    return path.read_text().strip()
