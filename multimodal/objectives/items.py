"""Embeddings that know whose they are, and what makes two of them positives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Items:
    """Rows of one modality with their identity.

    Attributes:
        embeddings: ``[N, D]``, unit-norm.
        sample_ids: ``[N]`` int64.
        positive_keys: ``[N]`` int64.
        filled: ``[N]`` bool, False at a queue's empty slots; None where all rows are real.
    """

    embeddings: Tensor
    sample_ids: Tensor
    positive_keys: Tensor
    filled: Tensor | None = None

    def __len__(self) -> int:
        return int(self.embeddings.shape[0])

    def __getitem__(self, rows: slice) -> Items:
        filled = None if self.filled is None else self.filled[rows]
        return Items(self.embeddings[rows], self.sample_ids[rows], self.positive_keys[rows], filled)

    def followed_by(self, other: Items) -> Items:
        """Both, one after the other; of the two only ``other`` may have empty slots."""
        filled = None
        if other.filled is not None:
            real = other.filled.new_ones(len(self))
            filled = torch.cat([real, other.filled])
        return Items(
            torch.cat([self.embeddings, other.embeddings.to(self.embeddings.dtype)]),
            torch.cat([self.sample_ids, other.sample_ids]),
            torch.cat([self.positive_keys, other.positive_keys]),
            filled,
        )


def matches(anchors: Items, candidates: Items, keys_are_positives: bool) -> tuple[Tensor, Tensor]:
    """Who is whose positive, and who may be a negative.

    A candidate with the anchor's sample id is its positive. One with an equal positive key is never
    its negative: a positive too, or left out.

    Args:
        anchors: A items.
        candidates: C items.
        keys_are_positives: whether equal keys make positives.

    Returns:
        positives ``[A, C]`` bool and negatives ``[A, C]`` bool, disjoint.
    """
    same_sample = anchors.sample_ids[:, None] == candidates.sample_ids
    related = same_sample | (anchors.positive_keys[:, None] == candidates.positive_keys)
    positives = related if keys_are_positives else same_sample
    if candidates.filled is None:
        return positives, ~related
    return positives & candidates.filled, ~related & candidates.filled
