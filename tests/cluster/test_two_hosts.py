"""torchrun on two hosts: one run, a host or a cable that is lost, restarts, and copies of the images."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lit.runs import checkpoints
from tests.cluster.hosts import Host, train_unforked, two_hosts
from tests.equal_runs import SETTINGS, assert_equal_runs
from tests.image_sets import write_parquet
from tests.ranks import SHORT, WANDB, assert_same_training
from tests.runs import last_step

pytestmark = pytest.mark.cluster
DDP = ["strategy=ddp", "strategy.num_nodes=2", "strategy.accelerator=cpu"]
C10D = [["--rdzv-backend=c10d", "--rdzv-endpoint=10.213.7.1:29411", "--rdzv-id=job"]] * 2
STATIC = [[f"--node-rank={k}", "--master-addr=10.213.7.1", "--master-port=29411"] for k in (0, 1)]
ENOUGH = 400  # seconds, on a busy machine


@pytest.fixture
def hosts(tmp_path) -> Iterator[list[Host]]:
    made = two_hosts(tmp_path)
    yield made
    for host in made:
        host.end()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """A run of two hosts that nothing happens to."""
    folder = tmp_path_factory.mktemp("unbroken")
    made = two_hosts(folder)
    try:
        job = Job(made, folder, *SETTINGS, *DDP, "run_dir=run")
        assert job.codes() == [0, 0], job.printed()
    finally:
        for host in made:
            host.end()
    return folder / "run"


class Job:
    """torchrun on both hosts, `each` processes on one; what each host prints is in a file."""

    def __init__(
        self,
        hosts: list[Host],
        cwd: Path,
        *overrides: str,
        launcher=C10D,
        cwds: list[Path] | None = None,
        each: int = 1,
    ):
        self.files = [cwd / f"printed-{time.monotonic_ns()}-{host.name}" for host in hosts]
        self.processes = []
        for k, host in enumerate(hosts):
            flags = ["--nnodes=2", f"--nproc-per-node={each}", *launcher[k], "-m", "diffusion_lit.train", *overrides]
            command = [sys.executable, "-m", "torch.distributed.run", *flags]
            with open(self.files[k], "w") as output:
                self.processes.append(host.start(*command, cwd=(cwds or [cwd, cwd])[k], output=output))

    def codes(self) -> list[int]:
        """Exit codes, once both have ended."""
        try:
            return [process.wait(ENOUGH) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs:\n{self.printed()}")

    def printed(self, k: int | None = None) -> str:
        return "\n".join(file.read_text() for file in (self.files if k is None else self.files[k : k + 1]))

    def await_text(self, k: int, text: str) -> None:
        until = time.monotonic() + ENOUGH
        while text not in self.printed(k):
            assert time.monotonic() < until, f"it hangs:\n{self.printed()}"
            time.sleep(0.1)

    def reach(self, step: int, folder: Path) -> None:
        while last_step(folder) < step:
            assert None in [process.poll() for process in self.processes], self.printed()
            time.sleep(0.01)


def worker(rank: int, folder: Path) -> int:
    """Process id of the training process of a rank that works in a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            values, command = ((process / name).read_bytes().split(b"\0") for name in ("environ", "cmdline"))
            here = Path(os.readlink(process / "cwd")) == folder
        except OSError:  # it has just ended
            continue
        if here and b"RANK=%d" % rank in values and b"torch.distributed.run" not in command:
            return int(process.name)
    raise ProcessLookupError(f"rank {rank} in {folder}")


# ------------------------------------------------------------------------------------------------ one run


def test_two_hosts_train_as_one_process(hosts, tmp_path):
    job = Job(hosts, tmp_path, *SHORT, *DDP, *WANDB, "run_dir=two")
    assert job.codes() == [0, 0], job.printed()
    train_unforked(*SHORT, "run_dir=one", cwd=tmp_path)
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert "in each of 2 processes" in job.printed(0)
    assert job.printed(0).count("step 8/8") == 1
    assert "step 8/8" not in job.printed(1)  # rank 0 alone speaks and writes
    assert len(list((tmp_path / "two").glob("wandb/offline-run-*"))) == 1
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"one", "two"}
    ours = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == ours | {"wandb"}


LOOPBACK = "127.0.0.1 localhost\n127.0.1.1 {}\n"  # as Debian's installer leaves it


@pytest.mark.parametrize("table", [LOOPBACK, "127.0.0.1 localhost\n"], ids=["own name is loopback", "no names"])
def test_the_interface_is_found_whatever_the_hosts_call_themselves(tmp_path, table):
    """By the static rendezvous, with devices and nodes left to the launcher."""
    made = two_hosts(tmp_path, (table.format("host1"), table.format("host2")))
    try:
        overrides = [*SHORT, "strategy=ddp", "strategy.accelerator=cpu", "run_dir=run"]
        job = Job(made, tmp_path, *overrides, launcher=STATIC)
        assert job.codes() == [0, 0], job.printed()
        assert last_step(tmp_path / "run") == 8
    finally:
        for host in made:
            host.end()


