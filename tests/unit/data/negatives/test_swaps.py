"""Word swaps: one thing of a text changes, in the kind that was asked for."""

from __future__ import annotations

import pytest

from multimodal.data.negatives.lexicon import ATTRIBUTES, OBJECTS, RELATIONS
from multimodal.data.negatives.swaps import KINDS, swapped
from multimodal.data.sample_rng import SampleRNG

TEXT = "A red chair next to a small dog."


def rng(index: int = 0) -> SampleRNG:
    return SampleRNG(0, 0, "source", index, 0)


def every(text: str, kind: str) -> set[str]:
    return set(swapped(text, [kind], 1000, rng(), "text"))


def test_an_object_is_replaced_by_one_of_its_kind():
    found = every(TEXT, "replace_object")
    assert "A red chair next to a small cat." in found
    assert "A red table next to a small dog." in found
    assert "A red dog next to a small dog." not in found


def test_an_attribute_is_replaced():
    assert "A blue chair next to a small dog." in every(TEXT, "replace_attribute")
    assert "A red chair next to a big dog." in every(TEXT, "replace_attribute")


def test_a_relation_is_replaced_and_a_part_of_one_is_not():
    assert every(TEXT, "replace_relation") == {
        "A red chair on top of a small dog.",
        "A red chair far from a small dog.",
    }
    found = every("a cat on top of a table", "replace_relation")
    assert "a cat under a table" in found
    assert not any("under top" in text or "beside top" in text for text in found)


def test_objects_and_attributes_change_places():
    assert every(TEXT, "swap_object") == {"A red dog next to a small chair."}
    assert every(TEXT, "swap_attribute") == {"A small chair next to a red dog."}
    assert every("two men and a horse", "swap_object") == set()  # "two horse" is no English


def test_an_object_or_an_attribute_is_added():
    assert "A red chair and a car next to a small dog." in every(TEXT, "add_object")
    assert every(TEXT, "add_attribute") == set()  # both have one
    assert "a huge dog" in every("a dog", "add_attribute")


def test_articles_follow_the_word():
    assert "an orange chair" in every("a red chair", "replace_attribute")
    assert "a young woman" in every("an old woman", "replace_attribute")


def test_a_text_without_known_words_has_none():
    assert swapped("hello there", list(KINDS), 5, rng(), "text") == []


def test_several_are_of_different_kinds_and_the_same_in_every_process():
    first = swapped(TEXT, list(KINDS), 6, rng(), "text")
    assert first == swapped(TEXT, list(KINDS), 6, rng(), "text")
    assert len(set(first)) == 6
    sets = {kind: every(TEXT, kind) for kind in KINDS}
    assert sum(any(text in found for text in first) for found in sets.values()) == 6
    assert any(swapped(TEXT, list(KINDS), 1, rng(i), "text") != first[:1] for i in range(1, 9))


@pytest.mark.parametrize("groups", [ATTRIBUTES, OBJECTS, RELATIONS])
def test_words_of_a_group_differ(groups):
    for group in groups:
        assert len(set(group)) == len(group) > 1
