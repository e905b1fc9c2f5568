"""A disk that is full: every writer says so in one message, and leaves no file in part."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import re
import resource
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import number_samples, shard_bytes, write_source
from omegaconf import OmegaConf

from multimodal.cli import make_shards
from multimodal.cli.jobs.records import mark_finished
from multimodal.cli.jobs.sweep_table import write_table
from multimodal.core import files
from multimodal.core.errors import UserError
from multimodal.core.files import NewFile, WriteError, write_bytes, write_text, written_beside
from multimodal.core.process import exits
from multimodal.core.process.provenance import write_run_json
from multimodal.core.process.secrets import redact_files
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.packing import write as packing
from multimodal.data.packing.index import index
from multimodal.data.packing.write import ShardEntry, ShardWriter, write_manifest
from multimodal.data.shards.remote import RemoteShard, ShardCache
from multimodal.data.source import Source
from multimodal.data.tokenizers.corpus import CorpusTokenizer
from multimodal.evaluation.report import write as reporting
from multimodal.evaluation.results import Results
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.search.table import PartWriter, Row
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import Tower
from multimodal.models.tuning import LoRA

SCRIPTS = Path(__file__).parents[3] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "benchmark")]
import draw_negatives  # noqa: E402
import fusion_results  # noqa: E402


@contextlib.contextmanager
def full(folder):
    """Nothing more can be written: the disk has no page left, or no file may grow."""
    if not os.path.ismount(folder):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    yield
    ballast.unlink()


def content(folder):
    found = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    return {str(k): p.read_bytes() for k, p in found.items() if k.name != "ballast"}


# Writers: called with a folder and a number; each call replaces what the one before has left.


def checkpoint(folder, number):
    state = {"state_dict": {"w": torch.full((100_000,), float(number))}}
    checkpoint_file.write_atomically(state, folder / "step=00000001.ckpt")


def shard(folder, number):
    writer = ShardWriter(folder / "a.tar")
    try:
        for place in range(100):
            writer.add(f"{place}", {"bin": bytes([number]) * 4000})
        writer.close()
    finally:
        writer.discard()


ENTRIES = [ShardEntry(f"{n}.tar", "train", 4, 1 << 14, "0" * 64, ["x.npy"], {}) for n in range(9)]


def manifest(folder, number):
    write_manifest(folder / "m.json", f"m{number}", "", ENTRIES, {})


def manifest_in_files(folder, number):
    before, packing.MOST_LISTED = packing.MOST_LISTED, 0
    try:
        write_manifest(folder / "m.json", "m", "", ENTRIES[number:], {})
    finally:
        packing.MOST_LISTED = before


def manifest_of_tars(folder, number):
    with contextlib.suppress(FileExistsError):
        (folder / "a.tar").symlink_to(folder.parent / "outside.tar")
    (folder.parent / "outside.tar").write_bytes(shard_bytes(number_samples(3)))
    index(folder, "m", split=lambda name: f"s{number}")


def part_of_a_table(folder, number):
    writer = PartWriter(folder / "t.parquet", {}, "same")
    rows = [Row(str(n), "image", "n", "text/plain", os.urandom(900)) for n in range(100)]
    writer.write(number, np.ones((100, 8), np.float32), rows)


def parts(folder, suffix):
    """A table whose parts are written before the disk is full."""
    writer = PartWriter(folder / f"t{suffix}", {}, "same")
    if not writer.done(0):
        rows = [Row(str(n), "image", "n") for n in range(2000)]
        writer.write(0, np.random.default_rng(0).random((2000, 8)).astype(np.float32), rows)
    return writer


def table(folder, number):
    writer = parts(folder, ".parquet")
    if number > 1:
        writer.finish(1)


def table_of_numbers(folder, number):
    writer = parts(folder, ".npy")
    if number > 1:
        writer.finish(1)


def frozen_embeddings(folder, number):
    FrozenEmbeddings.create(folder / str(number), 1000, 1, 64)


def fetched_shard(folder, number):
    import fsspec

    data = shard_bytes(number_samples(30, number))
    with fsspec.open(f"memory://far/{number}.tar", "wb") as file:
        file.write(data)
    remote = RemoteShard(f"memory://far/{number}.tar", len(data), hashlib.sha256(data).digest())
    ShardCache(folder / "cache", 1 << 20).open(remote, lambda path: path.stat().st_size)


def tokenizer(folder, number):
    made = [("a", {"json": b'{"text": "one two three, one two three"}'})] * 2
    path = write_source(folder.parent / "texts", {"train": [made[:1]]}, "texts")
    source = Source(str(path), {"text": {"member": "json", "key": "text"}})
    CorpusTokenizer(str(folder / f"{number}.json"), {"texts": source}, 300, 1)


def report(folder, number):
    results = Results()
    cfg = OmegaConf.create({"name": f"run {number}"})
    reporting.write(results, {}, folder, cfg, [])


def run_json(folder, number):
    write_run_json(folder, {"started": "x" * 5000})


def sweep_csv(folder, number):
    write_table(folder / "sweep.csv", [{"job": number, "text": "x" * 9000}])


def finished_job(folder, number):
    mark_finished(folder, [f"seed={number}"], 1.0)


def without_secrets(folder, number):
    path = folder / "config.yaml"
    if not path.exists():
        path.write_text("key: secret\nother: hidden\n")
        return
    redact_files([path], ["secret", "hidden"])


def adapters(folder, number):
    pytest.importorskip("peft")
    from multimodal.inference.adapters import save_adapters

    tuning = LoRA(rank=2, head=True)
    torch.manual_seed(number)
    encoder = TextTransformer(30, 7, Transformer(16, 3, 2, causal=True))
    tower = Tower(encoder, partial(LinearHead, embed_dim=6), tuning=tuning)
    save_adapters(tower, tuning, folder / "text")


def figure(folder, number):
    similarities = torch.rand(8, 8, generator=torch.Generator().manual_seed(number))
    draw_negatives.draw(similarities, [str(n) for n in range(8)], folder / "negatives.png")


def drawing(folder, number):
    fusion_results.picture([], folder / f"{number}.svg")


def text(folder, number):
    write_text(folder / "a.txt", f"{number}" * 10_000)


def by_a_library(folder, number):
    with written_beside(folder / "a.bin") as path:
        path.write_bytes(bytes([number]) * 10_000)


WRITERS = [
    checkpoint, shard, manifest, manifest_in_files, manifest_of_tars, part_of_a_table, table,
    table_of_numbers, frozen_embeddings, fetched_shard, tokenizer, report, run_json, sweep_csv,
    finished_job, without_secrets, adapters, figure, drawing, text, by_a_library,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array__", "ignore:No artists")  # of figures of nothing
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_one_message_and_leaves_what_was_there(small_disk, write):
    write(small_disk, 1)
    before = content(small_disk)
    with full(small_disk):
        with pytest.raises(UserError) as caught:
            write(small_disk, 2)
        after = content(small_disk)
    message = str(caught.value)
    assert message.startswith(f"cannot save {small_disk}/")
    assert "No space left on device" in message or "File too large" in message
    assert re.search(r"\d\.\d MB are free in ", message)
    assert re.search(r"untouched|No part of it was left|are whole", message)
    assert re.search(r"Free some space|ulimit", message)
    locks = {name for name in after if name.endswith(".lock")}
    assert {name: after[name] for name in after if name not in locks} == {
        name: before[name] for name in before if name not in locks
    }
    assert caught.value.exit_status == 1
    assert exits.message_of(caught.value) == message
    write(small_disk, 2)  # with space again, the same call does it
    assert content(small_disk) != before


def test_packing_onto_a_full_disk_ends_with_1_and_goes_on_when_there_is_space(
    small_disk, tmp_path, capsys
):
    source = tmp_path / "files"
    source.mkdir()
    for number in range(12):
        (source / f"{number}.txt").write_bytes(os.urandom(150_000).hex().encode())
    words = [str(source), str(small_disk / "packed"), "--max-samples", "2"]
    assert make_shards.main(words) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert f"cannot save {small_disk}/packed/" in told
    assert "Finished shards are whole: the same command resumes with them" in told
    done = sorted(p.name for p in (small_disk / "packed").iterdir() if not p.name.startswith("."))
    assert done
    assert all(name.endswith(".tar") for name in done)
    assert not list((small_disk / "packed").glob(".*.tmp"))
    for name in done:
        (tmp_path / name).write_bytes((small_disk / "packed" / name).read_bytes())
    (tmp_path / "there").mkdir()
    assert make_shards.main([str(source), str(tmp_path / "there" / "packed"), *words[2:]]) == 0
    for name in done:  # what was left is what a whole run makes
        assert (tmp_path / "there/packed" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("kind", "words", "advice"),
    [
        ("ENOSPC", "No space left on device", "Free some space"),
        ("EDQUOT", "Disk quota exceeded", "Your quota is used up"),
        ("EIO", "Input/output error", "The device fails"),
        ("EROFS", "Read-only file system", "mounted read-only"),
        ("EACCES", "Permission denied", "Ask for write permission"),
    ],
)
@pytest.mark.parametrize("when", ["open", "write", "flush", "fsync", "rename", "folder"])
def test_whatever_the_system_refuses_has_its_own_words(
    tmp_path, monkeypatch, kind, words, advice, when
):
    import errno

    path = tmp_path / "folder" / "a.bin"
    write_bytes(path, b"before")

    def refuse(*arguments, **options):
        raise OSError(getattr(errno, kind), words)

    class Refusing:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            refuse() if when == "write" else self.file.write(data)

        def flush(self):
            refuse() if when == "flush" else self.file.flush()

        def close(self):
            self.file.close()
            if when in ("write", "flush"):  # of a full disk, closing fails as well
                refuse()

        def fileno(self):
            return self.file.fileno()

    real = Path.open

    def opened(self, mode="r", *arguments, **options):
        if mode != "xb":
            return real(self, mode, *arguments, **options)
        return refuse() if when == "open" else Refusing(real(self, mode))

    monkeypatch.setattr(Path, "open", opened)
    if when == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    elif when == "rename":
        monkeypatch.setattr(os, "replace", refuse)
    elif when == "folder":
        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(WriteError, match=f"cannot save {path}: {words}") as caught:
        write_bytes(path, b"after")
    monkeypatch.undo()
    assert advice in str(caught.value)
    assert "What was there before is untouched" in str(caught.value)
    assert path.read_bytes() == b"before"
    assert os.listdir(path.parent) == ["a.bin"]


def test_an_error_of_the_writer_leaves_the_old_file_and_is_its_own(tmp_path):
    write_bytes(tmp_path / "a", b"before")

    def fall(write):
        write(b"part")
        raise KeyError("x")

    with pytest.raises(KeyError), NewFile(tmp_path / "a") as file:
        fall(file.write)
    with pytest.raises(KeyError), written_beside(tmp_path / "a") as path:
        fall(path.write_bytes)
    assert content(tmp_path) == {"a": b"before"}


def test_a_new_file_keeps_the_rights_of_the_old_one_and_follows_the_mask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"1")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
        (tmp_path / "a").chmod(0o600)
        write_bytes(tmp_path / "a", b"2")
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


def test_a_write_error_travels_between_processes_and_through_the_loader():
    from torch._utils import ExceptionWrapper

    error = pickle.loads(pickle.dumps(WriteError("cannot save a: full.\nSecond line")))
    assert str(error) == "cannot save a: full.\nSecond line"
    try:
        raise error
    except WriteError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(WriteError) as caught:
        wrapped.reraise()
    assert "Traceback" in str(caught.value)
    assert exits.message_of(caught.value) == "cannot save a: full.\nSecond line"


def test_what_libraries_say_in_words_is_understood(tmp_path):
    for words in ("I/O error: No space left (os error 28)", "[Errno 28] full", "errno 28"):
        told = pytest.raises(WriteError, match="No space left on device")
        with told, files.write_errors(tmp_path / "a"):
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="errno 2"), files.write_errors(tmp_path / "a"):
        raise RuntimeError("errno 2")


def test_a_full_disk_that_nobody_expected_has_no_traceback(small_disk, capsys):

    def library():  # as Hydra writes a configuration
        with open(str(small_disk / "config.yaml"), "w", encoding="utf-8") as file:
            file.write("x" * 90_000)

    ends = pytest.raises(SystemExit, match="1")
    with full(small_disk), ends, exits.errors_end_the_program():
        library()
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.startswith(f"cannot save {small_disk}/config.yaml: ")
    assert "It may be there in part" in told


def test_a_log_on_a_full_disk_is_one_warning_and_the_work_goes_on(small_disk, capsys):
    logger = logging.Logger("of this test")
    logger.addHandler(handler := logging.FileHandler(small_disk / "train.log"))
    logger.warning("before")
    with exits.errors_end_the_program():
        with full(small_disk):
            for _ in range(3):
                logger.warning("x" * 9000)
        with contextlib.suppress(OSError):
            handler.close()
    told = capsys.readouterr().err
    assert told.startswith(f"WARNING: cannot save {small_disk}/train.log: ")
    assert told.count("\n") == 1
    assert (small_disk / "train.log").read_text().startswith("before\n")
    with exits.errors_end_the_program():  # a mistake in a call is told as ever
        logger.addHandler(logging.FileHandler(small_disk / "other.log"))
        logger.warning("%d", "no number")
    assert "Logging error" in capsys.readouterr().err


def test_no_writer_writes_in_place():
    """Every file that the package leaves comes by `core.files`; the rest is named here."""
    elsewhere = {
        # reserves the place of what is fetched, and renames it
        "multimodal/data/shards/remote.py": 2,
        "multimodal/inference/checkpoint/sharded.py": 2,  # renames folders
        "multimodal/inference/export/writing.py": 5,  # into a folder that appears when it is whole
        "multimodal/inference/publish/layouts.py": 8,  # the same
        "multimodal/inference/publish/pictures.py": 1,  # the same
        "multimodal/inference/publish/sentences.py": 2,  # the same
        "multimodal/inference/publish/publishing.py": 2,
        "multimodal/inference/pretrained/fetching.py": 3,  # a folder, whole or not at all
        "multimodal/inference/pretrained/wheels.py": 1,  # into that folder
    }
    pattern = re.compile(
        r"\.write_text\(|\.write_bytes\(|os\.replace\(|np\.save\((?!cast|buffer)|savefig\((?!picture|drawn)"
        r"|torch\.save\((?!dict)|open\([^)]*[\"'][wx]b?\+?[\"']|\.open\([\"'][wx]"
    )
    root = Path(files.__file__).parents[2]
    for path in root.glob("multimodal/**/*.py"):
        name = str(path.relative_to(root))
        lines = [line for line in path.read_text().splitlines() if pattern.search(line)]
        if name != "multimodal/core/files.py":
            assert len(lines) <= elsewhere.get(name, 0), (name, lines)
