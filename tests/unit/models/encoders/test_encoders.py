"""Every encoder: the output's shapes, padding, gradients, precision, sizes, refusals."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from multimodal.models.encoders.audio import AudioTransformer
from multimodal.models.encoders.convolutional import ConvolutionalEncoder, ResidualBlock
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.imu import IMUTransformer
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.positions import sincos_positions
from multimodal.models.layers.stems import ConvStem, PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import Tower

W = 24
patch = partial(partial, PatchStem)


def trunk(**options) -> Transformer:
    return Transformer(W, 2, 4, **options)


def vision(**options) -> VisionTransformer:
    return VisionTransformer(16, 3, patch(patch_size=4), trunk(), **options)


# name -> (encoder, inputs for a batch of 3, tokens)
CASES = {
    "vit": (lambda: vision(), (3, 16, 16), 17),
    "vit, attention pooling": (lambda: vision(pooling="attention"), (3, 16, 16), 16),
    "vit, sin-cos, mean": (lambda: vision(positions="sincos", pooling="mean"), (3, 16, 16), 16),
    "vit, sin-cos, class": (lambda: vision(positions="sincos"), (3, 16, 16), 17),
    "depth, as ImageBind": (
        lambda: VisionTransformer(
            [16, 8],
            1,
            patch(patch_size=4, bias=False, norm=True),
            trunk(bias_kv=True, layer_scale=0.1),
        ),
        (1, 16, 8),
        9,
    ),
    "vit, conv stem": (
        lambda: VisionTransformer(16, 3, partial(ConvStem, channels=[8, 8]), trunk(pre_norm=True)),
        (3, 16, 16),
        17,
    ),
    "residual network": (
        lambda: ConvolutionalEncoder([16, 8], 3, [8, 24], [0, 2], 4),
        (3, 16, 8),
        8,
    ),
    "audio": (
        lambda: AudioTransformer(16, 26, patch(patch_size=8, stride=5), trunk(), pooling="mean"),
        (1, 16, 26),
        2 * 4,
    ),
    "imu": (lambda: IMUTransformer(6, 40, patch(patch_size=8), trunk()), (6, 40), 6),
    "imu, conv stem": (
        lambda: IMUTransformer(6, 40, partial(ConvStem, channels=[8]), trunk(), pooling="last"),
        (6, 40),
        20,
    ),
    "vectors": (lambda: FeatureEncoder(10, 24), (10,), 1),
    "sequences of vectors": (lambda: FeatureEncoder(10, 24, hidden=16, norm=True), (5, 10), 5),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def inputs_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(3, *shape)


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(case: str):
    make, shape, count = CASES[case]
    encoder = make()
    for module in encoder.modules():
        if isinstance(module, ResidualBlock):  # starts at zero, which gates what is before it
            nn.init.normal_(module.conv_2.weight)
    output = encoder(inputs_of(shape))
    assert encoder.width == 24
    assert output.features.shape == (3, 24)
    assert output.tokens.shape == (3, count, 24)
    assert output.mask is None
    (output.features * torch.randn(3, 24)).sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_fixed_positions_leave_the_class_token_alone():
    encoder = vision(positions="sincos")
    assert not encoder.positions[0].any()
    torch.testing.assert_close(encoder.positions[1:], sincos_positions((4, 4), W))
    assert "positions" not in dict(encoder.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_samples_do_not_depend_on_their_batch(case: str):
    make, shape, _ = CASES[case]
    encoder = make().double()
    inputs = inputs_of(shape).double()
    whole = encoder(inputs).features
    torch.testing.assert_close(torch.cat([encoder(row[None]).features for row in inputs]), whole)


@pytest.mark.parametrize("case", CASES)
def test_bf16_autocast_is_close_and_trains(case: str):
    make, shape, _ = CASES[case]
    encoder = make()
    inputs = inputs_of(shape)
    full = encoder(inputs).features
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(inputs).features
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()
    half.float().square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("case", CASES)
def test_another_shape_is_rejected(case: str):
    make, shape, _ = CASES[case]
    wrong = torch.randn(3, *shape[:-1], shape[-1] + 1)
    with pytest.raises(ValueError, match=r"expects inputs \[B, .*got \[3, "):
        make()(wrong)


@pytest.mark.parametrize("case", [name for name in CASES if "vectors" not in name])
def test_a_mask_is_rejected_where_there_is_no_padding(case: str):
    make, shape, _ = CASES[case]
    with pytest.raises(ValueError, match="takes no mask"):
        make()(inputs_of(shape), torch.ones(3, 1, dtype=torch.bool))


def test_a_residual_block_starts_as_its_shortcut():
    encoder = ConvolutionalEncoder(16, 3, [8, 16], [1, 1])
    blocks = [module for module in encoder.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2
    for block in blocks:
        x = torch.randn(2, block.conv_1.in_channels, 8, 8)
        assert torch.equal(block(x), block.shortcut(x))


# Text

VOCAB = 50
LENGTHS = (8, 5, 3)
IDS = torch.tensor(
    [
        [48, 7, 3, 9, 11, 2, 30, 49],
        [48, 5, 12, 40, 49, 0, 0, 0],
        [48, 6, 49, 0, 0, 0, 0, 0],
    ]
)
MASK = torch.arange(8) < torch.tensor(LENGTHS)[:, None]


def text(causal: bool = True, **options) -> TextTransformer:
    return TextTransformer(VOCAB, 10, trunk(causal=causal), **options).double()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["end", "last", "mean", "attention"])
def test_padding_of_a_text_has_no_influence(causal: bool, pooling: str):
    encoder = text(causal, pooling=pooling)
    output = encoder(IDS, MASK)
    assert output.features.shape == (3, W)
    assert output.tokens.shape == (3, 8, W)
    assert torch.equal(output.mask, MASK)
    other = encoder(torch.where(MASK, IDS, 33), MASK)
    assert torch.equal(other.features, output.features)
    other.features.square().sum().backward()
    assert not encoder.embedding.weight.grad[33].any()
    assert all(p.grad is not None for p in encoder.parameters())
    for row, length in enumerate(LENGTHS):  # each text by itself, never padded
        alone = encoder(IDS[row : row + 1, :length]).features[0]
        torch.testing.assert_close(output.features[row], alone)


@pytest.mark.parametrize("causal", [True, False])
def test_the_end_is_the_highest_id_where_no_mask_says_otherwise(causal: bool):
    encoder = text(causal)
    output = encoder(IDS)
    assert torch.equal(output.mask, MASK)
    assert torch.equal(output.features, encoder(IDS, MASK).features)
    assert torch.equal(output.features[1], output.tokens[1, 4])


def test_a_causal_text_does_not_see_what_follows():
    encoder = text()
    changed = IDS.clone()
    changed[:, 2:] = 20
    before, after = encoder(IDS, MASK).tokens, encoder(changed, MASK).tokens
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(text(causal=False)(changed, MASK).tokens[:, :2], before[:, :2])


def test_padding_can_be_read_as_siglip_does():
    encoder = TextTransformer(VOCAB, 8, trunk(), pooling="last", attend_padding=True).double()
    output = encoder(IDS, MASK)
    assert output.mask is None
    assert torch.equal(output.features, output.tokens[:, 7])
    assert not torch.allclose(encoder(torch.where(MASK, IDS, 33)).features[1], output.features[1])
    with pytest.raises(ValueError, match="padded to 8 tokens, got 5"):
        encoder(IDS[:, :5])


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (IDS.float(), None, "integer ids"),
        (IDS[0], None, "integer ids"),
        (torch.zeros(2, 11, dtype=torch.int64), None, r"T <= 10.*\[2, 11\]"),
        (IDS, MASK.float(), "mask must be bool"),
        (IDS, MASK[:, :4], r"mask must be bool \[3, 8\]"),
    ],
)
def test_a_wrong_text_is_rejected(ids: Tensor, mask: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        text()(ids, mask)


def test_choices_that_a_text_cannot_have():
    with pytest.raises(ValueError, match="end, last, mean or attention"):
        text(pooling="class")
    with pytest.raises(ValueError, match="attend_padding"):
        text(pooling="end", attend_padding=True)


# Features


def test_features_pass_unprojected():
    inputs = torch.randn(3, 10)
    encoder = FeatureEncoder(10)
    assert encoder.width == 10
    assert torch.equal(encoder(inputs).features, inputs)


def test_masked_feature_vectors_have_no_influence():
    encoder = FeatureEncoder(10, 24, norm=True)
    inputs = torch.randn(3, 8, 10)
    output = encoder(inputs, MASK)
    assert torch.equal(output.mask, MASK)
    changed = torch.where(MASK[..., None], inputs, math.nan)
    again = encoder(changed, MASK).features
    assert torch.equal(again, output.features)
    again.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
    torch.testing.assert_close(output.features[1], encoder(inputs[1:2, :5]).features[0])


def test_a_hidden_layer_needs_a_width():
    with pytest.raises(ValueError, match="hidden=16"):
        FeatureEncoder(10, hidden=16)


# Constructors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionTransformer(62, 3, patch(patch_size=16), trunk()), "multiple of patch_size"),
        (lambda: VisionTransformer([64], 3, patch(patch_size=16), trunk()), r"image_size=\[64\]"),
        (lambda: vision(positions="rotary"), "'rotary'.*learned, sincos"),
        (lambda: vision(pooling="max"), "'max'"),
        (lambda: IMUTransformer(6, 42, patch(patch_size=8), trunk()), r"\[42\] is not a multiple"),
        (lambda: ConvolutionalEncoder(20, 3, [8, 8, 8], [1, 1, 1]), "image_size=20"),
        (lambda: ConvolutionalEncoder(16, 3, [8, 12], [1, 1]), r"groups=8 .*\[8, 12\]"),
        (lambda: ConvolutionalEncoder(16, 3, [8, 8], [1]), "one number of each per stage"),
        (lambda: ConvolutionalEncoder(16, 3, [8, 8], [1, 0]), r"blocks=\[1, 0\]"),
    ],
)
def test_a_wrong_constructor_says_why(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


# Sizes that others published


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def clip_tower(size: int, width: int, layers: int, heads: int, embed_dim: int) -> Tower:
    encoder = VisionTransformer(
        224, 3, patch(patch_size=size, bias=False), Transformer(width, layers, heads, pre_norm=True)
    )
    return Tower(encoder, partial(LinearHead, embed_dim=embed_dim))


def clip_text(width: int, layers: int, heads: int, embed_dim: int) -> Tower:
    encoder = TextTransformer(49408, 77, Transformer(width, layers, heads, causal=True))
    return Tower(encoder, partial(LinearHead, embed_dim=embed_dim))


def siglip_image() -> VisionTransformer:
    return VisionTransformer(
        224, 3, patch(patch_size=16), Transformer(768, 12, 12), pooling="attention"
    )


@pytest.mark.parametrize(
    ("make", "published"),
    [  # OpenAI's ViT-B/32, B/16, L/14; OpenCLIP's ViT-H/14; SigLIP B/16
        (lambda: clip_tower(32, 768, 12, 12, 512), 87_849_216),
        (lambda: clip_tower(16, 768, 12, 12, 512), 86_192_640),
        (lambda: clip_tower(14, 1024, 24, 16, 768), 303_966_208),
        (lambda: clip_tower(14, 1280, 32, 16, 1024), 632_076_800),
        (lambda: clip_text(512, 12, 8, 512), 63_428_096),
        (lambda: clip_text(768, 12, 12, 768), 123_650_304),
        (lambda: clip_text(1024, 24, 16, 1024), 354_032_640),
        (siglip_image, 92_884_224),
    ],
)
def test_parameter_counts_are_the_published_ones(make, published: int):
    with torch.device("meta"):
        assert parameters(make()) == published


@pytest.mark.parametrize("pooling", ["class", "mean", "attention"])
def test_patch_dropout_encodes_another_part_of_the_patches_of_every_sample(pooling):
    encoder = vision(pooling=pooling, patch_dropout=0.5).double()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    seen: list[Tensor] = []
    encoder.trunk.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    encoder.eval()
    with torch.no_grad():
        encoder(x)
        encoder.train()
        torch.manual_seed(0)
        output = encoder(x)
    whole, part = seen
    extra = pooling == "class"
    assert whole.shape[1] == 16 + extra
    assert part.shape[1] == 8 + extra
    kept = (part[:, :, None] == whole[:, None]).all(-1)  # [3, 8, 16]
    assert kept.sum(2).eq(1).all()  # each is a patch at its own position
    places = kept.int().argmax(2)
    assert (places.diff(dim=1) > 0).all()  # in order, none twice
    assert len({tuple(row) for row in places.tolist()}) == 3
    if extra:
        assert places[:, 0].eq(0).all()  # the class token stays
    with torch.no_grad():
        expected = encoder.pool(encoder.trunk(part), None)
    torch.testing.assert_close(output.features, expected)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_of_patches_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"patch_dropout=.* expected a share in \[0, 1\)"):
        vision(patch_dropout=share)
