"""A diffusion transformer (Peebles & Xie 2023, adaLN-Zero)."""

from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_2d_sincos_pos_embed
from torch import Tensor, nn

from diffusion_lit.imaging.sizes import ImageSize, height_width
from diffusion_lit.networks.checks import check_multiple
from diffusion_lit.networks.class_embedding import ClassEmbedding
from diffusion_lit.networks.prompt_tokens import TextPath

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class DiT(nn.Module):
    """The diffusion transformer with adaLN-Zero.

    Each patch of the image is a token. The embeddings of time and class scale and
    shift the norms of every block and gate its residuals. Gates and output start at
    zero, so that every block starts as the identity.

    With a text encoder y is a prompt: every block attends to its tokens, as in
    PixArt-alpha (Chen et al. 2023), and their mean is added to the embedding of
    the time.

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
        conv_channels: hidden channels of two convolutions of 3x3 pixels after the last block, which see the
            noisy image too and join the patches at their borders; 0: none.
        text_tokens: number of different tokens of a prompt; 0 for vectors, or without
            prompts.
        text_width: channels of the vectors of a prompt; 0 for tokens, or without prompts.
            With prompts labels are ignored.
    """

    supports_blends = True
    supports_prompts = True

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
        conv_channels: int = 0,
        text_tokens: int = 0,
        text_width: int = 0,
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
        has_text = bool(text_tokens or text_width)
        if has_text:
            self.text = TextPath(text_tokens, text_width, width)
        elif num_classes:
            self.class_embedding = ClassEmbedding(num_classes + 1, width)
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        self.blocks = nn.ModuleList([DiTBlock(width, heads, round(mlp_ratio * width), has_text) for _ in range(depth)])
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.out = zero_init(nn.Linear(width, patch_size**2 * channels))
        if conv_channels:
            self.first_conv = nn.Conv2d(2 * channels, conv_channels, 3, padding=1)
            self.last_conv = zero_init(nn.Conv2d(conv_channels, channels, 3, padding=1))

    @staticmethod
    def debug_arguments(settings: dict) -> dict:
        """Return the arguments that make the network small, for debug=on."""
        return {"width": 16, "heads": 2, "depth": 2}

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output (B, C, H, W).

        Args:
            x_t: noisy images, (B, C, H, W).
            t: times, (B,).
            y: labels (B,) int64, or blends (B, num_classes) float32; or prompts, see
                `prompt_tokens.read_prompt`.
        """
        condition, prompt = self.time(t), ()
        if hasattr(self, "text"):
            *prompt, pooled = self.text(y)
            condition = condition + pooled
        if hasattr(self, "class_embedding"):
            condition = condition + self.class_embedding(y)
        condition = F.silu(condition)
        x = self.patches(x_t).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, condition, *prompt)
        shift, scale = self.modulation(condition)[:, None].chunk(2, -1)
        x = self.out(modulate(x, shift, scale))  # (B, patches, channels x patch x patch)
        out = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, self.grid), self.patch_size)
        if hasattr(self, "first_conv"):
            out = out + self.last_conv(F.silu(self.first_conv(torch.cat([out, x_t], 1))))
        return out


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the condition (Peebles & Xie 2023, figure 3)."""

    def __init__(self, width: int, heads: int, hidden: int, has_text: bool = False):
        super().__init__()
        self.heads = heads
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))
        if has_text:
            self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
            self.cross_out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor, words: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return tokens (B, patches, width).

        Args:
            x: tokens (B, patches, width).
            condition: of time and class or prompt, (B, width).
            words: tokens of the prompt, (B, L, width); None without prompts.
            bias: of the attention on them, (B, 1, 1, L).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(modulate(x, shift1, scale1))
        if words is not None:
            x = x + self.cross_attention(x, words, bias)
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))

    def attention(self, x: Tensor) -> Tensor:
        """Return multi-head self-attention of tokens (B, patches, width)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, patches, channels)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def cross_attention(self, x: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
        """Return multi-head attention of tokens (B, patches, width) to the tokens of a prompt."""
        q = self.query(F.layer_norm(x, x.shape[-1:], eps=1e-6)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(words).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None if bias is None else bias.to(q)
        return self.cross_out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return LayerNorm(x) (1 + scale) + shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def zero_init(layer: Layer) -> Layer:
    """Set weight and bias to zero, and return the layer."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
