"""Tables of embeddings, indices over them, queries; and the programs, killed and started again."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, image_bytes, json_bytes, npy_bytes, write_source
from search_helpers import WORDS, make_embedder, write_things

from multimodal.data.decoding.decode import Limits, Signal
from multimodal.data.errors import DecodeError
from multimodal.data.source import Source
from multimodal.inference.search import query
from multimodal.inference.search.builder import build_table
from multimodal.inference.search.compressed import build
from multimodal.inference.search.index import Index
from multimodal.inference.search.items import FolderItems, SourceItems, from_bytes
from multimodal.inference.search.table import PartWriter, read_table

ROOT = Path(__file__).parents[4]


@pytest.fixture
def embedder(tmp_path):
    return make_embedder(tmp_path)


@pytest.fixture
def things(tmp_path):
    return write_things(tmp_path / "things")


def make(embedder, things: Path, output: Path, **options) -> tuple[int, int]:
    return build_table(
        embedder, FolderItems(things), output, {"kind": embedder.kind}, True, **options
    )


def test_a_folder_becomes_a_table(embedder, things, tmp_path, capsys):
    (things / "broken.png").write_bytes(b"no picture")
    rows, left_out = make(embedder, things, tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert (rows, left_out) == (len(table.rows), 1)
    assert "broken.png" in capsys.readouterr().err
    assert {row.modality for row in table.rows} == {"image", "audio", "text"}
    assert table.about == {"kind": "normalized"}
    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), 1, rtol=1e-5)
    place = next(i for i, row in enumerate(table.rows) if row.key == "words/2.txt")
    assert (table.rows[place].name, table.rows[place].preview) == (WORDS[2], WORDS[2].encode())
    expected = embedder.values("text", [WORDS[2]])[0]
    torch.testing.assert_close(torch.from_numpy(table.vectors[place]), expected)
    shown = {row.modality: row.preview_type for row in table.rows}
    assert shown == {"image": "image/webp", "audio": "audio/flac", "text": "text/plain"}
    assert not (tmp_path / "t.parquet.parts").exists()


def test_raw_and_scaled_embeddings_by_name(things, tmp_path):
    for kind, norm in (("raw", None), ("scaled", 20.0)):
        embedder = make_embedder(tmp_path, kind=kind, scale=20.0)
        make(embedder, things, tmp_path / f"{kind}.parquet")
        norms = np.linalg.norm(read_table(tmp_path / f"{kind}.parquet").vectors, axis=1)
        if norm is None:
            assert norms.std() > 0.01
        else:
            np.testing.assert_allclose(norms, norm, rtol=1e-5)


def test_npy_has_its_keys_beside_it(embedder, things, tmp_path):
    make(embedder, things, tmp_path / "t.parquet")
    make(embedder, things, tmp_path / "t.npy")
    parquet, npy = read_table(tmp_path / "t.parquet"), read_table(tmp_path / "t.npy")
    assert np.array_equal(np.load(tmp_path / "t.npy"), parquet.vectors)
    assert [row[:3] for row in npy.rows] == [row[:3] for row in parquet.rows]
    assert npy.about == parquet.about


def test_the_classifier_of_the_documentation_is_fed_by_a_table(embedder, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    levels = {"dark": 40, "grey": 120, "light": 200}

    def pictures(split: str) -> list:
        made = []
        for number in range(8):
            for name, level in levels.items():
                pixels = random.integers(level - 30, level + 30, (8, 8, 3)).astype(np.uint8)
                members = {"png": image_bytes(pixels), "json": json_bytes(label=name)}
                made.append((f"{split}_{name}_{number}", members))
        return made

    splits = {"train": [pictures("a")], "test": [pictures("b")]}
    manifest = str(write_source(tmp_path / "data", splits))
    tables = {}
    for split, name in (("train", "table.parquet"), ("test", "unseen.parquet")):
        items = SourceItems(Source(manifest, {"image": {"member": "png"}}, split=split), ["image"])
        build_table(embedder, items, tmp_path / name, {}, previews=False)
        tables[split] = read_table(tmp_path / name)
    page = (ROOT / "docs" / "evaluation.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "SVC" in block]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    head = names["head"]
    assert sorted(head.classes_) == sorted(levels)
    assert head.shape_fit_ == tables["train"].vectors.shape
    unseen = tables["test"]
    assert head.predict(unseen.vectors).tolist() == [row.name for row in unseen.rows]


class Stopped(Exception):
    pass


def test_an_interrupted_table_is_finished_to_the_same_bytes(embedder, things, tmp_path):
    make(embedder, things, tmp_path / "whole.parquet")

    def stop(done: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(done)
        if len(seen) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        make(embedder, things, tmp_path / "t.parquet", advance=stop)
    parts = sorted((tmp_path / "t.parquet.parts").glob("*.parquet"))
    assert len(parts) == 2
    before = [part.stat().st_mtime_ns for part in parts]
    (tmp_path / "t.parquet.parts" / ".00000002.parquet.tmp").write_bytes(b"half a part")
    again: list[int] = []

    def watch(done: int) -> None:
        if not again:
            assert [part.stat().st_mtime_ns for part in parts] == before
        again.append(done)

    make(embedder, things, tmp_path / "t.parquet", advance=watch)
    whole, finished = (tmp_path / name for name in ("whole.parquet", "t.parquet"))
    assert finished.read_bytes() == whole.read_bytes()


def test_parts_of_other_inputs_are_rejected(embedder, things, tmp_path):
    def stop(done: int) -> None:
        raise Stopped

    output = tmp_path / "t.parquet"
    with pytest.raises(Stopped):
        make(embedder, things, output, advance=stop)
    (things / "one more.txt").write_text("more")
    with pytest.raises(ValueError, match="parts of another checkpoint, input or settings"):
        make(embedder, things, output)
    output.write_bytes(b"")
    with pytest.raises(ValueError, match="there already"):
        PartWriter(output, {}, "")
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.npy"):
        PartWriter(tmp_path / "t.csv", {}, "")


def test_folders_without_anything_and_arrays_without_a_modality(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        FolderItems(tmp_path / "nowhere")
    (tmp_path / "a.npy").write_bytes(npy_bytes(np.zeros((6, 9), np.float32)))
    with pytest.raises(ValueError, match=r"arrays \(npy\) need modality=NAME"):
        FolderItems(tmp_path)
    (tmp_path / "a.doc").write_bytes(b"x")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "back").symlink_to(tmp_path)
    left_out = " ".join(FolderItems(tmp_path, "imu", rate_hz=50.0).left_out)
    assert "a.doc: no such files" in left_out
    assert "gone.jpg: " in left_out
    assert "leads back to a folder that it is in" in left_out
    value = FolderItems(tmp_path, "imu", rate_hz=50.0).load(0).values["imu"]
    assert isinstance(value, Signal)
    assert (value.rate, value.samples.shape) == (50.0, (6, 9))


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_an_index_finds_the_nearest_of_every_modality(kind):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 16)).astype(np.float32) * 7
    names = ["image" if i % 3 else "audio" for i in range(300)]
    index = Index(vectors, names, kind)
    assert index.modalities == {"audio": 100, "image": 200}
    asked = random.standard_normal(16).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ asked / np.linalg.norm(asked)
    found = index.search(asked, 5)
    for name, nearest in found.items():
        own = [i for i in np.argsort(-cosines) if names[i] == name][:5]
        assert [each.row for each in nearest] == own
        np.testing.assert_allclose([each.score for each in nearest], cosines[own], atol=1e-5)
    assert len(index.search(asked, 1000)["audio"]) <= 100


def test_an_index_rejects_zero_vectors():
    with pytest.raises(ValueError, match=r"1 of 2 .*row 1"):
        Index(np.eye(2, dtype=np.float32) * [[1], [0]], ["a", "a"])
    index = Index(np.eye(2, dtype=np.float32), ["a", "a"])
    with pytest.raises(ValueError, match="expected a query of 2 numbers"):
        index.search(np.zeros(3, np.float32), 1)
    with pytest.raises(ValueError, match="not all zero"):
        index.search(np.zeros(2, np.float32), 1)
    with pytest.raises(ValueError, match="'exact' or 'approximate'"):
        build(np.eye(2, dtype=np.float32), "fast")


def test_queries_by_words_files_and_sums(embedder, things):
    picture = str(things / "1.png")
    [term] = query.parse("- not a list, so a text")
    assert (term.modality, term.weight) == ("text", 1.0)
    terms = query.parse([picture, "+ at night", "-people", {"value": "rain", "weight": 0.5}])
    assert [(t.modality, t.weight) for t in terms] == [
        ("image", 1.0), ("text", 1.0), ("text", -1.0), ("text", 0.5),
    ]  # fmt: skip
    parts = [embedder.values(t.modality, [t.value])[0] * t.weight for t in terms]
    expected = torch.nn.functional.normalize(torch.stack(parts).sum(0), dim=0)
    np.testing.assert_allclose(query.embed(embedder, terms), expected.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match=r"no file nothing\.png"):
        query.parse("nothing.png")
    for wrong in ([], [""], [{"weight": 2}]):
        with pytest.raises(ValueError, match="query: expected"):
            query.parse(wrong)


def test_a_thing_is_nearest_to_itself(embedder, things, tmp_path):
    make(embedder, things, tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    index = Index(table.vectors, [row.modality for row in table.rows])
    found = index.search(query.embed(embedder, query.parse(str(things / "2.png"))), 1)
    assert table.rows[found["image"][0].row].key == "2.png"
    assert found["image"][0].score == pytest.approx(1.0, abs=1e-5)


def test_files_of_another_kind_are_rejected():
    sound = audio_bytes(np.zeros((1, 100)), 16000)
    assert from_bytes("a.WAV", sound, None, None, Limits())[0] == "audio"
    for name, data, expected in (
        ("a.exe", b"MZ", "expected one of"),
        ("noext", b"x", "expected one of"),
        ("a.npy", npy_bytes(np.zeros(2)), "name its modality"),
        ("a.jpg", b"words", "corrupt"),
        ("a.png", image_bytes(np.zeros((2, 2, 3), np.uint8))[:20], "corrupt"),
    ):
        with pytest.raises(DecodeError, match=expected):
            from_bytes(name, data, None, None, Limits())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = ["+experiment=clip_scratch", "debug=fast", "~evaluation", f"hydra.run.dir={folder}"]
    script("train", *words)
    return next((folder / "checkpoints").glob("*.ckpt"))


def script(name: str, *words: str) -> str:
    command = [sys.executable, f"scripts/{name}.py", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_embed_killed_and_started_again_gives_the_same_table(checkpoint, tmp_path):
    def words(name: str) -> list[str]:
        return [f"checkpoint='{checkpoint}'", "input=samples://furniture.json", "split=test",
                f"output={tmp_path / name}", "batch_size=16"]  # fmt: skip

    script("embed", *words("whole.parquet"))
    command = [sys.executable, "scripts/embed.py", *words("killed.parquet")]
    parts = tmp_path / "killed.parquet.parts"
    for wanted in (2, 5):
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        end = time.monotonic() + 300
        while len(list(parts.glob("0*.parquet"))) < wanted and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert not (tmp_path / "killed.parquet").exists()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert len(kept) >= 5
    script("embed", *words("killed.parquet"))
    whole, killed = (
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("whole.parquet", "killed.parquet")
    )
    assert killed == whole

    out = script("search", f"checkpoint='{checkpoint}'", f"index={tmp_path / 'whole.parquet'}",
                 "query=[a chair,-what's this? Eine Straße]", "k=2",
                 "dim=32", "quantize=binary")  # fmt: skip
    assert out.count("image") == 2
    assert out.count("text") == 2
