"""Shards behind URLs, and manifests of a million of them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import multiprocessing
import pickle
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from data_helpers import number_samples, shard_bytes, write_source
from loader_helpers import scheduled_loader

from multimodal.data.errors import ShardError
from multimodal.data.loading.loader import steps_ahead
from multimodal.data.loading.schedule import BatchSchedule, SourceSize
from multimodal.data.packing import write as write_module
from multimodal.data.packing.write import ShardEntry, write_manifest
from multimodal.data.shards import remote as remote_module
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.shards.remote import RemoteShard, ShardCache, is_remote
from multimodal.data.shards.table import ShardTable
from multimodal.data.source import Source, SourceContext
from multimodal.data.transforms.array import ArrayTransform

X = {"x": {"member": "x.npy"}}
TRANSFORMS = {"x": ArrayTransform([1])}


class Handler(http.server.SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A folder behind HTTP, and the paths that were asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    Handler.asked = []
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}", Handler.asked
        httpd.shutdown()
        thread.join()


def shards_of(folder: Path, url: str, count: int = 4) -> list[RemoteShard]:
    made = []
    for number in range(count):
        content = shard_bytes(number_samples(3, 3 * number))
        (folder / f"{number}.tar").write_bytes(content)
        digest = hashlib.sha256(content).digest()
        made.append(RemoteShard(f"{url}/{number}.tar", len(content), digest))
    return made


def size_of(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_remote_source_gives_what_the_local_one_does(server, tmp_path, num_workers):
    folder, url, asked = server
    parts = [number_samples(6, 6 * number) for number in range(5)]
    path = write_source(folder, {"train": parts}, "far")
    found = []
    for manifest in (str(path), f"{url}/far.json"):
        source = Source(manifest, X)
        if source.remote is not None:
            source = source.within(SourceContext(remote=ShardCache(tmp_path / "cache", 1 << 20)))
        loader = scheduled_loader(
            {"far": source}, TRANSFORMS, 5, 0, num_workers=num_workers, block_shards=2
        )
        batches = [b for _ in range(2) for b in loader]
        found.append([(b.keys, b.sample_ids.tolist(), b.inputs["x"].tolist()) for b in batches])
    assert found[0] == found[1]
    assert sorted(name for name in asked if name.endswith(".tar")) == [
        f"/far-train-{number:03d}.tar" for number in range(5)
    ]  # each once


def test_memory_and_file_urls_are_read_too(tmp_path):
    import fsspec

    path = write_source(tmp_path / "local", {"train": [number_samples(4)]}, "m")
    with fsspec.open("memory://bucket/m-train-000.tar", "wb") as file:
        file.write((tmp_path / "local" / "m-train-000.tar").read_bytes())
    # A local manifest of shards that are elsewhere.
    content = json.loads(path.read_text()) | {"base": "memory://bucket/"}
    (tmp_path / "m.json").write_text(json.dumps(content))
    source = Source(str(tmp_path / "m.json"), X)
    source = source.within(SourceContext(remote=ShardCache(tmp_path / "cache", 1 << 20)))
    assert source.decode(3, None).key == "s00003"


def test_the_cache_keeps_to_its_size_and_forgets_the_longest_unused(server, tmp_path):
    folder, url, asked = server
    shards = shards_of(folder, url)
    size = shards[0].size
    cache = ShardCache(tmp_path / "cache", 3 * size)
    for number in (0, 1, 2, 0, 3):
        assert cache.open(shards[number], size_of) == size
        assert sum(p.stat().st_size for p in cache.folder.glob("*.tar")) <= 3 * size
    there = {path.stem for path in cache.folder.glob("*.tar")}
    assert there == {shards[number].sha256.hex() for number in (0, 2, 3)}
    assert len(asked) == 4
    with pytest.raises(ValueError, match=r"holds at most.*raise data\.remote_cache_gb"):
        ShardCache(tmp_path / "small", size - 1).open(shards[0], size_of)


def test_a_shard_in_use_survives_its_removal(server, tmp_path):
    folder, url, _ = server
    parts = [number_samples(6, 6 * number) for number in range(5)]
    write_source(folder, {"train": parts}, "far")
    source = Source(f"{url}/far.json", X)
    source = source.within(
        SourceContext(remote=ShardCache(tmp_path / "cache", int(source.table.bytes[0])))
    )  # one at a time
    for _ in range(2):
        for index in (0, 29, 7, 1, 28):
            assert source.decode(index, None).key == f"s{index:05d}"
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_what_is_wrong_with_a_remote_shard_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_module, "_PAUSE", 0.0)
    folder, url, asked = server
    shards = shards_of(folder, url, 3)
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    (folder / "0.tar").unlink()
    content = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(content[:-512])
    (folder / "2.tar").write_bytes(content[:700] + b"x" + content[701:])
    for number, reason in enumerate(("shard_missing", "shard_size", "shard_hash")):
        with pytest.raises(ShardError, match=f"{number}.tar") as caught:
            cache.open(shards[number], size_of)
        assert caught.value.reason == reason
    assert asked.count("/2.tar") == 3  # it might have been the network
    assert not list(cache.folder.glob("*.tar")) + list(cache.folder.glob("*.part"))
    (folder / "2.tar").write_bytes(content)
    nowhere = RemoteShard("http://127.0.0.1:9/x.tar", 10, bytes(32))
    with pytest.raises(ShardError) as caught:
        cache.open(nowhere, size_of)
    assert caught.value.reason in ("shard_unreachable", "shard_missing")
    with pytest.raises(ShardError, match="nosuch"):
        cache.open(RemoteShard("nosuch://a/x.tar", 10, bytes(32)), size_of)


def test_an_unfinished_download_of_a_dead_process_makes_room(server, tmp_path):
    folder, url, _ = server
    shards = shards_of(folder, url, 2)
    cache = ShardCache(tmp_path / "cache", shards[0].size)
    cache.folder.mkdir()
    stale = cache.folder / f"{shards[1].sha256.hex()}.part"
    stale.write_bytes(bytes(shards[1].size))
    assert cache.open(shards[0], size_of) == shards[0].size
    assert not stale.exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_download_that_ends_while_room_is_made(server, tmp_path, monkeypatch, fails):
    folder, url, _ = server
    old, first, second = shards_of(folder, url, 3)
    cache = ShardCache(tmp_path / "cache", 2 * old.size)
    cache.open(old, size_of)
    downloaded, listed = threading.Event(), threading.Event()
    download, iterdir = remote_module._download, Path.iterdir

    def wait_for_the_listing(shard, part):
        download(shard, part)
        if shard is first:
            downloaded.set()
            assert listed.wait(60)
            if fails:
                raise ShardError(shard.url, 0, "was cut off", "shard_missing")

    def list_slowly(path):
        found = list(iterdir(path))
        if downloaded.is_set():
            listed.set()
            other.join(0.5)  # its end, if nothing keeps it from ending
        return iter(found)

    monkeypatch.setattr(remote_module, "_download", wait_for_the_listing)
    other = threading.Thread(target=cache._try_fetch, args=(first,))
    other.start()
    assert downloaded.wait(60)
    monkeypatch.setattr(Path, "iterdir", list_slowly)
    assert cache.open(second, size_of) == second.size
    other.join(60)
    monkeypatch.undo()
    there = {path.stem for path in cache.folder.glob("*.tar")}
    assert there == {shard.sha256.hex() for shard in (old if fails else first, second)}


def open_all(folder: Path, shards: list[RemoteShard], limit: int) -> None:
    cache = ShardCache(folder, limit)
    for _ in range(5):
        for shard in shards:
            content = cache.open(shard, Path.read_bytes)
            assert hashlib.sha256(content).digest() == shard.sha256


@pytest.mark.parametrize("room", [2, 8])
def test_processes_share_a_cache(server, tmp_path, room):
    folder, url, asked = server
    shards = shards_of(folder, url)
    context = multiprocessing.get_context("fork")
    limit = room * shards[0].size
    processes = [
        context.Process(target=open_all, args=(tmp_path / "cache", shards[::order], limit))
        for order in (1, -1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    if room == 8:
        assert sorted(asked) == [f"/{number}.tar" for number in range(4)]
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("*.tar")) <= limit


def test_shards_are_fetched_ahead(server, tmp_path):
    folder, url, asked = server
    shards = shards_of(folder, url)
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    cache.fetch_ahead(shards[:3])
    cache.fetch_ahead(shards[:3])
    pool = cache._pool[1]
    pool.shutdown(wait=True)
    assert sorted(asked) == ["/0.tar", "/1.tar", "/2.tar"]
    assert pickle.loads(pickle.dumps(cache)).folder == cache.folder


def test_half_a_block_is_fetched_ahead():
    size = SourceSize(np.full(100, 50), batch_size=10)
    assert steps_ahead(BatchSchedule(0, {"a": size}, block_shards=4)) == 10
    other = SourceSize(np.full(100, 150), batch_size=10)
    assert steps_ahead(BatchSchedule(0, {"a": size, "b": other}, block_shards=4)) == 40


@pytest.mark.parametrize(
    ("path", "expected"),
    [("s3://a/b", True), ("http://a", True), ("samples://x", False), ("/a/b", False), ("a", False)],
)
def test_what_is_remote(path, expected):
    assert is_remote(path) is expected


# Large manifests


def test_a_large_manifest_keeps_its_table_in_files(tmp_path, monkeypatch):
    monkeypatch.setattr(write_module, "MOST_LISTED", 1)
    entries = []
    for number, split in enumerate(("train", "train", "val")):
        content = shard_bytes(number_samples(4, 4 * number))
        (tmp_path / f"{number}.tar").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entries.append(
            ShardEntry(
                f"{number}.tar", split, 4, len(content), digest, ["x.npy", "json"],
                {"json": ["number", "label"]},
            )
        )  # fmt: skip
    write_manifest(tmp_path / "m.json", "m", "", entries, {})
    assert len((tmp_path / "m.json").read_text()) < 5000
    manifest = load_manifest(tmp_path / "m.json")
    assert [len(manifest.split(s)) for s in ("train", "val")] == [2, 1]
    source = Source(str(tmp_path / "m.json"), X, positive_key="label")
    assert [source.decode(i, None).key for i in (0, 7)] == ["s00000", "s00007"]
    column = tmp_path / "m.table" / "train" / "samples.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"samples\.npy is missing, or differs from the manifest"):
        load_manifest(tmp_path / "m.json")


def test_a_table_in_files_is_kept_beside_a_local_copy_of_its_manifest(
    server, tmp_path, monkeypatch
):
    folder, url, _ = server
    monkeypatch.setattr(write_module, "MOST_LISTED", 1)
    entries = []
    for number, shard in enumerate(shards_of(folder, url, 2)):
        facts = (3, shard.size, shard.sha256.hex(), ["x.npy", "json"], {"json": ["number"]})
        entries.append(ShardEntry(f"{number}.tar", "train", *facts))
    write_manifest(folder / "m.json", "m", "", entries, {})
    with pytest.raises(ValueError, match=r"m\.json keeps its .* copy both to a local folder"):
        Source(f"{url}/m.json", X)
    # As the message says.
    shutil.copytree(folder / "m.table", tmp_path / "m.table")
    content = json.loads((folder / "m.json").read_text()) | {"base": url}
    (tmp_path / "m.json").write_text(json.dumps(content))
    source = Source(str(tmp_path / "m.json"), X)
    source = source.within(SourceContext(remote=ShardCache(tmp_path / "cache", 1 << 20)))
    assert source.decode(4, None).key == "s00004"


MILLION = 1_000_000


@pytest.fixture(scope="module")
def vast(tmp_path_factory):
    """A million shards of 10,000 samples; the shard of every 100,000th is really there."""
    folder = tmp_path_factory.mktemp("vast")
    content = shard_bytes(number_samples(10_000))
    numbers = range(50_000, MILLION, 100_000)
    digests = np.zeros((MILLION, 32), np.uint8)
    sizes = np.full(MILLION, 1 << 30)
    names = np.array([b"%07d.tar" % n for n in range(MILLION)])
    for number in numbers:
        (folder / f"{number:07d}.tar").hardlink_to(folder / "one.tar") if number > 50_000 else (
            (folder / "one.tar").write_bytes(content),
            (folder / f"{number:07d}.tar").hardlink_to(folder / "one.tar"),
        )
        digests[number] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        sizes[number] = len(content)
    samples = np.full(MILLION, 10_000)
    table = ShardTable(names, samples, sizes, digests, np.arange(MILLION + 1) * 10_000)
    manifest = {
        "format": "multimodal-manifest/1",
        "name": "vast",
        "fields": {"x.npy": {"kind": "array"}, "json": {"kind": "json"}},
        "shards": {"train": table.save(folder / "vast.table" / "train")},
    }
    (folder / "vast.json").write_text(json.dumps(manifest))
    return folder / "vast.json", list(numbers)


@pytest.mark.slow
def test_a_thousand_samples_of_ten_thousand_million(vast):
    path, numbers = vast
    source = Source(str(path), X)
    assert len(source) == 10**10
    source = source.within(SourceContext(verify=False))
    random = np.random.default_rng(0)
    shards, places = random.choice(numbers, 1000), random.integers(10_000, size=1000)
    for shard, place in zip(shards.tolist(), places.tolist(), strict=True):
        decoded = source.decode(shard * 10_000 + place, None)
        assert decoded.values["x"].tolist() == [place]
        assert source.place(shard * 10_000 + place) == (f"{shard:07d}.tar", f"s{place:05d}")


@pytest.mark.heavy
def test_a_vast_table_does_not_travel_to_the_workers(vast):
    path, _ = vast
    loader = scheduled_loader({"vast": Source(str(path), X)}, TRANSFORMS, 4096, 0)
    dataset = loader._batches.dataset
    spec = dataset.schedule(1_234_567)
    sent = pickle.dumps(dataset)
    assert len(sent) < 100_000
    received = pickle.loads(sent)
    assert received.schedule(1_234_567).indices.tolist() == spec.indices.tolist()
    assert len(set((spec.indices // 10_000).tolist())) <= 16
