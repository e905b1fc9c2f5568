"""Vision-language models as one tower: equal to the library's own, alone and in batches."""

from __future__ import annotations

import copy

import pytest
import torch
from connected_cases import Letters, connected, ids
from torch import Tensor, nn
from vlm_cases import (
    IMAGE_TOKEN,
    KINDS,
    MEAN,
    SIDE,
    STD,
    VIDEO_TOKEN,
    WIDTH,
    Signs,
    config,
    encoder,
    model,
    picture,
    pictures,
)

from multimodal.core.errors import InputMismatchError
from multimodal.models.encoders.libraries.vision_language import VisionLanguageEncoder
from multimodal.models.gradient_caching import encode_microbatched
from multimodal.models.heads import IdentityHead
from multimodal.models.tower_optim import depths
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import LastLayers, LoRA, is_adapter

transformers = pytest.importorskip("transformers")
GRIDS = [(2, 3), (1, 1), (3, 2)]
NEAR = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def theirs(one: VisionLanguageEncoder, grid: tuple[int, int]) -> Tensor:
    """The last hidden state of a picture by the model itself and its own image processor."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        image_mean=MEAN, image_std=STD, patch_size=SIDE // 2, min_pixels=1, max_pixels=10**6
    )
    made = processor(picture(*grid), return_tensors="pt")
    letters = Signs()
    tokens = [1, *letters.encode("see "), *[IMAGE_TOKEN] * (grid[0] * grid[1]),
              *letters.encode(" now"), 2]  # fmt: skip
    input_ids = torch.tensor([tokens])
    output = one.model(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **made,
        mm_token_type_ids=(input_ids == IMAGE_TOKEN).int(),
    )  # fmt: skip
    return output.last_hidden_state[0, -1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_are_the_last_hidden_state_of_the_model_on_what_its_processor_makes(kind: str):
    one = encoder(kind).eval()
    output = one(*pictures(*GRIDS))
    for features, grid in zip(output.features, GRIDS, strict=True):
        torch.testing.assert_close(features, theirs(one, grid), **NEAR)
    assert output.tokens.shape == (3, 1 + 4 + 6 + 4 + 1, WIDTH)
    assert output.mask.sum(dim=1).tolist() == [16, 11, 16]

    texts, mask = ids(9, 4)
    output = one(texts, mask)
    for features, row, length in zip(output.features, texts, (9, 4), strict=True):
        alone = one.model(input_ids=row[None, :length]).last_hidden_state[0, -1]
        torch.testing.assert_close(features, alone, **NEAR)


def clips(count: int = 2, frames: int = 4, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(count, 3, frames, height, width, generator=torch.manual_seed(5))


def patches_of(clip: Tensor) -> Tensor:
    """As the library orders them, one after the other: token by token, two by two patches in it."""
    side, rows = SIDE // 2, []
    for first in range(0, clip.shape[1], 2):
        for down in range(0, clip.shape[2], SIDE):
            for right in range(0, clip.shape[3], SIDE):
                for row in (down, down + side):
                    for column in (right, right + side):
                        cut = clip[:, first : first + 2, row : row + side, column : column + side]
                        rows.append(cut.flatten())
    return torch.stack(rows)


def clip_by_them(one: VisionLanguageEncoder, kind: str, clip: Tensor, seconds: float) -> Tensor:
    """The last hidden state of a clip by the model itself, with the ids of its processor."""
    letters, frames = Signs(), clip.shape[1] // 2
    rows, columns = clip.shape[2] // SIDE, clip.shape[3] // SIDE
    tokens = [1, *letters.encode("see ")]
    for frame in range(frames):
        places = [VIDEO_TOKEN] * (rows * columns)
        if kind == "qwen3_vl":
            middle = (2 * frame * seconds + (2 * frame + 1) * seconds) / 2
            tokens += [*letters.encode(f"<{middle:.1f} seconds>"), 42, *places, 43]
        else:
            tokens += places
    input_ids = torch.tensor([[*tokens, *letters.encode(" now"), 2]])
    more = {"second_per_grid_ts": torch.tensor([2 * seconds])} if kind == "qwen2_5_vl" else {}
    output = one.model(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids),
        pixel_values_videos=patches_of(clip),
        video_grid_thw=torch.tensor([[frames, 2 * rows, 2 * columns]]),
        mm_token_type_ids=2 * (input_ids == VIDEO_TOKEN).int(), **more,
    )  # fmt: skip
    return output.last_hidden_state[0, -1]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_clips_give_the_last_hidden_state_of_the_model_on_what_its_processor_makes(kind: str):
    seconds = 1.5
    one = encoder(kind, seconds_per_frame=seconds).eval()
    given = clips()
    output = one(given)
    for features, clip in zip(output.features, given, strict=True):
        torch.testing.assert_close(features, clip_by_them(one, kind, clip, seconds), **NEAR)
    slower = encoder(kind, seconds_per_frame=4.0).eval()
    slower.load_state_dict(one.state_dict())
    told = (slower(given).features - output.features).abs().max()
    assert (told < 1e-6) == (kind == "qwen2_vl")  # which has no clock
    several = Tower(one, lambda width: IdentityHead(width, WIDTH)).eval()
    mean = several(torch.stack([given, given.flip(2)], dim=1))
    each = [several(part) for part in (given, given.flip(2))]
    torch.testing.assert_close(mean, nn.functional.normalize(sum(each) / 2, dim=1))


@torch.no_grad()
def test_the_template_of_qwen3_stands_around_each_frame():
    class Marks(Signs):
        def encode(self, text: str) -> list[int]:
            return [42 if c == "(" else 43 if c == ")" else super(Marks, self).encode(c)[0]
                    for c in text]  # fmt: skip

    made = {"config": config("qwen3_vl"), "seconds_per_frame": 1.5}
    marked = VisionLanguageEncoder(Marks(), template="see ({}) now", **made).eval()
    plain = VisionLanguageEncoder(Signs(), template="see {} now", **made).eval()
    plain.load_state_dict(
        {n: t for n, t in marked.state_dict().items() if n not in ("before", "after")}, strict=False
    )
    torch.testing.assert_close(marked(clips()).features, plain(clips()).features)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_several_pictures_and_clips_in_one_sequence(kind: str):
    """Each sample's are read in its own order, also where others lack some."""
    one = encoder(kind).eval()
    first, first_real = pictures((2, 1), (1, 2), (1, 1))
    second, second_real = pictures((1, 3), (2, 2), (3, 1))
    texts, real = ids(4, 6, 3)
    given = clips(3)
    has = torch.ones(3, 1, dtype=torch.bool)
    first_real[1], has[2] = False, False
    parts = [(first, first_real), (given, has), (texts, real), (second, second_real)]
    together = one.encode_parts(parts).features
    for row in range(3):
        alone = [(inputs[row : row + 1], mask[row : row + 1]) for inputs, mask in parts
                 if mask[row].any()]  # fmt: skip
        torch.testing.assert_close(one.encode_parts(alone).features[0], together[row], **NEAR)
    swapped = one.encode_parts([parts[3], *parts[1:3], parts[0]]).features
    assert (swapped - together).abs().max() > 1e-3


