"""Rules about the metric of the validation that a callback or a scheduler goes by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.tree import block, join
from multimodal.core.names.modalities import joint_name
from multimodal.core.suggest import did_you_mean

Tree = dict[str, Any]
SCORE = "val/score"
OURS = "multimodal."


def monitored_metrics(tree: Tree) -> Iterator[ConfigProblem]:
    """What is monitored is `val/score`, or a metric of a source that is there.

    Of a model with pairs all names are known; a task's metrics are known only when it is validated,
    and a callback of the user's own may log what it monitors.
    """
    for where, node in _with_monitor(tree):
        name, known = str(node["monitor"]), {SCORE, *_of_pairs(tree)}
        if block(tree, "tasks"):
            starts = [f"val/{source}/" for source in block(tree, "data.sources")]
            if name.startswith(tuple(starts)):
                continue
            known |= {f"{start}TASK_METRIC" for start in starts}
        if name not in known:
            expected = f"expected a metric of the validation; {did_you_mean(name, known)}"
            yield ConfigProblem(f"{where}.monitor", f"given {name!r}, {expected}")


def _with_monitor(tree: Tree) -> Iterator[tuple[str, Tree]]:
    callbacks = block(tree, "callbacks")
    nodes: dict[str, Any] = {join("callbacks", str(k)): node for k, node in callbacks.items()}
    nodes["scheduler"] = tree.get("scheduler")
    for where, node in nodes.items():
        ours = isinstance(node, dict) and str(node.get("_target_", "")).startswith(OURS)
        if ours and node.get("monitor") is not None:
            yield where, node


def _of_pairs(tree: Tree) -> Iterator[str]:
    """`val/SOURCE/A_to_B_r@1`, both ways, as `ContrastiveModule` logs them."""
    for source in block(tree, "data.sources"):
        for pair in block(tree, "pairs").values():
            if isinstance(pair, dict):
                anchor, other = (
                    joint_name(side) if isinstance(side, list) else side
                    for side in (pair.get("anchor"), pair.get("other"))
                )
                yield f"val/{source}/{anchor}_to_{other}_r@1"
                yield f"val/{source}/{other}_to_{anchor}_r@1"
