"""What a run says of itself before its first step."""

from torch import nn

from diffusion_lit.training.run_summary import find_batch_norm_faults


def test_batch_normalization_in_parts_of_a_batch_is_said(monkeypatch):
    config = {"global_batch_size": 24, "strategy": {"accumulate": 1}, "trainer": {}}
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    assert find_batch_norm_faults(config, net) == []
    monkeypatch.setattr("diffusion_lit.distributed.collectives.world_size", lambda: 2)
    (line,) = find_batch_norm_faults(config | {"strategy": {"accumulate": 3}}, net)
    assert "sees 4 images at a time, in 6 parts of a batch" in line
    synchronized = config | {"trainer": {"sync_batchnorm": True}}
    assert find_batch_norm_faults(synchronized, net) == []
    (line,) = find_batch_norm_faults(synchronized | {"strategy": {"accumulate": 3}}, net)
    assert "sees 8 images at a time, in 3 parts" in line
    assert find_batch_norm_faults(config, nn.GroupNorm(2, 4)) == []
