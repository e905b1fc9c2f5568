"""Gathered batches: this rank's alone, or all ranks' with this rank's position in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from multimodal.core.distributed import all_gather, gather_sizes, rank, world_size
from multimodal.core.similarity.similarities import Similarity
from multimodal.core.similarity.tokens import padded
from multimodal.objectives.candidates import Candidates, passes
from multimodal.objectives.matches import SampleKeys


@dataclass(frozen=True, slots=True)
class ListedEmbeddings:
    """Negatives that samples of a batch list, of one modality.

    Attributes:
        embeddings: ``[R, D]``, of unit norm; or ``[R, T, D]`` of their tokens.
        owners: ``[R]`` int64, sample ids of the anchors that list them.
        keys: whose the R rows are. They are candidates and never anchors, and never positives: a
            row with the id or the key of an anchor takes no part in that anchor's loss.
    """

    embeddings: Tensor
    owners: Tensor
    keys: SampleKeys


@dataclass(frozen=True, slots=True)
class GatheredBatch:
    """Rows of several modalities that belong to the same samples.

    Attributes:
        embeddings: modality -> ``[N, D]``, float32 or float64; or ``[N, T, D]`` of their tokens,
            with rows of zeros as padding.
        sample_keys: whose the N rows are.
        local_rows: this rank's rows; its losses are those of these anchors.
        shared: whether the other rows are those of other ranks.
        max_rows: the largest number of rows of any rank.
        related: `matches.related_rows`, where it is on the host already.
        listed: modality -> what the samples list, of the same ranks; of some modalities or none.
        sizes: rows of every rank; empty where the other rows are not theirs.
        whole: beside this rank's rows alone, the keys of all ranks', whose embeddings go round.
    """

    embeddings: Mapping[str, Tensor]
    sample_keys: SampleKeys
    local_rows: slice
    shared: bool
    max_rows: int
    related: int | None = None
    listed: Mapping[str, ListedEmbeddings] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    whole: GatheredBatch | None = None

    def side(self, modality: str) -> Tensor:
        """Embeddings ``[N, D]`` or ``[N, T, D]`` of one modality."""
        return self.embeddings[modality]


def local_batch(
    embeddings: Mapping[str, Tensor],
    sample_ids: Tensor,
    positive_keys: Tensor,
    listed: Mapping[str, ListedEmbeddings] | None = None,
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
    full = {name: _at_least_single(rows) for name, rows in embeddings.items()}
    negatives = {
        name: replace(rows, embeddings=_at_least_single(rows.embeddings))
        for name, rows in (listed or {}).items()
    }
    own, count = slice(0, len(sample_keys)), len(sample_keys)
    return GatheredBatch(full, sample_keys, own, shared=False, max_rows=count, listed=negatives)


def check_shapes(embeddings: Mapping[str, Tensor], similarity: Similarity) -> None:
    """Refuses embeddings that are not what the similarity compares.

    Raises:
        ValueError: naming the modality.
    """
    wanted = 3 if similarity.per_token else 2
    for name, rows in embeddings.items():
        if rows.ndim != wanted:
            expected = "[B, T, D] of tokens" if similarity.per_token else "[B, D]"
            raise ValueError(
                f"similarity {type(similarity).__name__} compares embeddings {expected}, got "
                f"{list(rows.shape)} of '{name}'"
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
    modalities = list(modalities)
    lengths = _lengths(local, modalities)
    own = {n: padded(local.embeddings[n], lengths[n]) for n in modalities}
    gathered = _all_gather_together(own, sizes)
    listed = {
        n: _gather_listed(local.listed[n], lengths[n]) for n in modalities if n in local.listed
    }
    local_rows = slice(start, start + len(local.sample_keys))
    return GatheredBatch(
        gathered, sample_keys, local_rows, shared=True, max_rows=max(sizes), listed=listed,
        sizes=tuple(sizes),
    )  # fmt: skip


def view_of(candidates: Candidates, local: GatheredBatch, whole: GatheredBatch) -> GatheredBatch:
    """The batch that a pair of these candidates compares: one, the other, or what goes round."""
    if passes(candidates):
        return replace(local, whole=whole)
    return whole if candidates.gathers else local


def gather_whole(local: GatheredBatch, modalities: Iterable[str]) -> GatheredBatch:
    """All ranks' batches, where they were to go round."""
    assert local.whole is not None
    whole = local.whole
    gathered = gather_batch(local, modalities, (whole.sample_keys, list(whole.sizes)))
    return replace(gathered, related=whole.related)


def _all_gather_together(sides: dict[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """All ranks' rows of every modality, in one collective for all of a type."""
    if world_size() == 1:
        return sides
    gathered: dict[str, Tensor] = {}
    for dtype in sorted({rows.dtype for rows in sides.values()}, key=str):
        same = {name: rows for name, rows in sides.items() if rows.dtype == dtype}
        flat = [rows.flatten(1) for rows in same.values()]
        widths = [rows.shape[1] for rows in flat]
        parts = torch.split(all_gather(torch.cat(flat, dim=1), sizes), widths, dim=1)
        gathered |= {
            name: part.contiguous().view(-1, *rows.shape[1:])
            for (name, rows), part in zip(same.items(), parts, strict=True)
        }
    return {name: gathered[name] for name in sides}


def _lengths(local: GatheredBatch, modalities: Sequence[str]) -> dict[str, int]:
    """Tokens of the longest sample of all ranks, listed ones too; 0 of embeddings of samples."""
    own = []
    for name in modalities:
        given = [local.embeddings[name]]
        given += [local.listed[name].embeddings] if name in local.listed else []
        own.append(max(rows.shape[1] if rows.ndim == 3 else 0 for rows in given))
    if any(own) and world_size() > 1:
        mine = torch.tensor([own], device=local.sample_keys.sample_ids.device)
        own = all_gather(mine, [1] * world_size()).amax(dim=0).tolist()
    return dict(zip(modalities, own, strict=True))


def _gather_listed(local: ListedEmbeddings, length: int) -> ListedEmbeddings:
    sizes = gather_sizes(len(local.owners), local.owners.device)
    keys = local.keys
    return ListedEmbeddings(
        all_gather(padded(local.embeddings, length), sizes),
        all_gather(local.owners, sizes),
        SampleKeys(all_gather(keys.sample_ids, sizes), all_gather(keys.positive_keys, sizes)),
    )


def _at_least_single(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()
