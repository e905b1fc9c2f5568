"""Which cached views a step reads: aligned modalities together, the others each on its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from data_helpers import image_bytes, json_bytes, npy_bytes, write_source
from loader_helpers import scheduled_loader

from multimodal.data.loading.cached_views import CachedBatches, read_views
from multimodal.data.loading.collate import Sample, collate, load
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.text import TextTransform

NUMBERS, VIEWS = 12, 4
STYLES = ["a.png", "b.png", "c.png", "d.png"]


@pytest.fixture
def source(tmp_path):
    def sample(number: int):
        members = {style: image_bytes(np.full((8, 8, 3), number, np.uint8)) for style in STYLES}
        members["depth.npy"] = npy_bytes(np.full((8, 8), 1.0 + number, np.float32))
        members["json"] = json_bytes(name=f"thing {number // 2}", alt="other")
        return f"k{number}", members

    path = write_source(tmp_path, {"train": [[sample(number) for number in range(NUMBERS)]]})
    modalities = {
        "image": {"member": STYLES},
        "depth": {"member": "depth.npy"},
        "text": {"member": "json", "template": ["{name}", "{alt}"]},
    }
    return Source(str(path), modalities, positive_key="name")


def cached(source: Source, folder, *names: str) -> dict[str, FrozenEmbeddings]:
    """Tables whose rows say which sample and view they are."""
    for name in names:
        table = folder / f"table-{name}"
        table.mkdir()
        FrozenEmbeddings.create(table, NUMBERS, VIEWS, 2)
        filled = FrozenEmbeddings(table, writable=True)
        for index in range(NUMBERS):
            filled.write(index, torch.tensor([[index, view] for view in range(VIEWS)]).float())
        filled.flush()
        source.frozen[name] = FrozenEmbeddings(table)
    return source.frozen


def views_of(source: Source, epochs: int = 200, repeats: int = 1) -> list[dict[str, int]]:
    """The views that the uses of one sample read."""
    drawn = []
    for epoch in range(epochs):
        for repeat in range(repeats):
            rng = SampleRNG(3, epoch, source.name, 5, repeat)
            embeddings, _ = read_views(source, 5, rng, source.frozen)
            drawn.append({name: int(row[1]) for name, row in embeddings.items()})
    return drawn


def test_the_views_of_a_sample_take_its_members_and_texts_in_turn():
    for index in range(30):
        draws = [SampleRNG.of_view(3, "made", index, view) for view in range(VIEWS)]
        assert sorted(rng.pick("image.member", 4) for rng in draws) == [0, 1, 2, 3]
        assert sorted(rng.pick("text.template", 2) for rng in draws) == [0, 0, 1, 1]
    firsts = {SampleRNG.of_view(3, "made", index, 0).pick("image.member", 4) for index in range(30)}
    assert firsts == {0, 1, 2, 3}


def test_a_text_s_view_is_met_with_every_view_of_the_picture(source, tmp_path):
    cached(source, tmp_path, "image", "text")
    met = Counter((views["image"], views["text"]) for views in views_of(source))
    assert set(met) == {(a, b) for a in range(VIEWS) for b in range(VIEWS)}
    assert max(met.values()) < 40  # of 200: 12.5 each


def test_what_is_aligned_is_read_in_one_view(source, tmp_path):
    cached(source, tmp_path, "image", "depth", "text")
    views = views_of(source)
    assert all(each["image"] == each["depth"] for each in views)
    assert any(each["image"] != each["text"] for each in views)


def test_the_repeats_of_an_epoch_rotate_through_each_modality_s_views(source, tmp_path):
    cached(source, tmp_path, "image", "text")
    views = views_of(source, epochs=1, repeats=VIEWS)
    for name in ("image", "text"):
        assert sorted(each[name] for each in views) == list(range(VIEWS))


def test_beside_a_teacher_s_all_are_of_its_view(source, tmp_path):
    cached(source, tmp_path, "teacher_image", "image", "text")
    assert all(len(set(each.values())) == 1 for each in views_of(source, epochs=20))
    rng = SampleRNG(3, 1, source.name, 5, 0)
    _, rest = read_views(source, 5, rng, source.frozen)
    assert rest == SampleRNG.of_view(3, source.name, 5, rng.choose_view(VIEWS))


@pytest.mark.parametrize(
    ("entries", "alone"),
    [
        ({"image": "a.png", "depth": "depth.npy", "audio": "s.wav"}, {"audio"}),
        ({"video": "clip.mp4", "audio": "clip.mp4"}, set()),
        ({"video": "clip.mp4", "audio": "s.wav", "imu": "imu.npy"}, {"audio", "imu"}),
        ({"audio": "s.wav", "again": "s.wav"}, set()),
        ({"audio": "s.wav", "image": "a.png", "text": "caption.txt"}, {"audio", "text"}),
    ],
)
def test_what_is_aligned_with_nothing(tmp_path, entries, alone):
    sample = ("k0", dict.fromkeys(sorted(set(entries.values())), b"bytes"))
    path = write_source(tmp_path, {"train": [[sample]]})
    source = Source(str(path), {name: {"member": member} for name, member in entries.items()})
    assert source.decoder.alone == alone


def test_what_is_read_beside_a_cached_clip_has_its_moment():
    own = SampleRNG(3, 1, "made", 5, 0)
    of_view = SampleRNG.of_view(3, "made", 5, 2)
    beside = SampleRNG(3, 1, "made", 5, 0, view=2)
    assert beside.moment() == of_view.moment() != own.moment()


class Letters:
    start, end, pad = 1, 2, 0

    def encode(self, text):
        return [ord(letter) for letter in text]


@pytest.fixture
def transforms():
    return {
        "image": ImageTransform(8, [0.5] * 3, [0.5] * 3),
        "depth": DepthTransform(8, unit_m=1.0),
        "text": TextTransform(Letters(), 4),
    }


def by_samples(source: Source, transforms: dict, loader, step: int):
    spec = loader.schedule(step)
    draws = [
        SampleRNG(0, spec.epoch, "made", index, repeat)
        for index, repeat in zip(spec.indices.tolist(), spec.repeats.tolist(), strict=True)
    ]
    samples = [load(source, transforms, rng.index, rng, None, source.frozen) for rng in draws]
    assert all(isinstance(sample, Sample) for sample in samples)
    return collate(samples, transforms, "made", step, with_metadata=False)


def test_whole_batches_equal_those_put_together_by_samples(source, tmp_path, transforms):
    source = source.within(source._context, "made")
    cached(source, tmp_path, "image", "depth", "text")
    loader = scheduled_loader({"made": source}, transforms, 4, 0)
    assert CachedBatches.cover(source)
    for _ in range(3):
        for batch in loader:
            expected = by_samples(source, transforms, loader, batch.step)
            assert batch.keys == expected.keys
            assert batch.source == "made"
            for name in ("sample_ids", "positive_keys", "repeats"):
                torch.testing.assert_close(getattr(batch, name), getattr(expected, name))
            assert batch.embeddings.keys() == expected.embeddings.keys() == set(source.frozen)
            for name, rows in expected.embeddings.items():
                assert torch.equal(batch.embeddings[name], rows)
            assert not batch.inputs
            assert not batch.metadata


def test_what_is_cached_is_not_decoded_again(source, tmp_path, transforms, monkeypatch):
    source = source.within(source._context, "made")
    cached(source, tmp_path, "image", "depth", "text")
    decoded = []
    decode = Source.decode
    monkeypatch.setattr(
        Source,
        "decode",
        lambda self, index, *rest: decoded.append(index) or decode(self, index, *rest),
    )
    loader = scheduled_loader({"made": source}, transforms, 4, 0)
    assert sum(len(batch) for _ in range(5) for batch in loader) == 5 * NUMBERS
    assert sorted(decoded) == list(range(NUMBERS))  # their names and ids, once


def test_a_batch_with_a_bad_sample_is_put_together_by_samples(source, tmp_path, transforms):
    source = source.within(source._context, "made")
    tables = cached(source, tmp_path, "image", "depth", "text")
    FrozenEmbeddings(tables["text"].folder, writable=True).write(5, None)
    source.frozen["text"] = FrozenEmbeddings(tables["text"].folder)
    loader = scheduled_loader({"made": source}, transforms, 4, 0)
    keys = [key for batch in loader for key in batch.keys]
    assert len(keys) == NUMBERS
    assert "k5" not in keys
    assert keys.count("k6") == 2  # the next one took its place
    assert loader.counter.bad == loader.counter.replaced == 1
    assert loader.counter.reasons == {"not_embedded": 1}


def test_a_source_with_something_to_decode_is_put_together_by_samples(source, tmp_path):
    cached(source, tmp_path, "image", "text")
    assert not CachedBatches.cover(source)
