"""Figures show the right numbers: compared with formulas, with the file they read, and with the pixels of samples."""

import json
import logging
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from omegaconf import OmegaConf
from PIL import Image

from diffusion_lit import visualize
from diffusion_lit.diffusion.loss import Diffusion
from diffusion_lit.diffusion.parameterization import PREDICTION_TYPES
from diffusion_lit.diffusion.schedules import DiscreteProcess
from diffusion_lit.diffusion.seeds import column_seeds, image_seeds
from diffusion_lit.diffusion.weighting import SNR, MinSNR, Uniform
from diffusion_lit.figures import album, curves, losses, noising, schedule
from diffusion_lit.figures.style import plot_tiles, render_figure, save_figure
from diffusion_lit.figures.subject import Subject
from diffusion_lit.imaging.grids import to_float
from diffusion_lit.runs import stored_config
from diffusion_lit.runs.metrics_file import read_metrics
from diffusion_lit.system.errors import UserError
from diffusion_lit.training.noise_levels import BINS
from tests.cases import each
from tests.images import enlarge, find_tile, noise
from tests.runs import run

FIGURES = {"forward.png", "panels.png", "schedule.png", "denoising.png", "denoising.gif", "classes.gif"}
FIGURES |= {"samplers.png", "curves.png", "losses.png"}


def process(prediction: str = "v_prediction", weighting=None, **table) -> Diffusion:
    return Diffusion(DiscreteProcess(**table), prediction, weighting or Uniform())


# ------------------------------------------------------------------------------------------ noising


def test_the_noise_strip_goes_from_the_image_to_unit_noise():
    diffusion = process()
    x0 = to_float(noise(3, 3, 32, 32))
    t = torch.tensor([0, 250, 999])
    strip = noising.make_noise_strip(diffusion, x0, t, seed=5)
    assert strip.shape == (3, 3, 3, 32, 32)
    assert (strip[:, 0] - x0).abs().max() < 0.05
    assert (strip[:, -1].flatten(1).var(1) - 1).abs().max() < 0.06
    assert strip[:, -1].mean().abs() < 0.03
    eps = strip[:, -1]  # alpha is 5e-5 there: the noise itself, which all columns share
    alpha, sigma = diffusion.process.alpha[250], diffusion.process.sigma[250]
    assert (strip[:, 1] - (alpha * x0 + sigma * eps)).abs().max() < 1e-3
    assert not torch.equal(strip, noising.make_noise_strip(diffusion, x0, t, seed=6))


@each("prediction", PREDICTION_TYPES)
def test_a_perfect_network_predicts_noise_and_image(prediction):
    diffusion = process(prediction)
    x0 = to_float(noise(4, 1))
    t = torch.tensor([50, 300, 600, 900])
    eps = noising.draw_noise(x0[:1], 3).expand_as(x0)

    def right(x_t, time, y):
        return diffusion.coefficients(t).target(x0, eps)

    made = noising.predict(right, diffusion, x0, t, torch.zeros_like(t), seed=3)
    assert torch.equal(made.eps, eps)
    assert torch.equal(made.x_t, diffusion.add_noise(x0, t, eps))
    torch.testing.assert_close(made.eps_hat, eps, atol=2e-4, rtol=0)
    torch.testing.assert_close(made.x0_hat, x0, atol=2e-4, rtol=0)


