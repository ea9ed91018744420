"""Tables as people save them: which delimiter, encoding and spelling is understood, and what is named instead."""

import gzip
import os
import pickle
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from diffusion_lit.data.sources.table_labels import collect_notes
from tests.cases import each
from tests.image_sets import data_error, make_data

NAMES = [f"{k}.png" for k in range(8)]
CAFE, CAFE_NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
ROWS = [f"{name},{'cat' if k % 2 else 'dog'}" for k, name in enumerate(NAMES)]


def lines(*rows: str, head: str = "path,label", more: list[str] = ROWS) -> str:
    return "\n".join([head, *rows, *more]) + "\n"


def draw(folder: Path, names: list[str] = NAMES) -> None:
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(path)


def load(path: Path, *words: str):
    return make_data("data=table", f"data.path={path}", "data.val_fraction=0", *words)


def test_paths_that_are_not_ascii_are_found_in_every_locale(tmp_path):
    draw(tmp_path, names := [f"{CAFE} {k}.png" for k in range(8)])
    (tmp_path / "t.csv").write_text(lines(more=[f"{name},a" for name in names]), encoding="utf-8")
    code = "from diffusion_lit.data.sources.path_table import PathTable; print(len(PathTable('t.csv').paths))"
    for is_utf8 in "01":
        env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": is_utf8, "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, timeout=60)
        assert done.stdout.split() == [b"8"], done.stderr


UNDERSTOOD = {  # a table, with the classes cat and dog
    "semicolons": lines().replace(",", ";"),
    "semicolons, and a comma in the other column": lines(head="path;label;note", more=[]).strip()
    + "".join(f"\n{row.replace(',', ';')};a, b" for row in ROWS),
    "tabs": lines().replace(",", "\t"),
    "bars": lines().replace(",", " | "),
    "sep= of Excel": ("sep=;\r\n" + lines().replace(",", ";").replace("\n", "\r\n")),
    "a byte order mark": lines().encode("utf-8-sig"),
    "UTF-16": lines().encode("utf-16"),
    "UTF-16 without a mark": lines().encode("utf-16-be"),
    "UTF-32": lines().encode("utf-32"),
    "gzip": gzip.compress(lines().encode()),
    "line ends of old Macs": lines().replace("\n", "\r"),
    "spaces around names and values": lines().replace(",", " , "),
    "names in capitals": lines(head="File Name,LABEL"),
    "empty lines and rows of delimiters": lines(",", "", " , ") + ",\n\n",
    "delimiters at the end of rows": lines().replace("dog", "dog,,"),
    "quotes around everything": lines().replace(",", '","').replace("\n", '"\n"')[:-1].join(['"', ""]),
    "a quote in the middle of a word": lines(head="path,label,size", more=[f'{row},12" disk' for row in ROWS]),
    "a caption of two lines": lines(head="path,label,text", more=[f'{row},"two\nlines"' for row in ROWS]),
    "an index column without a name": lines(head=",path,label", more=[f"{k},{row}" for k, row in enumerate(ROWS)]),
    "backslashes": lines(more=[f".\\{row}" for row in ROWS]),
    "names without suffix": lines(more=[row.replace(".png", "") for row in ROWS]),
    "parquet with the wrong suffix": None,
}


@each(("name", "content"), UNDERSTOOD.items(), ids=str)
def test_tables_that_are_understood(tmp_path, name, content):
    draw(tmp_path)
    path = tmp_path / "a.csv"
    if content is None:
        pq.write_table(pa.table({"path": NAMES, "label": ["dog", "cat"] * 4}), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    data = load(path)
    assert data.source.class_names == ["cat", "dog"]
    assert (data.train.labels.tolist(), data.source.notes) == ([1, 0] * 4, noted(data, name))
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], np.arange(8) * 20)


def noted(data, name: str) -> list[str]:
    encoding = {"UTF-16": "utf-16", "UTF-16 without a mark": "utf-16-be", "UTF-32": "utf-32"}.get(name)
    return [f"{data.source.path} is not UTF-8: read as {encoding}"] if encoding else []


LABELS = {  # labels in turn -> class names
    ("1.0", "2.0"): ["1", "2"],
    ("10", "9"): ["9", "10"],
    ("-1", "1"): ["-1", "1"],
    ("1_000", "true"): ["1_000", "true"],
    ("1e3", "2"): ["1e3", "2"],
    (CAFE, CAFE_NFD): [CAFE],
    ("none", "NA"): ["NA", "none"],
}


