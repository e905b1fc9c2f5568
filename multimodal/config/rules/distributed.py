"""Rules of training on several devices: what its strategies ask of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import Fault
from multimodal.config.tree import at, block, nodes

SHARDED = "multimodal.training.ShardedStrategy"


def what_can_be_split(tree: dict[str, Any]) -> Iterator[Fault]:
    """``trainer=fsdp`` goes with towers in pairs, and not with what keeps copies of weights."""
    strategy = at(tree, "trainer.strategy")
    if isinstance(strategy, str) and strategy.startswith(("fsdp", "deepspeed", "model_parallel")):
        yield Fault(
            "trainer.strategy",
            f"'{strategy}' saves checkpoints that cannot be verified or gone on from; use "
            "trainer=fsdp",
        )
    if at(tree, "trainer.strategy._target_") != SHARDED:
        return
    remedy = "leave it out, or use trainer=ddp"
    reasons: dict[str, str | None] = {
        "tasks": "a fusion and its tasks are not split" if block(tree, "tasks") else None,
        "fusion": "a fusion is not split" if at(tree, "fusion") is not None else None,
        "callbacks.ema": (
            "the moving average of split weights is not kept"
            if at(tree, "callbacks.ema") is not None
            else None
        ),
        "micro_batch_size": (
            "pieces would gather the weights again in the backward"
            if at(tree, "micro_batch_size") is not None
            else None
        ),
        "data.cache_frozen": (
            "ranks cache different numbers of batches, and split weights need all ranks"
            if at(tree, "data.cache_frozen") is True
            else None
        ),
    }
    for where, node in nodes(tree):
        if where.endswith("candidates") and node.get("momentum") is not None:
            reasons[f"{where}.momentum"] = "a slowly moving copy of split weights is not kept"
    for where, reason in reasons.items():
        if reason is not None:
            yield Fault(where, f"does not go with trainer=fsdp: {reason}; {remedy}")
