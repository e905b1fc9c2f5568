from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from data_helpers import number_samples, shard_bytes, tar_bytes

from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.shards.tar import Shard

SAMPLES = [
    ("a", {"png": b"1" * 700, "json": b"{}"}),
    ("folder/b", {"v1.ogg": b"2" * 512, "v2.ogg": b"", "json": b"[]"}),
    ("c", {"txt": "ü".encode()}),
]


def shard(tmp_path, content: bytes, **expected) -> Shard:
    path = tmp_path / "made.tar"
    path.write_bytes(content)
    return Shard(path, **expected)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_samples_are_read_as_they_were_written(tmp_path, tar_format):
    content = shard_bytes(SAMPLES, tar_format)
    read = shard(tmp_path, content, samples=3, size=len(content))
    assert read.keys == ["a", "folder/b", "c"]
    for index, (_, members) in enumerate(SAMPLES):
        assert read.fields(index) == list(members)
        for field, data in members.items():
            assert read.read(index, field) == data
            assert read.size(index, field) == len(data)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_long_and_foreign_names_are_read_whole(tmp_path, tar_format):
    longest = 90 if tar_format == tarfile.USTAR_FORMAT else 300
    names = ["x" * 95, "d" * longest + "/" + "y" * 60, "ключ"]
    samples = [(name, {"txt": name.encode()}) for name in names]
    read = shard(tmp_path, shard_bytes(samples, tar_format))
    assert read.keys == names
    assert [read.read(i, "txt") for i in range(3)] == [name.encode() for name in names]


