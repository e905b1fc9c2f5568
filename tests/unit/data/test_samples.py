"""The committed sample corpus: it is what the manifests promise, and nothing leaks."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "multimodal" / "data" / "samples"
sys.path.insert(0, str(ROOT / "scripts"))

from sample_data.read import read_samples  # noqa: E402
from sample_data.shards import (  # noqa: E402
    Description,
    Licence,
    Sample,
    shard_bytes,
    tar_cost,
    write_source,
)

SPLITS = {
    "emoji": ("train", "val", "test", "test_strict"),
    "furniture": ("train", "val", "test", "test_loose"),
    "speech": ("train", "val", "test_seen", "test"),
    "sounds": ("train", "test"),
    "motion": ("train", "val", "test"),
    "exercise": ("train", "val", "test"),
}
# For fusion: two views of one digit, two sensors of one movement.
FUSION_SPLITS = {
    "digits": ("train", "val", "test"),
    "watch": tuple(f"subject_{number}" for number in range(1, 11)),
}
ALL_SPLITS = {**SPLITS, **FUSION_SPLITS}
Corpus = dict[str, dict[str, list[dict[str, Any]]]]


def manifest(source: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{source}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Source -> split -> samples (members and key), the JSON member parsed as ``metadata``."""
    held: Corpus = {}
    for source, splits in SPLITS.items():
        held[source] = {split: list(read_samples(FOLDER, source, split)) for split in splits}
        for samples in held[source].values():
            for sample in samples:
                sample["metadata"] = json.loads(sample["json"])
    return held


def values(samples: Iterable[dict[str, Any]], key: str) -> set[Any]:
    return {sample["metadata"][key] for sample in samples}


def shared(splits: dict[str, list[dict[str, Any]]], key: str) -> list[tuple[str, str, Any]]:
    """Values of ``key`` that two splits have in common."""
    names = list(splits)
    return [
        (first, other, value)
        for i, first in enumerate(names)
        for other in names[i + 1 :]
        for value in sorted(values(splits[first], key) & values(splits[other], key))
    ]


def pick(splits: dict[str, list[dict[str, Any]]], *names: str) -> dict[str, list[dict[str, Any]]]:
    return {name: splits[name] for name in names}


def leaks(corpus: Corpus) -> list[tuple[str, str, Any]]:
    """Everything that is on two sides of a split although it must not be."""
    emoji, speech = corpus["emoji"], corpus["speech"]
    held_out = set().union(*(values(emoji[s], "concept") for s in emoji if s != "train"))
    found = [
        *shared(emoji, "concept"),
        *(
            row
            for split in ("train", "val", "test")
            for row in shared(pick(emoji, split, "test_strict"), "family")
        ),
        *shared(pick(speech, "train", "val", "test"), "concept"),
        *shared(pick(speech, "val", "test_seen"), "concept"),
        *shared(corpus["sounds"], "recording"),
        *shared(pick(corpus["furniture"], "train", "val", "test"), "head_noun"),
        *shared(pick(corpus["furniture"], "val", "test_loose"), "head_noun"),
        *shared(pick(corpus["furniture"], "test", "test_loose"), "head_noun"),
        *shared(corpus["furniture"], "concept"),
        *shared(corpus["exercise"], "subject"),
    ]
    for source in ("speech", "sounds", "motion"):
        train = values(corpus[source]["train"], "concept")
        found += [("emoji held out", f"{source} train", c) for c in sorted(train & held_out)]
    for source in ("speech", "emoji"):
        for split in ("val", "test"):
            wrong = values(corpus[source][split], "concept") - values(emoji[split], "concept")
            found += [(f"{source} {split}", f"not emoji {split}", c) for c in sorted(wrong)]
    return found


def test_every_shard_is_the_one_the_manifest_names() -> None:
    listed = set()
    for source, splits in ALL_SPLITS.items():
        held = manifest(source)
        assert held["format"] == "multimodal-manifest/1"
        assert held["name"] == source
        assert {shard["split"] for shard in held["shards"]} == set(splits)
        for shard in held["shards"]:
            data = (FOLDER / shard["name"]).read_bytes()
            assert len(data) == shard["bytes"]
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                names = archive.getnames()
            keys = [name.split(".", 1)[0] for name in names]
            assert len(set(keys)) == shard["samples"]
            assert names == sorted(names, key=lambda name: name.split(".", 1))
            listed.add(shard["name"])
    assert listed == {path.name for path in FOLDER.glob("*.tar")}


def test_the_corpus_takes_25_megabytes_at_most_and_that_of_fusion_10() -> None:
    sizes = {path: path.stat().st_size for path in FOLDER.iterdir()}
    fusion = sum(n for path, n in sizes.items() if path.name.startswith(tuple(FUSION_SPLITS)))
    assert 0 < fusion <= 10_000_000
    assert sum(sizes.values()) - fusion <= 25_000_000