@torch.no_grad()
def test_mean_pooling_is_of_the_real_tokens():
    one = encoder(pooling="mean").eval()
    output = one(*pictures(*GRIDS))
    expected = output.tokens[1, :11].mean(dim=0)
    torch.testing.assert_close(output.features[1], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2])
def test_gradient_caching_is_exact(kind: str, size: int):
    whole = model(encoder(kind)).double()
    pieces = copy.deepcopy(whole)
    images, real = pictures(*GRIDS)
    texts, mask = ids(9, 4, 6)

    def step(net: EmbeddingModel, size: int | None) -> Tensor:
        a = encode_microbatched(net.tower("image"), images.double(), real, size)
        b = encode_microbatched(net.tower("text"), texts, mask, size)
        loss = nn.functional.cross_entropy(5 * a @ b.T, torch.arange(3))
        loss.backward()
        return loss.detach()

    torch.testing.assert_close(step(whole, None), step(pieces, size), rtol=1e-10, atol=1e-12)
    for (name, a), b in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12, msg=name)


@torch.no_grad()
def test_recomputed_layers_change_nothing():
    plain, checkpointed = encoder().eval(), encoder(gradient_checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    images, mask = pictures(*GRIDS)
    with torch.enable_grad():
        features = checkpointed.train()(images, mask).features
        features.sum().backward()
    torch.testing.assert_close(features.detach(), plain(images, mask).features)
    assert all(p.grad is not None for p in checkpointed.parameters())


def test_pictures_and_texts_share_one_copy_of_the_weights():
    both = model(encoder())
    assert both.tower("image") is both.tower("text")
    assert sum(p.numel() for p in both.parameters()) == sum(
        p.numel() for p in encoder().parameters()
    )


@torch.no_grad()
def test_a_sample_without_its_picture_changes_no_other():
    one = encoder().eval()
    images, mask = pictures(*GRIDS)
    absent, none = images.clone(), mask.clone()
    absent[1], none[1] = 0, False
    found = one(absent, none).features
    torch.testing.assert_close(found[[0, 2]], one(images, mask).features[[0, 2]])
    assert found.isfinite().all()


def test_adapters_and_last_layers_are_those_of_the_language_model():
    pytest.importorskip("peft")
    tuned = model(encoder(), tuning=LoRA(2)).tower("text")
    adapted = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert adapted
    assert all(is_adapter(name) and "language_model.layers" in name for name in adapted)
    images, mask = pictures(*GRIDS)
    torch.testing.assert_close(
        tuned.encode(images, mask).features,
        # The changes start at zero.
        tuned.eval().encode(images, mask).features,
    )

    last = model(encoder(), tuning=LastLayers(1)).tower("text")
    trained = {name for name, p in last.named_parameters() if p.requires_grad}
    prefixes = ("encoder.model.language_model.layers.1.", "encoder.model.language_model.norm.")
    assert trained
    assert all(name.startswith(prefixes) for name in trained)


def test_the_vision_tower_is_below_the_first_layer():
    found = depths(model(encoder()).tower("text"))
    assert {depth for name, depth in found.items() if ".visual." in name} == {0}
    assert {depth for name, depth in found.items() if ".layers." in name} == {1, 2}
    assert found["encoder.model.language_model.norm.weight"] == 3


@torch.no_grad()
def test_it_is_a_backbone_of_connected_encoders():
    one = encoder().eval()
    texts, mask = ids(9, 4)
    embedded = one.encode_embedded(one.token_table()(texts), mask)
    torch.testing.assert_close(embedded.features, one(texts, mask).features)
    head = lambda width: IdentityHead(width, WIDTH)  # noqa: E731
    towers = {"text": Tower(one, head), "sound": Tower(connected(width=WIDTH), head)}
    assert EmbeddingModel(towers).embed("sound", torch.randn(2, 6)).shape == (2, WIDTH)


def test_what_does_not_fit_is_rejected_with_what_does():
    with pytest.raises(ValueError, match=r"model_type=bert: encoder=vlm takes qwen2_vl, "):
        encoder(config={"model_type": "bert", "hidden_size": 8, "num_attention_heads": 1,
                        "intermediate_size": 8, "num_hidden_layers": 1})  # fmt: skip
    with pytest.raises(ValueError, match=r"template='see': expected one \{\}"):
        encoder(template="see")
    with pytest.raises(ValueError, match="pooling='class': expected one of last, mean"):
        encoder(pooling="class")

    class Places(Letters):
        def encode(self, text: str) -> list[int]:
            return [int(text)] if text else []

    with pytest.raises(ValueError, match=r"token of a picture's place \(id 40\)"):
        VisionLanguageEncoder(Places(), config=config(), template="40{}")
    with pytest.raises(ValueError, match=r"token of a clip's place \(id 41\)"):
        VisionLanguageEncoder(Places(), config=config(), template="41{}")
    with pytest.raises(ValueError, match="has the token id 50, but the model knows 50"):
        VisionLanguageEncoder(Places(), config=config(), template="50{}")

    one, (images, mask) = encoder(), pictures(*GRIDS)
    with pytest.raises(InputMismatchError, match=r"patch_size=8\), or clips \[B, 3, frames.*got t"):
        one(torch.zeros(2, 3, 16, 16))
    for sides in ((2, 3, 3, 16, 16), (2, 3, 4, 16, 12), (2, 1, 4, 16, 16)):
        with pytest.raises(InputMismatchError, match="multiple of 2 frames and of 8 pixels"):
            one(torch.zeros(sides))
    with pytest.raises(ValueError, match=r"seconds_per_frame=0\.0: expected a number above 0"):
        encoder(seconds_per_frame=0.0)
    with pytest.raises(InputMismatchError, match=r"whole pictures, row by row: .*\[2, 3\]"):
        one(images[:, :4], mask[:, :4])
    with pytest.raises(InputMismatchError, match="mask must be bool"):
        one(images, mask.long())
