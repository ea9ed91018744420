"""What networks do with a prompt: read its tokens, and project them to the channels of the network.

Every prompt gets a first token that is always there, the null token. So the
null prompt, which has no other, is the network without a condition, and
attention always has a token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptTokens(NamedTuple):
    """The tokens of prompts y, the null token first.

    Attributes:
        values: token numbers, int64 (B, L + 1), 0 for the null token and padding; or vectors
            (B, L + 1, D + 1), whose last column is 1 for the null token.
        weights: (B, L + 1), 1 for a token, 0 for padding, between them in a blend.
    """

    values: Tensor
    weights: Tensor


def read_prompt(y: Tensor, has_table: bool) -> PromptTokens:
    """Return the tokens of y, see `diffusion_lit.text.prompt_condition`.

    Args:
        y: (B, L) int64, or (B, L, D + 1) float.
        has_table: whether tokens are numbers.
    """
    weights = (y > 0).float() if y.ndim == 2 else y[..., -1]
    weights = F.pad(weights, (1, 0), value=1.0)
    if has_table:
        return PromptTokens(F.pad(y if y.ndim == 2 else y[..., 0].long(), (1, 0)), weights)
    vectors = F.pad(y[..., :-1], (0, 1, 1, 0))
    is_null = F.pad(torch.zeros_like(y[:, :, 0]), (1, 0), value=1.0)
    return PromptTokens(torch.cat([vectors[..., :-1], is_null[..., None]], -1), weights)


class TokenProjection(nn.Linear):
    """A linear layer for vectors, and for token numbers as if they were one-hot vectors."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, L, out_features) of vectors (B, L, in_features) or numbers (B, L)."""
        return super().forward(x) if x.is_floating_point() else F.embedding(x, self.weight.T) + self.bias


class TextPath(nn.Module):
    """Tokens for cross-attention, and one vector for each prompt.

    Args:
        num_tokens: number of different tokens; 0 for vectors.
        text_width: D of vectors; 0 for token numbers.
        width: channels of the network.
    """

    def __init__(self, num_tokens: int, text_width: int, width: int):
        super().__init__()
        self.has_table = num_tokens > 0
        self.projection = TokenProjection(num_tokens or text_width + 1, width)
        if self.has_table:
            nn.init.normal_(self.projection.weight, std=0.02)
        self.pool = nn.Linear(width, width)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens (B, L + 1, width), the bias of attention on them (B, 1, 1, L + 1), and vectors (B, width)."""
        values, weights = read_prompt(y, self.has_table)
        tokens = self.projection(values)
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        share = (weights / weights.sum(1, keepdim=True)).to(tokens)
        return tokens, weights.log()[:, None, None].to(tokens), self.pool((share[..., None] * tokens).sum(1))
