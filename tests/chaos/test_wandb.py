"""Seven faults of W&B, each met by a real run with an API key: none of them ends it or costs it a row."""

import contextlib

import pytest

from diffusion_lit.runs import checkpoints
from tests.runs import TINY, run, trace
from tests.wandb_server import KEY, environment, server

SETTINGS = [*TINY, "max_steps=8", "checkpoint_every=4", "val_every=0", "sample_every=0", "logger=wandb"]

# A killed service and a full disk: tests/integration/test_loggers.py and tests/chaos/test_disks.py.
FAULTS = {
    "unreachable": (None, "http://127.0.0.1:9 gives no answer: ConnectionError"),
    "black hole": ((None, ""), "does not answer within 3 s|gives no answer: ReadTimeout"),
    "401": ((401, "{}"), "does not accept the API key"),
    "429": ((429, "{}"), "answers 429 Too Many Requests"),
    "500": ((500, "{}"), "answers 500 Internal Server Error"),
}
QUICK = ("black hole", "401")


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAULTS]
)
def test_a_fault_of_the_server_leaves_the_run_offline(tmp_path, fault):
    answer, messages = FAULTS[fault]
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(server(*answer)) if answer else "http://127.0.0.1:9"
        stack.enter_context(environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=address))
        printed = run("train", *SETTINGS, "logger.connect_seconds=3", "run_dir=run", cwd=tmp_path)
    assert "W&B        offline (" in printed
    assert any(message in printed for message in messages.split("|")), printed
    assert "Traceback" not in printed
    assert KEY not in printed
    assert len(trace(tmp_path / "run")) == 8
    assert checkpoints.list_steps(tmp_path / "run") == [4, 8]
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1
