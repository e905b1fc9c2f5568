"""Whose a row of embeddings is, and what makes two of them positives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of N rows, whatever their modality.

    Attributes:
        sample_ids: ``[N]`` int64.
        positive_keys: ``[N]`` int64.
        filled: ``[N]`` bool, False at a queue's empty slots; None where all rows are real.
    """

    sample_ids: Tensor
    positive_keys: Tensor
    filled: Tensor | None = None

    def __len__(self) -> int:
        return int(self.sample_ids.shape[0])

    def __getitem__(self, rows: slice | Tensor) -> Identity:
        filled = None if self.filled is None else self.filled[rows]
        return Identity(self.sample_ids[rows], self.positive_keys[rows], filled)

    def followed_by(self, past: Identity) -> Identity:
        """These rows, all real, and then those of a queue."""
        real = torch.ones_like(self.sample_ids, dtype=torch.bool)
        filled = torch.ones_like(past.sample_ids, dtype=torch.bool)
        return Identity(
            torch.cat([self.sample_ids, past.sample_ids]),
            torch.cat([self.positive_keys, past.positive_keys]),
            torch.cat([real, filled if past.filled is None else past.filled]),
        )


def matches(
    anchors: Identity, candidates: Identity, keys_are_positives: bool
) -> tuple[Tensor, Tensor]:
    """Who is whose positive, and who may be a negative.

    A candidate with the anchor's sample id is its positive. One with an equal positive key is never
    its negative: a positive too, or left out.

    Args:
        anchors: of A rows.
        candidates: of C rows.
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
