"""Find the result of a run that has no steps left to train."""

import logging
from pathlib import Path

from diffusion_lit.runs.run_dir import read_result

log = logging.getLogger(__name__)


def existing_result(config: dict, run: Path, start: Path | None) -> dict:
    """Return result.json if the run is complete or was stopped by a callback that it still has; else an empty dict."""
    result = read_result(run)
    is_stopped = result.get("stopped_by") == "callbacks" and bool(config["callbacks"])
    is_complete = result.get("status") == "finished" and result["steps"] >= config["max_steps"]
    if not start or not (is_complete or is_stopped):
        return {}
    if is_stopped:
        log.info("%s was stopped by a callback at step %d. To continue, add callbacks=none.", run, result["steps"])
    else:
        length = "max_steps" if config["max_epochs"] is None else "max_epochs"
        log.info(
            "%s is complete at step %d of %d. To continue, raise %s.", run, result["steps"], config["max_steps"], length
        )
    return result
