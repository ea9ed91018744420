"""Secrets: refused on the command line, and removed from everything that is logged or shared."""

import os
import re
import shlex
import sys
from collections.abc import Iterable
from contextlib import contextmanager

from diffusion_lit.config.overrides import split_commands
from diffusion_lit.config.value_types import map_leaves
from diffusion_lit.system.errors import ConfigError

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

COMMIT_HASH = re.compile(r"[/@][0-9a-f]{40}\b")  # in paths of the hub's cache; a W&B key stands alone
# from a slash, a home directory or a drive to the end of the line or of the value
ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/\\}<~*-])(?:~\w*|[A-Za-z]:)?[/\\](?=[^\s/])[^'",\[\]{}\n]*""")
SECRET_ADVICE = (
    "looks like a secret and would be written to files. Remove it and use `wandb login` or WANDB_API_KEY, "
    "`hf auth login` or HF_TOKEN"
)


def is_secret(text: str) -> bool:
    """Return whether an override or a value has the form, or the name, of a key or token."""
    key, sign, value = text.partition("=")
    has_secret_name = sign and value not in ("", "null", "true", "false") and SECRET_NAME.search(key)
    return bool(has_secret_name or SECRET_TEXT.search(COMMIT_HASH.sub("", text)))


def hide_paths(tree):
    """Replace absolute paths in a configuration or a text, for whatever leaves this machine, by their last names."""

    def hide(key: str, value: object) -> object:
        if not isinstance(value, str):
            return value
        return ABSOLUTE_PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\ "))[-1], value)

    return map_leaves(tree, hide)


def hide_paths_of_commands(text: str) -> str:
    """Return command lines, one a line, with the last names of absolute paths."""
    lines = [shlex.join(map(hide_paths, shlex.split(line))) for line in split_commands(text)]
    return "".join(f"{line}\n" for line in lines)


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Raise UserError (exit 2) for a command line argument that looks like a secret, without repeating it."""
    for k, argument in enumerate(arguments, start=1):
        if is_secret(argument):
            key, sign, _ = argument.partition("=")
            where = key if sign and not SECRET_TEXT.search(key) else f"argument {k}"
            raise ConfigError(f"{where}: {SECRET_ADVICE}")


def redact_secrets(tree, key: str = ""):
    """Replace everything in a configuration or text that looks like a secret by <removed>.

    A secret has the name or the form of one, or stands in an environment variable
    of such a name.
    """
    known = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]

    def redact(key: str, value: object) -> object:
        text = "" if isinstance(value, bool | None) else str(value)
        is_hidden = SECRET_NAME.search(key) or SECRET_TEXT.search(text) or any(secret in text for secret in known)
        return REMOVED if text and is_hidden else value

    return map_leaves(tree, redact, key)


@contextmanager
def redact_command_line():
    """Remove secrets from `sys.argv`, which W&B records, inside of the block."""
    arguments = sys.argv
    pairs = [argument.partition("=") for argument in arguments]
    sys.argv = [f"{redact_secrets(key)}{sign}{redact_secrets(value, key)}" for key, sign, value in pairs]
    try:
        yield
    finally:
        sys.argv = arguments


def format_exception(error: Exception) -> str:
    """Return an exception as one line without secrets, at most 300 characters."""
    return redact_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
