"""What a pair's similarities look like, measured cheaply and beside the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.objectives.identity import Identity, matches

MEASURED_ROWS = 256  # anchors per rank and step; enough for a curve, and little beside the loss


@torch.no_grad()
def similarity_metrics(
    anchors: Tensor, candidates: Tensor, batch: Identity, own: slice, keys_are_positives: bool
) -> dict[str, Tensor]:
    """Means over this rank's first `MEASURED_ROWS` anchors, against all of the batch.

    Args:
        anchors: ``[N, D]``, all rows of the anchor modality.
        candidates: ``[N, D]``, of the other.
        batch: whose they are.
        own: this rank's rows.
        keys_are_positives: see `matches`.

    Returns:
        accuracy: share of anchors whose most similar positive is above every negative;
        positive_similarity: mean cosine of an anchor and a positive;
        hardest_negative_similarity: mean cosine with the most similar negative, where there is one.
        Scalars on the device; zeros without anchors.
    """
    rows = slice(own.start, min(own.stop, own.start + MEASURED_ROWS))
    similarities_AC = anchors[rows] @ candidates.T
    positives, negatives = matches(batch[rows], batch, keys_are_positives)
    lowest = torch.finfo(similarities_AC.dtype).min
    positive_A = similarities_AC.masked_fill(~positives, lowest).amax(dim=1)
    negative_A = similarities_AC.masked_fill(~negatives, lowest).amax(dim=1)
    return {
        "accuracy": (positive_A > negative_A).sum() / max(1, len(positive_A)),
        "positive_similarity": _mean(similarities_AC, positives),
        "hardest_negative_similarity": _mean(negative_A, negatives.any(dim=1)),
    }


def _mean(values: Tensor, where: Tensor) -> Tensor:
    # not values[where], for whose size the host would have to wait
    return values.masked_fill(~where, 0).sum() / where.sum().clamp(min=1)
