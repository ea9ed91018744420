"""diffusers' UNet2DModel behind the project's network contract."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

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
        image_size: int,
        channels: int,
        num_classes: int,
        block_out_channels: Sequence[int],
        attention_levels: Sequence[int],
        middle_attention: bool = True,
        layers_per_block: int = 2,
        attention_head_dim: int = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        levels = range(len(block_out_channels))
        self.num_classes = num_classes
        self.unet = UNet2DModel(
            sample_size=image_size,
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

    def __init__(self, image_size: int, channels: int, num_classes: int, class_embed_type: str, **arguments):
        super().__init__()
        self.num_classes = num_classes
        by_class = CLASS_EMBEDDINGS[class_embed_type](num_classes) if num_classes else {}
        self.unet = UNet2DModel(
            sample_size=image_size, in_channels=channels, out_channels=channels, **by_class, **arguments
        )
        _give_dtype(self.unet)

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

    def __init__(self, path: str, take: str, image_size: int, channels: int, num_classes: int, architecture: dict):
        try:
            super().__init__(image_size, channels, num_classes, **architecture)
        except (TypeError, ValueError) as error:
            raise UserError(Exit.CONFIG, f"model.path={path}: diffusers cannot make its network: {error}") from None


def _give_dtype(unet: UNet2DModel) -> None:
    """A copy made by DataParallel has buffers but no parameters, and UNet2DModel asks for the dtype of either."""
    unet.register_buffer("dtype_of", torch.zeros(()), persistent=False)
