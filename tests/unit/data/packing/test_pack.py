"""`make_shards.py`: packing, indexing, verifying."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, npy_bytes, shard_bytes, tar_bytes, write_source
from packing_helpers import picture, run
from PIL import Image

from multimodal.cli import make_shards
from multimodal.data.packing import pack as pack_module
from multimodal.data.packing.plan import split_of
from multimodal.data.packing.quality import difference_hash, near_duplicates
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.source import Source


@pytest.fixture
def photos(tmp_path):
    """A folder as people have them: files that share a stem, and some that are not good."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number in range(40):
        stem = folder / ("sub" if number % 2 else "") / f"p{number:02d}"
        stem.with_suffix(".jpg").write_bytes(image_bytes(picture(number), "JPEG"))
        stem.with_suffix(".txt").write_text(f"picture number {number // 2}")
        stem.with_suffix(".json").write_text(json.dumps({"scene": f"s{number // 4}"}))
    (folder / "p00.txt").write_bytes(b"")
    (folder / "p02.jpg").write_bytes((folder / "p02.jpg").read_bytes()[:300])
    (folder / "p04.txt").unlink()
    (folder / "README").write_text("read me")
    (folder / "virus.exe").write_bytes(b"MZ")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def samples(manifest: Path) -> dict[str, dict[str, bytes]]:
    found = {}
    loaded = load_manifest(manifest)
    for split in loaded.splits:
        member = next(name for name, field in loaded.fields.items() if field.kind != "json")
        source = Source(str(manifest), {"m": {"member": member}}, split)
        for index in range(len(source)):
            raw = source.read(index)
            found[f"{split}:{raw.key}"] = raw.members
    return found


def test_a_folder_is_packed_whole_and_refusals_are_named(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, out, "--require", "jpg", "txt", "--max-samples", 10, "--label", "scene") == 0
    found = samples(out / "out.json")
    assert len(found) == 37
    for number in range(40):
        key = f"sub/p{number:02d}" if number % 2 else f"p{number:02d}"
        if number not in (0, 2, 4):
            members = found[f"train:{key}"]
            assert members["jpg"] == (photos / f"{key}.jpg").read_bytes()
            assert json.loads(members["json"]) == {"scene": f"s{number // 4}"}
    refused = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    assert {entry["key"]: entry["reason"] for entry in refused} == {
        "README": "no_field",
        "p00": "empty",
        "p02": "corrupt",
        "p04": "missing",
        "virus.exe": "unsupported",
        ".DS_Store": "hidden",
    }
    assert len(list(out.glob("*.tar"))) == 4  # 40 with a picture or a text, 10 in each
    report = json.loads((out / "report.json").read_text())
    assert report["splits"]["train"]["samples"] == 37
    assert sum(report["refused"].values()) == 6
    assert report["quality"]["classes"]["count"] == 10
    assert report["quality"]["texts"]["words"]["median"] == 3
    assert report["quality"]["texts"]["repeated"] == 17
    manifest = load_manifest(out / "out.json")
    assert manifest.field("json", "train").keys == ("scene",)
    assert run("verify", out) == 0
    assert "37 samples in order, 0 problems" in capsys.readouterr().out