@each("prediction", PREDICTION_TYPES)
def test_the_estimates_of_any_network_agree(prediction):
    diffusion = process(prediction)
    x0, t = to_float(noise(3, 3)), torch.tensor([100, 500, 800])
    made = noising.predict(lambda x_t, time, y: 0.3 * x_t.cos(), diffusion, x0, t, torch.zeros_like(t), seed=0)
    alpha, sigma = (
        table[t].float()[:, None, None, None] for table in (diffusion.process.alpha, diffusion.process.sigma)
    )
    torch.testing.assert_close(made.x0_hat, (made.x_t - sigma * made.eps_hat) / alpha, atol=1e-4, rtol=1e-4)
    if prediction == "epsilon":
        torch.testing.assert_close(made.eps_hat, 0.3 * made.x_t.cos(), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------ noise levels and weights


def test_shares_count_timesteps_and_their_weight():
    diffusion = process("epsilon", MinSNR(), beta_schedule="linear")
    timesteps, share = schedule.compute_bin_shares(diffusion)
    levels = np.log(diffusion.process.snr.numpy())
    edges = [-np.inf, -8, -6, -4, -2, 0, 2, 4, 6, 8, np.inf]
    weight = np.minimum(diffusion.process.snr.numpy(), 5) / diffusion.process.snr.numpy()
    assert np.allclose(timesteps, np.histogram(levels, edges)[0] / 1000)
    assert np.allclose(share, np.histogram(levels, edges, weights=weight)[0] / weight.sum(), atol=1e-6)
    uniform = schedule.compute_bin_shares(process())
    torch.testing.assert_close(uniform[0], uniform[1])


@each(
    ("diffusion", "expected"),
    [
        (process(), []),
        (process(weighting=MinSNR()), []),
        (process("epsilon", beta_schedule="linear"), []),
        (process("v_prediction", SNR(), zero_terminal_snr=True), ["never trained"]),
        (process("sample", SNR()), ["almost nothing is trained"]),
        (process(weighting=lambda snr, gain: 1.0 * (snr > 3000)), ["is 0 at the noisiest", "one bin, log SNR above 8"]),
        (process("epsilon", beta_schedule="linear", num_train_timesteps=100), ["still holds signal"]),
        (process(beta_schedule="linear", beta_start=0.02), ["cleanest timestep is still noisy"]),
    ],
)
def test_schedule_faults_are_reported_and_good_settings_are_not(diffusion, expected):
    faults = list(schedule.find_schedule_faults(diffusion))
    assert len(faults) == len(expected), faults
    for fault, words in zip(faults, expected, strict=True):
        assert words in fault


@each(
    ("prediction", "of_x0"),
    [
        ("epsilon", lambda snr: snr),  # |eps - eps_hat|^2 = snr |x0 - x0_hat|^2
        ("sample", lambda snr: 1),
        ("v_prediction", lambda snr: snr + 1),
    ],
)
@each("loss", ["mse", "l1"])
def test_the_weight_on_x0_follows_from_the_weight_on_the_output(prediction, of_x0, loss):
    table = DiscreteProcess(beta_schedule="linear")
    own, clean = losses.compute_loss_weights(Diffusion(table, prediction, Uniform(), loss))
    assert torch.equal(own, torch.ones(1000, dtype=torch.float64))
    worth = of_x0(table.snr) * torch.ones(1000, dtype=torch.float64)
    torch.testing.assert_close(clean, worth if loss == "mse" else worth.sqrt(), rtol=1e-5, atol=0)


def test_the_numbers_of_the_loss_follow_the_formulas():
    """Weights 0 to 999, and a schedule of equal betas."""
    counted = process(weighting=lambda snr, gain: torch.arange(1000.0).double())
    assert losses.compute_end_shares(counted) == pytest.approx((9945 / 499500, 45 / 499500))
    even = process(beta_schedule="linear", beta_start=0.02, beta_end=0.02, num_train_timesteps=100)
    line = next(losses.describe_loss(even, "even"))
    assert f"terminal SNR {0.98**100 / (1 - 0.98**100):.3g} (timestep 99)" in line
    assert "weight of the 10 noisiest timesteps 0.1, of the 10 cleanest 0.1 (uniform: 0.1)" in line


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.bfloat16, 8), (torch.float16, 11)])
def test_rounding_of_tables_is_half_a_unit_and_from_alpha_bar_loses_small_noise(dtype, bits):
    table = DiscreteProcess(beta_schedule="linear")
    for error in losses.compute_rounding(table, dtype, from_alpha_bar=False):
        assert 2 ** -(bits + 1) < error.max() <= 2**-bits
    made = losses.compute_rounding(table, dtype, from_alpha_bar=True)
    variance = 1 - table.alpha_bar
    lost = variance < 2 ** -(bits + 1)  # numbers below 1 are so far apart that alpha^2 becomes 1
    assert (made[1][lost] == 1).all()
    assert lost.any() == (bits < 24)
    # elsewhere alpha^2 is off by half that distance, sigma^2 by as much, and sigma relatively by half of it
    bound = 2 ** -(bits + 1) / variance / 2
    assert (made[1] < 2 * bound + 2**-bits)[~lost].all()
    assert made[1][~lost][:20].max() > 10 * 2**-bits
    together = ((made[0] * table.alpha) ** 2 + (made[1] * table.sigma) ** 2).sqrt()
    torch.testing.assert_close(made[2], together)


