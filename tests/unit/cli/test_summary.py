"""The table of a sweep calls a mean the best only where it is not a tie."""

from pathlib import Path

from diffusion_lit.cli.summary import describe_lead
from diffusion_lit.runs.sweeps import Job, group_jobs


def test_only_a_clear_lead_is_the_best():
    cases = [  # values of the metric over seeds, of the first and of the second choice
        ([1.0], [2.0], "<- best"),
        ([1.0], [1.0], "<- tie"),
        ([1.0, 1.0], [1.0, 1.0], "<- tie"),
        ([0.5, 1.5], [1.5, 0.5], "<- tie"),
        ([1.0, 2.0], [1.4, 1.8], "<- not clearly best"),
        ([1.0, 1.01], [9.0, 9.01], "<- best"),
        ([1.0], [], "<- best"),
    ]
    for first, second, mark in cases:
        values = [("a", value) for value in first] + [("b", value) for value in second or [None]]
        jobs = [Job(Path(), {"weighting": name}, {"status": "finished", "loss": value}) for name, value in values]
        groups = group_jobs(jobs, ["weighting"], "loss")
        assert describe_lead(*groups[:2]) == mark, (first, second)
