"""Keeping secrets out of what leaves the run folder: configurations, command lines, messages."""

import os
import re
import sys
from contextlib import contextmanager

REMOVED = "<removed>"
SECRET_NAME = re.compile(
    r"(^|[^a-z])((api|access|private|secret)[_-]?key|secret|token|password|passwd|passphrase|credentials?)$", re.I
)
SECRET_TEXT = re.compile(
    r"\b[0-9a-f]{40}\b|\bwandb_v\d+_\w{20}"  # W&B
    r"|\bhf_[A-Za-z0-9]{20}|\bgh[a-z]_[A-Za-z0-9]{20}|\bgithub_pat_\w{20}|\bglpat-[\w-]{20}|\bsk-[\w-]{16}|\bAKIA\w{16}"
    r"|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]+"  # a JWT
    r"|://[^/\s@]+@"  # user:password@ in an address
)


def without_secrets(tree, key: str = ""):
    """A configuration (or a text) with everything that looks like a secret, by its name, by its form or because a
    variable of the environment holds it, replaced by <removed>."""
    if isinstance(tree, dict):
        return {name: without_secrets(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [without_secrets(value, key) for value in tree]
    if tree is None or isinstance(tree, bool):
        return tree
    known = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    text = str(tree)
    hidden = SECRET_NAME.search(key) or SECRET_TEXT.search(text) or any(value in text for value in known)
    return REMOVED if hidden else tree


@contextmanager
def command_line_without_secrets():
    """W&B writes down the command line."""
    words = sys.argv
    pairs = [word.partition("=") for word in words]
    sys.argv = [f"{without_secrets(key)}{sign}{without_secrets(value, key)}" for key, sign, value in pairs]
    try:
        yield
    finally:
        sys.argv = words


def one_line(error: Exception) -> str:
    """What an error says, for a log line: without line breaks and secrets."""
    return without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