def test_no_digit_is_in_two_splits() -> None:
    pictures = {
        split: {sample["image.png"] for sample in read_samples(FOLDER, "digits", split)}
        for split in FUSION_SPLITS["digits"]
    }
    assert len(set().union(*pictures.values())) == sum(map(len, pictures.values())) > 0


def test_every_source_names_its_origin_and_licences() -> None:
    for source in ALL_SPLITS:
        held = manifest(source)
        assert held["origin"]
        assert held["description"]
        assert held["licences"]
        for licence in held["licences"]:
            assert all(licence[key].strip() for key in ("what", "licence", "attribution", "url"))


def test_every_model_of_furniture_names_its_creator_and_licence(corpus: Corpus) -> None:
    listed = {licence["licence"] for licence in manifest("furniture")["licences"]}
    for samples in corpus["furniture"].values():
        assert all(sample["metadata"]["creator"] for sample in samples)
        assert values(samples, "licence") <= listed


def test_members_and_keys_are_those_of_the_manifest(corpus: Corpus) -> None:
    for source, splits in corpus.items():
        fields = manifest(source)["fields"]
        for split, samples in splits.items():
            expected = {name for name, f in fields.items() if split in f.get("splits", [split])}
            for sample in samples:
                assert set(sample) - {"__key__", "metadata"} == expected
                assert set(sample["metadata"]) == set(fields["json"]["keys"])


@pytest.mark.slow
def test_every_member_decodes_to_what_is_promised(corpus: Corpus) -> None:
    for source, splits in corpus.items():
        fields = manifest(source)["fields"]
        for split, samples in splits.items():
            for sample in samples:
                for member in set(sample) & set(fields) - {"json"}:
                    check_member(fields[member]["kind"], sample[member], (source, split))


def check_member(kind: str, data: bytes, where: tuple[str, str]) -> None:
    if kind == "image":
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (64, 64)
            assert image.mode == "RGB"
            assert np.ptp(np.asarray(image)) > 0
    elif kind == "depth":
        depth = np.asarray(Image.open(io.BytesIO(data)))
        assert depth.dtype == np.uint16
        assert depth.shape == (64, 64)
        assert 0 < (depth > 0).sum() <= 64 * 64
    elif kind == "audio":
        sound, rate = soundfile.read(io.BytesIO(data))
        assert rate == 16_000
        assert sound.ndim == 1
        assert 0.05 < len(sound) / rate <= 4.0
        assert np.abs(sound).max() > 0.3
    else:
        assert kind == "imu"
        imu = np.load(io.BytesIO(data), allow_pickle=False)
        assert imu.dtype == np.float16
        assert np.isfinite(imu).all()
        channels, length = imu.shape
        assert channels == 6
        if where[0] == "motion":
            assert length == 100
        else:
            assert length == 200 if where[1] != "train" else 200 <= length <= 800


def test_depth_covers_what_the_icon_shows(corpus: Corpus) -> None:
    samples = [sample for split in corpus["furniture"].values() for sample in split]
    # White things on white are not found in the icon, so the overlap is not 1.
    icons = [(np.asarray(Image.open(io.BytesIO(s["icon.webp"]))) < 250).any(2) for s in samples]
    depths = [np.asarray(Image.open(io.BytesIO(s["depth.png"]))) > 0 for s in samples]

    def overlap(shift: int) -> float:
        pairs = zip(icons, depths[shift:] + depths[:shift], strict=True)
        return float(
            np.median([(icon & depth).sum() / (icon | depth).sum() for icon, depth in pairs])
        )

    assert overlap(0) > 0.8
    assert overlap(1) < 0.6


def test_the_first_caption_is_the_name(corpus: Corpus) -> None:
    for source, key in (("emoji", "name"), ("speech", "name"), ("furniture", "name")):
        for samples in corpus[source].values():
            for sample in samples:
                metadata = sample["metadata"]
                assert metadata["captions"][0] == metadata[key]


def test_durations_are_those_of_the_first_voice(corpus: Corpus) -> None:
    first = {"train": "v1.ogg", "val": "v4.ogg", "test_seen": "v5.ogg", "test": "v5.ogg"}
    for split, samples in corpus["speech"].items():
        for sample in samples:
            length = soundfile.info(io.BytesIO(sample[first[split]])).duration
            assert sample["metadata"]["duration"] == pytest.approx(length, abs=1e-3)


def test_nothing_leaks_between_splits(corpus: Corpus) -> None:
    assert leaks(corpus) == []


