"""A batch as a pair sees it: this rank's alone, or all ranks' with this rank's place in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.core.distributed import all_gather, gather_sizes, rank
from multimodal.objectives.matches import Identity


@dataclass(frozen=True, slots=True)
class View:
    """Rows of several modalities that belong to the same samples.

    Attributes:
        embeddings: modality -> ``[N, D]``, float32 or float64.
        batch: whose the N rows are.
        own: this rank's rows; its losses are those of these anchors.
        shared: whether the other rows are other ranks' own ones.
        largest: rows of the rank that has most.
    """

    embeddings: Mapping[str, Tensor]
    batch: Identity
    own: slice
    shared: bool
    largest: int

    def side(self, modality: str) -> Tensor:
        """Embeddings ``[N, D]`` of one modality."""
        return self.embeddings[modality]


def this_rank(embeddings: Mapping[str, Tensor], sample_ids: Tensor, positive_keys: Tensor) -> View:
    """The view of this rank's batch alone; half precision becomes float32.

    Raises:
        ValueError: if there are not as many embeddings as ids.
    """
    batch = Identity(sample_ids, positive_keys)
    for name, rows in embeddings.items():
        if len(rows) != len(batch):
            raise ValueError(f"{len(rows)} embeddings of '{name}' for {len(batch)} sample ids")
    full = {
        name: rows if rows.dtype == torch.float64 else rows.float()
        for name, rows in embeddings.items()
    }
    return View(full, batch, slice(0, len(batch)), shared=False, largest=len(batch))


def all_ranks(local: View, modalities: Iterable[str]) -> View:
    """The view of all ranks' batches, with exact gradients; ranks may differ in size.

    Args:
        local: this rank's view.
        modalities: those to send, in the same order on every rank.
    """
    sizes = gather_sizes(len(local.batch), local.batch.sample_ids.device)
    start = sum(sizes[: rank()])
    batch = Identity(
        all_gather(local.batch.sample_ids, sizes), all_gather(local.batch.positive_keys, sizes)
    )
    gathered = {name: all_gather(local.embeddings[name], sizes) for name in modalities}
    own = slice(start, start + len(local.batch))
    return View(gathered, batch, own, shared=True, largest=max(sizes))