def test_rounding_of_no_signal_is_none():
    table = DiscreteProcess(zero_terminal_snr=True)
    assert losses.compute_rounding(table, torch.bfloat16, False)[0][-1] == 0


def test_losses_of_each_recipe_are_drawn():
    recipes = {"v": process(), "zero": process("v_prediction", SNR(), zero_terminal_snr=True)}
    figure = losses.plot_losses(recipes, "title")
    own, clean, sigma, x_t = figure.axes
    assert [line.get_label() for line in own.lines] == ["v", "zero"]
    assert np.array_equal(clean.lines[0].get_xdata(), recipes["v"].process.snr.log())
    weight = 1 + recipes["v"].process.snr
    assert np.allclose(clean.lines[0].get_ydata(), weight / weight.mean(), rtol=1e-4)
    for ax, which in ((sigma, 1), (x_t, 2)):
        drawn = np.nan_to_num(ax.lines[2].get_ydata())
        assert np.array_equal(drawn, losses.compute_rounding(recipes["v"].process, torch.bfloat16, False)[which])
    assert_not_cut(figure)


def test_recipes_are_named_by_their_differences(tmp_path):
    words = ["weighting=snr,min_snr", "diffusion.prediction_type=v_prediction,sample", "what=[losses]", "out=x"]
    printed = run("visualize", *words, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "x").glob("*.png")] == ["losses.png"]
    for weighting in ("SNR", "MinSNR gamma=5.0"):
        for prediction in ("v_prediction", "sample"):
            assert f"loss       {weighting} prediction_type={prediction}: terminal SNR" in printed
    assert "warning    SNR prediction_type=sample: timesteps of log SNR below -4" in printed
    assert printed.count("rounding   bfloat16") == 1


def test_the_schedule_is_drawn_from_the_table():
    diffusion = process("v_prediction", SNR(), zero_terminal_snr=True)  # log snr of the last timestep is -inf
    figure = schedule.plot_schedule(diffusion, "title")
    signal, level, weight, bins = figure.axes
    assert np.array_equal(signal.lines[0].get_ydata(), diffusion.process.alpha_bar)
    assert np.array_equal(level.lines[0].get_ydata()[:-1], diffusion.process.snr.log()[:-1])
    assert np.allclose(weight.lines[0].get_ydata(), diffusion.weight[:-1])
    assert np.allclose([bar.get_height() for bar in bins.patches], torch.cat(schedule.compute_bin_shares(diffusion)))
    assert_not_cut(figure)


# ------------------------------------------------------------------------------------------ tiles and curves


def assert_not_cut(figure) -> None:
    pixels = np.asarray(render_figure(figure))
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == 255).all()
    assert pixels.std() > 10


