"""Rules of connected encoders: the backbone, and its tokenizer, are another tower's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.tree import at, block

Tree = dict[str, Any]


def is_connected(tower: Any) -> bool:
    """Whether a tower's encoder is a ``ConnectedEncoder``."""
    return str(at(tower, "encoder._target_")).endswith(".ConnectedEncoder")


def _connected(tree: Tree) -> Iterator[tuple[str, Tree, str]]:
    """Name and content of every connected tower, and the name of its backbone."""
    for name, tower in block(tree, "model.towers").items():
        if is_connected(tower):
            backbone = at(tower, "encoder.backbone")
            yield name, tower, "text" if backbone is None else str(backbone)


def backbones_of_towers(tree: Tree) -> Iterator[ConfigProblem]:
    """A backbone is the encoder of another tower, which is not connected itself."""
    towers = block(tree, "model.towers")
    possible = [
        n for n, tower in towers.items() if isinstance(tower, dict) and not is_connected(tower)
    ]
    for name, _, backbone in _connected(tree):
        if backbone not in possible:
            yield ConfigProblem(
                f"model.towers.{name}.encoder.backbone",
                f"'{backbone}' is not a tower with a language model; "
                f"{did_you_mean(backbone, possible)}",
            )


def tokenizers_of_backbones(tree: Tree) -> Iterator[ConfigProblem]:
    """A template is tokenized as the backbone's texts are."""
    for name, tower, backbone in _connected(tree):
        own = at(tower, "encoder.tokenizer")
        theirs = at(tree, f"data.transforms.{backbone}.tokenizer")
        if isinstance(own, dict) and theirs is not None and own != theirs:
            yield ConfigProblem(
                f"model.towers.{name}.encoder.tokenizer",
                f"is not the tokenizer of the backbone's texts: set it to "
                f"${{data.transforms.{backbone}.tokenizer}}",
            )


def what_of_connected_towers_learns(tree: Tree) -> Iterator[ConfigProblem]:
    """A frozen tower has a frozen backbone, and a tuned one an encoder that is not frozen."""
    for name, tower, backbone in _connected(tree):
        trained = at(tree, f"model.towers.{backbone}.frozen") not in (True, "encoder")
        if tower.get("frozen") in (True, "encoder") and trained:
            yield ConfigProblem(
                f"model.towers.{name}.frozen",
                f"its embeddings would change all the same: its backbone, the tower {backbone}, is "
                "trained. Freeze both, or neither",
            )
        if tower.get("tuning") is not None and at(tower, "encoder.frozen") is not False:
            yield ConfigProblem(
                f"model.towers.{name}.tuning",
                "tunes an encoder that is frozen: set encoder.frozen=false; the connector is "
                f"trained without it, and model.towers.{backbone}.tuning is for the backbone",
            )
