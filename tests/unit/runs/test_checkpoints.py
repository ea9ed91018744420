"""Checkpoint files: weights of another network, damaged files, the newest intact one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.runs import checkpoints
from diffusion_lit.runs.checkpoints import (
    checkpoint_path,
    list_steps,
    load_network_weights,
    read_selected,
    rename_corrupt,
    save_checkpoint,
    select_checkpoint,
)
from diffusion_lit.runs.pipeline import Pipeline
from diffusion_lit.runs.run_dir import read_yaml
from diffusion_lit.runs.sample_request import read_requested_config
from diffusion_lit.system.errors import Exit, UserError


def save_linear(path, inputs: int) -> nn.Module:
    net = nn.Linear(inputs, 1)
    facts = {"global_step": 3, "ImageDataModule": {"fingerprint": "abc"}, "callbacks": {"MetricsLog": {"seconds": 1.5}}}
    save_checkpoint({"state_dict": {f"ema.{name}": value for name, value in net.state_dict().items()}} | facts, path)
    return net


def test_weights_are_loaded_into_the_same_network_and_refused_for_another(tmp_path):
    path = checkpoint_path(tmp_path, 3)
    saved = save_linear(path, 2)
    loaded = nn.Linear(2, 1)
    assert load_network_weights(path, "ema", loaded) == {"step": 3, "seconds": 1.5, "data": "abc"}
    assert torch.equal(loaded.weight, saved.weight)
    assert not loaded.training
    for which, net in (("ema", nn.Linear(3, 1)), ("net", nn.Linear(2, 1))):
        with pytest.raises(UserError, match="step-00000003.ckpt cannot be used") as raised:
            load_network_weights(path, which, net)
        assert raised.value.exit_code == Exit.CHECKPOINT
    save_checkpoint(torch.load(path) | {"callbacks": ["of another program"]}, path)
    with pytest.raises(UserError, match="step-00000003.ckpt cannot be used: 'list' object has no attribute 'get'"):
        load_network_weights(path, "ema", loaded)


def test_the_newest_intact_checkpoint_is_selected(tmp_path):
    for step in (2, 10, 9):
        save_linear(checkpoint_path(tmp_path, step), 2)
    damaged = checkpoint_path(tmp_path, 10)
    damaged.write_bytes(damaged.read_bytes()[:-50])
    messages = []
    path = select_checkpoint(tmp_path, warn=messages.append)
    assert path == checkpoint_path(tmp_path, 9)
    assert len(messages) == 1
    assert "step-00000010.ckpt (damaged: " in messages[0]
    with pytest.raises(UserError, match=r"no checkpoint '4'. Choose last, best, or a step of: 2, 9, 10"):
        select_checkpoint(tmp_path, "4")
    rename_corrupt(tmp_path, path)
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000002.ckpt",
        "step-00000009.ckpt",
        "step-00000010.ckpt.corrupt",
    ]


def test_files_without_permission_are_not_damaged(tmp_path, monkeypatch):
    """An older checkpoint would be resumed, and the newest one renamed."""
    for step in (2, 4):
        save_linear(checkpoint_path(tmp_path, step), 2)
    (tmp_path / "config.yaml").write_text("seed: 0")
    original = open

    def refuse(file, *args, **settings):
        if str(file).endswith(("config.yaml", "4.ckpt")):
            raise PermissionError(13, "Permission denied", str(file))
        return original(file, *args, **settings)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    for read, *given in (
        (select_checkpoint, tmp_path, "last"),
        (select_checkpoint, tmp_path, "4"),
        (read_yaml, tmp_path / "config.yaml"),
    ):
        with pytest.raises(UserError, match=r"(4\.ckpt|config\.yaml): Permission denied$") as raised:
            read(*given)
        assert raised.value.exit_code == Exit.CHECKPOINT
    assert select_checkpoint(tmp_path, "2") == checkpoint_path(tmp_path, 2)


def test_a_reader_takes_the_newer_checkpoint_where_a_run_deletes_the_one_it_chose(tmp_path, monkeypatch):
    """Before it is verified and before it is read; what is damaged or missing for good is an error."""
    for step in (2, 4):
        save_linear(checkpoint_path(tmp_path, step), 2)

    def move_on(step: int) -> None:  # as a training run with keep_checkpoints=2 does
        save_linear(checkpoint_path(tmp_path, step), 2)
        checkpoint_path(tmp_path, list_steps(tmp_path)[0]).unlink()

    def read(path: Path) -> str:
        if len(read_paths) < 2:
            for step in range(list_steps(tmp_path)[-1] + 2, list_steps(tmp_path)[-1] + 6, 2):
                move_on(step)
        read_paths.append(path)
        load_network_weights(path, "ema", nn.Linear(2, 1))
        return path.name

    read_paths: list[Path] = []
    path, name = read_selected(lambda: select_checkpoint(tmp_path), read)
    assert path.name == name == "step-00000012.ckpt"
    assert [one.name for one in read_paths] == ["step-00000004.ckpt", "step-00000008.ckpt", "step-00000012.ckpt"]

    verify, calls = checkpoints.find_damage, []

    def verify_late(path: Path) -> str | None:
        if not calls:
            calls.append(path)
            move_on(14)
            move_on(16)
        return verify(path)

    monkeypatch.setattr(checkpoints, "find_damage", verify_late)
    warned: list[str] = []
    assert select_checkpoint(tmp_path, warn=warned.append).name == "step-00000016.ckpt"
    assert warned == []
    checkpoint_path(tmp_path, 16).write_bytes(b"half")
    checkpoint_path(tmp_path, 14).unlink()
    with pytest.raises(UserError, match="all checkpoints of this run are damaged"):
        select_checkpoint(tmp_path)


def test_a_pipeline_with_weights_of_another_kind_is_no_run_to_resume(tmp_path):
    for k, names in enumerate([["diffusion_pytorch_model.bin"], ["diffusion_pytorch_model.fp16.safetensors"], []]):
        unet = tmp_path / str(k) / "unet"
        unet.mkdir(parents=True)
        for name in ("../model_index.json", "config.json", *names):
            (unet / name).touch()
        with pytest.raises(UserError) as caught:
            select_checkpoint(tmp_path / str(k))
        held = f", only {names[0]}" if names else ""
        assert f"{k} has no unet/diffusion_pytorch_model.safetensors{held}. In diffusers" in str(caught.value)


@pytest.mark.parametrize("request_", [{"which": "best"}, {"which": "3"}, {"weights": "net"}, {"weights": "raw"}])
def test_a_published_model_has_one_set_of_weights(tmp_path, request_):
    (tmp_path / "network.safetensors").touch()
    assert select_checkpoint(tmp_path) == tmp_path / "network.safetensors"
    ((_, value),) = request_.items()
    with pytest.raises(UserError, match=rf"^\w+={value}: .* is a published model, with one set of weights") as raised:
        select_checkpoint(tmp_path, **request_)
    assert raised.value.exit_code == Exit.CHECKPOINT


def test_raw_weights_of_a_published_model_are_refused_by_every_command():
    model = Path(__file__).parents[3] / "models" / "digits"
    config = compose_configs("sample", [f"run={model}", "weights=net"])[0]
    for load in (lambda: read_requested_config(config), lambda: Pipeline.from_pretrained(model, weights="net")):
        with pytest.raises(UserError, match="^weights=net: .*models/digits is a published model"):
            load()
