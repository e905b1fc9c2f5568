"""Weights between a fine-tuned tower's and those that it began from.

WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): the mean of both is often better than either off
the data that it was tuned on, and about as good on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from multimodal.core.suggest import suggest
from multimodal.inference.adapters import write_model
from multimodal.inference.checkpoint.load import load_model
from multimodal.models.pretrained.keys import WeightsError
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import has_adapters


def interpolate(
    checkpoint: str,
    base: str,
    output: str,
    share: float = 0.5,
    towers: Sequence[str] | None = None,
    allowed_packages: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> tuple[EmbeddingModel, dict[str, str]]:
    """Writes a checkpoint with ``(1 - share) * base + share * tuned`` weights.

    Args:
        checkpoint: the fine-tuned one, whose other towers and temperatures are kept.
        base: the checkpoint that it was tuned from, or one imported.
        output: the checkpoint that is written.
        share: of the fine-tuned weights, 0 to 1; both ends are the given weights, bit by bit.
        towers: by modality; None: all that both have.
        allowed_packages: as in ``load_model``.
        addresses: as in ``load_model``.

    Returns:
        the model, and what was done to each tower.

    Raises:
        WeightsError: if a tower is not in both, or is another network there.
    """
    if not 0 <= share <= 1:
        raise WeightsError(f"share={share:g}: expected 0 (the base's weights) to 1 (the tuned)")
    model, cfg = load_model(checkpoint, allowed_packages, addresses=addresses)
    original, _ = load_model(base, allowed_packages, addresses=addresses)
    common = [name for name in model.towers if name in original.towers]
    for name in towers or ():
        if name not in common:
            raise WeightsError(
                f"towers={name}: not a tower of both checkpoints; {suggest(name, common)}"
            )
    if not common:
        raise WeightsError(f"{checkpoint} and {base} have no tower in common")
    done: dict[str, str] = {}
    blended: dict[int, str] = {}  # of towers that modalities share
    for name in towers or common:
        tower = model.tower(name)
        if id(tower) not in blended:
            blended[id(tower)] = name
            _blend(name, tower, original.tower(name), share)
        done[name] = f"{1 - share:g} of the base's weights and {share:g} of the tuned"
    write_model(checkpoint, output, model, cfg, allowed_packages, addresses)
    return model, done


@torch.no_grad()
def _blend(name: str, tuned: Tower, base: Tower, share: float) -> None:
    ours, theirs = tuned.state_dict(), base.state_dict()
    if has_adapters(ours) or has_adapters(theirs):
        raise WeightsError(f"{name}: it has adapters: merge them first (merge=true)")
    problems = [f"only in the tuned: {key}" for key in sorted(ours.keys() - theirs.keys())]
    problems += [f"only in the base: {key}" for key in sorted(theirs.keys() - ours.keys())]
    problems += [
        f"{key}: tuned {list(ours[key].shape)}, base {list(theirs[key].shape)}"
        for key in sorted(ours.keys() & theirs.keys())
        if ours[key].shape != theirs[key].shape
    ]
    if problems:
        raise WeightsError("\n  ".join([f"{name}: another network in the base:", *problems[:20]]))
    for key, tensor in ours.items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(theirs[key].double(), tensor.double(), share))
