"""What is never done: running code of a file, building a class that nobody trusts, writing down a secret."""

import ast
import os
import sys
from importlib.metadata import EntryPoint

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lit import train
from diffusion_lit.cli import launch
from diffusion_lit.config import secrets, targets
from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.targets import build, locate, trust, trust_overrides
from diffusion_lit.runs import checkpoints, pretrained, resume, run_dir, stored_config
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.system.errors import Exit, UserError
from tests.cases import each
from tests.runs import TINY, run
from tests.structure import PACKAGE, modules

# ------------------------------------------------------------------------------------------ the code itself

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}
UNSAFE_NAMES = {"instantiate", "unsafe_load", "full_load", "unpack_archive", "load_state_dict_from_url"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "torch.jit.load"}
UNPACKING = {"extract", "extractall", "extract_archive", "download_and_extract_archive"}
ALLOWED = {("data/sources/torchvision.py", "extract_archive")}  # of a file whose MD5 is known, and compared first


def dotted(node: ast.AST) -> str:
    """torch.load of the expression torch.load."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str, file: str = "") -> list[str]:
    """What is unsafe in a piece of code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module] if isinstance(node, ast.ImportFrom) else []
            names = {*module, *[alias.name for alias in node.names]}
            found += [name for name in names if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_NAMES]
        elif isinstance(node, ast.Call):
            found += call_faults(node, file)
    return found


def call_faults(node: ast.Call, file: str) -> list[str]:
    name, words = dotted(node.func), {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
    last, found = name.split(".")[-1], []
    if name in UNSAFE_CALLS or ("torch.hub" in name and last != "get_dir") or last in UNSAFE_NAMES:
        found.append(name)
    if (name == "torch.load" or name.endswith("trainer.fit")) and words.get("weights_only") is not True:
        found.append(f"{name} without weights_only=True")
    if last in UNPACKING and words.get("filter") != "data" and (file, last) not in ALLOWED:
        found.append(f"{name} without filter='data'")
    found += [word for word in ("trust_remote_code", "shell", "allow_pickle") if words.get(word, False) is not False]
    found += ["custom_pipeline"] * ("custom_pipeline" in words)
    texts = [word.value for word in node.args if isinstance(word, ast.Constant)] + list(words.values())
    if last in ("load", "fit", "load_from_checkpoint") and any("://" in str(text) for text in texts):
        found.append(f"{name} of an address")
    return found


@each(
    "code",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=flag)",
        "import pickle", "from pickle import loads", "import joblib", "np.load(path, allow_pickle=True)",
        "yaml.load(text)", "from yaml import unsafe_load", "eval(text)", "exec(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "load_dataset(path, trust_remote_code=True)", "torch.hub.load(a, b)",
        "from hydra.utils import instantiate", "hydra.utils.instantiate(config)", "archive.extractall(path)",
        "archive.extractall(path, filter='tar')", "trainer.fit(module, ckpt_path=path)", "__import__(name)",
        "DiffusionPipeline.from_pretrained(path, custom_pipeline=x)", "M.load_from_checkpoint('https://x/a.ckpt')",
    ],
)  # fmt: skip
def test_the_check_finds(code):
    assert faults(code)


