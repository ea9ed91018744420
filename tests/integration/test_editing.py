"""Edits and paths between images: closed forms of Gaussians, what is kept, what the ends are."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lit import sample
from diffusion_lit.data import originals
from diffusion_lit.data.decoding import Decoding
from diffusion_lit.diffusion.conditions import ClassCondition
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.seeds import InterpolatedSeed, image_seeds
from diffusion_lit.diffusion.weighting import Uniform
from diffusion_lit.imaging.grids import to_float, to_pil, to_uint8
from diffusion_lit.networks.dit import DiT
from diffusion_lit.networks.simple_unet import SimpleUNet
from diffusion_lit.networks.unet import UNet
from diffusion_lit.runs.load import TrainedModel
from diffusion_lit.sampling.editing import Edit, initial_noise, renoise, slerp
from diffusion_lit.sampling.generate import generate
from diffusion_lit.sampling.guidance import add_classifier_free_guidance
from diffusion_lit.sampling.samplers import scheduler_times
from diffusion_lit.system.errors import DataError
from tests.cases import each
from tests.images import noise
from tests.runs import run
from tests.sampled import YAMLS, sampler_of

TABLE = DiscreteProcess()
PROCESS = Diffusion(TABLE, "v_prediction", Uniform())
MEAN, SPREAD = 0.2, 0.3  # of the Gaussian data, every pixel by itself
SHAPE = (1, 64, 64)
every_sampler = each(
    ("name", "changes"),
    [*[(name, {}) for name in YAMLS], ("ddim", {"eta": 1.0}), ("dpmpp_2m", {"use_karras_sigmas": True})],
)


def exact(x_t, t, y):
    """v of the posterior mean of x0 under the Gaussian."""
    a, s = TABLE.alpha[t[0]], TABLE.sigma[t[0]]
    surprise = (x_t.double() - a * MEAN) / (a**2 * SPREAD**2 + s**2)
    return (a * s * surprise - s * (MEAN + a * SPREAD**2 * surprise)).float()


def made(name: str, edit: Edit | None, seeds=(0, 1, 2, 3), net=exact, **changes) -> torch.Tensor:
    sampler = sampler_of(name, **{"steps": 50, "batch_size": 4, "clip_x0": False, **changes})
    return generate(net, PROCESS, sampler, [0] * len(seeds), seeds, SHAPE, edit=edit).clamp(-1, 1)


def started_at(name: str, strength: float, **changes) -> tuple[float, float]:
    """alpha and sigma where an edit begins."""
    times = scheduler_times(sampler_of(name, **{"steps": 50, **changes}).build_scheduler(TABLE), TABLE)
    t = times[Edit(torch.zeros(1, 1, 1, 1), strength).step_indices(len(times))[0]]
    return TABLE.alpha[t].item(), TABLE.sigma[t].item()


# ------------------------------------------------------------------------------------------ SDEdit


@each(("name", "tolerance"), [("ddim", 0.006), ("dpmpp_2m", 0.003)])
@each("strength", [0.3, 0.6, 0.9])
def test_an_edit_without_noise_on_the_way_is_where_the_exact_flow_takes_the_noisy_picture(name, strength, tolerance):
    """Value by value: the flow keeps the distance from the mean in standard deviations."""
    x0 = torch.linspace(-0.9, 0.9, 4).view(4, 1, 1, 1).expand(4, *SHAPE)
    alpha, sigma = started_at(name, strength, steps=250)
    eps = torch.stack([initial_noise(seed, SHAPE)[0] for seed in range(4)])
    shrink = SPREAD / (alpha**2 * SPREAD**2 + sigma**2) ** 0.5
    expected = MEAN + shrink * (alpha * (x0 - MEAN) + sigma * eps)
    error = made(name, Edit(x0, strength), steps=250).sub(expected.clamp(-1, 1)).square().mean().sqrt()
    assert error < tolerance
    assert (x0 - expected).square().mean().sqrt() > 20 * tolerance


@pytest.mark.parametrize("strength", [0.3, 0.6])
@pytest.mark.parametrize(("name", "changes"), [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_an_edit_with_noise_on_the_way_draws_from_the_posterior_of_the_noisy_picture(name, changes, strength):
    """x0 given x_t: mean m + a s^2 / (a^2 s^2 + sigma^2) (x_t - a m), variance s^2 sigma^2 / (a^2 s^2 + sigma^2)."""
    x0 = torch.full((4, *SHAPE), -0.4)
    alpha, sigma = started_at(name, strength, steps=1000)
    images = made(name, Edit(x0, strength), steps=1000, **changes)
    total = alpha**2 * SPREAD**2 + sigma**2
    gain = alpha * SPREAD**2 / total
    variance = SPREAD**2 * sigma**2 / total + (gain * sigma) ** 2  # over x_t as well
    error = (variance / images.numel()) ** 0.5
    assert abs(images.mean() - (MEAN + gain * alpha * (-0.4 - MEAN))) < 4 * error + 0.002
    assert images.var() == pytest.approx(variance, rel=0.05)


@every_sampler
def test_all_of_the_steps_start_from_noise_alone(name, changes):
    x0 = to_float(noise(4, 1, 64, 64))
    assert torch.equal(made(name, Edit(x0), **changes), made(name, None, **changes))


@every_sampler
def test_a_little_strength_gives_the_picture_back(name, changes):
    """One step from the least noise there is, which is one of 1000 levels."""
    x0 = to_float(noise(4, 1, 64, 64))
    images = made(name, Edit(x0, 0.001), steps=999, **changes)
    assert (images - x0).abs().max() < 5 * started_at(name, 0.001, steps=999, **changes)[1]


@every_sampler
@each("mask", [False, True])
def test_an_edited_image_depends_on_its_seed_and_picture_alone(name, changes, mask):
    x0 = to_float(noise(5, 1, 64, 64))
    area = torch.arange(64 * 64).view(64, 64) % 3 == 0 if mask else None
    edit = Edit(x0, 0.5, area, repaint_repeats=2 if mask else 1)
    together = made(name, edit, seeds=range(5), **changes)
    alone = made(name, Edit(x0[3:4], 0.5, area, edit.repaint_repeats), seeds=[3], **changes)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-6)
    assert not torch.equal(together[3], made(name, edit, seeds=[0, 1, 2, 9, 4], **changes)[3])


# ------------------------------------------------------------------------------------------ inpainting


@every_sampler
@each(("strength", "repaint_repeats"), [(1.0, 1), (0.5, 3)])
def test_what_is_kept_is_the_picture_to_the_bit(name, changes, strength, repaint_repeats):
    picture = noise(4, 1, 64, 64)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:48, 8:40] = True
    images = to_uint8(made(name, Edit(to_float(picture), strength, mask, repaint_repeats), steps=10, **changes))
    assert torch.equal(images[..., ~mask], picture[..., ~mask])
    assert (images[..., mask] != picture[..., mask]).float().mean() > 0.9


@each("repaint_repeats", [1, 3])
@every_sampler
def test_independent_pixels_are_painted_as_if_nothing_were_kept(name, changes, repaint_repeats):
    """Where no pixel tells of another, repainting is sampling: the same moments, whatever is around."""
    mask = torch.ones(64, 64, dtype=torch.bool)
    mask[::2] = False
    images = made(
        name, Edit(torch.full((4, *SHAPE), 0.9), mask=mask, repaint_repeats=repaint_repeats), steps=100, **changes
    )
    painted = images[..., mask]
    assert abs(painted.mean() - MEAN) < 4 * SPREAD / painted.numel() ** 0.5
    assert painted.std() == pytest.approx(SPREAD, rel=0.12)  # a hundred steps take some variance away


def test_repeating_steps_brings_the_painted_half_nearer_to_what_the_kept_one_says():
    """The two halves of the data are equal, so that the right answer is the kept half. Plain replacement only sees it
    with noise on; repeats make the halves agree (Lugmayr et al. 2022, section 4.2)."""

    def halves(x_t, t, y):  # the posterior mean of x0 when left and right are one Gaussian image
        a, s = TABLE.alpha[t[0]], TABLE.sigma[t[0]]
        both = (x_t[..., :32] + x_t[..., 32:]).double() / 2  # noise of half the variance
        x0 = MEAN + a * SPREAD**2 * (both - a * MEAN) / (a**2 * SPREAD**2 + s**2 / 2)
        x0 = torch.cat([x0, x0], -1)
        return ((a * x_t - x0) / s).float()  # v = alpha eps - sigma x0 with eps = (x_t - alpha x0) / sigma

    half = MEAN + SPREAD * torch.randn(4, 1, 64, 32, generator=torch.Generator().manual_seed(7))
    x0, mask = torch.cat([half, half], -1).clamp(-1, 1), torch.zeros(64, 64, dtype=torch.bool)
    mask[:, 32:] = True
    errors = [
        (made("ddpm", Edit(x0, mask=mask, repaint_repeats=repaint_repeats), net=halves)[..., 32:] - x0[..., 32:])
        .square()
        .mean()
        for repaint_repeats in (1, 5)
    ]
    assert errors[1] < errors[0] / 1.5
    assert errors[0] < 2 * SPREAD**2 / 4  # of halves that know nothing of each other: 2 s^2


def test_taking_back_makes_the_noise_of_the_level():
    x0 = torch.full((4, 1, 256, 256), 0.5)
    generators = [torch.Generator().manual_seed(k) for k in range(4)]
    s, t = torch.full((4,), 300), torch.full((4,), 500)
    x_s = PROCESS.add_noise(x0, s, torch.randn(x0.shape, generator=generators[0]))
    x_t = renoise(x_s, PROCESS, s, t, generators)
    alpha, sigma = TABLE.alpha[500].item(), TABLE.sigma[500].item()
    assert x_t.mean().item() == pytest.approx(alpha * 0.5, abs=4 * sigma / 512)
    assert x_t.std().item() == pytest.approx(sigma, rel=4 * 0.5**0.5 / 512)
    along = ((x_s - TABLE.alpha[300] * 0.5) * (x_t - alpha * 0.5)).mean() / TABLE.sigma[300] ** 2
    assert along.item() == pytest.approx(alpha / TABLE.alpha[300].item(), abs=0.02)


# ------------------------------------------------------------------------------------------ between two seeds


def test_slerp_keeps_the_length_and_goes_evenly_from_end_to_end():
    a, b = (torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    b = b / b.norm() * a.norm()
    way = [slerp(a, b, share) for share in torch.linspace(0, 1, 9).tolist()]
    assert torch.equal(way[0], a)
    assert torch.equal(way[-1], b)
    for x in way:
        assert x.norm().item() == pytest.approx(a.norm().item(), rel=1e-5)
    steps = torch.stack([(x * y).sum() / a.norm() ** 2 for x, y in zip(way, way[1:], strict=False)]).acos()
    angle = ((a * b).sum() / a.norm() ** 2).acos()
    torch.testing.assert_close(steps, (angle / 8).expand(8), rtol=1e-3, atol=0)
    assert ((a + b) / 2).norm() < 0.8 * a.norm()  # the straight line does not


@every_sampler
def test_the_ends_of_a_path_are_the_images_of_its_seeds(name, changes):
    way = made(name, None, seeds=[InterpolatedSeed(3, 8, share) for share in (0.0, 0.4, 0.8, 1.0)], steps=10, **changes)
    ends = made(name, None, seeds=[3, 0, 1, 8], steps=10, **changes)
    assert torch.equal(way[0], ends[0])
    assert torch.equal(way[3], ends[3])
    assert not torch.equal(way[1], ends[0])
    assert way[1].std().item() == pytest.approx(ends[1].std().item(), rel=0.08)


# ------------------------------------------------------------------------------------------ between classes

NETWORKS = {
    "unet": lambda: UNet(8, 1, 3, [8, 8], [], False, 1, 8, 4),
    "dit": lambda: DiT(8, 1, 3, 4, 16, 1, 2, 2.0),
    "simple": lambda: SimpleUNet(8, 1, 3, [8, 8], "conv", "linear", [], "linear", "layer"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_blend_of_one_class_is_the_class_and_zeros_are_the_null_label(name):
    torch.manual_seed(0)
    net = NETWORKS[name]().requires_grad_(False)
    for parameter in net.parameters():  # DiT starts as zero
        torch.nn.init.normal_(parameter, std=0.2)
    x_t, t, y = torch.randn(4, 1, 8, 8), torch.full((4,), 5), torch.tensor([0, 1, 2, 3])
    blends = torch.eye(4)[:, :3]
    out = net(x_t, t, y)
    assert torch.equal(net(x_t, t, blends), out)
    assert not torch.equal(net(x_t, t, torch.full((4, 3), 1 / 3)), out)
    guided = add_classifier_free_guidance(net, ClassCondition(3), 2.0)
    assert torch.equal(guided(x_t, t, blends), guided(x_t, t, y))
    assert not torch.equal(out, net(x_t, t, y.flip(0)))


# ------------------------------------------------------------------------------------------ the command


def pixels(out) -> torch.Tensor:
    return torch.from_numpy(np.load(out / "images.npy")).permute(0, 3, 1, 2)


def save(path, image: torch.Tensor) -> None:
    to_pil(image).save(path)


def test_the_command_edits_pictures_row_by_row(digits_run, tmp_path):
    pictures = noise(2, 1, 8, 8)
    (tmp_path / "mine").mkdir()
    for k, name in enumerate(("b.png", "a.png")):
        save(tmp_path / "mine" / name, pictures[1 - k])
    mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask[:, :, 4:] = 255
    save(tmp_path / "mask.png", mask)
    words = [f"run={digits_run}", "init=mine", "mask=mask.png", "repaint_repeats=2", "strength=0.8", "classes=[3,8]"]
    words += ["images_per_class=2", "sampler.steps=5", "npy=true", "gif=true", "out=out"]
    run("sample", *words, cwd=tmp_path)
    made = pixels(tmp_path / "out")
    assert len(made) == 8  # of a.png two of either class, then of b.png
    assert torch.equal(made[..., :4], pictures[[0] * 4 + [1] * 4][..., :4])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [image["class"] for image in manifest["images"]] == ["3", "3", "8", "8"] * 2
    assert [image["init"] for image in manifest["images"]] == ["mine/a.png"] * 4 + ["mine/b.png"] * 4
    assert (manifest["edit"]["strength"], manifest["edit"]["repaint_repeats"]) == (0.8, 2)
    digest = hashlib.blake2b((tmp_path / "mask.png").read_bytes(), digest_size=8).hexdigest()
    assert manifest["edit"]["mask"] == {"file": "mask.png", "blake2b": digest}

    model = TrainedModel.from_run(digits_run, device="cpu", sampler=manifest["sampler"])
    seeds = [image["seed"] for image in manifest["images"]]
    edit = Edit(to_float(pictures[[0] * 4 + [1] * 4]), 0.8, mask[0] > 0, 2)
    assert torch.equal(model.generate([3, 3, 8, 8] * 2, seeds, edit=edit), made)

    with Image.open(tmp_path / "out" / "grid.png") as grid:
        left = grid.width - 2 - 4 * 66  # original, what is kept, two images; 8 px are 64, and a gap of 2
        tiles = [np.asarray(grid)[68:132, left + x + 2 : left + x + 66] for x in (0, 66, 132)]  # of the second row
    kept = pictures[0].masked_fill(mask > 0, 128)
    for tile, image in zip(tiles, (pictures[0], kept, made[2]), strict=True):
        assert np.array_equal(tile, image[0].repeat_interleave(8, 0).repeat_interleave(8, 1))
    with Image.open(tmp_path / "out" / "denoising.gif") as gif:
        assert gif.n_frames == 4  # four of five steps, each once

    # what was made can be made of again, without its grid
    words = [f"run={digits_run}", "init=out", "classes=3", "num_images=8", "sampler.steps=5", "npy=true", "out=again"]
    run("sample", *words, cwd=tmp_path)
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert [image["init"] for image in again["images"]] == [f"out/{k:05d}.png" for k in range(8)]
    assert again["edit"]["strength"] == 0.6


def test_the_command_goes_between_seeds_and_between_classes(digits_run, tmp_path):
    words = [f"run={digits_run}", "sampler.steps=3", "npy=true"]
    run("sample", *words, "seeds=[3,8]", "classes=[3,8]", "images_per_class=4", "out=seeds", cwd=tmp_path)
    run("sample", *words, "interpolate=true", "classes=[3,8]", "num_images=5", "seed=3", "out=classes", cwd=tmp_path)
    seeds, classes = pixels(tmp_path / "seeds"), pixels(tmp_path / "classes")
    manifest = json.loads((tmp_path / "seeds" / "manifest.json").read_text())
    model = TrainedModel.from_run(digits_run, device="cpu", sampler=manifest["sampler"])
    (first,), (second,) = image_seeds(3, 1), image_seeds(8, 1)
    ends = model.generate([3, 3, 8, 8], [first, second, first, second])
    assert torch.equal(seeds[[0, 3, 4, 7]], ends)
    assert torch.equal(classes[[0, 4]], ends[[0, 2]])
    assert len({image.numpy().tobytes() for image in torch.cat([seeds, classes])}) == 4 + 4 + 5 - 2
    assert manifest["images"][1]["seed"] == {"first": first, "second": second, "fraction": 1 / 3}
    manifest = json.loads((tmp_path / "classes" / "manifest.json").read_text())
    assert manifest["images"][1]["context"] == {"3": 0.75, "8": 0.25}


@each(
    ("words", "told", "code"),
    [
        (
            ["mask=mask.png", "strength=0.5"],
            ["mask=mask.png: has no effect without", "strength=0.5: has no effect"],
            2,
        ),
        (["init=small.png", "repaint_repeats=3"], ["repaint_repeats=3: has no effect without mask"], 2),
        (["init=small.png", "strength=0"], ["strength=0: must be null or float in (0, 1]"], 2),
        (["seeds=[3,3]"], ["seeds=[3, 3]: the values must differ"], 2),
        (["seeds=[3,8]", "seed=1"], ["seed and seeds exclude each other: leave one out"], 2),
        (["init=there.png", "mask=small.png"], ["there.png: cannot be read", "mask=small.png: 4x4 px"], 3),
        (["init=none"], ["init=none: no images in this folder"], 3),
        (
            ["init=small.png", "sampler.starts_anywhere=false"],
            ["sampler=dpmpp_sde cannot start from a partly noised"],
            2,
        ),
    ],
)
def test_mistakes(digits_run, tmp_path, monkeypatch, capsys, words, told, code):
    monkeypatch.chdir(tmp_path)
    save("small.png", noise(1, 1, 4, 4)[0])
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(sys, "argv", ["sample", f"run={digits_run}", *words, "out=out"])
    with pytest.raises(SystemExit) as ended:
        sample.main()
    printed = capsys.readouterr().err
    assert ended.value.code == code
    for words in told:
        assert words in printed
    assert not (tmp_path / "out").exists()


def test_pictures_are_read_as_the_training_pictures_are(tmp_path):
    """Whatever decodes those, and a mask pixel by pixel: what is transparent is painted."""
    decoding = Decoding(8, 3, background=(0, 255, 0))
    rgba = noise(2, 4, 16, 12)
    save(tmp_path / "a.png", rgba[0])
    mask = torch.zeros(4, 8, 8, dtype=torch.uint8)
    mask[3, :, 2:] = 255  # black where it is opaque
    save(tmp_path / "mask.png", mask)
    made = originals.load_originals(str(tmp_path / "a.png"), str(tmp_path / "mask.png"), decoding)
    assert np.array_equal(made.images[0], decoding(tmp_path / "a.png"))
    assert np.array_equal(made.mask, np.arange(8)[None].repeat(8, 0) < 2)


def test_a_manifest_that_lists_no_images_is_refused(tmp_path):
    for text in ("[]", "{", '{"images": []}', '{"images": 3}', '{"shards": [{"images": 4}]}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match="manifest.json lists no image files"):
            originals.load_originals(str(tmp_path), None, Decoding(8, 1))
