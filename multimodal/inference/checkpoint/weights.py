"""Which weights of a checkpoint are used: those that learned, or their moving average; scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from multimodal.config import stored_tree
from multimodal.config.tree import at
from multimodal.core.names.modalities import side_name
from multimodal.inference.checkpoint.file import CheckpointError

STATE = "ema"  # its key in a checkpoint: name of a trained parameter -> average


CHOICES = ("average", "raw")
_NO_SCALE = ("Target", "Affinity")  # losses that end so learn no temperature of the embeddings


def uses_average(
    checkpoint: Mapping[str, Any], path: str | Path, choice: str | None = None
) -> bool:
    """Whether to evaluate the moving average in a checkpoint.

    Args:
        checkpoint: as read.
        path: of it, for messages.
        choice: ``average`` or ``raw``; None: as the run itself evaluates, which is the average
            where there is one, unless ``callbacks.ema.evaluate`` was false.

    Raises:
        CheckpointError: if given another choice, or if there is no average.
    """
    if choice not in (None, *CHOICES):
        raise CheckpointError.mistake(f"weights={choice}: expected {' or '.join(CHOICES)}, or null")
    if STATE not in checkpoint:
        if choice == "average":
            raise CheckpointError.mistake(
                f"weights=average: {path} holds no moving average, its run was not trained with "
                "callbacks=ema; leave weights out"
            )
        return False
    if choice is None:
        own = at(stored_tree(checkpoint["config"], path), "callbacks.ema.evaluate")
        return own is not False
    return choice == "average"


def weights_of(
    checkpoint: Mapping[str, Any], path: str | Path, choice: str | None = None
) -> dict[str, Tensor]:
    """The state dict of a checkpoint's module for evaluation; see `uses_average`."""
    average = checkpoint[STATE] if uses_average(checkpoint, path, choice) else {}
    return {**checkpoint["state_dict"], **average}


def pair_temperatures(
    cfg: DictConfig, weights: Mapping[str, Tensor]
) -> dict[frozenset[str], float]:
    """1 / logit scale of every pair of ``cfg``, from a training module's state dict.

    Of several pairs of the same modalities the last counts; one without a scale is left out, and so
    is one whose loss says nothing of it: a target, an affinity.
    """
    temperatures = {}
    pairs = OmegaConf.select(cfg, "pairs")
    for name, pair in pairs.items() if isinstance(pairs, DictConfig) else ():
        scale = weights.get(f"objective.pairs.{name!s}.logit_scale")
        if not isinstance(pair, DictConfig):
            continue
        losses = ("loss._target_", "loss.loss._target_")  # itself, or one over prefixes
        if any(str(OmegaConf.select(pair, path)).endswith(_NO_SCALE) for path in losses):
            continue
        if scale is not None and scale.numel() == 1:
            sides = (pair.get(side) or "" for side in ("anchor", "other"))
            ends = frozenset(map(side_name, sides))
            temperatures[ends] = float((-scale).exp())
    return temperatures


def keep_trained_biases(cfg: DictConfig, weights: Mapping[str, Tensor]) -> None:
    """Writes every pair's trained ``logit_bias`` (SigLIP) where ``cfg`` says how it begins.

    Args:
        cfg: a checkpoint's configuration, which is changed.
        weights: a training module's state dict.
    """
    pairs = OmegaConf.select(cfg, "pairs")
    for name, pair in pairs.items() if isinstance(pairs, DictConfig) else ():
        bias = weights.get(f"objective.pairs.{name!s}.logit_bias")
        if isinstance(pair, DictConfig) and bias is not None and bias.numel() == 1:
            OmegaConf.update(pair, "logit_bias", float(bias), force_add=True)


def bias_of(cfg: DictConfig, a: str, b: str) -> float | None:
    """The ``logit_bias`` of the last pair of these two modalities; None where it has none."""
    bias = None
    pairs = OmegaConf.select(cfg, "pairs")
    for pair in pairs.values() if isinstance(pairs, DictConfig) else ():
        if isinstance(pair, DictConfig):
            sides = {side_name(pair.get(side) or "") for side in ("anchor", "other")}
            if sides == {a, b}:
                bias = pair.get("logit_bias")
    return bias
