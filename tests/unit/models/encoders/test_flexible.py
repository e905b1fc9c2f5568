"""Pictures of any aspect: as a ViT on its own size, and packed as padded."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from multimodal.core.errors import InputMismatchError
from multimodal.data.transforms.patches import PatchTransform, patches
from multimodal.models.encoders.flexible import FlexibleVisionTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.layers.stems import ConvStem, PatchStem
from multimodal.models.layers.transformer import Transformer

STEM = partial(PatchStem, patch_size=4, bias=False, norm=True)
SIZES = ((16, 16), (8, 24), (20, 4), (4, 4))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def flexible(packed: bool = True, **options) -> FlexibleVisionTransformer:
    trunk = Transformer(24, 2, 4, pre_norm=True)
    return FlexibleVisionTransformer(4, 3, STEM, trunk, packed=packed, **options)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    pictures = [patches(torch.randn(3, *size), 4) for size in SIZES]
    transform = PatchTransform(4, 16, [0.5] * 3, [0.5] * 3)
    inputs, mask = transform.collate(pictures)
    assert mask is not None
    return inputs.clone(), mask


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_on_squares_of_its_size_it_is_the_vit_of_the_same_weights(pooling: str, positions: str):
    options = {"pooling": pooling, "positions": positions}
    vit = VisionTransformer(16, 3, STEM, Transformer(24, 2, 4, pre_norm=True), **options)
    ours = flexible(**options)
    ours.load_state_dict(vit.state_dict())
    pictures = torch.randn(3, 3, 16, 16)
    cut = torch.stack([patches(picture, 4) for picture in pictures])
    torch.testing.assert_close(ours(cut).features, vit(pictures).features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_packed_padded_and_alone_are_equal_with_gradients(pooling: str):
    padded, packed = flexible(False, pooling=pooling), flexible(True, pooling=pooling)
    packed.load_state_dict(padded.state_dict())
    inputs, mask = batch()
    close = {"rtol": 1e-5, "atol": 1e-5}
    outputs = {}
    for name, encoder in (("padded", padded), ("packed", packed)):
        outputs[name] = encoder(inputs, mask).features
        outputs[name].square().sum().backward()
    torch.testing.assert_close(outputs["packed"], outputs["padded"], **close)
    for own, other in zip(packed.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, **close)
    for place, features in enumerate(outputs["packed"]):
        alone = packed(inputs[place : place + 1, : int(mask[place].sum())]).features[0]
        torch.testing.assert_close(features, alone, **close)


def test_what_stands_in_the_padding_changes_nothing():
    encoder, (inputs, mask) = flexible(False), batch()
    before = encoder(inputs, mask).features
    inputs[~mask] = 7.0
    torch.testing.assert_close(encoder(inputs, mask).features, before)


def test_positions_are_the_tables_resized_bilinearly():
    encoder = flexible(pooling="mean")
    rows, columns = 8, 6
    cut = patches(torch.zeros(3, 4 * rows, 4 * columns), 4)
    table = encoder.positions.view(1, 4, 4, 24).permute(0, 3, 1, 2)
    resized = F.interpolate(table, (rows, columns), mode="bilinear", align_corners=False)
    read = encoder.positions_at(cut[None, :, :2])[0]
    torch.testing.assert_close(read.view(rows, columns, 24).permute(2, 0, 1), resized[0])
    torch.testing.assert_close(read[0], encoder.positions[0])  # a corner is a corner


def test_dropout_takes_the_same_share_of_every_picture():
    encoder, (inputs, mask) = flexible(patch_dropout=0.5), batch()
    output = encoder(inputs, mask)
    kept = output.mask[:, 1:].sum(dim=1)
    assert kept.tolist() == [max(1, round(0.5 * int(n))) for n in mask.sum(dim=1)]
    tokens = torch.arange(1.0, 17).view(1, 16, 1).expand(4, -1, 24) * mask[..., None]
    extended = torch.cat([torch.full((4, 1, 24), 99.0), tokens], dim=1)
    some, real = encoder._without_some(extended, F.pad(mask, (1, 0), value=True))
    assert (some[:, 0] == 99).all()
    for row, own in zip(some[:, 1:, 0], real[:, 1:], strict=True):
        values = row[own].tolist()
        assert 0 not in values
        assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("inputs", "mask", "message"),
    [
        (torch.zeros(2, 5, 48), None, r"patches \[B, T, 50\], got torch.float32 \[2, 5, 48\]"),
        (torch.zeros(2, 5, 50, dtype=torch.int64), None, "got torch.int64"),
        (torch.zeros(2, 3, 16, 16), None, "patches"),
        (torch.zeros(2, 5, 50), torch.ones(2, 4, dtype=torch.bool), "mask must be bool"),
    ],
)
def test_other_inputs_are_refused(inputs: Tensor, mask: Tensor | None, message: str):
    with pytest.raises(InputMismatchError, match=message):
        flexible()(inputs, mask)


def test_choices_that_it_does_not_have():
    trunk = Transformer(24, 1, 4)
    for stem in (partial(PatchStem, patch_size=4, stride=2), partial(ConvStem, channels=[8])):
        with pytest.raises(ValueError, match="do not overlap"):
            FlexibleVisionTransformer(4, 3, stem, trunk)
    with pytest.raises(ValueError, match="class, mean or attention"):
        FlexibleVisionTransformer(4, 3, STEM, trunk, pooling="last")
