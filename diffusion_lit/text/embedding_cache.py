"""The file of the embeddings of a run's captions: three arrays, one after the other, each as `np.save` writes it.

1. The vectors of all tokens, float16 (T, D), which are memory-mapped.
2. Where the tokens of each caption begin, int64 (N + 1,).
3. CRC-32 checksums, uint32 (N + 1,), of the vectors of every caption and of the beginnings.
"""

import itertools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion_lit.data.build_lock import ReportProgress, build_once
from diffusion_lit.data.cache import read_arrays

Embed = Callable[[str], np.ndarray]  # a caption -> float16 (tokens, D)


class EmbeddingCache:
    """The embeddings of captions, computed once: one process builds the file, the others wait for it.

    Args:
        path: the file.
        captions: N different texts.
        embed: computes the vectors of a caption.

    Raises:
        DataError: if the file is damaged.
    """

    def __init__(self, path: Path, captions: Sequence[str], embed: Embed):
        self.path, self.captions = path, list(captions)
        build_once(path, lambda building, report: self._build(building, embed, report))
        advice = "the captions are embedded again"
        self.vectors, self.starts, _ = read_arrays(path, 3, self._is_intact, advice)
        self.index = {caption: k for k, caption in enumerate(self.captions)}

    def __contains__(self, caption: str) -> bool:
        return caption in self.index

    def __getitem__(self, caption: str) -> np.ndarray:
        k = self.index[caption]
        return self.vectors[self.starts[k] : self.starts[k + 1]]

    def _build(self, building: Path, embed: Embed, report: ReportProgress) -> None:
        parts = []
        for k, caption in enumerate(self.captions):
            parts.append(np.ascontiguousarray(embed(caption), np.float16))
            report(k + 1, len(self.captions))
        starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        checksums = np.array([*map(zlib.crc32, parts), zlib.crc32(starts)], np.uint32)
        with open(building, "wb") as file:
            for array in (np.concatenate(parts), starts, checksums):
                np.save(file, array)

    def _is_intact(self, vectors: np.ndarray, starts: np.ndarray, checksums: np.ndarray) -> bool:
        parts = [np.ascontiguousarray(vectors[a:b]) for a, b in itertools.pairwise(starts)]
        return len(parts) == len(self.captions) and [*map(zlib.crc32, [*parts, starts])] == checksums.tolist()
