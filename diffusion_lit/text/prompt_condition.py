"""Prompts as a condition: y are the tokens of a text, and blends of texts.

Tokens are y (B, L) int64 with 0 for padding, or vectors y (B, L, D + 1) float
whose last column is the weight of the token, 0 for padding. With weights, a
token number is such a vector with D = 1. The null is y of zeros, a text without
tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lit.data.device_images import copy_to_device

HASH_BITS = 24  # of a float32 in [0, 1)


class TextEncoder(Protocol):
    """The interface of `words` and `pretrained_text`.

    Attributes:
        max_tokens: L.
        num_tokens: number of different tokens; 0 for an encoder that returns vectors.
        width: D of the vectors; 0 for an encoder that returns tokens.
    """

    max_tokens: int
    num_tokens: int
    width: int

    def fit(self, captions: Sequence[str]) -> dict:
        """Return the settings that depend on the training captions, to be stored in the run."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return y (N, L) or (N, L, D + 1) of N texts; zeros for an empty text."""

    def find_faults(self, text: str) -> list[str]:
        """Return what a prompt has that the network cannot know, a phrase for each."""

    def is_unknown(self, text: str) -> bool:
        """Return whether the network can know nothing of a prompt."""


@dataclass(frozen=True)
class PromptCondition:
    """Prompts, or blends of prompts.

    Args:
        encoder: turns texts into y.
        word_dropout: probability of dropping a token in training.
        negative: text that guidance leads away from, in place of the null.
    """

    encoder: TextEncoder
    word_dropout: float = 0.0
    negative: str = ""
    has_null: bool = True

    def null(self, y: Tensor) -> Tensor:
        """Return zeros in the form of y, or the tokens of `negative`."""
        if not self.negative:
            return torch.zeros_like(y)
        tokens = self.encoder.encode([self.negative]).to(y.device)
        tokens = _add_weights(tokens) if y.ndim == 3 else tokens
        tokens = F.pad(tokens, (*[0] * 2 * (y.ndim - 2), 0, y.shape[1] - tokens.shape[1]))
        return tokens.expand(len(y), *tokens.shape[1:])

    def drop(self, y: Tensor, uniform: Tensor, probability: float) -> Tensor:
        """Replace y by zeros where `uniform` (B,) is below the probability, and drop single tokens elsewhere."""
        shape = (-1, *[1] * (y.ndim - 1))
        if self.word_dropout:
            kept = hash_uniform(uniform, y.shape[1]) >= self.word_dropout
            y = y * kept.view(*kept.shape, *[1] * (y.ndim - 2))
        return torch.where((uniform < probability).view(shape), torch.zeros_like(y), y)

    def read_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """Return y of the captions of a batch, on the device of its images."""
        images = batch["image"]
        texts = batch.get("caption") or [""] * len(images)
        return copy_to_device(self.encoder.encode(texts), images.device)

    def to_tensor(self, requests: Sequence[str | tuple[tuple[str, float], ...]]) -> Tensor:
        """Return y of prompts, or of blends, which hold the tokens of all their texts with their weights."""
        if all(isinstance(request, str) for request in requests):
            return self.encoder.encode(requests)
        blends = [((request, 1.0),) if isinstance(request, str) else request for request in requests]
        rows = [self._blend_tokens(blend) for blend in blends]
        length = max(self.encoder.max_tokens, *map(len, rows))
        return torch.stack([F.pad(row, (0, 0, 0, length - len(row))) for row in rows])

    def _blend_tokens(self, blend: Sequence[tuple[str, float]]) -> Tensor:
        parts = []
        for text, share in blend:
            tokens = _add_weights(self.encoder.encode([text]))[0]
            tokens = tokens[tokens[:, -1] > 0]
            parts.append(torch.cat([tokens[:, :-1], share * tokens[:, -1:]], 1))
        tokens = torch.cat(parts)
        return tokens[tokens[:, -1] > 0]


def hash_uniform(uniform: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1), (B, count), of each number of `uniform` (B,), as if drawn independently.

    They are a function of the draw of the image, so they depend on its position alone.
    """
    bits = (uniform.double() * 2**HASH_BITS).long()[:, None] * 8191 + torch.arange(1, count + 1, device=uniform.device)
    for factor in (0x45D9F3B, 0x119DE1F3, 0x344B5409):  # multiply and fold, as integer hashes do
        bits = (bits ^ (bits >> 16)) * factor & 0xFFFFFFFF
    return (bits ^ (bits >> 16)).double() / 2**32


def _add_weights(tokens: Tensor) -> Tensor:
    """Return tokens (N, L) as vectors (N, L, 2) with weights; vectors stay."""
    return tokens if tokens.ndim == 3 else torch.stack([tokens.float(), (tokens > 0).float()], -1)
