"""Read a table of text or a parquet file: encoding and delimiter are found by content, and faults are named by line."""

import codecs
import csv
import gzip
import io
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from diffusion_lit.data.sources.data_source import report_damaged_file
from diffusion_lit.system.console import join_names
from diffusion_lit.system.errors import DataError

DELIMITERS = ",;\t|"
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHER_FILES = {
    b"PK": "an Excel workbook or an archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "a web page",
}
END = "\x1a"  # a row of its own after the last one, unless a quote is still open there
CONVERT = (
    'Save the table in UTF-8, in Excel as "CSV UTF-8", or convert it: '
    "iconv -f <encoding> -t utf-8 <table> > <new table>, with shift_jis, cp1251, cp1252 or what it was saved in."
)
# in cp1252 what text of other encodings soon has, and text of Western languages has not: control characters, three
# accented letters in a row, other signs than these, and an uppercase accented letter after a lowercase or accented one
NOT_WESTERN = re.compile(
    r"[\0-\x08\x0e-\x1f]|[^\x00-\x7f]{3}|[^\x00-\x7fÀ-ÖØ-öø-ÿŠšŽžŒœŸ’–—…€°«»\xa0]|(?:[a-z]|[^\x00-\x7f’–—…€°«»\xa0])[À-ÖØ-ÞŠŽŒŸ]"
)
SAVE_AS_CSV = "Save the table as CSV in UTF-8, or as parquet."


@dataclass(frozen=True)
class Table:
    """The columns of a table.

    Args:
        path: of the file.
        names: of the columns, without white space at their ends.
        columns: the values of each column; those of a csv file are text.
        lines: for each row its line in the file; None for parquet.
        encoding: of the text, if it is not UTF-8.
    """

    path: Path
    names: list[str]
    columns: list[list]
    lines: list[int] | None = None
    encoding: str | None = None

    def describe_rows(self, rows: Collection[int]) -> str:
        """Return the lines of a csv file, or the rows (from 0) of a parquet file: "line 3, 4 and 7 more"."""
        numbers = [str(self.lines[row] if self.lines else row) for row in rows]
        return f"{'line' if self.lines else 'row'} {join_names(numbers, 5)}"

    def find_column(self, name: str) -> int | None:
        """Return the number of the column with this name, or else with the same name up to case and spaces.

        Raises:
            DataError: if two columns have it.
        """
        exact = [k for k, own in enumerate(self.names) if own == name]
        same = exact or [k for k, own in enumerate(self.names) if simplify_name(own) == simplify_name(name)]
        if len(same) > 1:
            names = " and ".join(f"{self.names[k]} (column {k + 1})" for k in same)
            raise DataError(f"{self.path}: {names} have the same name. Rename one of them.")
        return same[0] if same else None


def simplify_name(name: str) -> str:
    """Return a name of a column as it is compared: NFC, without case, spaces as underscores."""
    return re.sub(r"[\s-]+", "_", unicodedata.normalize("NFC", name.replace("\ufeff", "")).strip().casefold())


def read_table(path: Path, known: Collection[str]) -> Table:
    """Return a table.

    Args:
        path: of text with a line of names and a delimiter of `DELIMITERS`, which may be
            gzipped; or of parquet.
        known: names of columns, simplified, by which the delimiter is recognized.

    Raises:
        DataError: with the line of a fault.
    """
    with report_damaged_file(path):
        data = path.read_bytes()
        if path.suffix.lower() == ".parquet" or data[:4] == b"PAR1":
            import pyarrow.parquet

            columns = pyarrow.parquet.read_table(path).to_pydict()
            return Table(path, [name.strip() for name in columns], list(columns.values()))
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if kind := next((kind for mark, kind in OTHER_FILES.items() if data.lstrip().startswith(mark)), None):
        raise DataError(f"{path} is {kind}. {SAVE_AS_CSV}")
    text, encoding = _decode(path, data)
    if not text.strip("\ufeff\0 \t\r\n"):
        raise DataError(f"{path} is empty. It needs a line of names, such as path,label, and a line for each image.")
    first, _, rest = text.partition("\n")
    if separator := re.fullmatch(r'"?sep=(.)"?\s*', first):  # written by Excel
        return _read_rows(path, rest, 2, separator[1], encoding)
    return _read_rows(path, text, 1, _find_delimiter(text, known), encoding)


def _decode(path: Path, data: bytes) -> tuple[str, str | None]:
    """Return the text, and its encoding unless that is UTF-8."""
    head = data[:1000]
    encodings = [encoding for mark, encoding in BYTE_ORDER_MARKS.items() if data.startswith(mark)][:1]
    if not encodings and head.count(0) > len(head) / 4:
        encodings = ["utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"]
    encoding = encodings[0] if encodings else "utf-8"
    try:
        text, fault = data.decode(encoding).removeprefix("\ufeff"), ""
    except UnicodeDecodeError as error:
        western = "" if encodings else data.decode("cp1252", errors="replace")
        if western and not NOT_WESTERN.search(western):
            return western, "cp1252"
        line = data[: error.start].count(10) + 1
        text = "" if encodings else data.decode("latin-1")  # in which every byte is a character
        fault = f"{path}, line {line}: not text in {encoding} ({error.reason})"
    if re.search(r"[\0-\x08\x0e-\x1f]", text):
        raise DataError(f"{path} is a binary file. {SAVE_AS_CSV}")
    if fault:
        raise DataError(f"{fault}. {CONVERT}")
    return text, encodings[0] if encodings else None


def _find_delimiter(text: str, known: Collection[str]) -> str:
    """Return the delimiter by which the first line has a known name, and most names."""
    header = next(line for line in text.splitlines() if line.strip())

    def count_names(delimiter: str) -> tuple[bool, int]:
        names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True))
        return any(simplify_name(name) in known for name in names), len(names)

    return max(DELIMITERS, key=count_names)


def _read_rows(path: Path, text: str, line: int, delimiter: str, encoding: str | None) -> Table:
    """Return the table of a text whose first line is line `line` of the file."""
    reader = csv.reader(io.StringIO(f"{text}\n{END}\n", newline=""), delimiter=delimiter, skipinitialspace=True)
    rows, lines, start = [], [], line
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}, line {start}: {error}. A quote that opens there may not be closed.") from None
        if row is None:
            raise DataError(
                f'{path}, line {lines[-1]}: a quote (") is not closed. Close it; within a value write it twice ("").'
            )
        if row == [END]:
            break
        if any(value.strip() for value in row):
            rows.append(row)
            lines.append(start)
        start = reader.line_num + line
    names, rows, lines = [name.replace("\ufeff", "").strip() for name in rows[0]], rows[1:], lines[1:]
    rows = [
        row[: len(names)] if not "".join(row[len(names) :]).strip() else row for row in rows
    ]  # spreadsheets add delimiters
    if wrong := [k for k, row in enumerate(rows) if len(row) != len(names)]:
        table, row = Table(path, names, [], lines), rows[wrong[0]]
        hint = f"Put values with {delimiter!r} in quotes."
        if any("\n" in value for value in row):
            hint = "Values go on in the next line. Is a quote not closed there?"
        raise DataError(
            f"{path}, {table.describe_rows(wrong)}: {len(row)} values for {len(names)} columns "
            f"({join_names(names, 5)}). {hint}"
        )
    return Table(path, names, [[row[k] for row in rows] for k in range(len(names))], lines, encoding)
