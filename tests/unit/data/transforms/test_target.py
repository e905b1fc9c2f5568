"""Targets from metadata: classes, sets of labels, numbers; and what is none of them."""

import pytest
import torch

from multimodal.data.errors import DecodeError
from multimodal.data.transforms.target import (
    LabelSetTransform,
    LabelTransform,
    NumberTransform,
)


def test_a_class_is_its_place():
    place = LabelTransform(["cat", "dog", 3])
    assert [place(name, None).item() for name in ("cat", "dog", 3)] == [0, 1, 2]
    assert place("dog", None).dtype == torch.int64
    batch, mask = place.collate([place("dog", None), place("cat", None)])
    assert batch.tolist() == [1, 0]
    assert mask is None


def test_labels_are_marked():
    mark = LabelSetTransform(["a", "b", "c"])
    assert mark(["c", "a"], None).tolist() == [1.0, 0.0, 1.0]
    assert mark([], None).tolist() == [0.0, 0.0, 0.0]
    assert mark.collate([mark(["b"], None), mark([], None)])[0].shape == (2, 3)


def test_numbers_are_standardised():
    assert NumberTransform(mean=1.0, std=2.0)(5, None).tolist() == [2.0]
    assert NumberTransform(outputs=2)([0.5, -1], None).tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("transform", "value", "reason"),
    [
        (LabelTransform(["a", "b"]), "c", "label"),
        (LabelTransform([0, 1]), True, "label"),
        (LabelTransform(["a", "b"]), ["a"], "label"),
        (LabelSetTransform(["a", "b"]), "a", "label"),
        (LabelSetTransform(["a", "b"]), ["a", "c"], "label"),
        (NumberTransform(), "3", "label"),
        (NumberTransform(), True, "label"),
        (NumberTransform(outputs=2), [1.0], "label"),
        (NumberTransform(), float("nan"), "not_finite"),
    ],
)
def test_an_invalid_target_is_a_bad_sample(transform, value, reason):
    with pytest.raises(DecodeError) as caught:
        transform(value, None)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelTransform(["a"]),
        lambda: LabelSetTransform(["a", "a"]),
        lambda: NumberTransform(outputs=0),
        lambda: NumberTransform(std=0.0),
    ],
)
def test_invalid_arguments_are_rejected(make):
    with pytest.raises(ValueError, match=r"different ones|above 0"):
        make()
