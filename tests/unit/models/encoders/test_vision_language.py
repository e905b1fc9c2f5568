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
    WIDTH,
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
    letters = Letters()
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
    with pytest.raises(ValueError, match="has the token id 50, but the model knows 50"):
        VisionLanguageEncoder(Places(), config=config(), template="50{}")

    one, (images, mask) = encoder(), pictures(*GRIDS)
    with pytest.raises(InputMismatchError, match=r"image_patches with patch_size=8\), got torch"):
        one(torch.zeros(2, 3, 16, 16))
    with pytest.raises(InputMismatchError, match=r"whole pictures, row by row: .*\[2, 3\]"):
        one(images[:, :4], mask[:, :4])
    with pytest.raises(InputMismatchError, match="mask must be bool"):
        one(images, mask.long())