@each("size", [8, 16, 28, 64, 100])
def test_tiles_hold_every_pixel_in_its_place(tmp_path, size):
    images = noise(6, 3, size, size).unflatten(0, (2, 3))
    figure = plot_tiles(images, ["a", "b"], ["x", "y", "z\n2"], "title", [("one", 1), ("two", 2)])
    image_file = Image.open(save_figure(figure, tmp_path / "a.png")).convert("RGB")
    zoom = max(1, -(-72 // size))
    places = [[find_tile(image_file, enlarge(image, zoom)) for image in row] for row in images]
    assert all(len(place) == 1 for row in places for place in row)
    tops = [[place[0][0] for place in row] for row in places]
    lefts = [[place[0][1] for place in row] for row in places]
    assert tops[0][0] == tops[0][1] == tops[0][2] < tops[1][0]
    assert lefts[0] == lefts[1]
    assert lefts[0][1] - lefts[0][0] > lefts[0][2] - lefts[0][1] > size * zoom  # groups stand apart
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_no_text_is_cut_or_over_another():
    long = "a rather long name of a class"
    images = torch.zeros(2, 2, 1, 8, 8, dtype=torch.uint8)
    groups = [(long, 1), (long, 1)]
    figure = plot_tiles(images, [long, "b\nc\nd"], ["one", "two\nlines"], f"{long} {long} {long}", groups)
    assert_not_cut(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert len(boxes) == 7
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])


def test_curves_show_the_file(digits_run):
    rows = read_metrics(digits_run / "metrics.csv")
    figure = curves.plot_curves(rows, "title")
    losses, error, levels, rate = figure.axes
    drawn = {line.get_label(): line for line in [*losses.lines, *levels.lines]}
    columns = {"training": "train/loss", "validation, trained weights": "val/loss_raw", "validation, EMA": "val/loss"}
    columns |= {name.replace("_", " "): f"val/ema_log_snr/{name}" for name in BINS}
    assert drawn.keys() == columns.keys()
    drawn["val/error"], drawn["train/lr"] = error.lines[0], rate.lines[0]
    for label, column in (columns | {"val/error": "val/error", "train/lr": "train/lr"}).items():
        measured = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        assert list(zip(*drawn[label].get_data(), strict=True)) == measured, label
    assert_not_cut(figure)


def test_curves_without_validation_images_say_not_measured():
    rows = [{"step": "1", "train/loss": "2.0", "train/lr": "0.1", "val/loss": "", "val/error": "nan"}]
    figure = curves.plot_curves(rows, "title")
    empty = [ax.get_title() for ax in figure.axes if any(text.get_text() == "not measured" for text in ax.texts)]
    assert empty == ["validation error of the noise estimate", "validation error by log SNR, EMA"]
    assert_not_cut(figure)


# ------------------------------------------------------------------------------------------ the command


def test_figures_of_a_run(digits_run, tmp_path):
    words = [f"run={digits_run}", "samplers=[dpmpp_sde,dpmpp_2m]", f"out={tmp_path / 'figures'}", "columns=4"]
    printed = run("visualize", *words, cwd=tmp_path)
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == FIGURES | {"figures.json"}
    assert all(f"figures/{name}" in printed for name in FIGURES)
    assert "warning" not in printed
    assert "left out" not in printed
    for name in FIGURES:
        assert np.asarray(Image.open(tmp_path / "figures" / name).convert("L")).std() > 20, name

    run("sample", f"run={digits_run}", "images_per_class=4", "out=ours", "npy=true", cwd=tmp_path)
    ours = torch.from_numpy(np.load(tmp_path / "ours" / "images.npy")).permute(0, 3, 1, 2)
    assert len(ours) == 40
    denoising = Image.open(tmp_path / "figures" / "denoising.png").convert("L")
    compared = Image.open(tmp_path / "figures" / "samplers.png").convert("L")
    for k in (0, 12, 36):  # the first of a row, after the last step, is what `sample` makes of seed and class
        assert len(find_tile(denoising, enlarge(ours[k], 9))) == 1
        assert len(find_tile(compared, enlarge(ours[k + 1], 9))) == 1
    originals = Subject(stored_config.read_model_config(digits_run), seed=0).load_originals(4)
    assert all(find_tile(compared, enlarge(image, 9)) for image in originals[:, 2])

    with Image.open(tmp_path / "figures" / "classes.gif") as gif:
        assert (gif.n_frames, gif.info["duration"]) == (10, 1000)
    with Image.open(tmp_path / "figures" / "denoising.gif") as gif:
        assert gif.n_frames == 10


def test_originals_are_of_the_class_of_their_row(digits_run):
    from sklearn.datasets import load_digits

    digits = load_digits()
    digit_images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    originals = Subject(stored_config.read_model_config(digits_run), seed=0).load_originals(3)
    assert originals.shape == (10, 3, 1, 8, 8)
    for label, row in enumerate(originals):
        for k, image in enumerate(row):
            assert np.array_equal(image[0], digit_images[:1437][digits.target[:1437] == label][k])


def test_figures_of_a_recipe(tmp_path):
    words = ["experiment=digits", "weighting=snr", "diffusion.prediction_type=sample", "columns=3"]
    printed = run("visualize", *words, cwd=tmp_path)
    assert "left out   panels, denoising, samplers, curves: they need a trained run" in printed
    assert "almost nothing is trained" in printed
    out = tmp_path / "outputs" / "digits" / "figures"
    assert {path.name for path in out.glob("*.png")} == {"forward.png", "schedule.png", "losses.png"}
    assert "schedule.png" in run("visualize", "what=[schedule]", "diffusion=ddpm", "out=x", cwd=tmp_path)
    unread = [
        "data=cifar10",
        "data.root=nowhere",
    ]  # a schedule reads and downloads no images
    assert "schedule.png" in run("visualize", "what=[schedule,losses]", *unread, "out=y", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "x").glob("*.png")] == ["schedule.png"]


