"""debug=on makes a run that warns of nothing that it caused itself."""

from diffusion_lit.config.compose import compose_configs
from diffusion_lit.config.expand import expand_overrides


def test_a_tiny_run_has_no_warm_up_longer_than_itself():
    for recipe in ("cifar10_cond", "digits", "celeba"):
        (config,) = compose_configs("train", expand_overrides([f"experiment={recipe}", "debug=on"], None))
        assert config.lr_schedule.warmup_steps <= 1
    (config,) = compose_configs("train", expand_overrides(["debug=on", "lr_schedule.warmup_steps=9"], None))
    assert config.lr_schedule.warmup_steps == 9
