"""The command that the app shows beside its images: `sample` makes the same ones with it, bit by bit."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.runs.fast_sampling import speed_up
from diffusion_lit.runs.load import load_requested_model
from diffusion_lit.runs.sample_request import insert_stored_sampler
from diffusion_lit.web.sample_command import SampleCommand, list_model_overrides
from diffusion_lit.web.session import ALL, MAX_IMAGES, ImageSession, Request
from tests.images import noise
from tests.runs import TINY, address_of, run, start
from tests.structure import ROOT

SAME = "guidance_scale=1.0", "sampler=ddim", "sampler.steps=2"


def open_session(folder: Path, *overrides: str) -> tuple[ImageSession, SampleCommand]:
    """Return what the app makes of a command line."""
    texts = insert_stored_sampler([f"run={folder}", "precision=32-true", *overrides], None)
    (config,) = compose_configs("app", texts, None)
    session = ImageSession(speed_up(load_requested_model(config, print), config, MAX_IMAGES))
    return session, SampleCommand(session, config)


def run_command(command: str, home: Path) -> np.ndarray:
    """Return the images (N, C, H, W) of a command line."""
    python, flag, module, *overrides = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "diffusion_lit.sample")
    run("sample", *overrides, "out=out", "npy=true", cwd=home)
    return np.load(home / "out" / "images.npy").transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("overrides", "request_", "expected"),
    [
        ([], Request("3", 3, 7, "ddim", 2, 1.0), ["num_images=3", "seed=7", 'classes="3"', *SAME]),
        ([], Request(ALL, 16, 0, "ddim", 2, 4.0), ["num_images=16", "guidance_scale=4.0"]),
        ([], Request(ALL, 3, 2**32 - 1, "euler_a", 4, 0.0, 0.3), ["seed_mix=0.3", "sampler=euler_a"]),
        (["guidance_rescale=0.7", "guidance_interval=[0.1,0.9]", "guidance_scale=2", "palette=auto", "device=cpu"],
         Request("8", 2, 1, "ddim", 2, 3), ["guidance_rescale=0.7", "guidance_interval=[0.1, 0.9]", "palette=auto"]),
        (["precision=bf16-mixed", "sampler=ddpm", "sampler.clip_x0=false", "weights=net", "checkpoint=2"],
         Request("1", 2, 1, "ddpm", 3, 1.0), ["precision=bf16-mixed", "sampler.clip_x0=false", "weights=net"]),
        (["sampler.steps=1", "sampler.clip_x0=false"],
         Request("1", 2, 1, "dpmpp_sde", 4, 1.0), ["sampler.clip_x0=false"]),
        (["sampler=ddpm"], Request("1", 2, 1, "dpmpp_sde", 4, 1.0), ["sampler=dpmpp_sde"]),
    ],
)  # fmt: skip
def test_the_command_of_a_run_with_classes_makes_the_same_images(tiny_run, tmp_path, overrides, request_, expected):
    session, command = open_session(tiny_run, *overrides)
    text = command.format(request_)
    assert not {f"checkpoint={4 if 'checkpoint=2' not in overrides else 2}", *expected} - set(shlex.split(text)), text
    assert np.array_equal(run_command(text, tmp_path), session.generate(request_).images.numpy())


@pytest.mark.parametrize("prompt", ["purple key", 'it\'s a "green"\nsword', ""])
def test_the_command_of_a_run_with_prompts_makes_the_same_images(tmp_path, prompt):
    session, command = open_session(ROOT / "models" / "icons")
    request = Request(prompt, 2, 5, "dpmpp_2m", 3, 3.0)
    images = session.generate(request).images.numpy()
    assert np.array_equal(run_command(command.format(request), tmp_path), images)


def test_a_best_checkpoint_that_is_no_link_is_named_as_such(tmp_path):
    """Where symbolic links need a privilege, best.ckpt is a hard link, which has no step in its name."""
    model = SimpleNamespace(checkpoint=tmp_path / "best.ckpt", speed={"precision": "32-true"})
    config = {"run": "run", "checkpoint": "best", "weights": "ema", "ema_length": None}
    config |= {"palette": None, "device": "auto"}
    assert list_model_overrides(config, model) == ["run=run", "checkpoint=best"]


def test_a_mix_of_a_model_without_classes_is_a_square(tmp_path):
    (tmp_path / "in").mkdir()
    for k, image in enumerate(noise(6, 3)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "in" / f"{k}.png")
    data = ["experiment=none", "data=image_folder", "data.root=in", "data.image_size=8"]
    run("train", *data, *TINY, "max_steps=1", "val_every=0", "sample_every=0", "run_dir=run", cwd=tmp_path)
    session, command = open_session(tmp_path / "run")
    request = Request(ALL, 4, 7, "ddim", 2, 1.0, 0.5)
    text = command.format(request)
    assert "classes" not in text
    assert "guidance" not in text
    assert np.array_equal(run_command(text, tmp_path), session.generate(request).images.numpy())
    assert len(set(Image.open(tmp_path / "out" / "grid.png").size)) == 1


def test_the_page_shows_the_command_of_every_drawing_to_copy(browser, tiny_run, tmp_path):
    process = start("app", f"run={tiny_run}", "port=0", cwd=tmp_path)
    try:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.goto(address_of(process))
        page.click("button:has-text('Generate')")
        page.wait_for_selector(".cm-content:has-text('seed=0')", timeout=60_000)
        page.get_by_label("draw while a slider moves").check()
        mix = page.get_by_label("mix with the next seed").first
        mix.fill("0.5")
        mix.press("Enter")
        page.wait_for_selector(".cm-content:has-text('seed_mix=0.5')", timeout=60_000)
        page.click("button[aria-label*='Copy' i]")
        page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('seed_mix=0.5'))")
        text = page.evaluate("navigator.clipboard.readText()")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    session, command = open_session(tiny_run, "precision=auto")
    request = Request(ALL, 16, 0, "dpmpp_sde", 2, 1.0, 0.5)
    assert text == command.format(request)
    assert np.array_equal(run_command(text, tmp_path), session.generate(request).images.numpy())
