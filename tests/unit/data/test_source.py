from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from data_helpers import audio_bytes, image_bytes, json_bytes, npy_bytes, write_source

from multimodal.data.decoding.decode import Limits, Signal
from multimodal.data.errors import DecodeError, ShardError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.shards.tar import Shard
from multimodal.data.source import Source, SourceContext

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
MOTION = np.arange(12, dtype=np.int16).reshape(6, 2)


def sample(number: int, **changes) -> tuple[str, dict[str, bytes]]:
    members = {
        "a.png": image_bytes(PIXELS + number),
        "b.png": image_bytes(PIXELS + 100 + number),
        "audio.wav": audio_bytes(np.zeros((1, 10)), 8000),
        "imu.npy": npy_bytes(MOTION),
        "caption.txt": f"caption {number}".encode(),
        "json": json_bytes(
            name=f"thing {number}",
            captions=[f"thing {number}", f"an old thing {number}"],
            label=number % 2,
            rate_hz=50,
            scale=0.5,
        ),
    } | changes
    return f"k{number}", {name: data for name, data in members.items() if data is not None}


def make(tmp_path, samples, modalities, fields=None, **options) -> Source:
    path = write_source(tmp_path, {"train": [samples[:2], samples[2:]]}, fields=fields)
    return Source(str(path), modalities, **options)


ALL = {
    "image": {"member": ["a.png", "b.png"]},
    "audio": {"member": "audio.wav"},
    "imu": {"member": "imu.npy"},
    "text": {"member": "json", "key": "captions"},
}


def test_values_of_every_modality(tmp_path):
    source = make(tmp_path, [sample(i) for i in range(5)], ALL)
    assert len(source) == 5
    assert source.modalities == ("image", "audio", "imu", "text")
    for index in (0, 2, 4):
        decoded = source.decode(index, None)
        assert decoded.key == f"k{index}"
        assert np.array_equal(decoded.values["image"], PIXELS + index)
        assert isinstance(decoded.values["audio"], Signal)
        motion = decoded.values["imu"]
        assert motion.rate == 50
        assert np.array_equal(motion.samples, MOTION * np.float32(0.5))
        assert decoded.values["text"] == f"thing {index}"
        assert decoded.metadata["label"] == index % 2


def test_raw_samples_are_whole(tmp_path):
    source = make(tmp_path, [sample(i) for i in range(3)], ALL)
    raw = source.read(2)
    assert (raw.key, raw.members) == sample(2)
    assert raw.metadata == json.loads(raw.members["json"])


def test_only_the_wanted_modalities_are_decoded(tmp_path):
    samples = [sample(i, **{"audio.wav": b"broken"}) for i in range(3)]
    source = make(tmp_path, samples, ALL)
    assert set(source.decode(0, None, ["text", "imu"]).values) == {"text", "imu"}
    with pytest.raises(DecodeError, match="corrupt"):
        source.decode(0, None)


def test_one_of_several_members_and_texts_is_drawn(tmp_path):
    source = make(tmp_path, [sample(0), sample(1), sample(2)], ALL)
    draws = [SampleRNG(0, epoch, "made", 0, 0) for epoch in range(40)]
    decoded = [source.decode(0, rng) for rng in draws]
    pictures = {tuple(value.values["image"][0, 0]) for value in decoded}
    texts = {value.values["text"] for value in decoded}
    assert pictures == {tuple(PIXELS[0, 0]), tuple(PIXELS[0, 0] + 100)}
    assert texts == {"thing 0", "an old thing 0"}
    pairs = {(value.values["image"][0, 0, 0], value.values["text"]) for value in decoded}
    assert len(pairs) == 4  # drawn independently
    for rng, first in zip(draws, decoded, strict=True):
        again = source.decode(0, rng)
        assert again.values["text"] == first.values["text"]
        assert np.array_equal(again.values["image"], first.values["image"])


def test_of_several_members_an_absent_one_is_passed_over(tmp_path):
    samples = [sample(0, **{"a.png": None}), sample(1), sample(2, **{"a.png": None, "b.png": None})]
    source = make(tmp_path, samples, {"image": {"member": ["a.png", "b.png"]}})
    assert np.array_equal(source.decode(0, None).values["image"], PIXELS + 100)
    with pytest.raises(DecodeError, match=r"missing: image needs a\.png or b\.png"):
        source.decode(2, None)


