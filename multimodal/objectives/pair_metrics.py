"""Cheap statistics of a pair's similarities, beside the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.core.similarity.similarities import Comparison, Similarity
from multimodal.objectives.gathered_batch import GatheredBatch
from multimodal.objectives.matches import SampleKeys, matches
from multimodal.objectives.pair import Pair

MEASURED_ROWS = 256  # anchors per rank and step; enough for a curve, and little beside the loss
MEASURED_ENTRIES = 2**19  # numbers held at a time


@torch.no_grad()
def similarity_metrics(
    anchors: Tensor,
    candidates: Tensor,
    batch: SampleKeys,
    local_rows: slice,
    keys_are_positives: bool,
    compare: Comparison,
) -> dict[str, Tensor]:
    """Means over this rank's first `MEASURED_ROWS` anchors, against all of the batch.

    Args:
        anchors: ``[N, D]`` or ``[N, T, D]``, all rows of the anchor modality.
        candidates: the same of the other.
        batch: their sample ids and keys.
        local_rows: this rank's rows.
        keys_are_positives: see `matches`.
        compare: the one with the other.

    Returns:
        accuracy: share of anchors whose most similar positive is above every negative, of which
            there has to be one;
        positive_similarity: mean cosine of an anchor and a positive;
        hardest_negative_similarity: mean cosine with the most similar negative, where there is one.
        Scalars on the device; zeros without anchors.
    """
    end = min(local_rows.stop, local_rows.start + MEASURED_ROWS)
    step = max(1, MEASURED_ENTRIES // max(1, len(batch)))
    sums = [anchors.new_zeros(()) for _ in range(5)]
    for start in range(local_rows.start, end, step):
        rows = slice(start, min(start + step, end))
        similarities_AC = compare.matrix(anchors[rows], candidates)
        positives, negatives = matches(batch[rows], batch, keys_are_positives)
        lowest = torch.finfo(similarities_AC.dtype).min
        positive_A = similarities_AC.masked_fill(~positives, lowest).amax(dim=1)
        negative_A = similarities_AC.masked_fill(~negatives, lowest).amax(dim=1)
        some_A = negatives.any(dim=1)
        parts = (
            ((positive_A > negative_A) & some_A).sum(),
            # not values[where], for whose size the host would have to wait
            similarities_AC.masked_fill_(~positives, 0).sum(),
            positives.sum(),
            negative_A.masked_fill_(~some_A, 0).sum(),
            some_A.sum(),
        )
        for total, part in zip(sums, parts, strict=True):
            total += part
    right, positive, num_positives, negative, num_negatives = sums
    return {
        "accuracy": right / max(1, end - local_rows.start),
        "positive_similarity": positive / num_positives.clamp(min=1),
        "hardest_negative_similarity": negative / num_negatives.clamp(min=1),
    }


def similarities_of(
    name: str, pair: Pair, gathered: GatheredBatch, share: float, similarity: Similarity
) -> dict[str, Tensor]:
    """`similarity_metrics` of a pair, as this rank's share of the mean over all ranks.

    Args:
        name: of the pair, for the metrics' names.
        pair: the pair.
        gathered: the batch.
        share: this rank's part of it.
        similarity: how embeddings are compared.
    """
    means = similarity_metrics(
        gathered.side(pair.anchor),
        gathered.side(pair.other),
        gathered.sample_keys,
        gathered.local_rows,
        pair.keys_are_positives,
        similarity.between(pair.anchor, pair.other),
    )
    return {f"{metric}/{name}": share * mean for metric, mean in means.items()}
