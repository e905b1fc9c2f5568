"""Listed negatives from shards to a batch: texts, files, other samples, tables, swaps."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import image_bytes, json_bytes, write_source
from loader_helpers import scheduled_loader

from multimodal.core.hashing import stable_hash
from multimodal.data.errors import DataMismatchError, DecodeError
from multimodal.data.loading.collate import load
from multimodal.data.negatives.table import NegativeTable
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.text import TextTransform

RNG = SampleRNG(0, 0, "made", 1, 0)


class Letters:
    """A tokenizer of single characters, as text transforms take one."""

    start, end, pad = 1, 2, 0

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def words(row) -> str:
    return "".join(chr(token) for token in row.tolist() if token > 2)


def sample(number: int, **more) -> tuple[str, dict[str, bytes]]:
    grey = np.full((4, 4, 3), number, np.uint8)
    content = {"caption": f"a red chair {number}", "label": f"class {number % 3}", **more}
    members = {"png": image_bytes(grey), "json": json_bytes(**content)}
    return f"s{number}", members


@pytest.fixture
def manifest(tmp_path):
    samples = [
        sample(0, hard=["x", "y", "z"], others=["s1", "s4"]),
        sample(1, hard="alone"),
        sample(2, hard=[], others=["s0"]),
        sample(3),
        sample(4, hard=["w"], others=[]),
    ]
    samples[0][1]["wrong.png"] = image_bytes(np.full((4, 4, 3), 200, np.uint8))
    return write_source(tmp_path, {"train": [samples[:3], samples[3:]]})


def source(manifest, negatives, modality="text", **options) -> Source:
    entries = {"text": {"member": "json", "key": "caption"}, "image": {"member": "png"}}
    entries[modality]["negatives"] = negatives
    return Source(str(manifest), entries, **options)


TRANSFORMS = {"text": TextTransform(Letters(), 32), "image": None}


def listed(made: Source, index: int, rng: SampleRNG | None = RNG):
    name = next(iter(made.decoder.listings))
    return made.decode(index, rng, listed=[name]).listed.get(name)


def test_texts_of_the_json(manifest):
    made = source(manifest, {"key": "hard", "count": 2})
    own = made.decode(0, None)
    first = listed(made, 0)
    assert len(first) == 2
    places = ["xyz".index(each.value) for each in first]
    assert places == sorted(places)
    for place, each in zip(places, first, strict=True):
        assert each.sample_id == stable_hash("listed", own.sample_id, "text", place)
    drawn = {tuple(e.value for e in listed(made, 0, SampleRNG(0, n, "m", 0, 0))) for n in range(20)}
    assert drawn == {("x", "y"), ("x", "z"), ("y", "z")}
    assert [each.value for each in listed(made, 1)] == ["alone"]
    assert listed(made, 2) == listed(made, 3) == []


def test_files_of_the_sample(manifest):
    made = source(manifest, {"member": "wrong.png"}, "image")
    (only,) = listed(made, 0)
    assert np.asarray(only.value).max() == 200
    assert listed(made, 1) == []


def test_other_samples_by_key(manifest):
    made = source(manifest, {"samples": "others", "count": 5}, positive_key="label")
    found = listed(made, 0)
    assert [each.value for each in found] == ["a red chair 1", "a red chair 4"]
    other = made.decode(4, None)
    assert (found[1].sample_id, found[1].positive_key) == (other.sample_id, other.positive_key)
    assert listed(made, 3) == []


def test_an_unknown_key_is_a_bad_sample(tmp_path):
    made = source(
        write_source(tmp_path, {"train": [[sample(0, others=["nobody"])]]}), {"samples": "others"}
    )
    with pytest.raises(DecodeError, match="'others' lists 'nobody'"):
        listed(made, 0)


def test_something_else_than_texts_is_a_bad_sample(tmp_path):
    made = source(write_source(tmp_path, {"train": [[sample(0, hard=3)]]}), {"key": "hard"})
    with pytest.raises(DecodeError, match="a text or a list of texts, got 3"):
        listed(made, 0)


def table(tmp_path, keys, negatives):
    rows = np.array(negatives, np.int32)
    similar = np.zeros(rows.shape, np.float32)
    made = NegativeTable(np.array(keys, "S"), rows, similar, similar[:, 0], {})
    made.save(tmp_path / "mined.npz")
    return str(tmp_path / "mined.npz")


def test_a_mined_table(manifest, tmp_path):
    path = table(tmp_path, [b"s4", b"s0", b"gone"], [[1, -1], [0, 2], [0, 1]])
    made = source(manifest, {"table": path, "count": 2})
    assert [each.value for each in listed(made, 4)] == ["a red chair 0"]
    assert [each.value for each in listed(made, 0)] == ["a red chair 4"]  # one has gone
    assert listed(made, 1) == []


def test_a_table_of_another_source_is_refused(manifest, tmp_path):
    made = source(manifest, {"table": table(tmp_path, [b"a", b"b"], [[1], [0]])})
    with pytest.raises(ValueError, match="none of its 2 keys is of this source"):
        listed(made, 0)


def test_a_file_that_is_no_table_is_refused(manifest, tmp_path):
    (tmp_path / "mined.npz").write_bytes(b"PK nothing")
    made = source(manifest, {"table": str(tmp_path / "mined.npz")})
    with pytest.raises(ValueError, match="is not a table of negatives"):
        listed(made, 0)


def test_equal_keys_are_refused_where_keys_are_used(tmp_path):
    path = write_source(tmp_path, {"train": [[sample(0, others=["s1"])], [sample(0), sample(1)]]})
    with pytest.raises(ValueError, match="two samples have the key 's0'"):
        listed(source(path, {"samples": "others"}), 0)


def test_swapped_words(manifest):
    made = source(manifest, {"swap": ["replace_attribute", "replace_object"], "count": 2})
    first, second = (each.value for each in listed(made, 3))
    assert "a red chair 3" not in (first, second)
    assert {first.endswith("chair 3"), second.endswith("chair 3")} == {True, False}


def test_evaluation_reads_none(manifest):
    made = source(manifest, {"key": "hard"})
    transforms = {**TRANSFORMS, "image": _Picture()}
    assert load(made, transforms, 0, None).listed == {}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_has_them_beside_their_owners(manifest, num_workers):
    made = source(manifest, {"key": "hard", "count": 3})
    loader = scheduled_loader(
        {"made": made}, {"text": TRANSFORMS["text"], "image": _Picture()}, 5, 0,
        num_workers=num_workers,
    )  # fmt: skip
    (batch,) = list(loader)
    loader.close()
    rows = batch.listed["text"]
    by_owner = {key: [] for key in batch.keys}
    owners = dict(zip(batch.sample_ids.tolist(), batch.keys, strict=True))
    for owner, row in zip(rows.owners.tolist(), rows.inputs, strict=True):
        by_owner[owners[owner]].append(words(row))
    assert by_owner == {"s0": ["x", "y", "z"], "s1": ["alone"], "s2": [], "s3": [], "s4": ["w"]}
    assert rows.mask.shape == rows.inputs.shape
    assert len(set(rows.sample_ids.tolist())) == 5


def test_a_run_resumes_with_the_same_table_only(manifest, tmp_path):
    path = table(tmp_path, [b"s0", b"s1"], [[1], [0]])
    transforms = {"text": TRANSFORMS["text"], "image": _Picture()}

    def loader():
        made = source(manifest, {"table": path})
        return scheduled_loader({"made": made}, transforms, 1, 0, num_workers=0)

    state = loader().state_dict()
    loader().load_state_dict(state)
    table(tmp_path, [b"s0", b"s1"], [[1], [-1]])
    with pytest.raises(DataMismatchError, match=r"another table of mined negatives \(text\)"):
        loader().load_state_dict(state)


def test_a_batch_without_any_says_so(manifest):
    made = source(manifest, {"key": "hard"})
    loader = scheduled_loader(
        {"made": made}, {"text": TRANSFORMS["text"], "image": _Picture()}, 1, 0, num_workers=0
    )
    counts = {batch.keys[0]: batch.listed["text"] for batch in loader}
    assert counts["s3"].inputs is None
    assert len(counts["s3"].owners) == 0
    assert len(counts["s4"].owners) == 1


class _Picture(ArrayTransform):
    """The grey level of a picture."""

    def __init__(self):
        super().__init__([3])

    def __call__(self, value, rng):
        return super().__call__(np.asarray(value, np.float32).mean(axis=(0, 1)), rng)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"key": "hard", "samples": "others"}, "expected one of .* got key, samples"),
        ({"count": 2}, "got none"),
        ({"key": "hard", "count": 0}, "count must be an integer of at least 1, got 0"),
        ({"kye": "hard"}, "'kye'; .*key"),
        ({"swap": "replace_objekt"}, "replace_object"),
        ("hard", "expected a block"),
    ],
)
def test_faulty_entries(manifest, entry, message):
    with pytest.raises(ValueError, match=message):
        source(manifest, entry)


def test_texts_are_no_pictures(manifest):
    with pytest.raises(ValueError, match="key gives texts, which this modality does not hold"):
        source(manifest, {"key": "hard"}, "image")
    with pytest.raises(ValueError, match="the member 'json' holds json, expected image"):
        source(manifest, {"member": "json"}, "image")
