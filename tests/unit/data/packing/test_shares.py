"""Packing at scale: processes, shares, a Dask cluster, URLs; the same shards to the byte."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from data_helpers import npy_bytes
from packing_helpers import run

from multimodal.data.packing.output import output_at
from multimodal.data.packing.pack import Share

WORDS = ("--name", "x", "--max-samples", 4, "--split", "train=0.7", "val=0.3")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Thirty samples, some of them refused where they are listed, some where they are packed."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(30):
        content = npy_bytes(np.array([number, 7]))
        (folder / f"n {number}.npy").write_bytes(content[:-3] if number == 5 else content)
        (folder / f"n {number}.txt").write_text(f"number {number}")
    (folder / "README").write_text("x")
    return folder


def content(folder):
    """Every file that packing is to write, by name."""
    kept = ("x.json", "report.json", "refused.jsonl")
    files = [path for path in folder.iterdir() if path.suffix == ".tar" or path.name in kept]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def expected(numbers, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected") / "out"
    assert run(numbers, out, *WORDS) == 0
    found = content(out)
    assert len(found) == 11
    return found


@pytest.mark.slow
def test_processes_pack_the_same(numbers, expected, tmp_path):
    assert run(numbers, tmp_path / "out", *WORDS, "--workers", 2) == 0
    assert content(tmp_path / "out") == expected


def test_shares_that_are_merged_are_the_same(numbers, expected, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("merge", out) == 1
    assert "no share was packed" in capsys.readouterr().err
    for share in ("3/3", "1/3"):
        assert run(numbers, out, *WORDS, "--share", share) == 0
    assert not (out / "x.json").exists()
    assert run("merge", out) == 1
    assert "3 shards are not packed yet; run the shares 2/3" in capsys.readouterr().err
    assert run(numbers, out, *WORDS, "--share", "2/3") == 0
    assert run("merge", out) == 0
    assert content(out) == expected
    assert run("verify", out) == 0


def test_a_share_of_other_data_is_refused(numbers, tmp_path, capsys):
    assert run(numbers, tmp_path / "out", *WORDS, "--share", "1/2") == 0
    assert run(numbers, tmp_path / "out", *WORDS, "--seed", 7, "--share", "2/2") == 1
    assert "another share was packed of other data or with other options" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "a/b", "1/0", "-1/3", ""])
def test_what_is_no_share(text):
    with pytest.raises(ValueError, match="a share is"):
        Share.parse(text)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_url_holds_the_same(numbers, expected, tmp_path, workers):
    """``local://`` is a file system of fsspec's like any other to us."""
    url = f"local://{tmp_path}/far/out"
    assert run(numbers, url, *WORDS, "--workers", workers) == 0
    assert content(tmp_path / "far/out") == expected
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "far/out").glob("*.tar")}
    assert run(numbers, url, *WORDS) == 0  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(numbers, url, *WORDS[:2]) == 0  # of one shard, and the others are taken away
    assert len(list((tmp_path / "far/out").glob("*.tar"))) == 1


def test_a_bucket_holds_the_same_in_shares(numbers, expected, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    url = "memory://bucket/shares/out"
    for share in ("1/2", "2/2"):
        assert run(numbers, url, *WORDS, "--share", share) == 0
    assert run("merge", url) == 0
    files = fsspec.filesystem("memory")
    for name, digest in expected.items():
        assert hashlib.sha256(files.cat_file(f"/bucket/shares/out/{name}")).hexdigest() == digest


def test_a_url_that_cannot_be_written_is_one_line(numbers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("multimodal.data.packing.output._PAUSE", 0.0)
    (tmp_path / "file").write_text("x")
    for url, reason in (("nope://a/b", "nope"), (f"local://{tmp_path}/file/out", "cannot make")):
        assert run(numbers, url, *WORDS) == 1
        said = capsys.readouterr().err
        assert url in said
        assert reason in said
        assert "Traceback" not in said


def test_an_output_reads_lists_and_removes_what_it_wrote(tmp_path):
    for output in (output_at(tmp_path / "a"), output_at(f"local://{tmp_path}/b")):
        output.prepare("inner")
        assert output.read("inner/x") is None
        assert output.size("inner/x") is None
        output.write("inner/x", b"123")
        with output.staged("y") as path:
            path.write_bytes(b"1234")
        assert output.read("inner/x") == b"123"
        assert output.size("y") == 4
        assert output.names("inner") == ["x"]
        output.remove("inner/x")
        output.remove("inner/x")
        assert output.names("inner") == []


@pytest.mark.slow
def test_a_dask_cluster_of_two_processes_packs_the_same(numbers, expected, tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tcp://")
        assert run(numbers, tmp_path / "out", *WORDS, "--dask", address) == 0
    assert content(tmp_path / "out") == expected


def test_a_scheduler_that_does_not_answer_is_one_line(numbers, tmp_path, capsys, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("multimodal.data.packing.parallel.CONNECT_S", 0.5)
    assert run(numbers, tmp_path / "out", *WORDS, "--dask", "tcp://127.0.0.1:9") == 1
    said = capsys.readouterr().err
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in said
    assert "Traceback" not in said
    assert run(numbers, tmp_path / "out", *WORDS, "--dask", "tcp://x:1", "--workers", 2) == 1


def test_a_report_has_no_address_of_memory(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no picture")
    (tmp_path / "in/b.txt").write_text("x y")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    (line,) = (tmp_path / "out/refused.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "corrupt"
    assert " at 0x" not in line
