"""The file of the embeddings of a run's captions: three arrays, one after the other, each as `np.save` writes it.

1. The vectors of all tokens, float16 (T, D), which are memory-mapped.
2. Where the tokens of each caption begin, int64 (N + 1,).
3. CRC-32 checksums, uint32 (N + 1,), of the vectors of every caption and of the beginnings.
"""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion_lit.data.build_lock import ReportProgress, build_once
from diffusion_lit.system.errors import DataError

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
        self.vectors, self.starts = self._read()
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

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            vectors = np.load(self.path, mmap_mode="r")
            with open(self.path, "rb") as file:
                file.seek(vectors.offset + vectors.nbytes)
                starts, checksums = np.load(file), np.load(file)
            parts = [vectors[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
            actual = [*(zlib.crc32(np.ascontiguousarray(part)) for part in parts), zlib.crc32(starts)]
            is_intact = len(parts) == len(self.captions) and actual == checksums.tolist()
        except Exception:  # numpy parses a header as Python, and raises what that does
            is_intact = False
        if not is_intact:
            raise DataError(f"{self.path} is damaged. Remove it, and the captions are embedded again.")
        return vectors, starts
