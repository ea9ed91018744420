"""diffusers' UNet2DModel behind the project's network contract."""

import inspect
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.networks import checks
from diffusion_lit.networks.class_table import ClassTable
from diffusion_lit.system.errors import Exit, UserError


class UNet(nn.Module):
    """`forward(x_t (B, C, H, W), t (B,), y (B,) int64) -> (B, C, H, W)`; y = num_classes is the null label.

    The class table (num_classes + 1 rows, added to the time embedding) lives inside UNet2DModel, so an exported
    network keeps it. With num_classes 0 labels are ignored.

    Args:
        block_out_channels: channels of each resolution, fine to coarse; every level but the first halves the image.
        attention_levels: which levels, by index, have self-attention; `middle_attention`: the coarsest, in between.
        attention_head_dim: channels of one attention head.
    """

    takes_blends = True  # of rows of the table

    def __init__(
        self,
        image_size: ImageSize,
        channels: int,
        num_classes: int,
        block_out_channels: Sequence[int],
        attention_levels: Sequence[int],
        middle_attention: bool = True,
        layers_per_block: int = 2,
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ):
        check_unet(image_size, block_out_channels, layers_per_block, norm_num_groups, dropout)
        checks.check_levels(len(block_out_channels), attention_levels=attention_levels)
        attended = [block_out_channels[level] for level in attention_levels]
        attended += [block_out_channels[-1]] * middle_attention
        if attention_head_dim is not None:
            checks.check_positive(attention_head_dim=attention_head_dim)
            checks.check_multiple(attention_head_dim, "attention_head_dim", block_out_channels=attended)
        super().__init__()
        levels = range(len(block_out_channels))
        self.num_classes = num_classes
        self.unet = UNet2DModel(
            sample_size=_sample_size(image_size),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in levels),
            up_block_types=tuple("AttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in reversed(levels)),
            add_attention=middle_attention,
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            num_class_embeds=num_classes + 1 if num_classes else None,
        )
        _give_dtype(self.unet)
        if num_classes:  # the same rows, which can be mixed
            rows = self.unet.class_embedding.weight.detach()
            self.unet.class_embedding = ClassTable.from_pretrained(rows, freeze=False)

    @staticmethod
    def small(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        levels = {"attention_levels": list(settings["attention_levels"])[-1:]} if "attention_levels" in settings else {}
        narrow = {"layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 4, "attn_norm_num_groups": 4}
        narrow = {key: value for key, value in narrow.items() if settings.get(key) is not None}
        return {"block_out_channels": [8] * len(settings["block_out_channels"])} | levels | narrow

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.unet(x_t, t, class_labels=y if self.num_classes else None, return_dict=False)[0]


class UNet2D(nn.Module):
    """The same contract with every argument of UNet2DModel under its own name; see its documentation.

    Args:
        class_embed_type: how a label becomes the vector that is added to the time embedding. "table": a row of its own,
            num_classes + 1 of them. "timestep": the number of the class as if it were a timestep, then a network of its
            own; there 3 is near 4, and the null label is the number num_classes.
        arguments: of UNet2DModel.
    """

    def __init__(self, image_size: ImageSize, channels: int, num_classes: int, class_embed_type: str, **arguments):
        check_unet2d(image_size, arguments)
        checks.check_choice("class_embed_type", class_embed_type, tuple(CLASS_EMBEDDINGS))
        super().__init__()
        self.num_classes = num_classes
        by_class = CLASS_EMBEDDINGS[class_embed_type](num_classes) if num_classes else {}
        self.unet = UNet2DModel(
            sample_size=_sample_size(image_size), in_channels=channels, out_channels=channels, **by_class, **arguments
        )
        _give_dtype(self.unet)

    small = staticmethod(UNet.small)
    forward = UNet.forward


CLASS_EMBEDDINGS = {
    "table": lambda num_classes: {"num_class_embeds": num_classes + 1},
    "timestep": lambda num_classes: {"class_embed_type": "timestep"},
}


class PretrainedUNet(UNet2D):
    """UNet2D as it was found somewhere; with weights in it where training starts (`diffusion_lit.runs.warm_start`).

    Args:
        path: where it was found; not read again.
        take: what of it; the weights are not put in here.
        architecture: the other arguments of UNet2D.

    Raises:
        UserError: exit 2 for arguments that the installed diffusers does not take.
    """

    def __init__(
        self, path: str, take: str, image_size: ImageSize, channels: int, num_classes: int, architecture: dict
    ):
        checks.check_choice("take", take, ("weights", "architecture", "narrow"))
        try:
            super().__init__(image_size, channels, num_classes, **architecture)
        except (TypeError, ValueError) as error:
            raise UserError(Exit.CONFIG, f"model.path={path}: the network cannot be built: {error}") from None

    @staticmethod
    def small(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"take": "narrow"}


CHOICES = {  # arguments of UNet2DModel that this project supports
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "act_fn": ("silu", "gelu", "relu", "mish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "time_embedding_type": ("positional", "learned"),
    "freq_shift": (0, 1),
}


def check_unet(image_size: ImageSize, widths: Sequence[int], layers: int, groups: int, dropout: float) -> None:
    """Raise ValueError for a UNet2DModel that cannot be built or cannot take the images."""
    checks.check_positive(block_out_channels=widths, layers_per_block=layers, norm_num_groups=groups)
    checks.check_share(dropout=dropout)
    checks.check_multiple(groups, "norm_num_groups", block_out_channels=widths)
    checks.check_halvings(image_size, len(widths) - 1)


def check_unet2d(image_size: ImageSize, arguments: dict) -> None:
    """Raise ValueError for arguments of UNet2DModel that do not go together; those left out have its defaults."""
    defaults = {name: p.default for name, p in inspect.signature(UNet2DModel).parameters.items()}
    args = {key: arguments.get(key, default) for key, default in defaults.items()}
    widths, head, groups = (args[k] for k in ("block_out_channels", "attention_head_dim", "norm_num_groups"))
    check_unet(image_size, widths, args["layers_per_block"], groups, args["dropout"])
    for name, choices in CHOICES.items():
        for value in args[name] if name.endswith("_types") else [args[name]]:
            checks.check_choice(name, value, choices)
    for name in ("down_block_types", "up_block_types"):
        if len(args[name]) != len(widths):
            raise ValueError(f"{name} names {len(args[name])} blocks, block_out_channels={widths} {len(widths)} levels")
    optional = ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim")
    checks.check_positive(**{key: args[key] for key in optional if args[key] is not None})
    checks.check_positive(norm_eps=args["norm_eps"], mid_block_scale_factor=args["mid_block_scale_factor"])
    types = [*args["down_block_types"], *args["up_block_types"]]
    attended = [width for name, width in zip(types, [*widths, *widths[::-1]], strict=True) if name.startswith("Attn")]
    attended += [widths[-1]] * (args["add_attention"] and args["mid_block_type"] is not None)
    if head and any(width < head for width in attended):
        raise ValueError(
            f"attention_head_dim={head}: more than the channels of a level with attention, {min(attended)}"
        )


def _sample_size(image_size: ImageSize) -> int | tuple[int, ...]:
    return image_size if isinstance(image_size, int) else tuple(image_size)


def _give_dtype(unet: UNet2DModel) -> None:
    """A copy made by DataParallel has buffers but no parameters, and UNet2DModel asks for the dtype of either."""
    unet.register_buffer("dtype_of", torch.zeros(()), persistent=False)
