"""Crops and hidden patches: where they are cut, and that they depend on sample and step alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from multimodal.objectives.self_distillation.views import HiddenPatches, LocalCrops

IDS = torch.tensor([7, -3, 11, 2**40])


def places(height: int, width: int, rows: int = 4) -> Tensor:
    """Pictures whose two channels are the row and the column of each pixel's middle, as shares."""
    row = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    column = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([row, column]).double().expand(rows, 2, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 128)])
def test_a_crop_is_a_rectangle_of_the_area_and_the_aspect_that_were_asked_for(height, width):
    crops = LocalCrops(count=50, scale=(0.1, 0.3)).cut(places(height, width), IDS, 1)
    assert crops.shape == (4, 50, 2, height, width)
    # Each crop is linear in its place: between its first and last pixel is (1 - 1 / n) of its side.
    rows, columns = crops[:, :, 0], crops[:, :, 1]
    torch.testing.assert_close(rows, rows[..., :1].expand_as(rows))  # upright
    torch.testing.assert_close(columns, columns[:, :, :1].expand_as(columns))
    inner = slice(8, -8)  # the border is repeated in the outermost half pixel
    high = (rows[..., inner, 0].diff(dim=-1) * height).mean(-1)
    wide = (columns[..., 0, inner].diff(dim=-1) * width).mean(-1)
    area = high * wide
    assert 0.1 - 1e-6 <= area.min() < 0.12
    assert 0.28 < area.max() <= 0.3 + 1e-6
    aspect = wide * width / (high * height)  # of the crop in pixels
    assert 3 / 4 - 1e-6 <= aspect.min() < 0.85
    assert 1.2 < aspect.max() <= 4 / 3 + 1e-6
    middle = rows[..., inner, 0].mean(-1)
    assert middle.min() < 0.3
    assert middle.max() > 0.7
    assert rows.min() >= 0
    assert rows.max() <= 1


def test_a_crop_of_everything_is_the_picture():
    pictures = torch.rand(4, 3, 20, 20, dtype=torch.float64)
    crops = LocalCrops(count=1, scale=(1.0, 1.0)).cut(pictures, IDS, 1)[:, 0]
    # a whole side, and of the other what the aspect leaves
    whole = [torch.allclose(crop.mean(), picture.mean(), atol=0.05)
             for crop, picture in zip(crops, pictures, strict=True)]  # fmt: skip
    assert all(whole)
    square = LocalCrops(count=1, scale=(1.0, 1.0), size=40).cut(places(20, 20), IDS, 1)
    assert square.shape == (4, 1, 2, 40, 40)


def test_a_crop_depends_on_its_sample_and_the_step_alone():
    crops, pictures = LocalCrops(count=3, size=[16, 24]), torch.rand(4, 3, 32, 32)
    cut = crops.cut(pictures, IDS, 5)
    assert cut.shape == (4, 3, 3, 16, 24)
    turned = torch.tensor([3, 1])
    assert torch.equal(crops.cut(pictures[turned], IDS[turned], 5), cut[turned])
    same = torch.full_like(IDS, 7)
    assert not torch.allclose(crops.cut(pictures[:1], IDS[:1], 6), cut[:1])
    alike = crops.cut(pictures[:1].expand(4, -1, -1, -1), same, 5)
    assert torch.equal(alike[0], alike[3])
    assert not torch.allclose(alike[0, 0], alike[0, 1])  # the crops of one picture differ
    assert crops.cut(pictures[:0], IDS[:0], 5).shape == (0, 3, 3, 16, 24)


def test_hidden_patches_are_the_share_and_depend_on_sample_and_step_alone():
    view = HiddenPatches(share=0.3)
    hidden = view.hidden(IDS, 20, 5)
    assert hidden.shape == (4, 6)
    assert torch.equal(hidden, hidden.sort(dim=1).values)
    assert all(len(set(row)) == 6 for row in hidden.tolist())
    assert len({tuple(row) for row in hidden.tolist()}) == 4
    assert torch.equal(view.hidden(IDS[2:], 20, 5), hidden[2:])
    assert not torch.equal(view.hidden(IDS, 20, 6), hidden)
    assert view.hidden(IDS[:0], 20, 5).shape == (0, 6)
    assert HiddenPatches(share=0.01).hidden(IDS, 20, 5).shape == (4, 1)
    many = view.hidden(torch.arange(4000), 20, 5).flatten().bincount() / 4000
    assert torch.allclose(many, torch.full((20,), 0.3), atol=0.04)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalCrops(count=0), "count=0"),
        (lambda: LocalCrops(scale=(0.4, 0.05)), "smaller first"),
        (lambda: LocalCrops(scale=(0.0, 0.4)), "two shares in"),
        (lambda: LocalCrops(scale=(0.1, 0.4, 0.5)), "two shares in"),
        (lambda: LocalCrops(size=0), "size=0"),
        (lambda: LocalCrops(size=[1, 2, 3]), "size="),
        (lambda: LocalCrops(weight=0.0), "weight=0.0"),
        (lambda: HiddenPatches(share=0.0), "share=0.0"),
        (lambda: HiddenPatches(share=1.0), "share=1.0"),
        (lambda: HiddenPatches(weight=-1.0), "weight=-1.0"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
