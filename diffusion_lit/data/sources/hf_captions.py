"""Captions of Hugging Face tables: a column of texts, or of lists of texts."""

from diffusion_lit.data.captions import COLUMNS, Captions, split_captions
from diffusion_lit.data.sources.hf_tables import describe_columns
from diffusion_lit.system.errors import DataError


def read_captions(table, requested: str, path: str) -> Captions | None:
    """Return the captions of each row of a `datasets.Dataset`; None without a column of them.

    Args:
        table: the rows.
        requested: a column; "auto" for the first of `COLUMNS` that holds texts; or "none".
        path: what messages call the table.

    Raises:
        DataError: for a column that is missing, or holds something else.
    """
    if requested == "none":
        return None
    schema = table.features.arrow_schema
    texts = [field.name for field in schema if _holds_texts(field.type)]
    names = [requested]
    if requested == "auto":
        names = [name for name in COLUMNS if name in texts]
    if not names:
        return None
    if names[0] not in texts:
        fault = "holds no texts" if requested in table.features else "no such column"
        columns = describe_columns(table.features)
        raise DataError(f"data.caption_column={requested}: {fault} in {path}, which has {columns}.")
    values = table.select_columns(names[:1]).with_format("arrow")[:].column(0).to_pylist()
    return [split_captions(value if isinstance(value, list) else [value]) for value in values]


def _holds_texts(kind) -> bool:
    """Return whether a type of Arrow is a text, or a list of texts."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