@pytest.mark.parametrize(
    ("source", "origin", "target"),
    [
        ("emoji", "test", "train"),
        ("emoji", "train", "val"),
        ("emoji", "train", "test_strict"),
        ("speech", "test", "train"),
        ("speech", "val", "train"),
        ("sounds", "test", "train"),
        ("furniture", "test", "train"),
        ("furniture", "train", "val"),
        ("furniture", "train", "test_loose"),
        ("exercise", "val", "train"),
        ("exercise", "train", "test"),
    ],
)
def test_a_sample_copied_across_a_split_is_detected(
    corpus: Corpus, source: str, origin: str, target: str
) -> None:
    splits = {split: list(samples) for split, samples in corpus[source].items()}
    splits[target].append(splits[origin][0])
    assert leaks({**corpus, source: splits})


def test_a_held_out_concept_in_another_source_is_detected(corpus: Corpus) -> None:
    stranger = dict(corpus["sounds"]["train"][0])
    concept = corpus["emoji"]["test"][0]["metadata"]["concept"]
    stranger["metadata"] = {**stranger["metadata"], "concept": concept, "recording": "new"}
    sounds = {**corpus["sounds"], "train": [*corpus["sounds"]["train"], stranger]}
    assert leaks({**corpus, "sounds": sounds}) == [("emoji held out", "sounds train", concept)]


def test_splits_have_the_sizes_that_the_page_promises(corpus: Corpus) -> None:
    assert len(corpus["emoji"]["val"]) == 100
    assert len(corpus["emoji"]["test"]) == 200
    assert len(corpus["emoji"]["test_strict"]) == 100
    assert len(corpus["furniture"]["test"]) >= 100
    assert len(values(corpus["furniture"]["test_loose"], "concept")) >= 140
    assert len(corpus["speech"]["test"]) >= 100
    assert values(corpus["exercise"]["test"], "subject") == {9, 10}


def test_test_seen_concepts_train_and_loose_names_have_trained_head_nouns(corpus: Corpus) -> None:
    speech, furniture = corpus["speech"], corpus["furniture"]
    assert values(speech["test_seen"], "concept") <= values(speech["train"], "concept")
    loose = values(furniture["test_loose"], "head_noun")
    assert loose <= values(furniture["train"], "head_noun")


def test_every_class_of_a_test_split_trains(corpus: Corpus) -> None:
    for source in ("sounds", "motion", "exercise"):
        splits = corpus[source]
        assert values(splits["test"], "label") <= values(splits["train"], "label")


def test_no_picture_of_one_concept_is_another_split_s_picture(corpus: Corpus) -> None:
    """Equal bytes would mean that two concepts are drawn the same."""
    seen: dict[bytes, set[str]] = defaultdict(set)
    for split, samples in corpus["emoji"].items():
        for sample in samples:
            for member in ("noto.webp", "twemoji.webp", "fluent.webp", "fluent_hc.webp"):
                seen[sample[member]].add(split)
    assert [splits for splits in seen.values() if len(splits) > 1] == []


def a_sample(key: str, text: str = "x") -> Sample:
    return Sample(key, {"b.txt": text.encode(), "a.txt": b"1"}, {"name": key})


def test_shard_bytes_depend_on_nothing_but_the_samples() -> None:
    first, second = a_sample("one"), a_sample("two", "y" * 700)
    data = shard_bytes([first, second])
    assert shard_bytes([second, first]) == data
    assert shard_bytes([a_sample("one", "z"), second]) != data
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    names = ["one.a.txt", "one.b.txt", "one.json", "two.a.txt", "two.b.txt", "two.json"]
    assert [member.name for member in members] == names
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert sum(tar_cost(member.size) for member in members) == members[-1].offset_data + 512


@pytest.mark.parametrize("key", ["a.b", "a/b"])
def test_a_key_that_would_be_read_differently_is_rejected(key: str) -> None:
    with pytest.raises(ValueError, match="has a dot or a slash"):
        shard_bytes([a_sample(key)])


def test_a_key_that_comes_twice_is_rejected() -> None:
    with pytest.raises(ValueError, match="comes twice"):
        shard_bytes([a_sample("a"), a_sample("a")])


def test_a_source_is_written_as_its_manifest_says(tmp_path: Path) -> None:
    about = Description(
        "toy", "toys", "nowhere", [Licence("all", "CC0-1.0", "me", "here")], {"json": {}}
    )
    (tmp_path / "toy-train-007.tar").write_bytes(b"of an older build")
    samples = [a_sample(f"{i:04d}") for i in range(600)]
    held = write_source(tmp_path, about, {"train": samples, "test": samples[:2]})
    names = ["toy-train-000.tar", "toy-train-001.tar", "toy-test-000.tar"]
    assert [shard["name"] for shard in held["shards"]] == names
    assert {path.name for path in tmp_path.glob("*.tar")} == set(names)
    assert held == json.loads((tmp_path / "toy.json").read_text())
    read = [sample["__key__"] for sample in read_samples(tmp_path, "toy", "train")]
    assert sorted(read) == [sample.key for sample in samples]
