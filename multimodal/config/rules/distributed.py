"""Rules of multi-device training: what its strategies require."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.rules.connected import is_connected
from multimodal.config.tree import at, block, nodes

SHARDED = "multimodal.training.ShardedStrategy"


def fsdp_constraints(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """``trainer=fsdp`` supports all but what needs whole weights at times of its own."""
    strategy = at(tree, "trainer.strategy")
    if isinstance(strategy, str) and strategy.startswith(("fsdp", "deepspeed", "model_parallel")):
        yield ConfigProblem(
            "trainer.strategy",
            f"'{strategy}' saves checkpoints that can neither be verified nor resumed; use "
            "trainer=fsdp",
        )
    if at(tree, "trainer.strategy._target_") != SHARDED:
        return
    remedy = "leave it out, or use trainer=ddp"
    reasons: dict[str, str | None] = {
        "data.cache_frozen": (
            "ranks cache different numbers of batches, but sharded weights need all ranks"
            if at(tree, "data.cache_frozen") is True
            else None
        ),
        "model.joint": (
            "they were not tried with sharded towers" if at(tree, "model.joint") else None
        ),
        "self_distillation": (
            "a momentum copy of sharded weights is not supported"
            if at(tree, "self_distillation") is not None
            else None
        ),
        "model.compile": (
            "the layers' weights are gathered within what would be compiled"
            if at(tree, "model.compile") is not None
            else None
        ),
    }
    for name, tower in block(tree, "model.towers").items():
        if is_connected(tower):
            reasons[f"model.towers.{name}.encoder"] = (
                "a backbone is sharded with its own tower, and other towers cannot gather it"
            )
        if str(at(tower, "encoder._target_")).endswith(".VisionLanguageEncoder"):
            reasons[f"model.towers.{name}.encoder"] = (
                "encoder=vlm was not tried with sharded weights"
            )
    for where, node in nodes(tree):
        if where.endswith("candidates") and node.get("momentum") is not None:
            reasons[f"{where}.momentum"] = "a momentum copy of sharded weights is not supported"
    for where, reason in reasons.items():
        if reason is not None:
            yield ConfigProblem(where, f"does not go with trainer=fsdp: {reason}; {remedy}")
