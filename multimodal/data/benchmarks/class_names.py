"""Names of the classes of benchmarks, and the templates that they are put in."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

IMAGENET = ("imagenet", "imagenet_a", "imagenet_r")
CLASSES = "classes.json"  # beside the shards of a set whose classes come with it


@functools.cache
def _imagenet() -> dict[str, Any]:
    content = json.loads((Path(__file__).parent / "imagenet.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def synsets() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of their numbers."""
    return list(_imagenet()["classes"])


def class_names(name: str) -> dict[str, list[str]]:
    """Label -> names of each class.

    Args:
        name: ``imagenet``, ``imagenet_a`` or ``imagenet_r``, whose labels are WordNet ids, or the
            path of a JSON file with ``classes``: label -> a name, or several.

    Raises:
        ValueError: if there is no such list or file, or the file holds no classes.
    """
    if name.endswith(".json"):
        classes = _in_file(name, "classes", dict)
        return {str(label): [of] if isinstance(of, str) else of for label, of in classes.items()}
    if name not in IMAGENET:
        raise ValueError(
            f"no list of classes '{name}'; there are {', '.join(IMAGENET)}, and JSON files"
        )
    every = _imagenet()["classes"]
    wanted = every if name == "imagenet" else _imagenet()[name]
    return {synset: [every[synset]] for synset in wanted}


def prompts(name: str) -> list[str]:
    """The templates of a list of classes, of which each has one ``{}``.

    Args:
        name: ``imagenet``, or the path of a JSON file with ``prompts``.

    Raises:
        ValueError: if there are none of that name, or the file holds none.
    """
    if name.endswith(".json"):
        return list(_in_file(name, "prompts", list))
    if name != "imagenet":
        raise ValueError(f"no list of templates '{name}'; there is 'imagenet', and JSON files")
    return list(_imagenet()["prompts"])


def _in_file(path: str, key: str, kind: type) -> Any:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {path}; `multimodal shards benchmark` writes it beside the shards"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    held = content.get(key) if isinstance(content, dict) else None
    names = list(held.values()) if isinstance(held, dict) else held
    if not isinstance(held, kind) or not names or not all(_is_name(name) for name in names or ()):
        expected = "label: name, or a list of names" if kind is dict else "a list of templates"
        raise ValueError(f"{path} has no '{key}' as expected: {expected}")
    return held


def _is_name(name: Any) -> bool:
    several = name if isinstance(name, list) else [name]
    return bool(several) and all(isinstance(each, str) for each in several)
