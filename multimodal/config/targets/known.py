"""Our own classes that only a training builds, by the places where they belong.

A checkpoint is judged by whoever reads it, most of whom do not train: of these classes the kinds
are known, so nothing that trains is imported to find them out. A test compares the table with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Place -> names that a room offers, there as instances, or as partials.
PARTIALS = ("scheduler",)
KNOWN = {
    "data": ("multimodal.data.MultimodalDataModule", "multimodal.data.StreamDataModule"),
    "callbacks.*": (
        "multimodal.training.Checkpoint",
        "multimodal.training.DataWait",
        "multimodal.training.EarlyStopping",
        "multimodal.training.LossSpikes",
        "multimodal.training.ProgressBar",
        "multimodal.training.SkipNonFinite",
        "multimodal.training.StopOnSignal",
        "multimodal.training.Summary",
        "multimodal.training.Throughput",
        "multimodal.training.WeightAverage",
    ),
    "logger.*": (
        "multimodal.training.CSVLogger",
        "multimodal.training.MLflowLogger",
        "multimodal.training.TensorBoardLogger",
        "multimodal.training.WandbLogger",
    ),
    "scheduler": (
        "multimodal.training.Constant",
        "multimodal.training.InverseSqrt",
        "multimodal.training.WarmupCosine",
        "multimodal.training.WarmupLinear",
        "multimodal.training.WarmupStableDecay",
    ),
    "trainer.strategy": (
        "multimodal.training.ReplicatedStrategy",
        "multimodal.training.ShardedStrategy",
    ),
}


def is_known(path: Sequence[str], block: dict[str, Any]) -> bool:
    """Whether a block names a class of ours that belongs at its place.

    What is nested in it is judged by places of its own.
    """
    if "_args_" in block:
        return False
    for pattern, names in KNOWN.items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(
            part in ("*", key) for part, key in zip(parts, path, strict=True)
        ):
            partial = block.get("_partial_", False)
            return partial is (pattern in PARTIALS) and block["_target_"] in names
    return False