def test_ids_and_positive_keys(tmp_path):
    samples = [sample(i) for i in range(4)]
    text = {"text": {"member": "caption.txt"}}
    identity = make(tmp_path / "1", samples, text)
    labelled = make(tmp_path / "2", samples, text, positive_key="label")
    named = make(tmp_path / "3", samples, text, positive_key="name")
    named = named.within(SourceContext(), "another")
    decoded = [[source.decode(i, None) for i in range(4)] for source in (identity, labelled, named)]
    assert len({value.sample_id for value in decoded[0]}) == 4
    assert all(value.positive_key == value.sample_id for value in decoded[0])
    keys = [value.positive_key for value in decoded[1]]
    assert keys[0] == keys[2] != keys[1] == keys[3]
    assert len({value.positive_key for value in decoded[2]}) == 4
    assert {v.sample_id for v in decoded[0]}.isdisjoint(v.sample_id for v in decoded[2])
    # Values, not places, make a positive: equal across sources, and -1 is not "-1".
    again = make(tmp_path / "4", samples[::-1], text, positive_key="label")
    again = again.within(SourceContext(), "other")
    assert again.decode(3, None).positive_key == keys[0]


def test_equal_keys_in_two_shards_are_two_samples(tmp_path):
    path = write_source(tmp_path, {"train": [[sample(0)], [sample(0)]]})
    source = Source(str(path), {"text": {"member": "caption.txt"}})
    assert source.decode(0, None).sample_id != source.decode(1, None).sample_id


@pytest.mark.parametrize(
    ("modalities", "options", "message"),
    [
        ({}, {}, "has no modalities"),
        ({"image": {"member": "a.pgn"}}, {}, r"no member 'a\.pgn'; did you mean 'a\.png'"),
        ({"image": {"members": "a.png"}}, {}, "'members'; did you mean 'member'"),
        ({"image": {}}, {}, "'image' needs a 'member'"),
        ({"x": {"member": ["a.png", "imu.npy"]}}, {}, "different kinds: image, imu"),
        (
            {"text": {"member": "json"}},
            {},
            "a JSON member needs a 'key', a 'template' or a 'value'",
        ),
        ({"text": {"member": "a.png", "key": "name"}}, {}, "a JSON member needs a 'key'"),
        ({"text": {"member": "json", "key": "nam"}}, {}, "no key 'nam'; did you mean 'name'"),
        (ALL, {"split": "tran"}, "no split 'tran'; did you mean 'train'"),
        (ALL, {"positive_key": "lable"}, "no key 'lable'; did you mean 'label'"),
    ],
)
def test_faulty_configurations_are_rejected_at_once(tmp_path, modalities, options, message):
    keys = ["name", "captions", "label", "rate_hz", "scale"]
    with pytest.raises(ValueError, match=message):
        make(
            tmp_path,
            [sample(0), sample(1), sample(2)],
            modalities,
            fields={"json": {"kind": "json", "keys": keys}},
            **options,
        )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"json": None}, "metadata"),
        ({"json": b"[1]"}, "metadata"),
        ({"json": b"{"}, "corrupt"),
        ({"json": json_bytes(captions="x", label=1)}, "metadata"),
        ({"json": json_bytes(captions="x", rate_hz=-1, label=1)}, "metadata"),
        ({"json": json_bytes(captions="x", rate_hz=True, scale="2", label=1)}, "metadata"),
        ({"json": json_bytes(captions=[], rate_hz=1, label=1)}, "empty"),
        ({"json": json_bytes(captions=["  "], rate_hz=1, label=1)}, "empty"),
        ({"json": json_bytes(captions=[1], rate_hz=1, label=1)}, "metadata"),
        ({"json": json_bytes(captions=None, rate_hz=1, label=1)}, "metadata"),
        ({"json": json_bytes(captions="x", rate_hz=1)}, "metadata"),
        ({"imu.npy": None}, "missing"),
        ({"a.png": b""}, "empty"),
        ({"audio.wav": b"RIFF"}, "corrupt"),
    ],
)
def test_bad_samples_have_reasons_and_spoil_no_other(tmp_path, changes, reason):
    samples = [sample(0), sample(1, **changes), sample(2)]
    source = make(tmp_path, samples, ALL, positive_key="label")
    with pytest.raises(DecodeError) as caught:
        source.decode(1, None)
    assert caught.value.reason == reason
    assert source.decode(0, None).values["text"] == "thing 0"
    assert source.decode(2, None).values["text"] == "thing 2"


