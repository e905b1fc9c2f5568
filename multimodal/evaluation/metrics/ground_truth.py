"""Distinct items and right answers of a set's samples.

Two samples whose inputs are equal (two sounds with the same picture, two chairs both called
"chair") cannot be distinguished by that modality: they are one item of a gallery, and retrieving
one counts as retrieving the other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_groups(*groupings: Tensor) -> Tensor:
    """The finest grouping that is coarser than or equal to each of ``groupings``.

    Samples that share a value in one grouping are together in the result, and so are those linked
    by a chain of such samples.

    Args:
        groupings: ``[N]`` integers each; equal values are together.

    Returns:
        ``[N]`` int64, the lowest sample index of each sample's group.
    """
    n_samples = len(groupings[0])
    members = [torch.unique(grouping, return_inverse=True)[1] for grouping in groupings]
    groups = torch.arange(n_samples)
    while True:
        before = groups
        for member in members:
            lowest = torch.full((n_samples,), n_samples).scatter_reduce(0, member, groups, "amin")
            groups = lowest[member]
        if torch.equal(groups, before):
            return groups


def first_of_each(values: Tensor) -> Tensor:
    """``[U]`` int64, the rising indices at which each value of ``values`` occurs first."""
    unique, member = torch.unique(values, return_inverse=True)
    n_values = len(values)
    first = torch.full((len(unique),), n_values)
    return first.scatter_reduce(0, member, torch.arange(n_values), "amin").sort().values
