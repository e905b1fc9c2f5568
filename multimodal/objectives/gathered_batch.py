"""Gathered batches: this rank's alone, or all ranks' with this rank's position in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.core.distributed import all_gather, gather_sizes, rank
from multimodal.objectives.matches import SampleKeys


@dataclass(frozen=True, slots=True)
class GatheredBatch:
    """Rows of several modalities that belong to the same samples.

    Attributes:
        embeddings: modality -> ``[N, D]``, float32 or float64.
        sample_keys: whose the N rows are.
        local_rows: this rank's rows; its losses are those of these anchors.
        shared: whether the other rows are those of other ranks.
        max_rows: the largest number of rows of any rank.
    """

    embeddings: Mapping[str, Tensor]
    sample_keys: SampleKeys
    local_rows: slice
    shared: bool
    max_rows: int

    def side(self, modality: str) -> Tensor:
        """Embeddings ``[N, D]`` of one modality."""
        return self.embeddings[modality]


def local_batch(
    embeddings: Mapping[str, Tensor], sample_ids: Tensor, positive_keys: Tensor
) -> GatheredBatch:
    """The view of this rank's batch alone; half precision becomes float32.

    Raises:
        ValueError: if there are not as many embeddings as ids.
    """
    sample_keys = SampleKeys(sample_ids, positive_keys)
    for name, rows in embeddings.items():
        if len(rows) != len(sample_keys):
            raise ValueError(
                f"{len(rows)} embeddings of '{name}' for {len(sample_keys)} sample ids"
            )
    full = {
        name: rows if rows.dtype == torch.float64 else rows.float()
        for name, rows in embeddings.items()
    }
    return GatheredBatch(
        full, sample_keys, slice(0, len(sample_keys)), shared=False, max_rows=len(sample_keys)
    )


def gather_batch(local: GatheredBatch, modalities: Iterable[str]) -> GatheredBatch:
    """The view of all ranks' batches, with exact gradients; ranks may differ in size.

    Args:
        local: this rank's view.
        modalities: those to send, in the same order on every rank.
    """
    sizes = gather_sizes(len(local.sample_keys), local.sample_keys.sample_ids.device)
    start = sum(sizes[: rank()])
    sample_keys = SampleKeys(
        all_gather(local.sample_keys.sample_ids, sizes),
        all_gather(local.sample_keys.positive_keys, sizes),
    )
    gathered = {name: all_gather(local.embeddings[name], sizes) for name in modalities}
    local_rows = slice(start, start + len(local.sample_keys))
    return GatheredBatch(gathered, sample_keys, local_rows, shared=True, max_rows=max(sizes))