def test_json_that_is_not_an_object_is_a_bad_sample(tmp_path):
    samples = [sample(i, **{"extra.json": b"[1, 2]"}) for i in range(3)]
    for entry in ({"key": "name"}, {"template": "{name}"}):
        source = make(tmp_path, samples, {"text": {"member": "extra.json", **entry}})
        with pytest.raises(DecodeError, match="metadata: expected a JSON object, got list"):
            source.decode(0, None)


def test_limits_hold_before_a_member_is_read(tmp_path):
    source = make(tmp_path, [sample(0), sample(1), sample(2)], ALL)
    source = source.within(SourceContext(limits=Limits(max_bytes=10)))
    with pytest.raises(DecodeError, match="over max_bytes=10") as caught:
        source.decode(0, None)
    assert caught.value.reason == "too_large"


def test_a_bad_shard_does_not_touch_the_other(tmp_path):
    source = make(tmp_path, [sample(i) for i in range(5)], ALL)
    shard = tmp_path / "made-train-001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert source.decode(1, None).key == "k1"
    with pytest.raises(ShardError, match=r"made-train-001\.tar.*the manifest says"):
        source.decode(2, None)
    assert source.place(2) == ("made-train-001.tar", "sample 2")
    assert source.place(1) == ("made-train-000.tar", "k1")
    shard.unlink()
    with pytest.raises(ShardError, match="the manifest says"):
        source.decode(4, None)  # not looked at again so soon
    source = make(tmp_path, [sample(i) for i in range(5)], ALL)
    shard.unlink()
    with pytest.raises(ShardError, match="cannot be opened: No such file"):
        source.decode(4, None)


def test_a_shard_is_verified_only_if_asked_for(tmp_path):
    source = make(tmp_path, [sample(i) for i in range(5)], ALL)
    shard = tmp_path / "made-train-001.tar"
    content = shard.read_bytes()
    changed = content.replace(b"caption 3", b"caption 4")
    shard.write_bytes(changed)
    with pytest.raises(ShardError, match="sha256 differs from the manifest"):
        source.decode(2, None)
    source = make(tmp_path / "other", [sample(i) for i in range(5)], ALL)
    (tmp_path / "other" / shard.name).write_bytes(changed)
    source = source.within(SourceContext(verify=False))
    assert source.decode(3, None).key == "k3"


def test_the_next_sample_and_the_next_shard(tmp_path):
    source = make(tmp_path, [sample(i) for i in range(5)], ALL)
    assert [source.next_index(i, False) for i in range(5)] == [1, 2, 3, 4, 0]
    assert [source.next_index(i, True) for i in range(5)] == [2, 2, 0, 0, 0]


def test_shards_are_opened_once_and_not_pickled(tmp_path, monkeypatch):
    source = make(tmp_path, [sample(i) for i in range(5)], ALL)
    opened = []

    def opening(path, **expected):
        opened.append(path.name)
        return Shard(path, **expected)

    monkeypatch.setattr("multimodal.data.shards.opening.Shard", opening)
    for index in (0, 1, 4, 0, 3, 2, 1):
        source.decode(index, None)
    assert opened == ["made-train-000.tar", "made-train-001.tar"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.decode(3, None).key == "k3"
    assert len(opened) == 3


def test_all_captions_are_kept_where_none_is_drawn(tmp_path):
    text = {"member": "json", "key": "captions", "keep": "all"}
    three = [sample(i) for i in range(3)]
    source = make(tmp_path, three, ALL | {"text": text})
    assert source.decoder.multi_caption == "text"
    both = [source.decode(2, None, caption=number) for number in range(2)]
    assert [each.values["text"] for each in both] == ["thing 2", "an old thing 2"]
    assert {each.captions for each in both} == {2}
    with pytest.raises(IndexError):
        source.decode(2, None, caption=2)
    draws = [source.decode(2, SampleRNG(0, epoch, "s", 2, 0)) for epoch in range(20)]
    assert {each.values["text"] for each in draws} == {"thing 2", "an old thing 2"}
    assert {each.captions for each in draws} == {1}
    assert source.decode(2, None, ["image"]).captions == 1
    with pytest.raises(ValueError, match="keep: all is for one modality of a source, not text and"):
        make(tmp_path, three, {"text": text, "other": text})
    for wrong in ({"keep": "both"}, {"keep": "all", "key": None, "template": "{name}"}):
        with pytest.raises(ValueError, match=r"keep is one or all, and all needs the 'key'"):
            make(tmp_path, three, {"text": text | wrong})
