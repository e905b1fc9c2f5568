"""Names of the classes of benchmarks, and the templates that they are put in."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

IMAGENET = ("imagenet", "imagenet_a", "imagenet_r")


@functools.cache
def _imagenet() -> dict[str, Any]:
    content = json.loads((Path(__file__).parent / "imagenet.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def synsets() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of their numbers."""
    return list(_imagenet()["classes"])


def class_names(name: str) -> dict[str, list[str]]:
    """WordNet id -> names of each class of ``imagenet``, ``imagenet_a`` or ``imagenet_r``.

    Raises:
        ValueError: if there is no such list.
    """
    if name not in IMAGENET:
        raise ValueError(f"no list of classes '{name}'; there are {', '.join(IMAGENET)}")
    every = _imagenet()["classes"]
    wanted = every if name == "imagenet" else _imagenet()[name]
    return {synset: [every[synset]] for synset in wanted}


def prompts(name: str) -> list[str]:
    """The templates of a list of classes, of which each has one ``{}``.

    Raises:
        ValueError: if there are none of that name.
    """
    if name != "imagenet":
        raise ValueError(f"no list of templates '{name}'; there is 'imagenet'")
    return list(_imagenet()["prompts"])