def test_a_size_in_a_pax_header_overrides_the_old_field(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 5
        info.pax_headers = {"size": "5", "comment": "an ordinary\nrecord"}
        tar.addfile(info, io.BytesIO(b"hello"))
    content = bytearray(buffer.getvalue())
    header = content.index(b"a.txt\0")
    content[header + 124 : header + 136] = b"00000000000\0"
    content[header + 148 : header + 156] = b" " * 8
    checksum = sum(content[header : header + 512])
    content[header + 148 : header + 156] = f"{checksum:06o}\0 ".encode()
    assert shard(tmp_path, bytes(content)).read(0, "txt") == b"hello"


def test_folders_are_passed_over_and_a_leading_dot_is_not_a_key(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("./a.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert shard(tmp_path, buffer.getvalue()).keys == ["a"]


def test_webdataset_reads_the_same_samples(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "made.tar"
    path.write_bytes(shard_bytes(number_samples(7)))
    read = Shard(path)
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in theirs] == read.keys
    for index, sample in enumerate(theirs):
        for field in read.fields(index):
            assert sample[field] == read.read(index, field)


def test_every_cut_of_a_shard_is_noticed(tmp_path):
    content = shard_bytes(SAMPLES)
    end = content.rindex("ü".encode()) + 512 - content.rindex("ü".encode()) % 512
    for length in [1, 100, 511, 512, 600, 1024, 2000, end - 512, end - 1, end]:
        with pytest.raises(ShardError, match="cut") as caught:
            shard(tmp_path, content[:length])
        assert "made.tar" in str(caught.value)
        assert 0 <= caught.value.offset <= length
    assert len(shard(tmp_path, content[: end + 512])) == 3  # one end block is enough


def test_a_cut_inside_a_member_names_it(tmp_path):
    with pytest.raises(ShardError, match=r"byte 0: cut: 212 bytes of 'a\.png' are missing"):
        shard(tmp_path, shard_bytes(SAMPLES)[:1000])


def test_a_cut_file_is_noticed_by_its_size_before_it_is_read(tmp_path):
    content = shard_bytes(SAMPLES)
    with pytest.raises(ShardError, match=f"has {len(content) - 512} bytes.*says {len(content)}"):
        shard(tmp_path, content[:-512], size=len(content))


def test_a_wrong_count_is_noticed(tmp_path):
    with pytest.raises(ShardError, match="holds 3 samples, expected 4"):
        shard(tmp_path, shard_bytes(SAMPLES), samples=4)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>" + b" " * 1000, b"\x1f\x8b" * 600])
def test_anything_but_a_tar_is_reported_as_such(tmp_path, content):
    with pytest.raises(ShardError, match=r"made\.tar, byte 0: no tar header"):
        shard(tmp_path, content)


def test_a_broken_header_is_named_with_its_place(tmp_path):
    content = bytearray(shard_bytes(SAMPLES))
    second = content.index(b"a.json")
    content[second + 3] ^= 1  # one bit of the name: the checksum no longer fits
    with pytest.raises(ShardError, match="no tar header") as caught:
        shard(tmp_path, bytes(content))
    assert caught.value.offset == second


@pytest.mark.parametrize(
    ("names", "keys", "problems"),
    [
        (["a.txt", "b.txt", "a.json", "c.txt"], "abac", {0: "key", 2: "key"}),
        (["a.txt", "b.txt", "a.txt", "b.txt", "a.txt"], "ababa", dict.fromkeys(range(5), "key")),
        (["a.txt", "a.txt", "b.txt"], "ab", {0: "member"}),
    ],
)
def test_samples_that_may_be_mixed_are_rejected_and_the_rest_is_read(
    tmp_path, names, keys, problems
):
    read = shard(tmp_path, tar_bytes([(name, name.encode()) for name in names]))
    assert read.keys == list(keys)
    for index in range(len(read)):
        if index in problems:
            with pytest.raises(DecodeError, match="occurs twice") as caught:
                read.check(index)
            assert caught.value.reason == f"duplicate_{problems[index]}"
        else:
            read.check(index)
            for field in read.fields(index):
                assert read.read(index, field) == f"{keys[index]}.{field}".encode()


def test_members_without_a_key_or_a_field_belong_to_no_sample(tmp_path):
    names = ["README", "a.txt", ".hidden", "a.json", "b.", "b.txt"]
    read = shard(tmp_path, tar_bytes([(name, name.encode()) for name in names]))
    assert read.keys == ["a", "b"]
    assert read.fields(0) == ["txt", "json"]
    assert read.read(0, "json") == b"a.json"
    assert read.stray_members == ["README", ".hidden", "b."]


def test_another_content_of_the_same_size_is_noticed(tmp_path):
    content = shard_bytes(SAMPLES)
    digest = hashlib.sha256(content).digest()
    assert len(shard(tmp_path, content, sha256=digest)) == 3
    changed = content.replace(b"1" * 700, b"2" * 700)
    assert len(shard(tmp_path, changed)) == 3
    with pytest.raises(ShardError, match="sha256 differs from the manifest") as caught:
        shard(tmp_path, changed, sha256=digest)
    assert caught.value.reason == "shard_hash"


def test_links_are_rejected(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ShardError, match="only files can be read"):
        shard(tmp_path, buffer.getvalue())


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(ShardError, match=r"none\.tar.*No such file"):
        Shard(tmp_path / "none.tar")
    with pytest.raises(ShardError, match="is empty"):
        shard(tmp_path, b"")


def test_a_key_never_becomes_a_path(tmp_path):
    before = set(os.listdir(tmp_path.parent))
    read = shard(tmp_path, tar_bytes([("../../evil.txt", b"x")]))
    assert read.keys == ["../../evil"]
    assert read.read(0, "txt") == b"x"
    assert set(os.listdir(tmp_path.parent)) == before


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(ShardError("a.tar", 512, "cut", "shard_cut")))
    assert (error.shard, error.offset, error.reason) == ("a.tar", 512, "shard_cut")
    assert str(error) == "shard a.tar, byte 512: cut"


def test_random_damage_never_raises_anything_else(tmp_path):
    content = shard_bytes(SAMPLES, tarfile.PAX_FORMAT)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in random.integers(len(content), size=4):
            damaged[place] = random.integers(256)
        try:
            read = shard(tmp_path, bytes(damaged))
        except ShardError:
            refused += 1
        else:
            for index in range(len(read)):
                assert all(
                    isinstance(read.read(index, field), bytes) for field in read.fields(index)
                )
    assert refused > 50