@each(("labels", "names"), LABELS.items(), ids=str)
def test_what_classes_are_called(tmp_path, labels, names):
    draw(tmp_path)
    rows = [f"{name},{labels[k % 2]}" for k, name in enumerate(NAMES)]
    (tmp_path / "a.csv").write_text(lines(more=rows), encoding="utf-8")
    assert load(tmp_path / "a.csv").source.class_names == names


def test_western_text_in_cp1252_is_read_and_named(tmp_path):
    draw(tmp_path)
    for name in ("thé", "Éclair à l’œuf", "ça — créée", "GÂTEAU ÉLÉGANT", "Straße «Süd» 3 €", "niño 5°"):
        (tmp_path / "a.csv").write_bytes(lines().replace("cat", name).encode("cp1252"))
        source = load(tmp_path / "a.csv").source
        assert set(source.class_names) == {"dog", name}
        assert source.notes == [f"{tmp_path / 'a.csv'} is not UTF-8: read as cp1252"]


WORDS = {
    "mac_roman": "thé",
    "shift_jis": "子猫",
    "euc_jp": "子猫",
    "cp1251": "кошка",
    "koi8-r": "кошка",
}
WORDS |= {"big5": "小貓咪", "gb18030": "小猫咪", "euc_kr": "고양이", "iso8859-7": "γάτα"}
REFUSED = {  # a table, other overrides, what the error says
    "an unclosed quote": (lines('x.png,"cat'), [], 'a.csv, line 2: a quote (") is not closed.'),
    "an unclosed quote that a later one closes": (
        lines('0.png,"cat', '"1.png",dog', more=ROWS[:2]),
        [],
        "a.csv, line 2: 3 values for 2 columns (path, label). Values go on in the next line. Is a quote",
    ),
    "too many values": (lines(*ROWS[:3], "a, b.png,cat"), [], "a.csv, line 5: 3 values for 2 columns (path, label)"),
    "labels left out": (lines("0.png,", "", "1.png,NaN"), [], "a.csv, line 2, 4: no label (2 of 10)."),
    "no line of names": (lines(head=ROWS[0]), [], "the first line is an image. Add a line of names above it"),
    "two columns of one name": (lines(head="Path,PATH "), [], "Path (column 1) and PATH (column 2) have the same name"),
    "only a line of names": (lines(more=[]), [], "a.csv: has no rows"),
    "only white space": ("\n \n", [], "a.csv is empty. It needs a line of names"),
    "URLs": (lines("https://example.com/0.png,cat"), [], "a.csv, line 2: images are not fetched from URLs, such as h"),
    "a long path": (lines(f"{'x' * 5000},cat"), [], "a.csv, line 2: 1 of 9 images not found, such as "),
    "a path with a null character": (lines("a.png,b"), ["data.path_column=label"], "line 2, 3, 4, 5, 6 and 4 more: 9"),
    "a folder": (lines(".,cat"), [], "line 2: 1 of 9 images not found"),
    "no path": (lines(",cat"), [], "a.csv, line 2: no path"),
    "an Excel workbook": (b"PK\x03\x04\0\0", [], "a.csv is an Excel workbook or an archive. Save the table as CSV"),
    "JSON lines": ('{"path": "0.png"}\n', [], "a.csv is JSON. Save the table as CSV in UTF-8, or as parquet."),
    "a web page": ("<!DOCTYPE html>", [], "a.csv is a web page"),
    "a binary file": (b"\x01\x02\x03path,label", [], "a.csv is a binary file"),
    **{
        f"text in {encoding}": (
            lines().replace("cat", word).encode(encoding),
            [],
            "Save the table in UTF-8, in Excel as",
        )
        for encoding, word in WORDS.items()
    },
    "text in cp1251, gzipped": (
        gzip.compress(lines().replace("cat", "кошка").encode("cp1251")),
        [],
        "a.csv, line 3: not",
    ),
    "UTF-16 with half a character": (lines().encode("utf-16") + b"x", [], "not text in utf-16 (truncated data)"),
    "a split without a name": (
        lines("0.png,cat,", head="path,label,split", more=[f"{row},Train" for row in ROWS]),
        [],
        "a.csv, line 2: unknown splits (empty). Use train, val",
    ),
    "a column that does not exist": (
        lines(),
        ["data.label_column=breed"],
        "no column breed. Set data.label_column to one of path, label.",
    ),
}


