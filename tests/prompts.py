"""Text encoders for tests: a vocabulary of a few words, and one that returns vectors of words."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_lit.text.words import WordEncoder

SETTINGS = {"max_tokens": 8, "min_count": 1, "buckets": 20, "ngram": 3}
WORDS = WordEncoder(**SETTINGS, **WordEncoder(**SETTINGS).fit(["a golden dragon", "a red potion", "a blue gem"]))


class Vectors:
    """Four numbers for each word of `WORDS`, and the weight."""

    max_tokens, num_tokens, width = 8, 0, 4

    def encode(self, texts: Sequence[str]) -> Tensor:
        tokens = WORDS.encode(texts)
        table = torch.randn(WORDS.num_tokens, 4, generator=torch.Generator().manual_seed(7))
        mask = (tokens > 0).float()[..., None]
        return torch.cat([table[tokens] * mask, mask], -1)
