"""Secrets: refused where they would be written down, and kept out of what leaves the run folder."""

import os
import re
import sys
from collections.abc import Iterable
from contextlib import contextmanager

from diffusion_lit.system.errors import Exit, UserError

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

A_COMMIT = re.compile(r"[/@][0-9a-f]{40}\b")  # as in the folders of the hub's cache; W&B keys stand alone
WHERE_TO_PUT_IT = (
    "it would be written to files; remove it, and use `wandb login` or WANDB_API_KEY, `hf auth login` or HF_TOKEN"
)


def is_secret(text: str) -> bool:
    """Whether a word or a value has the form of a key or a token, or says so by its name."""
    key, sign, value = text.partition("=")
    named = sign and value not in ("", "null", "true", "false") and SECRET_NAME.search(key)
    return bool(named or SECRET_TEXT.search(A_COMMIT.sub("", text)))


def refuse_secrets(words: Iterable[str]) -> None:
    """Raises UserError (exit 2) for a word of a command line that looks like a secret, without repeating it."""
    for k, word in enumerate(words, start=1):
        if is_secret(word):
            key, sign, _ = word.partition("=")
            what = key if sign and not SECRET_TEXT.search(key) else f"word {k} of the command line"
            raise UserError(Exit.CONFIG, f"{what}: looks like a secret: {WHERE_TO_PUT_IT}")


def redact_secrets(tree, key: str = ""):
    """A configuration (or a text) with everything that looks like a secret, by its
    name, by its form or because a variable of the environment holds it, replaced by
    <removed>.
    """
    if isinstance(tree, dict):
        return {name: redact_secrets(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [redact_secrets(value, key) for value in tree]
    if tree is None or isinstance(tree, bool):
        return tree
    known = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    text = str(tree)
    hidden = SECRET_NAME.search(key) or SECRET_TEXT.search(text) or any(value in text for value in known)
    return REMOVED if hidden else tree


@contextmanager
def redact_command_line():
    """W&B writes down the command line."""
    words = sys.argv
    pairs = [word.partition("=") for word in words]
    sys.argv = [f"{redact_secrets(key)}{sign}{redact_secrets(value, key)}" for key, sign, value in pairs]
    try:
        yield
    finally:
        sys.argv = words


def format_exception(error: Exception) -> str:
    """What an error says, for a log line: without line breaks and secrets."""
    return redact_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
