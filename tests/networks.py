"""Every network of conf/model, small enough for tests."""

from diffusion_lit.config.compose import CONF
from tests.cases import each

SMALL = {
    "unet": ["block_out_channels=[8,16,16]", "norm_num_groups=4", "attention_head_dim=8"],
    "unet_small": ["block_out_channels=[8,16,16]", "norm_num_groups=4", "attention_head_dim=8"],
    "unet_digits": ["block_out_channels=[8,8]", "norm_num_groups=4"],
    "unet2d": ["block_out_channels=[8,8,16,16]", "norm_num_groups=4"],
    "context_unet": ["features=8"],
    "simple_unet": ["widths=[8,8,16,16]"],
    "simple_unet_base": ["widths=[8,16,16,24]"],
    "unet_text": ["block_out_channels=[8,16,16]", "norm_num_groups=4", "heads=2", "text_channels=16"],
    "dit": ["width=32", "depth=2", "heads=2"],
}

FILES = sorted(file.stem for file in (CONF / "model").glob("*.yaml"))

every_model = each("model", [name for name in FILES if name != "pretrained"])  # is what it is given
class_model = each("model", [name for name in FILES if name not in ("pretrained", "unet_text")])  # takes classes


def small_overrides(model: str) -> list[str]:
    assert model in SMALL, f"{model} needs the overrides of a small network in SMALL, tests/networks.py"
    return [f"model={model}", *[f"model.{word}" for word in SMALL[model]]]