@each(
    ("words", "expected", "code"),
    [
        ("what=[panels,curves]", "what=[curves,panels] needs a trained run: add run=...", 2),
        ("what=[forwrd]", "must be null or list[forward | panels", 2),
        ("what=[]", "what=[]: must be null or list[forward |", 2),
        ("difusion=ddpm", "difusion: no such key (did you mean", 2),
        ("run={run} difusion=ddpm", "difusion: no such key", 2),
        ("run={run} diffusion=ddpm seed=3", "error: diffusion=ddpm: the run has its own recipe", 2),
        ("run={run} samplers=[heun]", "heun: sampler=heun: serves edm processes, and this one is discrete", 2),
        ("run={run} colums=4", "colums: no such key (did you mean columns", 2),
        ("run=nowhere", "nowhere: no such folder", 4),
        ("run={run} checkpoint=7", "has no checkpoint '7'", 4),
        ("images_per_class=null", "images_per_class=null: must be int >= 1", 2),
        ("data=image_folder", "data.root: needs a value", 2),
        ("weighting=snr,p2", "several values are several recipes, which only 'what=[losses]' compares", 2),
        ("--multirun seed=1,2", "leave --multirun out", 2),
    ],
)
def test_mistakes_are_reported_before_drawing(digits_run, tmp_path, monkeypatch, capsys, words, expected, code):
    before = set(digits_run.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visualize", *words.format(run=digits_run).split()])
    with pytest.raises(SystemExit) as ended:
        visualize.main()
    printed = capsys.readouterr().err
    assert ended.value.code == code
    assert printed.startswith("error: ")
    assert expected in printed
    assert not list(tmp_path.iterdir())
    assert set(digits_run.rglob("*")) == before


def test_figures_without_data_are_skipped_unless_named(digits_run, tmp_path, caplog):
    lost = Subject(stored_config.read_model_config(digits_run) | {"name": "moved"}, seed=0, run=tmp_path)
    lost.config["data"] |= {"_target_": "diffusion_lit.data.sources.folder.ImageFolder", "root": str(tmp_path / "gone")}
    config = OmegaConf.create({"columns": 3, "images_per_class": 1, "what": None})
    wanted, log = ["forward", "schedule", "curves"], logging.getLogger("test")
    made = list(album.draw_figures(lost, wanted, tmp_path, config, {}, log))
    assert made == [tmp_path / "schedule.png"]
    assert "forward: data.root=" in caplog.text
    assert "has no metrics.csv" in caplog.text
    with pytest.raises(UserError, match="folder not found"):
        list(album.draw_figures(lost, wanted, tmp_path, OmegaConf.merge(config, {"what": wanted}), {}, log))


# ------------------------------------------------------------------------------------------ noise by column


def test_columns_share_their_seeds_and_are_those_of_the_first_row():
    labels = [7, 7, 7, 2, 2, 7, 5]
    seeds = column_seeds(4, labels)
    assert seeds == [image_seeds(4, 4)[j] for j in (0, 1, 2, 0, 1, 3, 0)]


def test_the_same_noise_gives_equal_rows_without_guidance(digits_run, tmp_path):
    words = [f"run={digits_run}", "images_per_class=3", "classes=[3,8]", "npy=true", "sampler.steps=5"]
    words += ["sampler=ddpm", "same_noise=true"]  # noise on the way too
    run("sample", *words, "guidance_scale=0", "out=a", cwd=tmp_path)
    run("sample", *words, "guidance_scale=1", "out=b", cwd=tmp_path)
    unconditional, conditional = (np.load(tmp_path / name / "images.npy") for name in "ab")
    assert len(unconditional) == 6
    assert np.array_equal(unconditional[:3], unconditional[3:])
    assert not np.array_equal(unconditional[0], unconditional[1])
    assert not np.array_equal(conditional[:3], conditional[3:])
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["same_noise"] is True
    assert [image["seed"] for image in manifest["images"]] == [*image_seeds(0, 3)] * 2
    expected = run("sample", f"run={digits_run}", "images_per_class=3", "num_images=4", cwd=tmp_path, code=2)
    assert "leave one out" in expected
