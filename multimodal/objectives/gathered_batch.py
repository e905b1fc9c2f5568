"""Gathered batches: this rank's alone, or all ranks' with this rank's position in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.core.distributed import all_gather, gather_sizes, rank, world_size
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
        related: `matches.related_rows`, where it is on the host already.
    """

    embeddings: Mapping[str, Tensor]
    sample_keys: SampleKeys
    local_rows: slice
    shared: bool
    max_rows: int
    related: int | None = None

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


def gather_keys(keys: SampleKeys) -> tuple[SampleKeys, list[int]]:
    """All ranks' keys, and how many rows each rank has."""
    sizes = gather_sizes(len(keys), keys.sample_ids.device)
    if world_size() == 1:
        return keys, sizes
    joined = all_gather(torch.stack([keys.sample_ids, keys.positive_keys], dim=1), sizes)
    ids, positive = (column.contiguous() for column in joined.unbind(dim=1))
    return SampleKeys(ids, positive), sizes


def gather_batch(
    local: GatheredBatch,
    modalities: Iterable[str],
    keys: tuple[SampleKeys, list[int]] | None = None,
) -> GatheredBatch:
    """The view of all ranks' batches, with exact gradients; ranks may differ in size.

    Args:
        local: this rank's view.
        modalities: those to send, in the same order on every rank.
        keys: what `gather_keys` gave, where it was called already.
    """
    sample_keys, sizes = gather_keys(local.sample_keys) if keys is None else keys
    start = sum(sizes[: rank()])
    gathered = _all_gather_together({n: local.embeddings[n] for n in modalities}, sizes)
    local_rows = slice(start, start + len(local.sample_keys))
    return GatheredBatch(gathered, sample_keys, local_rows, shared=True, max_rows=max(sizes))


def _all_gather_together(sides: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """All ranks' rows of every modality, in one collective for all of a type."""
    if world_size() == 1:
        return sides
    gathered: dict[str, Tensor] = {}
    for dtype in sorted({rows.dtype for rows in sides.values()}, key=str):
        same = {name: rows for name, rows in sides.items() if rows.dtype == dtype}
        widths = [rows.shape[1] for rows in same.values()]
        parts = torch.split(all_gather(torch.cat(list(same.values()), dim=1), sizes), widths, dim=1)
        gathered |= {name: part.contiguous() for name, part in zip(same, parts, strict=True)}
    return {name: gathered[name] for name in sides}
