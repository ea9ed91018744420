"""Files that would run something when they are opened carelessly, each handed over as a user would do it.

Every payload leaves a file in one folder or outside the folder it was unpacked in; in the end there must be none.
"""

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from diffusion_lit.runs import checkpoints, run_dir, stored_config
from tests.runs import TINY, run, start

Case = tuple[int, str, list[object]]  # exit code, message, command and its overrides


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.command = f"touch {mark}"

    def __reduce__(self):
        return os.system, (self.command,)


SCRIPT = "import os\nos.system('touch {mark}')\n"


def sampled(run: Path) -> list[object]:
    return ["sample", f"run={run}", "num_images=1", "sampler.steps=1", "device=cpu"]


def warm(path: Path) -> list[object]:
    return ["train", *TINY, "max_steps=1", "run_dir=new", f"init_from={path}"]


def of_data(*overrides: object) -> list[object]:
    return ["train", "max_steps=1", "run_dir=new", *overrides]


def checkpoint(mark: Path, here: Path, good: Path) -> Case:
    run = shutil.copytree(good, here / "run", symlinks=True)
    torch.save({"state_dict": Evil(mark)}, checkpoints.checkpoint_path(run, 2))
    return 4, "step-00000002.ckpt cannot be read", sampled(run)


def resumed_checkpoint(mark: Path, here: Path, good: Path) -> Case:
    checkpoint(mark, here, good)
    return 4, "step-00000002.ckpt cannot be read", ["train", f"resume={here / 'run'}", "max_steps=3"]


def weights_pth(mark: Path, here: Path, good: Path) -> Case:
    torch.save({"model": Evil(mark)}, here / "a.pth")
    return 4, "needs posix.system, which is not loaded", warm(here / "a.pth")


def weights_pt(mark: Path, here: Path, good: Path) -> Case:
    (here / "a.pt").write_bytes(pickle.dumps(Evil(mark), protocol=2))
    return 4, "a.pt needs posix.system, which is not loaded", warm(here / "a.pt")


def weights_bin(mark: Path, here: Path, good: Path) -> Case:
    torch.save({"model": Evil(mark)}, here / "a.bin", _use_new_zipfile_serialization=False)
    return 4, "a.bin needs posix.system, which is not loaded", warm(here / "a.bin")


def array(mark: Path, here: Path, good: Path) -> Case:
    np.save(here / "a.npy", np.array([Evil(mark)] * 3, dtype=object), allow_pickle=True)
    return (
        3,
        "a.npy: holds Python objects, or its header is damaged",
        of_data("data=arrays", f"data.images={here / 'a.npy'}", "data.image_size=8"),
    )


def arrays(mark: Path, here: Path, good: Path) -> Case:
    images, labels = np.zeros((3, 8, 8), np.uint8), np.array([Evil(mark)] * 3, dtype=object)
    np.savez(here / "a.npz", images=images, labels=labels)
    return (
        3,
        "a.npz, labels: holds Python objects, or its header is damaged",
        of_data("data=arrays", f"data.images={here / 'a.npz'}", "data.image_size=8"),
    )


def of_config(name: str, **keys: str) -> Callable[[Path, Path, Path], Case]:
    """A run whose network is another callable."""

    def case(mark: Path, here: Path, good: Path) -> Case:
        run = shutil.copytree(good, here / "run", symlinks=True)
        filled = {key: value.format(mark=mark, here=here) for key, value in keys.items()}
        config = stored_config.read_model_config(run) | {"model": {"_target_": name} | filled}
        (run / "config.yaml").write_text(json.dumps(config))
        return 2, f"_target_={name}: not a trusted class", sampled(run)

    return case


def code_for_torch_load(mark: Path, here: Path, good: Path) -> Case:
    torch.save(Evil(mark), here / "evil.pt")
    return of_config("torch.load", f="{here}/evil.pt", weights_only="")(mark, here, good)


def yaml_tags(mark: Path, here: Path, good: Path) -> Case:
    run = shutil.copytree(good, here / "run", symlinks=True)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{text}\nmore: !!python/object/apply:os.system ['touch {mark}']\n")
    return 4, "config.yaml is damaged", sampled(run)


def command_line(mark: Path, here: Path, good: Path) -> Case:
    run = shutil.copytree(good, here / "run", symlinks=True)
    overrides = run_dir.read_overrides(run)
    evil = [f"+hydra.callbacks.x={{_target_: os.system, command: 'touch {mark}'}}"]
    run_dir.append_command(run, [*overrides, *evil])
    return 4, "a run cannot override Hydra's own keys", ["train", f"resume={run}", "max_steps=3"]


