"""Pictures at their own aspect: grids within a budget, patches in order, padded batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.patches import PatchTransform, patch_grid, patches

PLAIN = {"mean": [0.0] * 3, "std": [1 / 255] * 3}  # bytes stay as they are


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.booleans())
def test_a_grid_keeps_the_budget_and_the_aspect(height, width, budget, enlarge):
    rows, columns = patch_grid(height, width, 16, budget, enlarge)
    assert rows >= 1
    assert columns >= 1
    assert rows * columns <= budget
    scale = math.sqrt(budget * 256 / (height * width))
    scale = scale if enlarge else min(scale, 1.0)
    exact = height * scale / 16, width * scale / 16
    if min(exact) >= 1:  # each side within a patch of the exact one
        assert abs(rows - exact[0]) < 1
        assert abs(columns - exact[1]) < 1


@pytest.mark.parametrize(
    ("size", "budget", "enlarge", "grid"),
    [
        ((224, 224), 196, False, (14, 14)),
        ((448, 448), 196, False, (14, 14)),
        ((32, 48), 196, False, (2, 3)),
        ((32, 48), 24, True, (4, 6)),
        ((100, 10000), 8, False, (1, 8)),
        ((10000, 1), 8, False, (8, 1)),
        ((480, 640), 192, False, (12, 16)),
    ],
)
def test_grids_by_hand(size, budget, enlarge, grid):
    assert patch_grid(*size, 16, budget, enlarge) == grid


def test_patches_are_cut_row_by_row_with_the_places_of_their_middles():
    picture = torch.arange(2 * 4 * 6.0).view(2, 4, 6)
    cut = patches(picture, 2)
    assert cut.shape == (6, 2 + 2 * 4)
    assert cut[:, 0].tolist() == [0.25] * 3 + [0.75] * 3
    torch.testing.assert_close(cut[:, 1], torch.tensor([1 / 6, 0.5, 5 / 6] * 2))
    torch.testing.assert_close(cut[4, 2:], picture[:, 2:4, 2:4].flatten())


def test_a_picture_of_whole_patches_keeps_its_pixels():
    value = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    made = PatchTransform(4, 100, **PLAIN)(value, None)
    expected = patches(torch.from_numpy(value).permute(2, 0, 1).float(), 4)
    torch.testing.assert_close(made, expected)


def test_a_larger_one_is_resized_and_standardised():
    value = np.full((100, 300, 3), 128, np.uint8)
    made = PatchTransform(4, 12, mean=[0.5] * 3, std=[0.25] * 3)(value, None)
    assert len(made) == 12  # 2 x 6
    torch.testing.assert_close(made[:, 2:], torch.full((12, 48), (128 / 255 - 0.5) / 0.25))


def test_draws_mirror_and_jitter():
    value = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    plain = PatchTransform(4, 4, **PLAIN)(value, None)
    rng = SampleRNG(0, 0, "s", 1, 0)
    flipped = PatchTransform(4, 4, **PLAIN, flip=1.0)
    mirrored = patches(torch.from_numpy(value[:, ::-1].copy()).permute(2, 0, 1).float(), 4)
    torch.testing.assert_close(flipped(value, rng), mirrored)
    torch.testing.assert_close(flipped(value, None), plain)
    jittered = PatchTransform(4, 4, **PLAIN, brightness=0.5)
    assert not torch.allclose(jittered(value, rng), plain)
    assert flipped.is_random
    assert not PatchTransform(4, 4, **PLAIN).is_random


def test_batches_are_padded_to_the_longest():
    transform = PatchTransform(4, 9, **PLAIN)
    made = [transform(np.full((*s, 3), 7, np.uint8), None) for s in ((4, 8), (12, 12), (4, 4))]
    batch, mask = transform.collate(made)
    assert batch.shape == (3, 9, 50)
    assert mask.sum(dim=1).tolist() == [2, 9, 1]
    for row, own, tensor in zip(batch, mask, made, strict=True):
        assert torch.equal(row[own], tensor)
        assert not row[~own].any()


def test_what_is_no_picture_and_values_out_of_range():
    with pytest.raises(DecodeError, match="expected a picture"):
        PatchTransform(4, 9, **PLAIN)("text", None)
    for wrong in ({"patch_size": 0}, {"max_tokens": 0}, {"flip": 2}, {"interpolation": "cubic"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PatchTransform(**{"patch_size": 4, "max_tokens": 9, **PLAIN, **wrong})