@each("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_of_ours_runs_what_a_file_says(path):
    assert faults(path.read_text(), path.relative_to(PACKAGE).as_posix()) == []


def test_a_variable_of_the_environment_does_not_open_our_files(tmp_path, monkeypatch):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    torch.save({"state_dict": Evil()}, tmp_path / "a.ckpt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for read in (checkpoints.load_checkpoint, pretrained.read_weights):
        with pytest.raises(UserError):
            read(tmp_path / "a.ckpt")
    assert not ran.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=None)  # it would have
    assert ran.exists()


# ------------------------------------------------------------------------------------------ classes


@each(
    "name",
    [
        "os.system", "builtins.eval", "subprocess.Popen", "torch.load", "torch.hub.load", "pathlib.Path.write_text",
        "diffusers.utils.dynamic_modules_utils.get_class_from_dynamic_module", "diffusers.DiffusionPipeline",
        "diffusers.DiffusionPipeline.from_pretrained", "diffusers.schedulers.scheduling_ddim.math.fsum",
        "diffusion_lit.system.errors.sys.exit", "diffusion_lit.config.compose.import_module",
        "diffusion_lit.config.targets.import_module", "diffusion_lit.config.compose.Path",
        "diffusion_lit.distributed.slurm.subprocess.run", "diffusion_lit.cli.launch.launch",
        "diffusion_lit.distributed.slurm.subprocess", "torch.optim.optimizer.Callable", "torch.optim.adam.cast",
        "torchvision.transforms.v2.functional.resize", "torchvision.transforms.v2.Any", "torchvision.io.read_file",
        "lightning.pytorch.callbacks.Callback.state_dict", "lightning.pytorch.Trainer",
        "diffusion_lit_evil.Net", "diffusers_evil.UNet", "", ".", "diffusion_lit", None, 3, ["os.system"],
        {"_target_": "os.system"},
    ],
)  # fmt: skip
def test_a_configuration_calls_nothing_else(name):
    with pytest.raises(UserError, match="_target_") as caught:
        build({"_target_": name})
    assert caught.value.exit_code == Exit.CONFIG


def test_nothing_is_built_before_every_nested_name_is_checked(tmp_path):
    """However deep in mappings and lists, also in keys that the class itself would take for plain data."""
    (tmp_path / "proof").touch()
    evil = {"_target_": "pathlib.Path.unlink", "self": str(tmp_path / "proof")}
    flip = "torchvision.transforms.v2.RandomHorizontalFlip"
    for nested in (evil, [evil], {"a": [{"b": evil}]}, [{"_target_": flip, "p": evil}], {"_target_": evil}):
        leaf = {"_target_": "diffusion_lit.networks.unet.UNet2D", "image_size": 8, "channels": nested}
        with pytest.raises(UserError, match="_target_") as caught:
            build(leaf)
        assert caught.value.exit_code == Exit.CONFIG
    assert (tmp_path / "proof").exists()


def test_nested_leafs_are_built_and_interpolations_are_text():
    flip = {"_target_": "torchvision.transforms.v2.RandomHorizontalFlip", "p": 0.5}
    (built,) = build([{"_target_": "torchvision.transforms.v2.RandomApply", "transforms": [flip], "p": 1.0}])
    assert built.transforms[0].p == 0.5
    assert build({"a": ["${oc.env:HOME}"]}) == {"a": ["${oc.env:HOME}"]}


def test_every_class_that_diffusers_samples_and_we_train_with_can_be_named():
    import diffusers

    assert locate("diffusers.UNet2DModel") is diffusers.UNet2DModel
    assert locate("diffusers.schedulers.scheduling_ddim.DDIMScheduler") is locate("diffusers.DDIMScheduler")
    with pytest.raises(UserError, match="missing a required argument: 'block_out_channels'"):
        build({"_target_": "diffusion_lit.networks.unet.UNet", "image_size": 8, "channels": 1, "num_classes": 0})


@pytest.fixture
def nothing_is_ones_own(monkeypatch):
    monkeypatch.setattr(targets, "_trusted_names", set())


def test_a_plugin_is_a_package_that_is_installed(monkeypatch, nothing_is_ones_own):
    """Its own classes can be named, not what it has imported."""
    with pytest.raises(UserError, match="install its package with an entry point in diffusion_lit.plugins"):
        locate("json.decoder.JSONDecoder")
    installed = [EntryPoint("mine", "json", targets.PLUGINS)]
    monkeypatch.setattr(targets, "entry_points", lambda group: installed if group == targets.PLUGINS else [])
    assert locate("json.decoder.JSONDecoder").__name__ == "JSONDecoder"
    for name in ("json.decoder.scanner", "json.codecs.open", "json.codecs.Codec", "jsonish.Net"):
        with pytest.raises(UserError, match="_target_"):
            locate(name)


NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, image_size, channels, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)
    def forward(self, x_t, t, y):
        return self.conv(x_t)
