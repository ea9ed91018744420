"""A curve of one point has its value beside it."""

from diffusion_lit.figures.curves import plot_curves
from diffusion_lit.figures.page import draw_run_curves


def test_what_was_measured_once_is_written_beside_its_dot():
    rows = [{"step": str(step), "train/loss": "0.5", "train/lr": "0.1"} for step in range(100, 2100, 100)]
    rows[-1] |= {"val/loss": "0.25", "val/error": "0.125"}
    texts = [text.get_text() for ax in plot_curves(rows, "").axes for text in ax.texts]
    assert {"0.25 at step 2,000", "0.125 at step 2,000"} <= set(texts)
    assert not any(text.startswith("0.5 at") for text in texts)
    assert draw_run_curves(rows)
