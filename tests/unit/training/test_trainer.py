"""The callbacks of a run act in the order that a checkpoint needs."""

from diffusion_lit.training.trainer import RunCallbacks


def test_a_step_is_checked_measured_logged_and_saved_in_this_order():
    order = RunCallbacks._fields
    assert max(map(order.index, ("guard", "validation", "samples"))) < order.index("metrics")
    assert max(map(order.index, ("metrics", "snapshots"))) < order.index("checkpoints")
    assert order[order.index("checkpoints") + 1 :] == ("previews", "stop")
