"""Items and groups against loops."""

from __future__ import annotations

import pytest
import torch

from multimodal.core.tensor_hashing import content_ids
from multimodal.evaluation.metrics.ground_truth import first_of_each, merge_groups


@pytest.mark.parametrize("seed", range(5))
def test_merge_groups_equals_a_walk_along_shared_values(seed):
    generator = torch.Generator().manual_seed(seed)
    groupings = [torch.randint(-20, 20, (30,), generator=generator) for _ in range(3)]
    expected = []
    for start in range(30):
        reached, frontier = {start}, [start]
        while frontier:
            here = frontier.pop()
            linked = {j for j in range(30) for g in groupings if g[j] == g[here]} - reached
            reached |= linked
            frontier += linked
        expected.append(min(reached))
    assert len(set(expected)) not in (1, 30)
    assert merge_groups(*groupings).tolist() == expected


def test_first_of_each_keeps_the_order():
    assert first_of_each(torch.tensor([7, -1, 7, 3, -1, 9])).tolist() == [0, 1, 3, 5]


def test_content_ids_tell_equal_inputs_and_ignore_padding():
    images = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0))
    images[2] = images[0]
    ids = content_ids(images)
    assert ids[0] == ids[2] != ids[1]

    tokens, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[True, True, False]])
    longer = torch.tensor([[5, 6, 9, 9], [5, 6, 9, 9]])
    longer_mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    short = content_ids(tokens, mask)
    assert content_ids(longer, longer_mask)[0] == short[0] != content_ids(longer, longer_mask)[1]


def test_a_mask_of_tokens_leaves_images_whole():
    images, mask = torch.zeros(2, 3, 4), torch.ones(2, 2, dtype=torch.bool)
    images[1, 2, 3] = 1
    first, second = content_ids(images, mask).tolist()
    assert first != second