def test_webdataset_reads_what_was_packed(photos, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    out = tmp_path / "out"
    run(photos, out)
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    theirs = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    ours = samples(out / "out.json")
    for sample in theirs:
        members = ours[f"train:{sample['__key__']}"]
        assert members == {k: v for k, v in sample.items() if not k.startswith("__")}


@pytest.mark.heavy
def test_equal_input_gives_equal_bytes_whatever_the_workers(photos, tmp_path):
    digests = []
    for name, workers in (("one", 1), ("two", 2)):
        out = tmp_path / name
        assert run(photos, out, "--name", "same", "--max-samples", 16, "--workers", workers) == 0
        tars = sorted(out.glob("*.tar"))
        digests.append([(t.name, hashlib.sha256(t.read_bytes()).hexdigest()) for t in tars])
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_groups_stay_together_and_splits_never_move(photos, tmp_path):
    words = ("--split", "train=0.6", "val=0.4", "--group-by", "scene", "--require", "jpg")
    run(photos, tmp_path / "a", "--name", "a", *words)
    first = samples(tmp_path / "a" / "a.json")
    by_scene: dict[str, set[str]] = {}
    for name, members in first.items():
        scene = json.loads(members["json"])["scene"]
        by_scene.setdefault(scene, set()).add(name.partition(":")[0])
    assert all(len(splits) == 1 for splits in by_scene.values())
    assert {split for splits in by_scene.values() for split in splits} == {"train", "val"}
    for path in photos.glob("p1*"):
        path.unlink()
    run(photos, tmp_path / "b", "--name", "b", *words, "--seed", 5)
    assert set(samples(tmp_path / "b" / "b.json")) < set(first)


def test_splits_have_their_shares():
    shares = {"train": 0.8, "val": 0.15, "test": 0.05}
    found = [split_of(number, shares) for number in range(20_000)]
    for name, share in shares.items():
        assert abs(found.count(name) / 20_000 - share) < 0.01


def test_a_broken_run_resumes_with_the_missing_shards(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real, packed = pack_module.pack_shard, []

    def interrupted(job, **settings):
        if len(packed) == 2:
            raise KeyboardInterrupt
        packed.append(job.name)
        return real(job, **settings)

    monkeypatch.setattr(pack_module, "pack_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(photos, out, "--max-samples", 8)
    assert not (out / "out.json").exists()
    monkeypatch.setattr(pack_module, "pack_shard", real)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(times) == 2
    assert run(photos, out, "--max-samples", 8) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    whole = tmp_path / "whole"
    run(photos, whole, "--max-samples", 8, "--name", "out")
    assert (out / "out.json").read_bytes() == (whole / "out.json").read_bytes()
    assert (out / "report.json").read_bytes() == (whole / "report.json").read_bytes()
    # ... and again after a file has changed, without leftovers.
    (photos / "p06.txt").write_text("another text")
    assert run(photos, out, "--max-samples", 20) == 0
    assert samples(out / "out.json")["train:p06"]["txt"] == b"another text"
    assert len(list(out.glob("*.tar"))) == load_manifest(out / "out.json").split("train").__len__()


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_with_columns_of_files_and_texts(tmp_path, kind):
    rows = []
    for number in range(6):
        (tmp_path / f"{number}.wav").write_bytes(audio_bytes(np.full((1, 50), number / 10), 16000))
        rows.append(
            {"id": f"clip{number}", "sound": f"{number}.wav", "caption": f"sound {number}", "n": 1}
        )
    rows[4]["sound"] = "none.wav"
    rows[5]["id"] = "clip0"
    table = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    elif kind == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    out = tmp_path / "out"
    words = ("--files", "sound", "--texts", "caption", "--key", "id")
    assert run(table, out, *words) == 0
    found = samples(out / "out.json")
    assert set(found) == {f"train:clip{number}" for number in range(4)}
    assert found["train:clip3"]["sound.wav"] == (tmp_path / "3.wav").read_bytes()
    assert json.loads(found["train:clip3"]["json"]) == {"caption": "sound 3"}
    refused = (out / "refused.jsonl").read_text()
    assert '"clip4", "reason": "no_file"' in refused
    assert '"clip0", "reason": "duplicate_key"' in refused
    assert run(table, out, "--files", "sonud") == 1


def test_shards_of_others_are_repacked(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    made = [(f"k{n}", {"a.npy": npy_bytes(np.array([n])), "json": b'{"n": 1}'}) for n in range(9)]
    listed = [(f"{k}.{f}", d) for k, fields in made[:5] for f, d in fields.items()]
    listed[1], listed[2] = listed[2], listed[1]  # k0 and k1 interleaved
    (folder / "a.tar").write_bytes(tar_bytes(listed))
    (folder / "b.tar").write_bytes(shard_bytes(made[5:]))
    (folder / "c.tar").write_bytes(shard_bytes(made)[:700])
    assert run(folder, tmp_path / "out") == 0
    found = samples(tmp_path / "out" / "out.json")
    assert found == {f"train:{key}": members for key, members in made[2:]}
    refused = (tmp_path / "out" / "refused.jsonl").read_text()
    assert refused.count("duplicate_key") == 4
    assert '"c.tar", "reason": "shard_cut"' in refused


def test_shards_keep_to_their_size(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.npy").write_bytes(npy_bytes(np.zeros(1000)))
    run(folder, tmp_path / "out", "--max-bytes", 60_000)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert len(sizes) == 6
    assert max(sizes) < 75_000


def test_only_near_duplicates_are_reported(tmp_path):
    pictures = [(f"p{n}", difference_hash(picture(n))) for n in range(60)]
    small = Image.fromarray(picture(7)).resize((30, 30)).point(lambda v: min(255, v + 12))
    pictures.append(("copy", difference_hash(np.asarray(small))))
    assert near_duplicates(pictures) == [("p7", "copy")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "no nowhere"),
        (("photos", "--split", "train=0.5"), "shares must sum to 1"),
        (("photos", "--group-by", "sceen"), "the metadata have no 'sceen'"),
        (("photos", "--files", "x"), "columns are for tables"),
        (("photos", "--min-similarity", "0.2"), "needs --checkpoint"),
        (("photos", "--require", "mp3"), "no member 'mp3'; it has jpg, txt, json"),
        (("photos", "--layout", "piars"), "no layout 'piars'; did you mean 'pairs'?"),
    ],
)
def test_invalid_settings_are_reported(photos, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert run(words[0], "out", *words[1:]) == 1
    assert message in capsys.readouterr().err


# Index and verify


@pytest.fixture
def theirs(tmp_path):
    """Tars without a manifest, and one that was made for them."""
    folder = tmp_path / "theirs"
    made = [
        (f"k{n}", {"jpg": image_bytes(picture(n), "JPEG"), "json": b'{"a": 1, "b": null}'})
        for n in range(12)
    ]
    path = write_source(folder, {"train": [made[:5], made[5:10]], "val": [made[10:]]})
    path.unlink()
    return folder


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_manifest_is_written_for_tars_that_are_there(theirs, capsys, workers):
    before = {path.name: path.read_bytes() for path in theirs.glob("*.tar")}
    assert run("index", theirs, "--workers", workers) == 0
    manifest = load_manifest(theirs / "theirs.json")
    assert manifest.split("train").samples.tolist() == [5, 5]
    assert manifest.split("val").num_samples == 2
    assert manifest.field("jpg", "val").kind == "image"
    assert manifest.field("json", "val").keys == ("a",)
    assert {path.name: path.read_bytes() for path in theirs.glob("*.tar")} == before
    assert run("verify", theirs) == 0
    assert "12 samples in order, 0 problems" in capsys.readouterr().out


def test_broken_tars_are_rejected_or_left_out_by_name(theirs, capsys):
    shard = theirs / "made-train-001.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    assert run("index", theirs) == 1
    assert "made-train-001.tar: " in capsys.readouterr().err
    assert not (theirs / "theirs.json").exists()
    assert run("index", theirs, "--skip-broken") == 0
    assert "made-train-001.tar: shard_cut" in capsys.readouterr().err
    assert load_manifest(theirs / "theirs.json").split("train").num_samples == 5


def test_interleaved_samples_count_in_an_index_and_are_named(theirs, capsys):
    listed = [("a.txt", b"1"), ("b.txt", b"2"), ("a.json", b"{}"), ("c.txt", b"3"), ("NOTE", b"")]
    (theirs / "made-train-001.tar").write_bytes(tar_bytes(listed))
    assert run("index", theirs) == 0
    assert "key 'a': duplicate_key" in capsys.readouterr().err
    assert load_manifest(theirs / "theirs.json").split("train").samples.tolist() == [5, 4]
    assert run("verify", theirs) == 1
    assert "9 samples in order, 2 problems" in capsys.readouterr().out


def test_verify_names_each_fault(theirs, capsys):
    run("index", theirs)
    first, second = sorted(theirs.glob("made-train-*.tar"))
    content = first.read_bytes()
    first.write_bytes(content.replace(b'{"a": 1', b'{"z": 1'))
    shutil.copy(theirs / "made-val-000.tar", second)
    assert run("verify", theirs) == 1
    captured = capsys.readouterr()
    assert "made-train-000.tar: shard_hash" in captured.err
    assert "made-train-001.tar: shard_size" in captured.err
    assert "2 samples in order, 2 problems" in captured.out


def test_verify_decodes_every_sample(theirs, capsys):
    second = theirs / "made-train-001.tar"
    content = second.read_bytes()
    at = content.index(b"\xff\xd8\xff")
    second.write_bytes(content[: at + 2] + bytes(200) + content[at + 202 :])
    run("index", theirs)
    assert run("verify", theirs) == 1
    captured = capsys.readouterr()
    assert "key 'k5': corrupt" in captured.err
    assert "11 samples in order, 1 problems" in captured.out


def test_an_output_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("text\na\n")
    (tmp_path / "file").write_text("x")
    words = [f"{tmp_path}/t.csv", f"{tmp_path}/file", "--texts", "text"]
    assert make_shards.main(words) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/file" in said
    assert "Traceback" not in said
    assert make_shards.main([*words[:1], f"{tmp_path}/out", "--split", "train=a"]) == 1
    assert (
        "--split takes NAME=SHARE, a number from 0 to 1, given train=a" in capsys.readouterr().err
    )
