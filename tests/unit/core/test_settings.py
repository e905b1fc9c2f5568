from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass, field

import pytest

from multimodal.core.settings import flattened


@dataclass(frozen=True)
class Colour:
    hue: float = 0.5
    names: list[str] = field(default_factory=lambda: ["red"])


class Picture:
    @flattened(colour=Colour)
    def __init__(self, size: int, depth: int = 1, *, colour: Colour) -> None:
        self.size, self.depth, self.colour = size, depth, colour


def test_fields_are_keywords_and_arrive_as_one_object():
    assert Picture(3, hue=0.1).colour == Colour(0.1)
    assert Picture(3).colour == Colour()
    assert Picture(3, 2, colour=Colour(0.9)).colour == Colour(0.9)


def test_the_signature_lists_the_fields_in_place_of_the_object():
    parameters = inspect.signature(Picture).parameters
    assert list(parameters) == ["size", "depth", "hue", "names"]
    assert parameters["hue"].default == 0.5
    assert parameters["names"].default == ["red"]
    hints = typing.get_type_hints(Picture.__init__)
    assert hints == {
        "size": int, "depth": int, "hue": float, "names": list[str], "return": type(None),
    }  # fmt: skip


def test_an_object_beside_one_of_its_fields_is_rejected():
    with pytest.raises(TypeError, match="either colour= or hue, not both"):
        Picture(3, colour=Colour(), hue=0.1)


def test_an_unknown_keyword_is_rejected():
    with pytest.raises(TypeError, match="heu"):
        Picture(3, heu=0.1)
