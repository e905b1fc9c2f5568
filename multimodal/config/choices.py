"""Do loss, negatives and candidates of every pair go together? The objectives say, this asks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.utils import instantiate

from multimodal.config.faults import Fault
from multimodal.config.tree import UNKNOWN, block, nodes

CHOICES = ("loss", "negatives", "candidates")


def unfit_choices(tree: dict[str, Any], faults: Sequence[Fault]) -> Iterator[Fault]:
    """Builds the choices of every pair, which hold no data and no weights, and asks `compatible`.

    Args:
        tree: the configuration.
        faults: those found so far; a choice that has one is not built.
    """
    for name, pair in block(tree, "pairs").items():
        if not isinstance(pair, dict):
            continue
        built = []
        for choice in CHOICES:
            where = f"pairs.{name}.{choice}" if pair.get(choice) else choice
            node = pair.get(choice) or tree.get(choice)
            if not _buildable(node) or any(fault.where.startswith(where) for fault in faults):
                break
            try:
                built.append(instantiate(node))
            except Exception as error:
                yield Fault(where, str(error.__cause__ or error).splitlines()[0])
                break
        else:
            contract = importlib.import_module("multimodal.objectives.contract")
            if reason := contract.compatible(*built):
                yield Fault(f"pairs.{name}", str(reason))


def _buildable(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and "_target_" in node
        and not any(value is UNKNOWN for _, inner in nodes(node) for value in inner.values())
    )
