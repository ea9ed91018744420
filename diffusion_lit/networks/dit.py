"""A diffusion transformer (Peebles & Xie 2023, adaLN-Zero)."""

import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.networks.checks import check_multiple, check_positive
from diffusion_lit.networks.class_table import ClassTable


class DiT(nn.Module):
    """`forward(x_t (B, C, H, W), t (B,), y (B,) int64) -> (B, C, H, W)`; y = num_classes is the null label.

    The image becomes one token for each patch; time and class, a table of num_classes + 1 rows, scale and shift the
    norms of every block and gate what it adds. Gates and output start at zero: at first every block is the identity.
    With num_classes 0 labels are ignored.

    Args:
        image_size: each side a multiple of `patch_size`, the side of a patch.
        width: channels of a token, a multiple of 4 and of `heads`.
        depth: number of blocks.
        mlp_ratio: width of a block's hidden layer over `width`.
    """

    takes_blends = True  # of rows of the table

    def __init__(
        self,
        image_size: ImageSize,
        channels: int,
        num_classes: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
    ):
        check_positive(patch_size=patch_size, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
        check_multiple(patch_size, "patch_size", image_size=image_size)
        check_multiple(4, "for the positions", width=width)
        check_multiple(heads, "heads", width=width)
        super().__init__()
        self.patch_size, self.grid = patch_size, tuple(side // patch_size for side in height_width(image_size))
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        positions = get_2d_sincos_pos_embed(width, self.grid, output_type="pt").float()
        self.register_buffer("positions", positions, persistent=False)  # (patches, width)
        self.time = nn.Sequential(Timesteps(256, True, 0), TimestepEmbedding(256, width))
        if num_classes:
            self.class_embedding = ClassTable(num_classes + 1, width)
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        self.blocks = nn.ModuleList([Block(width, heads, round(mlp_ratio * width)) for _ in range(depth)])
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.out = zeroed(nn.Linear(width, patch_size**2 * channels))

    @staticmethod
    def small(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"width": 16, "heads": 2, "depth": 2}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        condition = self.time(t)
        if hasattr(self, "class_embedding"):
            condition = condition + self.class_embedding(y)
        condition = F.silu(condition)
        x = self.patches(x_t).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.out(modulated(x, shift, scale))  # (B, patches, channels x patch x patch)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.patch_size)


class Block(nn.Module):
    """Attention and a hidden layer, each modulated and gated by the condition."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(modulated(x, shift1, scale1))
        return x + gate2 * self.mlp(modulated(x, shift2, scale2))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, patches, channels)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
