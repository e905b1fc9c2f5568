"""Captions of a sample, drawn by their weights."""

from __future__ import annotations

from collections import Counter

import pytest
from data_helpers import json_bytes, write_source

from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source


def drawn_texts(tmp_path, weights, **metadata) -> dict[str, int]:
    content = {"captions": ["a", "b", "c"], **metadata}
    path = write_source(tmp_path, {"train": [[("k", {"json": json_bytes(**content)})]]})
    entry = {"member": "json", "key": "captions", "weights": weights}
    source = Source(str(path), {"text": entry})
    assert source.decode(0, None).values["text"] == "a"  # without a draw the first
    rngs = (SampleRNG(0, epoch, "s", 0, 0) for epoch in range(400))
    return dict(Counter(source.decode(0, rng).values["text"] for rng in rngs))


def test_captions_are_drawn_with_weights(tmp_path):
    counts = drawn_texts(tmp_path, [6, 0, 2])
    assert counts.keys() == {"a", "c"}
    assert 270 < counts["a"] < 330
    own = drawn_texts(tmp_path, "likely", likely=[0, 0.5, 0])
    assert own == {"b": 400}


@pytest.mark.parametrize("likely", [[1, 2], [1, 2, "3"], [1, -1, 1], "1", [0, 0, 0], [1, True, 1]])
def test_wrong_weights_are_bad_samples(tmp_path, likely):
    with pytest.raises(DecodeError, match="weight"):
        drawn_texts(tmp_path, "likely", likely=likely)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("inf")]])
def test_wrong_weights_of_a_source_are_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="weights must be numbers from 0, one above 0"):
        drawn_texts(tmp_path, weights)
