"""The last lines of a run."""

from diffusion_lit.training.run_result import format_farewell


def test_a_run_that_was_stopped_before_its_first_preview_says_how_to_see_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = {"status": "interrupted", "steps": 7}
    run = tmp_path / "run"
    stopped = "stopped at step 7, saved. To continue: python -m diffusion_lit.train resume=run"
    hint = "no samples yet. To generate some: python -m diffusion_lit.sample run=run"
    assert format_farewell(result, run) == f"{hint}\n{stopped}"
    (run / "samples").mkdir(parents=True)
    (run / "samples" / "step-00000005.png").touch()
    assert format_farewell(result, run) == stopped
