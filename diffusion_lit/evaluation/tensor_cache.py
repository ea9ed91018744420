"""A cache of tensors that take long to compute, and their digests."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from torch import Tensor

from diffusion_lit.system.errors import DataError
from diffusion_lit.system.files import digest_text, write_atomically
from diffusion_lit.system.platform import lock


def load_or_make(kind: str, key: dict[str, str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Load tensors from the cache, or make them and write them there.

    The cache is $DIFFUSION_LIT_CACHE, else ~/.cache/diffusion_lit. If it cannot be written,
    nothing is cached.

    Args:
        kind: start of the file name.
        key: digests of everything that the tensors depend on.
        make: returns the tensors.

    Raises:
        UserError: exit 3 for a file that is damaged or has another key than its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(os.environ.get("DIFFUSION_LIT_CACHE", "~/.cache/diffusion_lit")).expanduser()
    path = folder / f"{kind}-{digest_text(_format_key(key))}.safetensors"
    with _exclusive(path):
        if path.exists():
            return _load(path, key)
        tensors = {name: tensor.contiguous().cpu() for name, tensor in make().items()}
        with suppress(OSError, SafetensorError), write_atomically(path, concurrent=True) as unfinished:
            save_file(tensors, unfinished, key)
        return tensors


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Let one process make a file while others wait for it: a classifier trained twice on a GPU differs."""
    with ExitStack() as stack:
        with suppress(OSError):  # no cache if the folder cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
            lock(stack.enter_context(open(path.with_suffix(".lock"), "ab")).fileno(), wait=True)
        yield


def _load(path: Path, key: dict[str, str]) -> dict[str, Tensor]:
    tensors, stored = read_tensors(path, "Remove it, and it is made again")
    if stored != key:
        raise DataError(f"{path} is stale: made of {_format_key(stored)}, not of {_format_key(key)}. Remove it")
    return tensors


def read_tensors(path: Path, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        UserError: exit 3 with `advice` for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). {advice}") from None


def _format_key(key: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(key.items()))


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """Return a digest of named tensors, such as weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