@each(("name", "case"), REFUSED.items(), ids=str)
def test_tables_that_are_refused(tmp_path, name, case):
    content, words, message = case
    draw(tmp_path)
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    error = data_error(load, tmp_path / "a.csv", *words)
    assert message in error
    assert "emove" not in error
    assert len(error) < 1000


NOTED = {  # a table, what is noted
    "an unknown label column": (
        lines(head="file,weight,breed", more=[row.replace(",", f",{k % 3},") for k, row in enumerate(ROWS)]),
        "no labels are used. Not used: breed (2 values), weight (3 values). data.label_column=breed trains with",
    ),
    "two label columns": (
        lines(head="path,label,class", more=[f"{row},{k % 3}" for k, row in enumerate(ROWS)]),
        "Not used: class (3 values). data.label_column=class trains",
    ),
    "a path with two labels": (
        lines("./1.png,dog"),
        "1 images with several labels: 1.png (line 2, 4)",
    ),
    "a row twice": (lines(ROWS[0]), "1 images listed more than once: 0.png (line 2, 3)"),
    "rows for training and for validation": (
        lines("0.png,dog,test", head="path,label,split", more=[f"{row},train" for row in ROWS]),
        "1 images listed for training and for validation: 0.png (line 2, 3)",
    ),
    "test rows beside validation": (
        lines(head="path,label,split", more=[f"{row},{('train', 'val', 'test')[k % 3]}" for k, row in enumerate(ROWS)]),
        "2 test rows of ",
    ),
    "splits in a column of another name": (
        lines(head="path,label,set", more=[f"{row},{'val' if k == 3 else 'train'}" for k, row in enumerate(ROWS)]),
        "no splits are used. data.split_column=set takes those of that column",
    ),
    "a class only for validation": (
        lines("7.png,eel,val", head="path,label,split", more=[f"{row},train" for row in ROWS[:7]]),
        "no training images of eel: all rows of the class are for validation",
    ),
    "half of the images": (lines(more=ROWS[:4]), "4 images beside them are not in "),
    "classes that differ in case": (lines(more=[*ROWS[:7], "7.png,Cat"]), "only in case or spaces: 'Cat' and 'cat'"),
}  # fmt: skip


@each(("name", "case"), NOTED.items(), ids=str)
def test_what_is_noted(tmp_path, name, case):
    content, note = case
    draw(tmp_path)
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    (found,) = collect_notes(load(tmp_path / "a.csv").source)
    assert note in found


PARQUET = {  # labels, classes or what the error says
    "whole floats": ([1.0, 2.0], ["1", "2"]),
    "booleans": ([True, False], ["False", "True"]),
    "NaN": ([1.0, float("nan")], "a.parquet, row 1, 3, 5, 7: no label (4 of 8)."),
    "none": (["cat", None], "a.parquet, row 1, 3, 5, 7: no label (4 of 8)."),
    "lists": ([[1], [2]], "column label holds values of type list, not classes"),
}


@each(("name", "case"), PARQUET.items(), ids=str)
def test_labels_of_parquet_files(tmp_path, name, case):
    labels, expected = case
    draw(tmp_path)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"path": NAMES, "label": labels * 4}), path)
    if isinstance(expected, str):
        assert expected in data_error(load, path)
    else:
        assert load(path).source.class_names == expected


def test_images_inside_of_a_parquet_file_lead_to_the_other_source(tmp_path):
    pq.write_table(pa.table({"image": [{"bytes": b"x" * 5000, "path": "0.png"}], "label": [1]}), tmp_path / "a.parquet")
    error = data_error(load, tmp_path / "a.parquet")
    assert "column image holds no paths. For images inside of a parquet file use data=huggingface data.path=" in error


LETTERS = np.array(["b", "a"] * 4)
ARRAYS = {  # arrays of an .npz, classes or what the error says
    "text": ({"labels": LETTERS}, ["a", "b"]),
    "bytes": ({"labels": np.array(["é".encode(), b"a"] * 4)}, ["a", "é"]),
    "numbers as text": ({"labels": np.array(["10", "9"] * 4)}, ["9", "10"]),
    "NaN in a second array": (
        {"labels": np.where(np.arange(8) == 3, np.nan, 1.0)},
        "a.npz, labels: 1 label is not integers or names: row 3 (nan)",
    ),
    "empty text": ({"labels": np.where(np.arange(8) == 5, "", LETTERS)}, "a.npz, labels: 1 label is not integers or"),
    "infinite": ({"labels": np.array([np.inf, 1.0] * 4)}, "row 0 (inf), row 2 (inf), row 4 (inf), row 6 (inf)"),
    "complex": ({"labels": np.ones(8, complex)}, "a.npz, labels: type complex128. Labels are integers or text"),
    "text in columns": ({"labels": np.stack([LETTERS, LETTERS], 1)}, "a.npz, labels: type <U1. Labels are"),
    "labels of validation": (
        {"y_train": np.arange(8) % 2, "x_val": np.zeros((2, 8, 8), np.uint8), "y_val": np.array([0.5, 1])},
        "a.npz, y_val: 1 label is not integers or names: row 0 (0.5)",
    ),
    "names twice": ({"labels": np.arange(8) % 2, "classes": np.array(["a", "a"])}, "two classes have the same name"),
    "Python objects": ({"labels": np.array(["a", None] * 4, object)}, "a.npz, labels: holds Python objects"),
}


