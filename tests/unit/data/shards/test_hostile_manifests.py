"""Manifests that someone else made: each fault is one error that names manifest and field."""

from __future__ import annotations

import copy
import json
import os
import re
from contextlib import contextmanager

import numpy as np
import pytest
from data_helpers import number_samples, write_source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal.core import strict_json
from multimodal.data.errors import ShardError
from multimodal.data.packing import write as write_module
from multimodal.data.packing.write import ShardEntry, write_manifest
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.table import ShardRow, ShardTable
from multimodal.data.source import Source

X = {"x": {"member": "x.npy"}}


@pytest.fixture
def path(tmp_path):
    return write_source(tmp_path, {"train": [number_samples(3)], "test": [number_samples(2, 8)]})


def refusal(path) -> str:
    """The message that names the manifest; any other exception fails the test."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_manifest(path)
    assert not isinstance(caught.value, UnicodeError | json.JSONDecodeError)  # not by accident
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 4000
    return message


def set_at(content, place, value):
    node = content
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value


NUMBERS = [
    10**19, 10**30, 2**63, -1, 0, 1.5, 1e300, True, None, "9", [], {}, [[9]], 2**63 - 1, 2**25,
]  # fmt: skip


@pytest.mark.parametrize("key", ["samples", "bytes"])
@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_a_number_that_no_shard_has(path, key, value):
    content = json.loads(path.read_text())
    content["shards"][1][key] = value
    path.write_text(json.dumps(content))
    if key == "bytes" and value == 2**25:  # possible, and held against the file
        with pytest.raises(ShardError, match=r"test-000\.tar.*the manifest says 33554432"):
            Source(str(path), X, split="test").read(0)
        return
    assert f"shard 1 ('made-test-000.tar'): '{key}' must be a whole number" in refusal(path)


TEXTS = ["\ud800", "", None, 5, ["a"], {"a": 1}, "a\0b"]


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        *[(("name",), value, "'name'") for value in (*TEXTS, "../x", "n" * 300)],
        *[(("base",), value, "'base'") for value in (*(v for v in TEXTS if v is not None),)],
        *[(("shards", 0, "split"), v, "'split'") for v in ("\ud800", "", None, 5, ["a"], {"a": 1})],
        *[(("shards", 0, "sha256"), v, "'sha256'") for v in (*TEXTS, "G" * 64, "0" * 63)],
        *[(("fields", "x.npy", "kind"), v, "'kind'") for v in (*TEXTS, "x" * 10**6)],
        *[(("fields", "x.npy", "splits"), v, "'splits'") for v in ("a", None, 5, [5], ["\ud800"])],
        *[(("fields", "json", "keys"), v, "'keys'") for v in ("a", None, 5, [[]], ["\ud800"])],
        (("fields", "json"), [], "field 'json'"),
        (("fields", ""), {"kind": "json"}, "field ''"),
        (("fields", "\ud800"), {"kind": "json"}, "field '\\ud800'"),
        (("fields",), [], "'fields'"),
        (("description",), 5, "'description'"),
        (("description",), "\udfff", "'description'"),
        (("licences",), {"a": 1}, "'licences'"),
        (("licences",), ["MIT"], "licence 0"),
        (("licences",), [{"a": [[[[]]]]}], "licence 0"),
        (("shards",), {}, "'shards'"),
        (("shards",), "x", "'shards'"),
        (("shards",), {"train": []}, "'shards'"),
        (("shards",), {"../x": {}}, "'shards'"),
        (("shards",), {"\ud800": {}}, "'shards'"),
        (("shards",), {"train": {"names": 5}}, "names.npy"),
        (("shards", 0), 5, "shard 0"),
        (("format",), ["x"] * 10**5, "'format'"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_every_field_is_checked_and_named(path, place, value, field):
    content = json.loads(path.read_text())
    set_at(content, place, value)
    path.write_text(json.dumps(content))
    assert field in refusal(path)


NAMES = ["/etc/x.tar", "../x.tar", "a/../../x.tar", "..", "a\0.tar", "c:\\x.tar", "http://h/x.tar",
         "pipe:id", "", "\ud800.tar", "n" * 2000 + ".tar", 5, None, ["x"]]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda value: repr(value)[:40])
def test_a_shard_stays_in_its_folder(path, name):
    content = json.loads(path.read_text())
    content["shards"][0]["name"] = name
    path.write_text(json.dumps(content))
    assert "'name'" in refusal(path)


@pytest.mark.parametrize(
    "base",
    ["pipe://id", "nowhere://x", "simplecache::https://h/x", "zip://a::http://h/x", "samples://x",
     "file:///etc", "http://h/\n", "x" * 5000],
)  # fmt: skip
def test_a_base_that_nothing_should_open(path, base):
    content = json.loads(path.read_text()) | {"base": base}
    path.write_text(json.dumps(content))
    assert "'base'" in refusal(path)


def test_the_root_and_relative_folders_are_the_base_that_they_name(path, tmp_path, monkeypatch):
    content = json.loads(path.read_text())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # the working directory plays no part
    for base, folder in [
        ("/", "/"), ("//", "//"), (str(tmp_path), str(tmp_path)), (".", str(tmp_path)),
        ("a/b", f"{tmp_path}/a/b"),
    ]:  # fmt: skip
        path.write_text(json.dumps(content | {"base": base}))
        assert load_manifest(path).folder == folder
    path.write_text(json.dumps(content | {"base": "/"}))
    with pytest.raises(ShardError, match=r"shard /made-train-000\.tar, byte 0: cannot be opened"):
        Source(str(path), X).read(0)
    path.write_text(json.dumps(content | {"base": "."}))
    assert Source(str(path), X).read(0).key == "s00000"


DEEP = 1_000_000
DIGITS = "9" * 100_000


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: "[" * DEEP + "]" * DEEP, "nested too deeply"),
        (lambda text: '{"format":' * DEEP + "1" + "}" * DEEP, "nested too deeply"),
        (
            lambda text: text.rstrip()[:-1] + ', "more": ' + "[" * DEEP + "]" * DEEP + "}",
            "nested too deep",
        ),
        (lambda text: text.replace('"samples": 3', f'"samples": {DIGITS}'), "of 100,000 digits"),
        (lambda text: text.replace('"samples": 3', f'"samples": -{DIGITS}'), "of 100,000 digits"),
        (lambda text: text.replace('"samples": 3', '"samples": NaN'), "NaN is not a JSON number"),
        (lambda text: text.replace('"samples": 3', '"samples": 1e999'), "got inf"),
        (lambda text: text.replace('"samples": 3', '"samples": 3, "samples": 3'), "'samples' occ"),
        (lambda text: text[:-10], "is not JSON"),
        (lambda text: "\0" + text, "is not JSON"),
        (lambda text: "", "is not JSON"),
        (lambda text: "9" * 5000, "a number of 5,000 digits"),
        (lambda text: "null", "expected a JSON object"),
    ],
    ids=range(13),
)
def test_text_that_no_parser_likes(path, edit, message):
    path.write_text(edit(path.read_text()))
    assert message in refusal(path)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b'{"name": "\xc3"}', b"\x80" * 100])
def test_bytes_that_are_not_utf_8(path, content):
    path.write_bytes(content)
    assert "is not JSON" in refusal(path)


def test_a_huge_manifest_is_not_read_whole(path, monkeypatch):
    with path.open("ab") as file:
        file.truncate(1 << 40)  # sparse
    assert "too large" in refusal(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
LEAVES = [
    ("format",), ("name",), ("description",), ("base",), ("licences",), ("fields",),
    ("fields", "x.npy"), ("fields", "x.npy", "kind"), ("fields", "json", "keys"), ("shards",),
    ("shards", 0), ("shards", 0, "name"), ("shards", 0, "split"), ("shards", 0, "samples"),
    ("shards", 0, "bytes"), ("shards", 1, "sha256"),
]  # fmt: skip


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(place=st.sampled_from(LEAVES), value=json_values)
def test_any_value_at_any_place_is_used_or_rejected_by_name(path, place, value):
    good = path.with_suffix(".good")
    if not good.exists():
        good.write_text(path.read_text())
    content = copy.deepcopy(json.loads(good.read_text()))
    set_at(content, place, value)
    path.write_text(json.dumps(content))
    with refused_by_name(ValueError, str(path)):
        manifest = load_manifest(path)
        for split in manifest.splits if "x.npy" in manifest.fields else ():
            source = Source(str(path), X, split=split)
            with refused_by_name(ShardError, "shard "):
                source.read(0)


@contextmanager
def refused_by_name(kind, *names):
    """Passes by what succeeds, and errors of one kind that name what they are about."""
    message = ""
    try:
        yield
    except kind as error:
        message = str(error)
    assert not message or any(name in message for name in names)


# What a name leads to


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "long"])
def test_a_shard_that_is_not_a_file_is_rejected_at_once(path, tmp_path, kind):
    shard = tmp_path / "made-train-000.tar"
    if kind == "long":
        content = json.loads(path.read_text())
        content["shards"][0]["name"] = "n" * 900 + ".tar"
        path.write_text(json.dumps(content))
    else:
        shard.unlink()
    if kind == "pipe":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    elif kind == "device":
        shard.symlink_to("/dev/zero")
    elif kind == "loop":
        shard.symlink_to(shard)
    with pytest.raises(ShardError, match=r"not a regular file|cannot be opened"):
        Source(str(path), X).read(0)


# Tables in files


@pytest.fixture
def tabled(tmp_path, monkeypatch):
    """A manifest whose table is in files, and a function that rewrites a column with its hash."""
    monkeypatch.setattr(write_module, "MOST_LISTED", 0)
    entries = [
        ShardEntry(f"{n}.tar", "train", 4, 1 << 14, f"{n}" * 64, ["x.npy"], {}) for n in range(3)
    ]
    write_manifest(tmp_path / "m.json", "m", "", entries, {})

    def rewrite(name: str, content: bytes | np.ndarray) -> None:
        column = tmp_path / "m.table" / "train" / f"{name}.npy"
        if isinstance(content, bytes):
            column.write_bytes(content)
        else:
            np.save(column, content, allow_pickle=True)
        manifest = json.loads((tmp_path / "m.json").read_text())
        manifest["shards"]["train"][name] = packing_entry(column)
        (tmp_path / "m.json").write_text(json.dumps(manifest))

    return tmp_path / "m.json", rewrite


def packing_entry(column):
    from multimodal.data.shards.table import _entry

    return _entry(column)


def npy(header: str) -> bytes:
    raw = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(raw).to_bytes(2, "little") + raw + bytes(64)


COLUMNS = [
    ("samples", np.array([4, 4, 2**25])),
    ("samples", np.array([4, -4, 12])),
    ("samples", np.array([4.0, 4.0, 4.0])),
    ("samples", np.array([4, 4, 4], ">i8")),
    ("samples", np.array([[4, 4, 4]])),
    ("samples", np.array([4, 4])),
    ("samples", np.array(4)),
    ("samples", np.array([4, None, 4], object)),
    ("bytes", np.array([1 << 14, 0, 1 << 14])),
    ("bytes", np.array([1 << 14, 2**62, 1 << 14])),
    ("starts", np.array([0, 4, 2, 12])),
    ("starts", np.array([2**63 - 2, 2, 6, 10])),
    ("sha256", np.zeros((3, 31), np.uint8)),
    ("names", np.array([b"a.tar", b"../b.tar", b"c.tar"])),
    ("names", np.array([b"a.tar", b"/b.tar", b"c.tar"])),
    ("names", np.array([b"a.tar", b"", b"c.tar"])),
    ("names", np.array([b"a.tar", b"b\0b.tar", b"c.tar"])),
    ("names", np.array([b"a.tar", b"\xff.tar", b"c.tar"])),
    ("names", np.array([b"a.tar", b"b", b"c" * 5000])),
    ("names", np.array(["a", "b", "c"])),
    ("samples", b""),
    ("samples", b"PK\3\4" + bytes(100)),
    ("samples", b"\x80\4."),
    ("samples", b"\x93NUMPY\1\0"),
    (
        "samples",
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (9999999999999999999,), }"),
    ),
    ("samples", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }")),
    ("samples", npy("{'descr': [[[[[]]]]], 'fortran_order': False, 'shape': (3,), }")),
    ("samples", npy("(" * 117)),
]


@pytest.mark.parametrize("number", range(len(COLUMNS)))
def test_a_table_that_contradicts_itself(tabled, number):
    path, rewrite = tabled
    assert load_manifest(path).split("train").num_samples == 12
    name, content = COLUMNS[number]
    rewrite(name, content)
    message = refusal(path)
    assert ".npy" in message or "train" in message


def test_a_good_table_is_one_that_a_list_may_hold():
    rows = [ShardRow("a.tar", 1 << 22, 1 << 44, "0" * 64)] * 3
    assert ShardTable.of(rows).num_samples == 3 << 22


# JSON by itself


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_bytes_are_parsed_or_rejected_by_name(data):
    with refused_by_name(ValueError, "file.json"):
        strict_json.parse(data, "file.json")


@given(json_values)
def test_an_excerpt_is_short(value):
    assert len(strict_json.excerpt(value)) <= 80
