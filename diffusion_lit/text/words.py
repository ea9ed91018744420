"""Words as tokens: the vocabulary of the training captions, and hashed character n-grams for other words.

Token 0 is padding, 1 ... V are the words that several captions have, and the last
`buckets` tokens stand for character n-grams (Bojanowski et al. 2017, "Enriching word
vectors with subword information"). The network learns a vector for each token.
"""

import difflib
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from diffusion_lit.data.captions import split_words

KEPT = 4096  # texts whose tokens are kept in memory


class WordEncoder:
    """Turns texts into tokens, int64. The order of the words does not matter to the network.

    Args:
        max_tokens: L. Further tokens of a text are left out.
        min_count: captions that must have a word to give it a token of its own; rarer words
            are n-grams.
        buckets: tokens for n-grams.
        ngram: characters of an n-gram.
        words: the words with a token; of a run, see `fit`.
        rare_words: the other words of the training captions.
    """

    width = 0  # the network has the table

    def __init__(
        self,
        max_tokens: int,
        min_count: int,
        buckets: int,
        ngram: int,
        words: Sequence[str] = (),
        rare_words: Sequence[str] = (),
    ):
        self.max_tokens, self.min_count, self.buckets, self.ngram = max_tokens, min_count, buckets, ngram
        self.words, self.rare_words = list(words), list(rare_words)
        self.index = {word: k for k, word in enumerate(self.words, 1)}
        self.num_tokens = 1 + len(self.words) + buckets
        self.tokenize = functools.lru_cache(KEPT)(self._tokenize)

    def fit(self, captions: Iterable[str]) -> dict:
        """Return the settings that depend on the training captions: `words` and `rare_words`, sorted."""
        counts = Counter(word for caption in captions for word in set(split_words(caption)))
        words = sorted(word for word, count in counts.items() if count >= self.min_count)
        return {"words": words, "rare_words": sorted(counts.keys() - set(words))}

    def _tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text: one for a word of the vocabulary, one for each n-gram of another word."""
        tokens = []
        for word in split_words(text):
            tokens += [self.index[word]] if word in self.index else self._hash_ngrams(word)
        return tokens

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of N texts, int64 (N, L), 0 after the last one."""
        rows = [self.tokenize(text)[: self.max_tokens] for text in texts]
        padded = [row + [0] * (self.max_tokens - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(-1, self.max_tokens)

    def find_faults(self, text: str) -> list[str]:
        """Return what the network does not know of a prompt: words of no or few training captions, too many words."""
        known = [*self.words, *self.rare_words]
        faults = []
        for word in dict.fromkeys(split_words(text)):
            if word not in known:
                close = difflib.get_close_matches(word, known, 3, 0.7)
                hint = f", similar: {', '.join(close)}" if close else ""
                faults.append(f"{word} is in no training caption{hint}")
            elif word in self.rare_words:
                few = f"fewer than {self.min_count} training captions" if self.min_count > 2 else "one training caption"
                faults.append(f"{word} is in {few}, so the network may not know it")
        if (count := len(self.tokenize(text))) > self.max_tokens:
            faults.append(f"it has {count} tokens, and the first {self.max_tokens} are used")
        return faults

    def is_unknown(self, text: str) -> bool:
        """Return whether a text has words and none of them is in a training caption."""
        words = set(split_words(text))
        return bool(text.strip()) and not words & {*self.words, *self.rare_words}

    def _hash_ngrams(self, word: str) -> list[int]:
        marked, size = f"<{word}>", self.ngram
        ngrams = [marked[k : k + size] for k in range(max(1, len(marked) - size + 1))]
        hashes = [hashlib.blake2b(ngram.encode(), digest_size=8).digest() for ngram in ngrams]
        return [1 + len(self.words) + int.from_bytes(digest, "little") % self.buckets for digest in hashes]
