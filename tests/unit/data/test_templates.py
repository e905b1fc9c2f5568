"""Texts made of metadata."""

import pytest

from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.templates import Template

FOX = {"name": "fox", "tags": ["animal", "face", "red"], "year": 2016, "empty": []}


def draws(count):
    return [SampleRNG(0, 0, "emoji", index, 0) for index in range(count)]


def test_keys_are_filled_in_and_lists_joined():
    assert Template("{name}").fill(FOX, None, "text") == "fox"
    filled = Template("{name}: {tags} ({year})").fill(FOX, None, "text")
    assert filled == "fox: animal, face, red (2016)"
    assert Template("{name}, {empty}").fill(FOX, None, "text") == "fox"


def test_training_shuffles_and_shortens_lists():
    texts = [Template("{tags}").fill(FOX, rng, "text") for rng in draws(200)]
    assert {len(text.split(", ")) for text in texts} == {1, 2, 3}
    assert {text.split(", ")[0] for text in texts} == set(FOX["tags"])
    assert all(len(set(text.split(", "))) == len(text.split(", ")) for text in texts)
    assert texts == [Template("{tags}").fill(FOX, rng, "text") for rng in draws(200)]


@pytest.mark.parametrize(
    "text", ["no key", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{a"]
)
def test_anything_but_names_in_braces_is_rejected(text):
    with pytest.raises(ValueError, match="template"):
        Template(text)


@pytest.mark.parametrize(
    ("text", "reason"), [("{nmae}", "metadata"), ("{flag}", "metadata"), ("{empty}", "empty")]
)
def test_metadata_that_do_not_fit_are_bad_samples(text, reason):
    with pytest.raises(DecodeError) as caught:
        Template(text).fill(FOX | {"flag": True}, None, "text")
    assert caught.value.reason == reason
