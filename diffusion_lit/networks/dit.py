"""A diffusion transformer (Peebles & Xie 2023, adaLN-Zero)."""

import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.networks.checks import check_multiple
from diffusion_lit.networks.class_embedding import ClassEmbedding


class DiT(nn.Module):
    """The diffusion transformer with adaLN-Zero.

    Each patch of the image is a token. The embeddings of time and class scale and
    shift the norms of every block and gate its residuals. Gates and output start at
    zero, so that every block starts as the identity.

    Args:
        image_size: each side a multiple of `patch_size`.
        channels: of the image.
        num_classes: the label num_classes is the null label; with 0 labels are
            ignored.
        patch_size: side of a patch, px.
        width: channels of a token, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_ratio: width of a block's hidden layer over `width`.
    """

    supports_blends = True

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
        check_multiple(patch_size, "the size of a patch", image_size=image_size)
        check_multiple(4, "for the sine and cosine of two axes", width=width)
        check_multiple(heads, "the number of heads", width=width)
        super().__init__()
        self.patch_size, self.grid = patch_size, tuple(side // patch_size for side in height_width(image_size))
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        positions = get_2d_sincos_pos_embed(width, self.grid, output_type="pt").float()
        self.register_buffer("positions", positions, persistent=False)  # (patches, width)
        self.time = nn.Sequential(Timesteps(256, True, 0), TimestepEmbedding(256, width))
        if num_classes:
            self.class_embedding = ClassEmbedding(num_classes + 1, width)
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        self.blocks = nn.ModuleList([DiTBlock(width, heads, round(mlp_ratio * width)) for _ in range(depth)])
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.out = zero_init(nn.Linear(width, patch_size**2 * channels))

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"width": 16, "heads": 2, "depth": 2}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W).

        Args:
            x_t: noisy images, (B, C, H, W).
            t: times, (B,).
            y: labels (B,) int64, or blends (B, num_classes) float32.
        """
        condition = self.time(t)
        if hasattr(self, "class_embedding"):
            condition = condition + self.class_embedding(y)
        condition = F.silu(condition)
        x = self.patches(x_t).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.out(modulate(x, shift, scale))  # (B, patches, channels x patch x patch)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.patch_size)


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the condition (Peebles & Xie 2023, figure 3)."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return tokens (B, patches, width) of tokens and a condition (B, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(modulate(x, shift1, scale1))
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))

    def attention(self, x: Tensor) -> Tensor:
        """Return multi-head self-attention of tokens (B, patches, width)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, patches, channels)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LayerNorm(x) (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def zero_init(layer: nn.Linear) -> nn.Linear:
    """Set weight and bias to zero, and return the layer."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