"""


def test_a_class_of_ones_own_is_trained_and_sampled_where_ones_own_files_name_it(tmp_path, nothing_is_ones_own):
    (tmp_path / "my_networks.py").write_text(NET)
    (tmp_path / "own" / "model").mkdir(parents=True)
    keys = "image_size: ${data.image_size}\nchannels: ${data.channels}\nnum_classes: ${data.num_classes}\n"
    (tmp_path / "own" / "model" / "mine.yaml").write_text(f"_target_: my_networks.Net\n{keys}")
    words = [word for word in TINY if not word.startswith("model.")]
    run("train", "--config-dir", "own", "model=mine", *words, "max_steps=2", "run_dir=run", cwd=tmp_path)
    told = run("sample", "run=run", "num_images=1", "sampler.steps=1", cwd=tmp_path, code=2)
    assert "_target_=my_networks.Net: not a trusted class" in told
    assert "pass the --config-dir whose yaml names it" in told
    run("sample", "--config-dir", "own", "run=run", "num_images=1", "sampler.steps=1", "out=out", cwd=tmp_path)
    assert (tmp_path / "out" / "00000.png").exists()


def test_what_is_trusted_is_the_name_and_no_more(nothing_is_ones_own):
    trust({"model": {"_target_": "json.JSONDecoder", "more": [{"_target_": "os.system"}]}})
    trust_overrides(["+callbacks.x._target_=fractions.Fraction", "data.dataset={_target_: decimal.Decimal, value: 1}"])
    for name in ("json.JSONDecoder", "fractions.Fraction", "decimal.Decimal"):
        assert locate(name).__name__ == name.split(".")[1]
    for name, why in (("json.JSONEncoder", "not a trusted class"), ("os.system", "not a class")):
        with pytest.raises(UserError, match=why):
            locate(name)


def test_a_callback_is_ones_own_where_it_is_typed_and_not_where_it_is_stored(tmp_path, nothing_is_ones_own):
    callback = "import lightning as L\nclass Note(L.Callback): ...\n"
    (tmp_path / "my_callbacks.py").write_text(callback)
    words = [*TINY, "max_steps=2", "run_dir=run", "+callbacks.note._target_=my_callbacks.Note"]
    run("train", *words, cwd=tmp_path)
    told = run("train", "resume=run", "max_steps=3", cwd=tmp_path, code=2)
    assert "_target_=my_callbacks.Note: not a trusted class" in told
    run("train", "resume=run", "max_steps=3", "+callbacks.note._target_=my_callbacks.Note", cwd=tmp_path)


SMALL_NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self, image_size, channels, num_classes, width):
        super().__init__()
        if width % 2:
            raise ValueError(f"width={width}: must be even")
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.Conv2d(width, channels, 3, padding=1)
        )
    @staticmethod
    def debug_arguments(settings):
        return {"width": settings["width"] // 64}
    def forward(self, x_t, t, y):
        return self.layers(x_t)
"""


def test_a_new_network_is_one_class_and_one_yaml(tmp_path):
    """Its checks and its small version for debug=on are the class's own."""
    (tmp_path / "my_networks.py").write_text(SMALL_NET)
    (tmp_path / "own" / "model").mkdir(parents=True)
    keys = "image_size: ${data.image_size}\nchannels: ${data.channels}\nnum_classes: ${data.num_classes}\nwidth: 256\n"
    (tmp_path / "own" / "model" / "mine.yaml").write_text(f"_target_: my_networks.Net\n{keys}")
    words = ["--config-dir", "own", "model=mine", "run_dir=run"]
    assert "model: width=3: must be even" in run("train", *words, "model.width=3", cwd=tmp_path, code=2)
    assert not (tmp_path / "run").exists()
    run("train", *words, "debug=on", cwd=tmp_path)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "width: 4\n" in config
    assert "max_steps: 2\n" in config


