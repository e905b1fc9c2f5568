"""Tars that someone else made: each fault is one error that names the shard, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc

import numpy as np
import pytest
from data_helpers import shard_bytes, tar_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.loading.tally import Rejection
from multimodal.data.shards.tar import Shard
from multimodal.data.streaming.shard import MAX_SAMPLE, Streamed, read_shard

END = bytes(1024)


def header(
    name: bytes = b"a.txt",
    size: bytes | int = 0,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """A header with a right checksum, whatever else it holds."""
    digits = size if isinstance(size, bytes) else b"%011o" % size
    block = bytearray(512)
    for place, content in ((0, name), (100, b"0000644"), (124, digits), (148, b" " * 8),
                           (156, kind), (257, magic), (345, prefix)):  # fmt: skip
        block[place : place + len(content)] = content
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(content: bytes, **fields) -> bytes:
    return header(**{"size": len(content)} | fields) + content + bytes(-len(content) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    content = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        total = length + len(str(length + len(str(length))))
        content += b"%d %s=%s\n" % (total, key, value)
    return member(content, name=b"pax", kind=kind)


GOOD = member(b"ok", name=b"z.txt")
TERABYTE = b"\x80" + (1 << 40).to_bytes(11, "big")
BASE_256 = b"\x80" + bytes(3)

HOSTILE = {
    "pax size of 100,000 digits": pax((b"size", b"9" * 100_000)) + member(b"x"),
    "pax size of 21 digits": pax((b"size", b"9" * 21)) + member(b"x"),
    "pax size beyond the file": pax((b"size", b"99999999999999999999")) + member(b"x"),
    "pax size negative": pax((b"size", b"-5")) + member(b"x"),
    "pax size a fraction": pax((b"size", b"5.5")) + member(b"x"),
    "pax size empty": pax((b"size", b"")) + member(b"x"),
    "pax size in other digits": pax((b"size", "٥".encode())) + member(b"x"),
    "pax size superscript": pax((b"size", "²".encode())) + member(b"x"),
    "pax record of length 0": member(b"0 a=b\n", kind=b"x") + member(b"x"),
    "pax record too long": member(b"99 a=b\n", kind=b"x") + member(b"x"),
    "pax record of 10,000 digits": member(b"9" * 10_000, kind=b"x") + member(b"x"),
    "pax record without a value": member(b"5 ab\n", kind=b"x") + member(b"x"),
    "pax of two megabytes": member(bytes(2 << 20), kind=b"x") + member(b"x"),
    "pax that claims a terabyte": header(kind=b"x", size=TERABYTE),
    "pax path of a megabyte": pax((b"path", b"a" * (1 << 19))) + member(b"x"),
    "sparse by pax": pax((b"GNU.sparse.major", b"1")) + member(b"x"),
    "sparse by type": member(b"x", kind=b"S"),
    "size negative in base 256": header(size=b"\xff" * 12),
    "size least in base 256": header(size=b"\xff" + b"\x80" + bytes(10)),
    "size huge in base 256": header(size=b"\x80" + b"\xff" * 11),
    "size above 2^63": header(size=BASE_256 + b"\xff" * 8),
    "size all sevens": header(size=b"7" * 12),
    "size not octal": header(size=b"00000000009\0"),
    "size signed": header(size=b"-0000000005\0"),
    "size with underscores": header(size=b"0000_000_05\0"),
    "size with a prefix": header(size=b"0o000000005\0"),
    "hard link": header(kind=b"1"),
    "symbolic link": header(kind=b"2"),
    "character device": header(kind=b"3"),
    "block device": header(kind=b"4"),
    "pipe": header(kind=b"6"),
    "continued volume": header(kind=b"M"),
    "unknown type": header(kind=b"\xff"),
    "long name that claims a terabyte": header(kind=b"L", size=TERABYTE),
    "long name of two megabytes": member(b"n" * (2 << 20), kind=b"L") + member(b"x"),
    "long name of 5,000 characters": member(b"n" * 5000, kind=b"L") + member(b"x"),
    "folder with a huge size": header(kind=b"5", size=b"\x80" + b"\x7f" * 11),
    "no end mark": b"",
    "noise": b"\x1f" * 700,
}  # fmt: skip


def both(path):
    """What is wrong with a tar by both readers: the indexed one and the one of streams."""
    with pytest.raises(ShardError) as caught:
        Shard(path)
    *samples, last = read_shard("s", str(path))
    assert all(isinstance(sample, Streamed) for sample in samples)
    assert isinstance(last, Rejection)
    return caught.value, last, samples


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_a_fault_of_its_shard(tmp_path, name):
    path = tmp_path / "made.tar"
    path.write_bytes(GOOD + HOSTILE[name] + (END if HOSTILE[name] else b""))
    tracemalloc.start()
    error, rejection, samples = both(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
    assert str(path) in str(error)
    assert str(path) in rejection.message
    assert error.offset >= len(GOOD)
    assert len(str(error)) < 1000
    assert len(rejection.message) < 1000
    assert rejection.reason == error.reason or "beyond" in name or "huge" in name
    assert [sample.keys for sample in samples] in ([], [["z"]])  # it may belong to what follows


@pytest.mark.parametrize("length", range(0, 4096 + 1024, 64))
def test_a_tar_that_is_cut_anywhere_is_noticed_by_both(tmp_path, length):
    content = shard_bytes(
        [("a", {"txt": b"1" * 600}), ("b", {"txt": b"2" * 90})], tarfile.PAX_FORMAT
    )
    path = tmp_path / "cut.tar"
    content = content[: 512 + 1024 + 512 + 512 + 512]  # one block of the end mark is enough
    if length >= len(content):
        path.write_bytes(content)
        assert Shard(path).keys == ["a", "b"]
        assert [sample.keys[0] for sample in read_shard("s", str(path))] == ["a", "b"]
        return
    path.write_bytes(content[:length])
    error, rejection, _ = both(path)
    assert error.reason == rejection.reason == "shard_cut"


def test_unusual_and_good(tmp_path):
    """What is allowed, by both readers: base 256, empty and doubled extended headers, old tars."""
    five = b"\x80" + (5).to_bytes(11, "big")
    content = (
        header(size=five) + b"12345".ljust(512, b"\0")
        + pax((b"comment", b"x" * 1000), (b"path", b"long.txt")) + member(b"1")
        + pax((b"size", b"4")) + member(b"long name.txt\0", kind=b"L") + header(size=0)
        + b"1234".ljust(512, b"\0")
        + pax((b"size", b"77"), kind=b"g") + member(b"2", name=b"g.txt")
        + member(b"3", name=b"old.txt", kind=b"\0", magic=b"")
        + header(name=b"folder/", kind=b"5") + member(b"4", name=b"b.txt", prefix=b"p/q")
        + END
    )  # fmt: skip
    path = tmp_path / "good.tar"
    path.write_bytes(content)
    shard = Shard(path)
    found = {key: shard.read(place, "txt") for place, key in enumerate(shard.keys)}
    assert found == {
        "a": b"12345", "long": b"1", "long name": b"1234", "g": b"2", "old": b"3", "p/q/b": b"4",
    }  # fmt: skip
    assert {s.keys[0]: s.members["txt"] for s in read_shard("s", str(path))} == found


def test_many_members_of_one_sample_take_no_square_of_time(tmp_path):
    count = 30_000
    path = tmp_path / "wide.tar"
    path.write_bytes(b"".join(header(name=b"a.%d" % number) for number in range(count)) + END)
    compared = 0

    class Counting(str):
        def __eq__(self, other):
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    import multimodal.data.shards.tar as module

    split = module.split_name
    module.split_name = lambda name: (split(name)[0], Counting(split(name)[1]))
    try:
        assert len(Shard(path).fields(0)) == count
    finally:
        module.split_name = split
    assert compared < 10 * count


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_stream_is_read_and_a_truncated_one_rejected(tmp_path, compress):
    noise = np.random.default_rng(0).bytes(9000)
    content = shard_bytes([("a", {"txt": noise}), ("b", {"txt": noise[::-1]})])
    path = tmp_path / "small.tar.z"
    path.write_bytes(compress(content))
    assert [sample.keys[0] for sample in read_shard("s", str(path))] == ["a", "b"]
    path.write_bytes(compress(content)[:-4000])
    *_, last = read_shard("s", str(path))
    assert isinstance(last, Rejection)
    assert str(path) in last.message


def test_a_member_that_no_sample_may_have_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("multimodal.data.streaming.shard.MAX_SAMPLE", 1000)
    members = [("a.txt", b"1" * 900), ("a.json", b"2" * 900), ("b.txt", b"3")]
    path = tmp_path / "large.tar"
    path.write_bytes(tar_bytes(members))
    first, second = read_shard("s", str(path))
    assert first.size(0, "json") == 900
    assert first.read(0, "txt") == b"1" * 900
    with pytest.raises(DecodeError, match="json has 900 bytes: a sample may have 1,000"):
        first.read(0, "json")
    assert second.read(0, "txt") == b"3"
    assert MAX_SAMPLE == 1 << 30


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.builds(
            lambda name, size, kind, body: header(name, size, kind) + body,
            st.binary(max_size=100),
            st.binary(max_size=12) | st.integers(0, 2000),
            st.sampled_from([b"0", b"\0", b"5", b"x", b"g", b"L", b"K", b"S", b"1", b"\x80"]),
            st.sampled_from([b"", bytes(512), b"9" * 512, b"30 path=x\n".ljust(512, b"\0")]),
        ),
        max_size=4,
    ),
    st.sampled_from([b"", END, bytes(100)]),
)
def test_any_row_of_headers_is_read_alike_or_rejected(tmp_path, blocks, end):
    path = tmp_path / "any.tar"
    path.write_bytes(b"".join(blocks) + end)
    streamed = list(read_shard("s", str(path)))
    try:
        shard = Shard(path)
    except ShardError as error:
        refused = str(error)
    else:
        refused = ""
        keys = [item.keys[0] for item in streamed if isinstance(item, Streamed)]
        assert keys == shard.keys
    rejected = [item for item in streamed if isinstance(item, Rejection)]
    assert bool(rejected) == bool(refused or not shard.keys)


def test_damage_to_any_byte_is_read_alike_or_rejected(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.txt", "ключ.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            info.pax_headers = {"size": "3"}
            tar.addfile(info, io.BytesIO(b"123"))
    content = buffer.getvalue()[:5632]
    path = tmp_path / "damaged.tar"
    random = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] = random.integers(256)
        path.write_bytes(damaged)
        streamed = list(read_shard("s", str(path)))
        try:
            keys = Shard(path).keys
        except ShardError:
            assert isinstance(streamed[-1], Rejection)
        else:
            assert [sample.keys[0] for sample in streamed] == keys