# ------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("lost", ["host2", "host1", "cable"])
def test_what_is_lost_ends_the_rest_and_the_job_started_again_equals_one_that_lost_nothing(
    hosts, tmp_path, unbroken, lost
):
    """host1 has rank 0 and the rendezvous. A cut cable sends no signal."""
    job = Job(hosts, tmp_path, *SETTINGS, *DDP, "run_dir=run")
    job.reach(9, tmp_path / "run")
    if lost == "cable":
        hosts[1].do("ip", "link", "set", "eth0", "down")
        job.await_text(1, "rank 0 is lost (connection timed out)")  # training has ended there
        hosts[1].kill()  # torchrun itself waits longer for the endpoint that it cannot reach
    else:
        hosts[int(lost[-1]) - 1].kill()
    assert 0 not in job.codes(), job.printed()
    if lost != "host1":  # else torchrun may be the first to notice, on host2, and end its process
        assert re.search(r"exitcode *: 75", job.printed(0)), job.printed(0)
    assert last_step(tmp_path / "run") < 24
    if lost == "cable":
        hosts[1].do("ip", "link", "set", "eth0", "up")
    again = Job(hosts, tmp_path, "resume=run")
    assert again.codes() == [0, 0], again.printed()
    assert_equal_runs(unbroken, tmp_path / "run")


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_a_killed_process_again_and_resume_auto_goes_on(hosts, tmp_path, unbroken, rank):
    launcher = [[*flags, "--max-restarts=2"] for flags in C10D]
    job = Job(hosts, tmp_path, *SETTINGS, *DDP, "experiment=digits", "name=again", "resume=auto", launcher=launcher)
    while not list(tmp_path.glob("outputs/again/*/metrics.csv")):
        assert None in [process.poll() for process in job.processes], job.printed()
        time.sleep(0.05)
    (folder,) = tmp_path.glob("outputs/again/*")
    job.reach(9, folder)
    os.kill(worker(rank, tmp_path), signal.SIGKILL)
    assert job.codes() == [0, 0], job.printed()
    assert [path.name for path in tmp_path.glob("outputs/again/*")] == [folder.name]
    assert len((folder / "command.txt").read_text().splitlines()) == 2
    assert_equal_runs(unbroken, folder)


# ------------------------------------------------------------------------------------------------ copies


def save_images(folder: Path) -> Path:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for k in range(12):
            Image.new("L", (8, 8), 20 * k + (label == "b")).save(folder / label / f"{k}.png")
    return folder


def separate(tmp_path: Path) -> list[Path]:
    """A folder of each host's own, as without a shared file system: relative paths are its own."""
    cwds = [tmp_path / "disk1", tmp_path / "disk2"]
    for folder in cwds:
        save_images(folder / "images")
    return cwds


@pytest.fixture
def apart(hosts, tmp_path) -> list[Path]:
    """Both disks are at the same place, each of its own host."""
    place = tmp_path / "disk"
    place.mkdir()
    cwds = separate(tmp_path)
    for host, folder in zip(hosts, cwds, strict=True):
        host.do("mount", "--bind", folder, place)
    return cwds


OVERRIDES = [*SHORT, *DDP, "data=image_folder", "data.root=images", "data.image_size=8", "data.channels=1"]
OVERRIDES += ["model=unet_digits", "val_every=0", "data.val_fraction=0", "run_dir=run"]


def test_without_a_shared_file_system_rank_0_alone_writes(hosts, apart, tmp_path):
    place = tmp_path / "disk"
    job = Job(hosts, tmp_path, *OVERRIDES, cwds=[place, place])
    assert job.codes() == [0, 0], job.printed()
    assert checkpoints.list_steps(apart[0] / "run") == [4, 8]
    assert [path.name for path in apart[1].iterdir()] == ["images"]
    again = Job(hosts, tmp_path, "resume=run", "max_steps=12", cwds=[place, place])
    assert 0 not in again.codes()
    assert "rank 1 on host2: " in again.printed(0)
    assert "not found on this host. Every host reads it" in again.printed(0)
    assert re.search(r"exitcode *: 4", again.printed(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "b" / "3.png").unlink(), "missing on host2: b/3.png"),
        (lambda root: Image.new("L", (8, 8), 99).save(root / "a" / "4.png"), "with different content: a/4.png"),
        (
            lambda root: root.rename(root.parent / "elsewhere"),
            r"error: rank 2 on host2: data\.root=\S*/disk/images: folder not found",
        ),
    ],
    ids=["a file is missing", "another image", "nothing is there"],
)
def test_hosts_that_read_other_images_do_not_train(hosts, apart, tmp_path, change, message):
    change(apart[1] / "images")
    place = tmp_path / "disk"
    job = Job(hosts, tmp_path, *OVERRIDES, cwds=[place, place], each=2)
    assert 0 not in job.codes()
    assert re.search(message, job.printed(0)), job.printed()
    assert re.search(r"exitcode *: 3", job.printed(0))
    assert not list(tmp_path.rglob("metrics.csv"))


def test_hosts_that_read_other_tables_do_not_train(hosts, apart, tmp_path):
    for k, folder in enumerate(apart):
        write_parquet(folder / "table", "train", range(k, 40 + k), sizes=(40,))
    overrides = [*SHORT, *DDP, "data=huggingface", "data.path=table", "data.streaming=every_epoch", "data.image_size=4"]
    place = tmp_path / "disk"
    job = Job(hosts, tmp_path, *overrides, "run_dir=run", cwds=[place, place])
    assert 0 not in job.codes()
    assert "the images on host2 (40) differ from those on host1 (40)" in job.printed(0), job.printed()
    assert "with different content: training images" in job.printed(0)
    assert re.search(r"exitcode *: 3", job.printed(0))