@each(
    "word",
    [
        "+hydra.callbacks.x._target_=os.system", "hydra/launcher=joblib", "+hydra={callbacks: {}}",
        "++hydra.verbose=true", "hydra.searchpath=['file:///evil']", "+data@hydra.callbacks.x=digits",
        "+hydra.job_logging.handlers.x={\"()\": os.system}", "--config-dir=evil", "a=[",
    ],
)  # fmt: skip
def test_the_stored_words_of_a_run_set_nothing_of_hydra(tmp_path, word):
    run_dir.append_command(tmp_path, ["seed=1", word])
    with pytest.raises(UserError, match=r"command\.txt") as caught:
        resume.merge_resume_overrides(tmp_path, [])
    assert caught.value.exit_code == Exit.CHECKPOINT


def test_a_stored_network_of_another_class_is_not_built(tiny_run, tmp_path):
    config = stored_config.read_model_config(tiny_run) | {
        "model": {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}
    }
    (tmp_path / "run").mkdir()
    OmegaConf.save(OmegaConf.create(config), tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "checkpoints").symlink_to(tiny_run / "checkpoints")
    with pytest.raises(UserError, match=r"_target_=os\.system: not a trusted class"):
        TrainedModel.from_run(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------ secrets

WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"
SECRETS = {
    "WANDB_API_KEY": WANDB_KEY, "HF_TOKEN": "hf_" + "Ab1" * 12, "GITHUB_TOKEN": "ghp_" + "x1" * 18,
    "AWS_ACCESS_KEY_ID": "AKIA" + "Q7" * 8,
}  # fmt: skip


@each("secret", [*SECRETS.values(), "wandb_v1_" + "a1" * 38, "https://me:pw@host/x"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(monkeypatch, capsys, tmp_path, secret):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "hydra_main", None)
    for word in (secret, f"name={secret}", f"+hydra.job.env_set.X={secret}", f"{secret}=1", f"data.root=/x/{secret} y"):
        if word == f"data.root=/x/{WANDB_KEY} y":
            continue  # what a folder of a commit is called
        monkeypatch.setattr(sys, "argv", ["train", "seed=1", word])
        with pytest.raises(SystemExit) as ended:
            train.main()
        printed = "".join(capsys.readouterr())
        assert ended.value.code == Exit.CONFIG
        assert "looks like a secret" in printed
        assert "`wandb login`" in printed
        assert secret not in printed
    assert os.listdir(tmp_path) == []


def test_a_secret_in_a_file_of_ones_own_is_refused_and_not_repeated(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nname: {SECRETS['HF_TOKEN']}\n")
    with pytest.raises(UserError, match="name: looks like a secret") as caught:
        compose_configs("train", ["experiment=mine"], config_dir=str(tmp_path))
    assert SECRETS["HF_TOKEN"] not in str(caught.value)


@each(
    "word",
    [
        f"init_from=/home/me/.cache/huggingface/hub/models--a--b/snapshots/{WANDB_KEY}/unet", "name=digits",
        "data.root=/data/hf_datasets", "run=outputs/digits/2026-01-01_10-00-00-ab12", "seed=12345678901234567",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_not_refused(word):
    secrets.refuse_secrets([word])


def test_keys_of_the_environment_are_in_no_file_and_in_no_line(tmp_path, monkeypatch):
    """A run with W&B, its previews and samples: nothing that they write holds one of four keys."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in {**SECRETS, "WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    words = [*TINY, "logger=wandb", "max_steps=2", "val_every=1", "sample_every=2", "checkpoint_every=2"]
    printed = run("train", *words, "run_dir=run", cwd=tmp_path)
    printed += run("sample", "run=run", "num_images=1", "sampler.steps=1", cwd=tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".ckpt" for path in files)
    for secret in SECRETS.values():
        assert secret not in printed
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
