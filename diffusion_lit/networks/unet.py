"""Networks around diffusers' UNet2DModel."""

import inspect
from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize
from diffusion_lit.networks import checks
from diffusion_lit.networks.class_embedding import ClassEmbedding


class UNet2D(nn.Module):
    """A UNet2DModel with every argument under its own name; see the documentation of diffusers.

    Args:
        image_size: each side a multiple of 2^(len(block_out_channels) - 1).
        channels: of the image.
        num_classes: the label num_classes is the null label; with 0 labels are
            ignored.
        class_embed_type: how a label becomes the vector that is added to the time
            embedding. "table": an embedding with num_classes + 1 rows. "timestep":
            an embedding of its number as if it were a timestep, so that class 3 is
            near class 4.
        arguments: of UNet2DModel.
    """

    def __init__(self, image_size: ImageSize, channels: int, num_classes: int, class_embed_type: str, **arguments):
        check_unet2d(image_size, arguments)
        super().__init__()
        self.num_classes = num_classes
        class_arguments = CLASS_EMBEDDINGS[class_embed_type](num_classes) if num_classes else {}
        self.unet = UNet2DModel(
            sample_size=image_size if isinstance(image_size, int) else tuple(image_size),
            in_channels=channels,
            out_channels=channels,
            **class_arguments,
            **arguments,
        )
        # copies by DataParallel have buffers but no parameters, and UNet2DModel needs the dtype of either
        self.unet.register_buffer("dtype_of", torch.zeros(()), persistent=False)

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        levels = {"attention_levels": list(settings["attention_levels"])[-1:]} if "attention_levels" in settings else {}
        narrow = {"layers_per_block": 1, "attention_head_dim": 8, "norm_num_groups": 4, "attn_norm_num_groups": 4}
        narrow = {key: value for key, value in narrow.items() if settings.get(key) is not None}
        widths = settings.get("block_out_channels", range(4))  # of a config.json that leaves out diffusers' default
        return {"block_out_channels": [8] * len(widths)} | levels | narrow

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W).

        Args:
            x_t: noisy images, (B, C, H, W).
            t: times, (B,).
            y: labels (B,) int64; for `UNet` also blends (B, num_classes) float32.
        """
        return self.unet(x_t, t, class_labels=y if self.num_classes else None, return_dict=False)[0]


class UNet(UNet2D):
    """A UNet2DModel with few arguments.

    The class embedding, added to the time embedding, is inside UNet2DModel, so an
    exported network keeps it.

    Args:
        image_size: each side a multiple of 2^(len(block_out_channels) - 1).
        channels: of the image.
        num_classes: the label num_classes is the null label; with 0 labels are
            ignored.
        block_out_channels: channels of each level, fine to coarse; every level but
            the first halves the image.
        attention_levels: indices of the levels with self-attention.
        middle_attention: attention at the coarsest resolution, between the two
            halves.
        layers_per_block: residual blocks of a level.
        attention_head_dim: channels of an attention head.
        norm_num_groups: groups of the group norms.
        dropout: probability, in [0, 1].
    """

    supports_blends = True

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
        check_unet(image_size, block_out_channels, norm_num_groups)
        checks.check_levels(len(block_out_channels), attention_levels=attention_levels)
        attended = [block_out_channels[level] for level in attention_levels]
        attended += [block_out_channels[-1]] * middle_attention
        if attention_head_dim is not None:
            checks.check_multiple(attention_head_dim, "attention_head_dim", block_out_channels=attended)
        levels = range(len(block_out_channels))
        super().__init__(
            image_size,
            channels,
            num_classes,
            class_embed_type="table",
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple("AttnDownBlock2D" if i in attention_levels else "DownBlock2D" for i in levels),
            up_block_types=tuple("AttnUpBlock2D" if i in attention_levels else "UpBlock2D" for i in reversed(levels)),
            add_attention=middle_attention,
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
        )
        if num_classes:  # the same initial rows, in an embedding that takes blends
            rows = self.unet.class_embedding.weight.detach()
            self.unet.class_embedding = ClassEmbedding.from_pretrained(rows, freeze=False)


CLASS_EMBEDDINGS = {
    "table": lambda num_classes: {"num_class_embeds": num_classes + 1},
    "timestep": lambda num_classes: {"class_embed_type": "timestep"},
}


class PretrainedUNet(UNet2D):
    """The UNet2D of a pretrained model. `diffusion_lit.runs.warm_start` loads the weights.

    Args:
        path: where the model came from; not read here.
        take: "weights", "architecture" or "narrow".
        image_size: as for UNet2D.
        channels: of the image.
        num_classes: as for UNet2D.
        architecture: the other arguments of UNet2D.

    Raises:
        ValueError: for arguments that the installed diffusers does not take.
    """

    def __init__(
        self, path: str, take: str, image_size: ImageSize, channels: int, num_classes: int, architecture: dict
    ):
        try:
            super().__init__(image_size, channels, num_classes, **architecture)
        except (TypeError, ValueError) as error:
            raise ValueError(f"path={path}: cannot build the network: {error}") from None

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the argument that makes the network small, for debug=on."""
        return {"take": "narrow"}


def check_unet(image_size: ImageSize, widths: Sequence[int], groups: int) -> None:
    """Raise ValueError for a UNet2DModel that cannot be built or cannot take the images."""
    checks.check_positive(block_out_channels=widths, norm_num_groups=groups)
    checks.check_multiple(groups, "norm_num_groups", block_out_channels=widths)
    checks.check_halvings(image_size, len(widths) - 1)


def check_unet2d(image_size: ImageSize, arguments: dict) -> None:
    """Raise ValueError for arguments of UNet2DModel that contradict each other, its defaults included."""
    defaults = {name: p.default for name, p in inspect.signature(UNet2DModel).parameters.items()}
    args = {key: arguments.get(key, default) for key, default in defaults.items()}
    widths, head, groups = (args[k] for k in ("block_out_channels", "attention_head_dim", "norm_num_groups"))
    check_unet(image_size, widths, groups)
    for name in ("down_block_types", "up_block_types"):
        if len(args[name]) != len(widths):
            raise ValueError(f"{name} has {len(args[name])} entries, block_out_channels={widths} has {len(widths)}")
    types = [*args["down_block_types"], *args["up_block_types"]]
    attended = [width for name, width in zip(types, [*widths, *widths[::-1]], strict=True) if name.startswith("Attn")]
    attended += [widths[-1]] * (args["add_attention"] and args["mid_block_type"] is not None)
    if head and any(width < head for width in attended):
        raise ValueError(f"attention_head_dim={head}: must be at most {min(attended)}, the width at an attention")
