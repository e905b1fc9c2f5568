"""Tables, indices and settings in JSON that someone else made: one error that names the file."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from multimodal.data.packing.index import index
from multimodal.inference.adapters import CONFIG, WEIGHTS, load_adapters
from multimodal.inference.search.table import PartWriter, Row, TableError, read_table
from multimodal.models.pretrained.files import INDEX, read_config, read_state
from multimodal.models.pretrained.keys import WeightsError

DEEP = "[" * 1_000_000
ROWS = [Row("a.png", "image", "a", "text/plain", b"a"), Row("b", "text", "b")]


@pytest.fixture
def numbers(tmp_path):
    """A table of numbers with its two files beside it."""
    writer = PartWriter(tmp_path / "t.npy", {"kind": "space"}, "x")
    writer.write(0, np.eye(2, dtype=np.float32), ROWS)
    writer.finish(1)
    assert len(read_table(tmp_path / "t.npy").rows) == 2
    return tmp_path / "t.npy"


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".about.json", DEEP.encode()),
        (".about.json", b"[]"),
        (".about.json", b"\xff"),
        (".about.json", b'{"a": NaN}'),
        (".keys.csv", b""),
        (".keys.csv", b"key,modality\na,b\n"),
        (".keys.csv", b"key,modality,name\na,image\nb,image,b\n"),
        (".keys.csv", b"key,modality,name\n" + b"a" * 200_000 + b",image,a\nb,image,b\n"),
        (".keys.csv", b"key,modality,name\n\xff,image,a\nb,image,b\n"),
        (".keys.csv", b"key,modality,name\na,image,a\n"),
        (".npy", b""),
        (".npy", b"PK\3\4" + bytes(64)),
        (".npy", b"\x80\4K\1."),
        (".npy", b"\x93NUMPY\1\0\x10\0" + b"(" * 16),
    ],
)
def test_a_damaged_table_of_numbers(numbers, suffix, content):
    numbers.with_suffix(suffix).write_bytes(content)
    with pytest.raises(TableError, match=str(numbers)):
        read_table(numbers)


@pytest.mark.parametrize(
    "array",
    [np.array([[1, None]], object), np.eye(2, dtype=complex), np.zeros(2), np.zeros((2, 2, 2)),
     np.zeros((2, 2), "U4"), np.zeros(2, [("a", "f4")])],
)  # fmt: skip
def test_arrays_that_are_not_rows(numbers, array):
    np.save(numbers, array, allow_pickle=True)
    with pytest.raises(TableError, match=str(numbers)):
        read_table(numbers)


def columns(**changed):
    made = {
        "key": pa.array(["a", "b"]), "modality": pa.array(["image", "text"]),
        "name": pa.array(["a", "b"]), "preview_type": pa.array(["text/plain", ""]),
        "preview": pa.array([b"a", b""]),
        "embedding": pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32(), 2)),
    }  # fmt: skip
    return pa.table(made | changed)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (columns(embedding=pa.array([1.0, 2.0])), "cannot be read"),
        (columns(embedding=pa.array([[1.0], [2.0, 3.0]])), "cannot be read"),
        (columns(embedding=pa.array([None, [1.0, 2.0]], pa.list_(pa.float32(), 2))), "gaps"),
        (columns(key=pa.array([None, "b"])), "row 0"),
        (columns(name=pa.array([1, 2])), "row 0"),
        (columns(preview=pa.array([b"", None])), "row 1"),
        (columns(preview_type=pa.array(["", "text/html"])), "row 1"),
        (columns(preview_type=pa.array(["", "image/webp\r\nSet-Cookie: a=b"])), "row 1"),
        (columns().drop_columns(["name"]), "lacks name"),
        (columns().replace_schema_metadata({b"multimodal": DEEP.encode()}), "nested too deeply"),
        (columns().replace_schema_metadata({b"multimodal": b"[1]"}), "gaps"),
    ],
)
def test_a_parquet_that_is_not_a_table(tmp_path, table, said):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(columns(), path)
    assert read_table(path).rows[0].name == "a"
    pa.parquet.write_table(table, path)
    with pytest.raises(TableError, match=said) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [0, 4, 100, -8])
def test_a_cut_parquet(tmp_path, length):
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(columns(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TableError, match=str(path)):
        read_table(path)


GOOD = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["query"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEEP, "nested too deeply"),
        ("[]", "no JSON object"),
        ("{}", "target_modules"),
        (json.dumps(GOOD | {"r": 10**30}), "r must be a number"),
        (json.dumps(GOOD | {"r": "2"}), "r must be a number"),
        (json.dumps(GOOD | {"r": True}), "r must be a number"),
        (json.dumps(GOOD | {"lora_alpha": None}), "lora_alpha must be a number"),
        (json.dumps(GOOD | {"lora_dropout": float("nan")}), "NaN"),
        (json.dumps(GOOD | {"lora_dropout": 2}), "lora_dropout must be a number"),
        (json.dumps(GOOD | {"target_modules": "query"}), "target_modules"),
        (json.dumps(GOOD | {"target_modules": [5]}), "target_modules"),
        (json.dumps(GOOD | {"bias": ["x"] * 10_000}), "bias=a list of 10,000"),
        ('{"r": ' + "9" * 5000 + "}", "target_modules"),
    ],
)
def test_settings_of_adapters(tmp_path, content, said):
    from torch import nn

    (tmp_path / CONFIG).write_text(content)
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(WeightsError, match=said) as caught:
        load_adapters(nn.Module(), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content",
    [DEEP, "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', "\xff",
     '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": "/b"}}', '{"weight_map": {"a": ""}}',
     '{"weight_map": {"a": "b\\u0000"}}', '{"weight_map": {"a": "\\ud800"}}'],
)  # fmt: skip
def test_an_index_of_weights(tmp_path, content):
    (tmp_path / INDEX).write_text(content, encoding="latin-1")
    with pytest.raises(WeightsError, match=INDEX):
        read_state(tmp_path)


@pytest.mark.parametrize("content", [DEEP, "[]", "{", "NaN"])
def test_a_foreign_configuration(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_config(None, tmp_path)


def test_json_in_foreign_tars_does_not_end_their_index(tmp_path):
    from data_helpers import tar_bytes

    deep = DEEP[:100_000].encode()
    (tmp_path / "a.tar").write_bytes(tar_bytes([("a.txt", b"1"), ("a.json", deep)]))
    path, problems = index(tmp_path, "m")
    assert json.loads(path.read_text())["fields"]["json"] == {"kind": "json", "keys": []}
    assert problems == []