def of_diffusers(mark: Path, here: Path, **more: object) -> Path:
    there = here / "model"
    (there / "unet").mkdir(parents=True)
    for name in ("pipeline.py", "evil.py", "unet/evil.py", "__init__.py"):
        (there / name).write_text(SCRIPT.format(mark=mark))
    index = {"_class_name": ["pipeline", "Evil"], "unet": ["evil", "Evil"], "custom_pipeline": "pipeline.py"}
    (there / "model_index.json").write_text(json.dumps(index))
    config = {"_class_name": "UNet2DModel", "auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True} | more
    (there / "unet" / "config.json").write_text(json.dumps(config))
    torch.save(Evil(mark), there / "unet" / "diffusion_pytorch_model.bin")
    return there


def diffusers_weights(mark: Path, here: Path, good: Path) -> Case:
    return 4, "needs posix.system, which is not loaded", warm(of_diffusers(mark, here))


def diffusers_class(mark: Path, here: Path, good: Path) -> Case:
    there = of_diffusers(mark, here, _class_name="evil.Evil")
    return 2, "is a evil.Evil, not a UNet2DModel", of_data("model=pretrained", f"model.path={there}")


def data_set_script(mark: Path, here: Path, good: Path) -> Case:
    (here / "set").mkdir()
    for name in ("set.py", "dataset.py", "__init__.py"):
        (here / "set" / name).write_text(SCRIPT.format(mark=mark))
    return 3, "data.path=", of_data("data=huggingface", f"data.path={here / 'set'}", "data.image_size=8")


def data_set_archive(mark: Path, here: Path, good: Path) -> Case:
    """`datasets` unpacks archives itself."""
    (here / "set").mkdir()
    with tarfile.open(here / "set" / "images.tar", "w") as packed:
        slip(packed, "a.png", b"not an image")
        slip(packed, f"../../../../../../../../..{mark}", b"out")
        slip(packed, str(mark), b"out")
    return 3, "", of_data("data=huggingface", f"data.path={here / 'set'}", "data.image_size=8")


def fetched(mark: Path, here: Path, good: Path) -> Case:
    """A table whose image is to be fetched by a protocol that reads templates from a file."""
    key = f"{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}"
    gen = [{"key": key, "url": "a", "dimensions": {"i": [1]}}]
    (here / "evil.json").write_text(json.dumps({"version": 1, "refs": {"a.png": "x"}, "gen": gen}))
    cell = {"bytes": None, "path": f"reference://a.png::file://{here}/evil.json"}
    column = pa.array([cell] * 4, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
    pq.write_table(pa.table({"image": column}).replace_schema_metadata(metadata), here / "a.parquet")
    overrides = of_data("data=huggingface", f"data.path={here / 'a.parquet'}", "data.image_size=8")
    return 3, "images are not fetched from", overrides


def slip(packed: tarfile.TarFile, name: str, data: bytes, **more: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in more.items():
        setattr(member, key, value)
    packed.addfile(member, io.BytesIO(data))


def tar_slip(mark: Path, here: Path, good: Path) -> Case:
    with tarfile.open(here / "cifar-10-python.tar.gz", "w:gz") as packed:
        slip(packed, str(mark), b"out")
        slip(packed, f"../../{mark.name}", b"out")
    return 3, "cifar-10-python.tar.gz is damaged", of_data("data=cifar10", f"data.root={here}")


def tar_links(mark: Path, here: Path, good: Path) -> Case:
    with tarfile.open(here / "102flowers.tgz", "w:gz") as packed:
        slip(packed, "jpg", b"", type=tarfile.SYMTYPE, linkname=str(mark.parent))
        slip(packed, f"jpg/{mark.name}", b"out")
    return 3, "102flowers.tgz is damaged", of_data("data=flowers102", f"data.root={here}")


def zip_slip(mark: Path, here: Path, good: Path) -> Case:
    with zipfile.ZipFile(here / "img_align_celeba.zip", "w") as packed:
        packed.writestr(str(mark), "out")
        packed.writestr(f"../../{mark.name}", "out")
    return 3, "img_align_celeba.zip is damaged", of_data("data=celeba", f"data.root={here}")


CASES = {
    "checkpoint": checkpoint, "resumed_checkpoint": resumed_checkpoint, "pth": weights_pth, "pt": weights_pt,
    "bin": weights_bin, "npy": array, "npz": arrays, "os_system": of_config("os.system", command="touch {mark}"),
    "write_text": of_config("pathlib.Path.write_text", self="{mark}", data="x"), "torch_load": code_for_torch_load,
    "yaml_tags": yaml_tags, "command_line": command_line, "diffusers_weights": diffusers_weights,
    "diffusers_class": diffusers_class, "script": data_set_script, "archive": data_set_archive, "fetched": fetched,
    "tar_slip": tar_slip, "tar_links": tar_links, "zip_slip": zip_slip,
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[Case, int, str, list[str]]]:
    """Every case, typed: what was expected, exit code, what was printed, and the marks it left."""
    here = tmp_path_factory.mktemp("malice")
    run("train", *TINY, "max_steps=2", "checkpoint_every=2", "val_every=0", "sample_every=0", "run_dir=good", cwd=here)
    patch, started, results = pytest.MonkeyPatch(), {}, {}
    patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as a machine may have it set
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_DATASETS_CACHE", str(here / "cache"))
    for name, make in CASES.items():
        (here / name / "marks").mkdir(parents=True)
        case = make(here / name / "marks" / "ran", here / name, here / "good")
        started[name] = case, start(*map(str, case[2]), cwd=here / name)
    patch.undo()
    for name, (case, process) in started.items():
        printed, _ = process.communicate(timeout=300)
        escaped = [path for path in (here / "ran", here.parent / "ran") if path.exists()]
        results[name] = case, process.returncode, printed, [*os.listdir(here / name / "marks"), *escaped]
    return results


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_file_is_run(ended, name):
    (code, message, _), returned, printed, marks = ended[name]
    assert marks == []
    assert returned == code, printed
    assert message in printed
    assert "Traceback" not in printed


def test_the_payloads_would_run(tmp_path):
    """What is tested above can fail."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "a")))
    torch.save(Evil(tmp_path / "b"), tmp_path / "b.pt")
    torch.load(tmp_path / "b.pt", weights_only=False)
    np.save(tmp_path / "c.npy", np.array([Evil(tmp_path / "c")]), allow_pickle=True)
    np.load(tmp_path / "c.npy", allow_pickle=True)
    exec(SCRIPT.format(mark=tmp_path / "d"))
    assert {path.name for path in tmp_path.iterdir() if not path.suffix} == set("abcd")
