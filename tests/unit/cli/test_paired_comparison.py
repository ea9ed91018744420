"""Settings are compared with the first ones, which are chosen before anything is measured."""

import json
from types import SimpleNamespace

import torch

from diffusion_lit.cli.paired_comparison import (
    compare_groups,
    compare_to_baseline,
    format_comparison,
    write_comparison,
)
from diffusion_lit.evaluation.comparison import save_measurements
from diffusion_lit.evaluation.intervals import Measurement
from diffusion_lit.runs import sweeps

VALUES = {"10": 0.5, "20": 0.25, "5": 0.75}  # KID by sampler.steps, in the order of the command line


def test_settings_are_compared_with_the_first_ones_not_the_best(tmp_path):
    jobs = []
    for k, (steps, value) in enumerate(VALUES.items()):
        folder = tmp_path / str(k)
        folder.mkdir()
        noise = torch.randn(50, generator=torch.Generator().manual_seed(k)).double()
        generated = SimpleNamespace(labels=torch.zeros(50))
        comparison = SimpleNamespace(generated=generated, measurements={"kid": Measurement(value, noise, noise)})
        result = {"run": "run", "status": "finished", "kid": value}
        settings = {"seed": 0, "reference": {}, "features": {"digest": "0"}}
        save_measurements(folder, comparison, result | {"settings": settings})
        jobs.append(sweeps.Job(folder, {"sampler.steps": steps}, result))
    groups = sweeps.group_jobs(jobs, ["sampler.steps"], "kid")
    assert groups[0].values == ("20",)  # the best

    baseline, rows = compare_groups(groups, ["sampler.steps"], "kid")
    assert baseline == "sampler.steps=10"
    assert {name: found.estimate.value for name, found in rows} == {"sampler.steps=20": -0.25, "sampler.steps=5": 0.25}
    table = format_comparison("against the first", "kid", [(name, "kid", found) for name, found in rows])
    assert [column.header for column in table.columns][:2] == ["against the first", "kid"]
    assert list(table.columns[0].cells) == [name for name, _ in rows]
    assert compare_to_baseline(jobs[0].folder, jobs[1].folder)["kid"].estimate.value == 0.25
    write_comparison(baseline, rows, "kid", tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["baseline"] == baseline
