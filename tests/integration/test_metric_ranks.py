"""The metrics of generated images over two processes."""

import json

import pytest
import torch

from tests.metric_ranks import measure, run_rank


@pytest.mark.slow  # test_strategies compares metrics of training by two processes
def test_two_processes_measure_what_one_measures(tmp_path):
    torch.multiprocessing.start_processes(run_rank, (str(tmp_path),), nprocs=2, start_method="spawn")
    expected = json.loads(json.dumps(measure(None)))
    assert expected["Copies"] > 0
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (rank, name)
