"""Frozen text encoders of transformers, such as those of CLIP and T5.

Weights are read from safetensors alone, and no code that comes with a model is run.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lit.system.errors import CheckpointError, ConfigError
from diffusion_lit.system.files import digest_text
from diffusion_lit.text.embedding_cache import EmbeddingCache

FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # weights, and what a tokenizer reads
KEPT = 4096  # embeddings of other texts that are kept in memory


class PretrainedTextEncoder:
    """Turns texts into the vectors of the last layer, float16 values in float32.

    A text is encoded alone and without padding, so its vectors do not depend on others.
    The model is loaded when a text is first encoded.

    Args:
        path: folder, or id on the hub.
        revision: commit, branch or tag on the hub; None for its main branch.
        max_tokens: L. Further tokens of a text are left out.
        commit: on the hub, of a run; see `fit`.
        digest: of the files, of a run; other files are refused.
        width: D; of a run.

    Attributes:
        cache: embeddings of training captions; None until `use_cache`.
    """

    num_tokens = 0

    def __init__(
        self,
        path: str,
        revision: str | None,
        max_tokens: int,
        commit: str | None = None,
        digest: str | None = None,
        width: int = 768,  # until `fit`, for the check of the memory
    ):
        self.path, self.revision, self.max_tokens = path, revision, max_tokens
        self.commit, self.digest, self.width = commit, digest, width
        self.cache: EmbeddingCache | None = None
        self.embed = functools.lru_cache(KEPT)(self._embed)

    def fit(self, captions: Iterable[str]) -> dict:
        """Return the commit on the hub, a digest of the files, and the channels of a vector."""
        self.digest = digest_files(self.folder)
        is_local = Path(self.path).expanduser().is_dir()
        return {
            "commit": None if is_local else self.folder.name,
            "digest": self.digest,
            "width": self._embed("a").shape[1],
        }

    def use_cache(self, folder: Path, captions: Sequence[str]) -> None:
        """Embed captions once for all processes, into a file of the folder."""
        key = digest_text("\n".join([str(self.digest), str(self.max_tokens), *captions]))
        self.cache = EmbeddingCache(folder / f"text-{key}.npy", captions, self._embed)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return vectors with their weights, float32 (N, L, D + 1), zeros after the last token."""
        y = torch.zeros(len(texts), self.max_tokens, self.width + 1)
        for row, text in zip(y, texts, strict=True):
            if text.strip():
                vectors = self.cache[text] if self.cache and text in self.cache else self.embed(text)
                row[: len(vectors), :-1] = torch.from_numpy(np.array(vectors, np.float32))
                row[: len(vectors), -1] = 1
        return y

    def find_faults(self, text: str) -> list[str]:
        """Return whether a text is too long."""
        count = len(self.parts[0](text)["input_ids"])
        cut = f"it has {count} tokens, and the first {self.max_tokens} are used"
        return [cut] if count > self.max_tokens else []

    def is_unknown(self, text: str) -> bool:
        """Return False: a pretrained encoder knows the words of its own training."""
        return False

    @functools.cached_property
    def folder(self) -> Path:
        """Folder of the model, downloaded if it is on the hub.

        Raises:
            UserError: exit 4 if there is none, or it has no safetensors.
        """
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            folder = self._download()
        if not list(folder.glob("*.safetensors")):
            fault = "no weights in safetensors in it. Convert them, or choose another revision or model"
            raise CheckpointError(f"text_encoder.path={self.path}: {fault}")
        return folder

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.path, revision=self.commit or self.revision, allow_patterns=[*FILES]))
        except Exception as error:  # requests, the hub and the disk have no common class of errors
            reason = str(error).splitlines()[0]
            message = f"text_encoder.path={self.path}: not a folder, and not loaded from the hub: {reason}"
            raise CheckpointError(message) from None

    @functools.cached_property
    def parts(self) -> tuple[Any, Any]:
        """Tokenizer and model.

        Raises:
            UserError: exit 2 without transformers; exit 4 if the files are damaged, or not those
                of the run.
        """
        if not find_spec("transformers"):
            message = 'text_encoder=pretrained needs transformers: pip install "diffusion_lit[text]"'
            raise ConfigError(message)
        from transformers import AutoModelForTextEncoding, AutoTokenizer

        if self.digest and self.digest != digest_files(self.folder):
            fault = "its files are not those that the run was trained with. Restore them"
            raise CheckpointError(f"text_encoder.path={self.path}: {fault}")
        settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, **settings)
            model = AutoModelForTextEncoding.from_pretrained(
                self.folder, use_safetensors=True, dtype=torch.float32, **settings
            )
        except Exception as error:  # transformers raises anything for files that do not fit
            raise CheckpointError(f"text_encoder.path={self.path}: {str(error).splitlines()[0]}") from None
        return tokenizer, model.eval().requires_grad_(False)

    @torch.no_grad()
    def _embed(self, text: str) -> np.ndarray:
        """Return the vectors of a text, float16 (tokens, D)."""
        tokenizer, model = self.parts
        inputs = tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        states = model(**{name: inputs[name] for name in names}).last_hidden_state[0]
        return states.half().numpy()


def digest_files(folder: Path) -> str:
    """Return a digest of the files of a model."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern)}):
        digest.update(file.name.encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest())
    return digest.hexdigest()