@each(("name", "case"), ARRAYS.items(), ids=str)
def test_labels_of_arrays(tmp_path, name, case):
    arrays, expected = case
    np.savez(tmp_path / "a.npz", images=np.zeros((8, 8, 8), np.uint8), **arrays)
    words = ["data=arrays", f"data.images={tmp_path / 'a.npz'}"]
    if isinstance(expected, str):
        error = data_error(make_data, *words)
        assert expected in error
        assert "allow_pickle" not in error
    else:
        assert make_data(*words).source.class_names == expected


def test_arrays_that_are_not_used_are_named(tmp_path):
    images = np.zeros((8, 8, 8), np.uint8)
    letters = {"species": LETTERS, "label": np.array(["Cat", "cat"] * 4), "weight": np.arange(8) / 8}
    cases = {  # other arrays and overrides, what is noted
        "labels of another name": ({"species": LETTERS}, "", "Not used: species (2 values). data.labels=species t"),
        "images of another name": ({"extra": np.tile(images, 9)}, "", "a.npz that are not used: extra"),
        "validation without labels": ({"labels": LETTERS, "x_val": np.tile(images, 9)}, "", "that are not used: x_val"),
        "two arrays of labels": ({"labels": LETTERS, "target": np.arange(8) % 3}, "", "Not used: target (3 values)"),
        "classes that differ in case": (letters, "data.labels=label", "only in case or spaces: 'Cat' and 'cat'"),
    }
    for name, (arrays, word, note) in cases.items():
        np.savez(tmp_path / "a.npz", images=images, **arrays)
        words = ["data=arrays", f"data.images={tmp_path / 'a.npz'}", *word.split()]
        (found,) = collect_notes(make_data(*words).source)
        assert note in found, name


def test_tables_with_images_say_what_they_leave_open(tmp_path):
    draw(tmp_path / "a")
    (tmp_path / "a" / "metadata.csv").write_text(lines(more=ROWS[:5], head="file_name,label"), encoding="utf-8")
    (note,) = collect_notes(make_data("data=huggingface", f"data.path={tmp_path / 'a'}").source)
    assert f"3 images of {tmp_path / 'a'} are in no table of it: {tmp_path / 'a' / '5.png'}" in note
    images = [{"bytes": (tmp_path / "a" / name).read_bytes(), "path": None} for name in NAMES]
    pq.write_table(pa.table({"image": images, "label": [CAFE, CAFE_NFD] * 4}), tmp_path / "b.parquet")
    data = make_data("data=huggingface", f"data.path={tmp_path / 'b.parquet'}", "data.val_fraction=0")
    assert (data.source.class_names, data.train.labels.tolist()) == ([CAFE], [0] * 8)


def test_arrays_that_are_pickles_or_something_else(tmp_path):
    header = b"\x93NUMPY\1\0" + (20_000).to_bytes(2, "little") + b" " * 20_000
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as file:
        file.writestr("images", "text")
    for name, content in {
        "a.npy": pickle.dumps([1, 2]), "b.npz": b"", "c.npy": b"\x93NUMPY", "d.npy": header, "other.npz": None,
    }.items():  # fmt: skip
        if content is not None:
            (tmp_path / name).write_bytes(content)
        error = data_error(make_data, "data=arrays", f"data.images={tmp_path / name}")
        assert str(tmp_path / name) in error
        assert "allow_pickle" not in error


def test_long_paths_of_sources_are_not_found(tmp_path):
    long = "x" * 5000
    for words in (["data=table", f"data.path={long}"], ["data=arrays", f"data.images={long}"],
                  ["data=image_folder", f"data.root={long}"], ["data=concat", f"data.sources=[{long}]"]):  # fmt: skip
        assert len(data_error(make_data, *words)) < 1000
