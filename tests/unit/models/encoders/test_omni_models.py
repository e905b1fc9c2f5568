"""Qwen-Omni models as one tower: texts, pictures, clips and sounds, equal to the library's own."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import torch
import transformers
from chat_cases import write_tokenizer
from connected_cases import ids
from omni_cases import (
    BINS,
    SEEN_AROUND,
    SOUND_AROUND,
    SOUND_TOKEN,
    config,
    encoder,
    sounds,
)
from safetensors.torch import load_file, save_file
from test_vision_language import clips, patches_of
from torch import Tensor
from vlm_cases import IMAGE_TOKEN, SIDE, VIDEO_TOKEN, WIDTH, Signs, pictures

from multimodal.core.errors import InputMismatchError
from multimodal.data.tokenizers.huggingface import HuggingFaceTokenizer
from multimodal.models.gradient_caching import encode_microbatched
from multimodal.models.heads import IdentityHead
from multimodal.models.towers import EmbeddingModel, Tower

GRIDS, LENGTHS = [(2, 3), (1, 1), (3, 2)], (12, 7, 23, 3)
NEAR = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def letters(text: str) -> list[int]:
    return Signs().encode(text)


def of_picture(grid: tuple[int, int]) -> tuple[list[int], dict[str, Tensor]]:
    inputs, _ = pictures(grid)
    pixels = encoder().patches.of_picture(inputs[0, :, 2:])
    tokens = [SEEN_AROUND[0], *[IMAGE_TOKEN] * (grid[0] * grid[1]), SEEN_AROUND[1]]
    grids = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]])
    return tokens, {"pixel_values": pixels, "image_grid_thw": grids}


def of_clip(clip: Tensor, seconds: float) -> tuple[list[int], dict[str, Tensor]]:
    frames, rows, columns = clip.shape[1] // 2, clip.shape[2] // SIDE, clip.shape[3] // SIDE
    tokens = [SEEN_AROUND[0], *[VIDEO_TOKEN] * (frames * rows * columns), SEEN_AROUND[1]]
    return tokens, {
        "pixel_values_videos": patches_of(clip),
        "video_grid_thw": torch.tensor([[frames, 2 * rows, 2 * columns]]),
        "video_second_per_grid": torch.tensor([2 * seconds]),
    }


def of_sound(values: Tensor) -> tuple[list[int], dict[str, Tensor]]:
    tower = encoder().model.audio_tower
    _, count = tower._get_feat_extract_output_lengths(torch.tensor(values.shape[1]))
    tokens = [SOUND_AROUND[0], *[SOUND_TOKEN] * int(count), SOUND_AROUND[1]]
    real = torch.ones(1, values.shape[1], dtype=torch.int64)
    return tokens, {"input_features": values[None], "feature_attention_mask": real}


def theirs(one, tokens: list[int], **given: Tensor) -> Tensor:
    """The last hidden state by the model itself, of one sequence without padding."""
    told = torch.tensor([tokens])
    made = one.model(input_ids=told, attention_mask=torch.ones_like(told), **given)
    return made.last_hidden_state[0, -1]


def framed(part: list[int]) -> list[int]:
    return [1, *letters("see "), *part, *letters(" now"), 2]


@torch.no_grad()
def test_texts_pictures_and_clips_are_the_models_own():
    seconds = 1.5
    one = encoder(seconds_per_frame=seconds).eval()
    texts, mask = ids(9, 4)
    for features, row, length in zip(one(texts, mask).features, texts, (9, 4), strict=True):
        torch.testing.assert_close(features, theirs(one, row[:length].tolist()), **NEAR)
    for features, grid in zip(one(*pictures(*GRIDS)).features, GRIDS, strict=True):
        tokens, given = of_picture(grid)
        torch.testing.assert_close(features, theirs(one, framed(tokens), **given), **NEAR)
    for features, clip in zip(one(clips()).features, clips(), strict=True):
        tokens, given = of_clip(clip, seconds)
        torch.testing.assert_close(features, theirs(one, framed(tokens), **given), **NEAR)


@torch.no_grad()
def test_sounds_are_the_models_own_whatever_their_padding():
    one = encoder().eval()
    values, mask = sounds(*LENGTHS)
    for features, sound, length in zip(one(values, mask).features, values, LENGTHS, strict=True):
        tokens, given = of_sound(sound[:, :length])
        torch.testing.assert_close(features, theirs(one, framed(tokens), **given), **NEAR)
    whole = one(values[2:3])
    torch.testing.assert_close(whole.features, one(values[2:3], mask[2:3]).features)


@torch.no_grad()
def test_a_sound_of_a_frame_or_two_is_a_token():
    one = encoder().eval()
    values, mask = sounds(1, 9)
    with_another, alone = one(values, mask).features[0], one(values[:1, :, :1], mask[:1, :1])
    padded = torch.cat([values[0, :, :1], torch.zeros(BINS, 2)], dim=1)  # the model's least
    tokens, given = of_sound(padded)
    assert tokens.count(SOUND_TOKEN) == 1
    expected = theirs(one, framed(tokens), **given)
    torch.testing.assert_close(with_another, expected, **NEAR)
    torch.testing.assert_close(alone.features[0], expected, **NEAR)


@torch.no_grad()
def test_parts_interleave_and_any_may_be_missing():
    one = encoder(seconds_per_frame=1.5).eval()
    texts, real = ids(5, 2)
    seen, seen_mask = pictures((2, 3), (1, 2))
    heard, heard_mask = sounds(12, 7)
    heard_mask[1] = False  # the second sample has none
    after = texts.flip(0), real.flip(0)
    clip_mask = torch.tensor([[True], [False]])
    parts = [(texts, real), (seen, seen_mask), (heard, heard_mask), (clips(), clip_mask), after]
    found = one.encode_parts(parts).features
    picture, pixels = of_picture((2, 3))
    sound, spectrum = of_sound(heard[0])
    clip, frames = of_clip(clips()[0], 1.5)
    tokens = [*texts[0, :5].tolist(), *picture, *sound, *clip, *texts[1, :2].tolist()]
    expected = theirs(one, tokens, **pixels, **spectrum, **frames)
    torch.testing.assert_close(found[0], expected, **NEAR)
    # pictures of a batch are drawn in order, so the second is made with the first
    inputs, mask = pictures((2, 3), (1, 2))
    pixels = one.patches.of_picture(inputs[1, :, 2:][mask[1]])
    tokens = [*texts[1, :2].tolist(), SEEN_AROUND[0], *[IMAGE_TOKEN] * 2, SEEN_AROUND[1],
              *texts[0, :5].tolist()]  # fmt: skip
    grid = torch.tensor([[1, 2, 4]])
    expected = theirs(one, tokens, pixel_values=pixels, image_grid_thw=grid)
    torch.testing.assert_close(found[1], expected, **NEAR)


@torch.no_grad()
def test_several_sounds_of_a_sample_keep_their_order():
    one = encoder().eval()
    first, second = sounds(12, 7), sounds(9, 5)
    second = (-second[0], second[1])
    found = one.encode_parts([first, second]).features
    for row, lengths in enumerate(((12, 9), (7, 5))):
        parts = [part[row, :, :n] for (part, _), n in zip((first, second), lengths, strict=True)]
        made = [of_sound(part) for part in parts]
        longest = max(lengths)
        features = [torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        tokens = [token for ids_of, _ in made for token in ids_of]
        expected = theirs(
            one, tokens, input_features=torch.stack(features), feature_attention_mask=real.long()
        )
        torch.testing.assert_close(found[row], expected, **NEAR)


@torch.no_grad()
def test_a_chat_template_stands_around_pictures_and_sounds(tmp_path):
    tokenizer = HuggingFaceTokenizer(write_tokenizer(tmp_path))
    one = encoder(tokenizer=tokenizer, template="{}what is it", chat=True).eval()
    before, after = (tokenizer.encode(words) for words in tokenizer.chat(("", "what is it"), 40))
    assert (before[-1], after[0]) == SEEN_AROUND
    picture, pixels = of_picture((2, 3))
    expected = theirs(one, [*before[:-1], *picture, *after[1:]], **pixels)
    torch.testing.assert_close(one(*pictures((2, 3))).features[0], expected, **NEAR)
    values, mask = sounds(12)
    sound, spectrum = of_sound(values[0])
    expected = theirs(one, [*before[:-1], *sound, *after[1:]], **spectrum)
    torch.testing.assert_close(one(values, mask).features[0], expected, **NEAR)


def test_a_sound_as_long_as_a_patch_has_numbers_is_told_by_its_mask():
    one = encoder()
    features = one.patches.features
    both = torch.randn(1, BINS, features)
    assert one._kind(both, torch.ones(1, features, dtype=torch.bool)) == "sound"
    assert one._kind(both, torch.ones(1, BINS, dtype=torch.bool)) == "picture"
    assert one._kind(both[:, :, 1:], None) == "sound"
    assert one._kind(both[:, 1:], None) == "picture"


@pytest.mark.parametrize("inputs", [torch.randn(1, BINS + 1, 9), torch.ones(1, BINS, 9).long()])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(InputMismatchError, match=rf"or log-mel \[B, {BINS}, frames\], got"):
        encoder()(inputs)


def gradients(model: EmbeddingModel, inputs, masks, pieces: int | None) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    if pieces is None:
        made = {name: model.embed(name, inputs[name], masks[name]) for name in inputs}
    else:
        made = {
            name: encode_microbatched(partial(model.embed, name), inputs[name], masks[name], pieces)
            for name in inputs
        }
    sum((each * torch.linspace(-1, 1, each.numel(), dtype=each.dtype).view_as(each)).sum()
        for each in made.values()).backward()  # fmt: skip
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_pieces_of_a_batch_give_the_same_gradients():
    tower = Tower(encoder().double(), partial(IdentityHead, embed_dim=WIDTH))
    model = EmbeddingModel({"text": tower, "audio": "text"})
    texts, real = ids(9, 4, 6)
    values, mask = sounds(12, 7, 23)
    inputs, masks = {"text": texts, "audio": values.double()}, {"text": real, "audio": mask}
    whole = gradients(model, inputs, masks, None)
    assert any("audio_tower" in name for name in whole)
    for name, gradient in gradients(model, inputs, masks, 2).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-9, atol=1e-10)


def test_the_thinker_of_a_whole_model_is_read(tmp_path):
    """As released: the parts that speak are left out."""
    settings = {name: value for name, value in config().items() if name != "model_type"}
    thinker = transformers.Qwen2_5OmniThinkerForConditionalGeneration(
        transformers.AutoConfig.for_model("qwen2_5_omni_thinker", **settings)
    )
    thinker.save_pretrained(tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    released = {f"thinker.{name}": tensor for name, tensor in weights.items()}
    folder = tmp_path / "whole"
    folder.mkdir()
    save_file(
        {**released, "talker.a": torch.ones(1), "token2wav.b": torch.ones(1)},
        folder / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    about = {"model_type": "qwen2_5_omni", "thinker_config": thinker.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(about))
    one = encoder(name=str(folder), config=None)
    expected = thinker.model.state_dict()
    assert one.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in one.model.state_dict().items())
