"""CSV and TSV of any dialect and encoding: read as they are meant, or refused by line."""

from __future__ import annotations

import csv
import gzip
import re
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing_helpers import jpeg, metadata, photos, refused, run, samples

from multimodal.data.packing.tables.values import texts_in

ROWS = [
    ("0.jpg", "a red dog"),
    ("1.jpg", "two cats, asleep"),
    ("2.jpg", 'a sign that says "stop"'),
    ("3.jpg", "un café à Orléans"),
    ("4.jpg", "NA"),
    ("5.jpg", "a; b | c"),
]


def write(delimiter: str, quote: str = '"', escape: str = "", end: str = "\n") -> str:
    def cell(text: str) -> str:
        if any(c in text for c in (delimiter, quote, "\n")):
            inner = text.replace(quote, escape + quote if escape else quote * 2)
            return f"{quote}{inner}{quote}"
        return text

    lines = [("filepath", "title"), *ROWS]
    return "".join(delimiter.join(map(cell, row)) + end for row in lines)


EXCEL = '"filepath";"title"\r\n' + "".join(
    f'"{file}";"{text}"\r\n' for file, text in [(f, t.replace('"', '""')) for f, t in ROWS]
)
GOOD = {
    "commas": write(",").encode(),
    "semicolons": write(";").encode(),
    "tabs": write("\t").encode(),
    "pipes": write("|").encode(),
    "windows": write(",", end="\r\n").encode(),
    "old mac": write(",", end="\r").encode(),
    "excel": EXCEL.encode("utf-8-sig"),
    "sep": b"sep=;\r\n" + write(";").encode(),
    "backslashes": write(",", escape="\\").encode(),
    "utf-8 with a mark": write(",").encode("utf-8-sig"),
    "latin-1": write(",").encode("latin-1"),
    "cp1252": write(";").encode("cp1252"),
    "utf-16": write("\t").encode("utf-16"),
    "utf-16-le": write(",").encode("utf-16-le"),
    "utf-16-be": write(";").encode("utf-16-be"),
    "utf-16-be with a mark": b"\xfe\xff" + write(",").encode("utf-16-be"),
    "utf-32": write(",").encode("utf-32"),
    "an empty line": write(",").encode() + b"\n\r\n",
    "empty rows of excel": write(";").encode() + b";\n;\n",
    "a space after the comma": write(", ").replace('"', '"').encode(),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_every_dialect_and_encoding_is_read_as_it_is_meant(tmp_path, name, suffix):
    photos(tmp_path)
    (tmp_path / f"t.{suffix}").write_bytes(GOOD[name])
    assert run(tmp_path / f"t.{suffix}", tmp_path / "out", "--require", "image", "json") == 0
    found = metadata(tmp_path / "out")
    assert [found[f"{n:09d}"] for n in range(6)] == [{"title": text} for _, text in ROWS]
    members = samples(tmp_path / "out")
    assert members["train:000000003"]["filepath.jpg"] == (tmp_path / "3.jpg").read_bytes()


def test_what_was_found_and_guessed_is_said(tmp_path, capsys):
    photos(tmp_path)
    (tmp_path / "t.csv").write_bytes(write(";").encode("latin-1"))
    assert run(tmp_path / "t.csv", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "t.csv is not UTF-8: read as cp1252, line 5 is '3.jpg;un café à Orléans'" in said
    assert "t.csv: a table separated by ';' in cp1252; files: filepath; texts: title" in said


BAD = {
    "unquoted commas": (
        b"filepath,title\n0.jpg,a dog\n1.jpg,two cats, asleep\n2.jpg,a, b, c\n",
        "t.csv, line 3: 3 cells, for 2 columns; line 4: 4 cells, for 2 columns. A cell with ','",
    ),
    "short row": (b"filepath,title\n0.jpg,a\n1.jpg\n", "line 3: 1 cells, for 2 columns"),
    "open quote": (b'filepath,title\n0.jpg,a\n1.jpg,"two\n2.jpg,b\n', "line 3: a quote is opened"),
    "text after a quote": (b'filepath,title\n0.jpg,"a" dog\n', "line 2: text follows the closing"),
    "stray quotes": (
        b'filepath,title\n0.jpg,a\n1.jpg,"two\n2.jpg,b\n3.jpg,c"\n4.jpg,d\n',
        "line 3: a quote is opened here and closed in line 5",
    ),
    "duplicate column": (b"filepath,title,title\n0.jpg,a,b\n", "the column 'title' is there twice"),
    "empty": (b"", "t.csv is empty"),
    "a mark alone": (b"\xef\xbb\xbf", "t.csv is empty"),
    "blank": (b"\n\n", "t.csv is empty"),
    "header only": (b"filepath,title\n", "t.csv has a header and no rows"),
    "no header": (b"0.jpg,a dog\n1.jpg,a cat\n", "t.csv has no header"),
    "binary": (bytes(range(256)) * 4, "t.csv is not a text: it holds NUL bytes"),
    "damaged UTF-8": (
        "filepath,title\n0.jpg,café été\n1.jpg,a\n".encode() + b"2.jpg,\xff\xc3\n",
        "t.csv, line 4: the bytes 0xff are not utf-8",
    ),
    "cut UTF-16": (write(",").encode("utf-16")[:-1], "are not utf-16"),
    "of several readings": (
        "filepath,title\n0.jpg,żółty pies biegnie\n".encode("cp1250"),
        "t.csv, line 2: not UTF-8, and several encodings are possible",
    ),
    "two delimiters": (b"file,path;title\n0.jpg,x;a\n", "may be separated by ',', ';'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_table_that_is_not_consistent_is_refused_by_line(tmp_path, capsys, name):
    photos(tmp_path)
    content, message = BAD[name]
    (tmp_path / "t.csv").write_bytes(content)
    assert run(tmp_path / "t.csv", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").glob("*.json"))


def test_broken_rows_can_be_left_out_and_are_listed(tmp_path, capsys):
    photos(tmp_path)
    (tmp_path / "t.csv").write_bytes(BAD["unquoted commas"][0])
    assert run(tmp_path / "t.csv", tmp_path / "out", "--skip-broken") == 0
    assert metadata(tmp_path / "out") == {"000000000": {"title": "a dog"}}
    assert refused(tmp_path / "out") == dict.fromkeys(["000000001", "000000002"], "broken_row")
    assert "left out: 2 broken_row" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words", "titles"),
    [
        ("0.jpg,a dog\n1.jpg,a cat\n", ["--columns", "file", "title"], ["a dog", "a cat"]),
        ("file^title\n0.jpg^a, b\n", ["--delimiter", "^"], ["a, b"]),
        ('file\ttitle\n0.jpg\t"big" dog\n1.jpg\t5" nail\n', [], ['"big" dog', '5" nail']),
        ('file,title\n0.jpg,"a" dog\n', ["--quote", "none"], ['"a" dog']),
        ("'file','title'\n'0.jpg','it''s a dog, see'\n", [], ["it's a dog, see"]),
        ('file,title\n0.jpg,"two\nlines, or so"\n', [], ["two\nlines, or so"]),
        ('file,title\n0.jpg,"a\n1.jpg,b"\n', ["--quote", '"'], ["a\n1.jpg,b"]),
        (",file,title\n7,0.jpg,a dog\n", [], ["a dog"]),
    ],
)
def test_other_dialects_are_found_or_named(tmp_path, content, words, titles):
    photos(tmp_path)
    (tmp_path / "t.txt").write_text(content)
    (tmp_path / "t.csv").write_text(content)
    for name in ("t.csv", "t.txt"):
        out = tmp_path / f"out {name}"
        assert run(tmp_path / name, out, "--name", "x", *words) == 0
        assert [each["title"] for _, each in sorted(metadata(out).items())] == titles


def test_an_encoding_can_be_named(tmp_path):
    photos(tmp_path)
    (tmp_path / "t.csv").write_bytes("file,title\n0.jpg,żółty pies\n".encode("cp1250"))
    assert run(tmp_path / "t.csv", tmp_path / "out", "--encoding", "cp1250") == 0
    assert metadata(tmp_path / "out") == {"000000000": {"title": "żółty pies"}}
    assert run(tmp_path / "t.csv", tmp_path / "no", "--encoding", "utf-9") == 1
    assert run(tmp_path / "t.csv", tmp_path / "no", "--encoding", "utf-8") == 1


def test_a_caption_of_a_megabyte_is_packed_and_said(tmp_path, capsys):
    limit = csv.field_size_limit()
    photos(tmp_path)
    long = "dog " * 250_000
    (tmp_path / "t.csv").write_text(f"file,title\n0.jpg,{long}\n1.jpg,a cat\n")
    assert run(tmp_path / "t.csv", tmp_path / "out") == 0
    assert "the longest text has 1,000,000 characters" in capsys.readouterr().err
    assert run("verify", tmp_path / "out") == 0
    assert csv.field_size_limit() == limit  # one for the whole process


HEADERS = {
    "h.csv": b"filepath,caption\n", "end.csv": b"filepath,caption", "h.tsv": b"file\tcaption\n",
    "mark.csv": b"\xef\xbb\xbfa,b\r\n", "wide.csv": "filepath,caption\n".encode("utf-16"),
    "sep.csv": b"sep=;\nfilepath;caption\n", "blank.csv": b"filepath,caption\n,\n,\n",
    "h.csv.gz": gzip.compress(b"filepath,caption\n"), "captions.txt": b"image,caption\n",
    "coco.json": b'{"images": [], "annotations": []}',
    "karpathy.json": b'{"images": [], "dataset": "coco"}',
    "list.json": b"[]", "object.json": b"{}", "lines.jsonl": b"\n\n",
    "nothing.csv": b"", "nothing.jsonl": b"", "nothing.json": b"", "nothing.parquet": b"",
    "nothing.arrow": b"", "nothing.tar": b"", "nothing.token": b"", "nothing.csv.gz": b"",
    "empty.tar": bytes(10240),
    "only/metadata.csv": b"file_name,text\n", "only2/metadata.jsonl": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", [*HEADERS, "rows.parquet", "rows.arrow", "only3/metadata.parquet"])
def test_a_file_without_a_row_is_one_line(tmp_path, capsys, name):
    """Of every format: nothing at all, or a header alone."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    none = pa.table({"file_name": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    if name in HEADERS:
        path.write_bytes(HEADERS[name])
    elif path.suffix == ".parquet":
        pq.write_table(none, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, none.schema) as writer:
            writer.write_table(none)
    given = path.parent if path.parent != tmp_path else path
    assert run(given, tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert re.search(r"empty|no rows|no images|no samples", lines[-1]), lines
    assert name in lines[-1]
    assert len(lines) <= 2  # what it was taken for, and what is wrong with it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file~caption\n0.jpg~a dog\n", r"may be separated by '~'.*--delimiter '~'"),
        ("file:caption\n0.jpg:a dog\n", r"may be separated by ':'"),
        ("# mine\nfile,caption\n0.jpg,a dog\n", r"line 1 has one cell and every other row 2"),
    ],
)
def test_what_looks_like_one_column_is_not_packed_as_one(tmp_path, capsys, content, message):
    photos(tmp_path, 1)
    (tmp_path / "t.csv").write_text(content)
    assert run(tmp_path / "t.csv", tmp_path / "out") == 1
    assert re.search(message, capsys.readouterr().err)
    if "~" in content:
        assert run(tmp_path / "t.csv", tmp_path / "out", "--delimiter", "~") == 0
        assert metadata(tmp_path / "out") == {"000000000": {"caption": "a dog"}}


def test_captions_in_a_list_within_a_cell_are_several(tmp_path, capsys):
    """As JSON and pandas write them; a cell that is no such list among them is left out."""
    photos(tmp_path, 4)
    cells = ['["a dog", "a [red] hound"]', "['a cat', \"a cat's nose\"]", "", "['a' 'b']"]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "captions"])
        rows.writerows([[f"{n}.jpg", cell] for n, cell in enumerate(cells[:3])])
    assert run(tmp_path / "t.csv", tmp_path / "out") == 0
    assert "each cell of 'captions' is a list of texts" in capsys.readouterr().err
    found = metadata(tmp_path / "out")
    assert found["000000000"]["captions"] == ["a dog", "a [red] hound"]
    assert found["000000001"]["captions"] == ["a cat", "a cat's nose"]
    assert refused(tmp_path / "out") == {"000000002": "no_text"}
    assert [texts_in(cell) for cell in (cells[3], "[1, 2]", "[" * 5000, "[a dog]", "a")] == [
        None
    ] * 5


def test_other_scripts_are_not_taken_for_half_width_kana(tmp_path, capsys):
    """KOI8-R can be read as Shift JIS, in which it is a row of ``ﾇﾏﾒﾏﾄ``."""
    photos(tmp_path, 3)
    rows = "красная собака", "город ночью", "дом у моря"
    table = "filepath,caption\n" + "".join(f"{n}.jpg,{text}\n" for n, text in enumerate(rows))
    (tmp_path / "t.csv").write_bytes(table.encode("koi8-r"))
    assert run(tmp_path / "t.csv", tmp_path / "out") == 1
    assert "several encodings are possible" in capsys.readouterr().err
    assert run(tmp_path / "t.csv", tmp_path / "out", "--encoding", "koi8-r") == 0
    assert {each["caption"] for each in metadata(tmp_path / "out").values()} == set(rows)


def test_a_path_differs_from_its_file_in_form_only(tmp_path, capsys):
    """Extensions in other capitals, and Unicode forms as macOS writes them, are the same file."""
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / unicodedata.normalize("NFD", "é.jpg")).write_bytes(jpeg(1))
    (tmp_path / "Dog.jpg").write_bytes(jpeg(2))
    (tmp_path / "t.csv").write_text("filepath,caption\na.JPG,one\né.jpg,two\ndog.jpg,three\n")
    assert run(tmp_path / "t.csv", tmp_path / "out") == 0
    assert {each["caption"] for each in metadata(tmp_path / "out").values()} == {"one", "two"}
    assert "there is Dog.jpg" in capsys.readouterr().err


def test_a_name_without_its_extension_is_not_packed_without_its_picture(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 2, "a{}.jpg")
    table = folder / "t.csv"
    table.write_text("image,caption\na0,a dog\na1,a cat\n")
    assert run(table, tmp_path / "out") == 1
    assert "the column 'image' says 'a0', and the file is 'a0.jpg'" in capsys.readouterr().err
    assert run(table, tmp_path / "out", "--optional", "image", "--texts", "caption") == 0
    assert metadata(tmp_path / "out")["000000000"]["image"] == "a0"


def test_of_a_column_of_files_those_that_are_none_are_refused_one_by_one(tmp_path):
    folder = photos(tmp_path / "photos", 1)
    table = folder / "t.csv"
    table.write_text("image,caption\n0.jpg,a dog\nlater,a cat\n-,a cow\n")
    assert run(table, tmp_path / "out") == 0
    assert len(samples(tmp_path / "out")) == 1
    assert len(refused(tmp_path / "out")) == 2


def test_a_column_that_is_called_after_files_and_names_none_is_said(tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("path,caption\nroot/leaf,a dog barks\nroot/twig,a cat sleeps\n")
    assert run(table, tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert "the column 'path' is metadata: 'root/leaf' does not name a file of a known kind" in told
