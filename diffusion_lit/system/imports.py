"""Import large packages in less time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Collect no garbage inside of a block of imports, and never search what it imports.

    Importing torch, Lightning and diffusers makes almost a million objects that
    stay. Looking for garbage among them takes a fifth of the time of the
    imports, and again when the process ends. Only for commands, since garbage
    of before the block stays as well.
    """
    was_enabled, count = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > count and "triton" not in sys.modules:  # triton prints what it finds alive at the end
            gc.freeze()
        if was_enabled:
            gc.enable()


def import_torch() -> None:
    """Import torch before diffusers and Lightning import triton, so that its objects are never searched."""
    with pause_garbage_collection():
        import torch  # noqa: F401
