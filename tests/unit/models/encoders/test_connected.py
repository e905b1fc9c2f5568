"""Encoders connected to a language model: what goes in, what is shared, and what learns."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from connected_cases import (
    FEATURES,
    WIDTH,
    Letters,
    connected,
    head,
    ids,
    model,
    text_encoder,
)
from torch import Tensor, nn

from multimodal.models.encoders.connected import ConnectedEncoder, real_first
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.connectors import (
    Connector,
    LinearConnector,
    MLPConnector,
    PixelShuffleConnector,
    ResamplerConnector,
)
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.tower_optim import depths
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import LastLayers, LoRA

pytest.importorskip("transformers")
KINDS = ["bert", "qwen", "t5", "ours"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Unchanged(Connector):
    """Tokens as they come."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__(in_features, width, norm=False, init_rms=1.0)

    def connect(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return tokens, mask


def words(text: nn.Module, inputs: Tensor) -> Tensor:
    """The word vectors of ids."""
    vectors: Tensor = text.token_table()(inputs)
    return vectors.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_word_vectors_in_a_template_are_the_text_that_they_spell(kind):
    """Whatever the lengths: positions, padding, start, end and pooling are those of a text."""
    text = text_encoder(kind)
    encoder = connected(FeatureEncoder(WIDTH), connector=Unchanged, template="see {} now")
    both = model(text, image=encoder).eval()
    inside, mask = torch.randint(5, 31, (3, 6)), torch.arange(6) < torch.tensor([6, 1, 3])[:, None]
    before, after = (Letters().encode(part) for part in ("see ", " now"))
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        spelt = torch.tensor([[1, *before, *inside[row, :length].tolist(), *after, 2]])
        expected = both.embed("text", spelt, torch.ones_like(spelt, dtype=torch.bool))
        vectors = words(text, inside).masked_fill(~mask[..., None], torch.nan)
        given = both.embed("image", vectors, mask)[row : row + 1]
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-6)


def test_real_tokens_come_first_and_keep_their_order():
    tokens = torch.arange(10.0).reshape(1, 10, 1)
    mask = torch.tensor([[True, False, False, True, True, False, True, False, True, True]])
    moved, real = real_first(tokens, mask)
    assert moved[0, :, 0].tolist() == [0, 3, 4, 6, 8, 9, 1, 2, 5, 7]
    assert real.tolist() == [[True] * 6 + [False] * 4]
    assert real_first(tokens, None) == (tokens, None)


def test_a_template_without_start_and_end_has_the_text_alone():
    class Bare(Letters):
        start = end = None

    encoder = connected(tokenizer=Bare(), template="ab{}c")
    assert encoder.before.tolist() == [5, 6]
    assert encoder.after.tolist() == [7]
    whole = connected(template="ab{}c")
    assert (whole.before.tolist(), whole.after.tolist()) == ([1, 5, 6], [7, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_same_bits_with_connectors_and_without(kind):
    text = text_encoder(kind)
    alone = EmbeddingModel({"text": Tower(copy.deepcopy(text), head(), frozen=True)}).eval()
    both = model(text, image=connected(), audio=connected()).eval()
    inputs, mask = ids(9, 4, 6)
    assert torch.equal(both.embed("text", inputs, mask), alone.embed("text", inputs, mask))


def trained_for_some_steps(both: EmbeddingModel) -> EmbeddingModel:
    both.train()
    optimizer = torch.optim.AdamW([p for p in both.parameters() if p.requires_grad], 1e-2)
    inputs, mask = ids(5, 7, 4)
    for _ in range(3):
        image, text = (
            both.embed("image", torch.randn(3, FEATURES)),
            both.embed("text", inputs, mask),
        )
        (1 - (image * text).sum(dim=1)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return both


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_the_connector_and_no_frozen_bit(kind):
    both = model(text_encoder(kind), image=connected(template="a {}"))
    before = {name: value.clone() for name, value in both.state_dict().items()}
    trained_for_some_steps(both)
    moved = {n for n, value in both.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {n for n in before if ".connector." in n}
    assert {n for n, p in both.named_parameters() if p.requires_grad} == moved


def test_the_encoder_learns_where_it_is_not_frozen():
    both = model(image=connected(frozen=False))
    before = both.towers["image"].encoder.encoder.projection.weight.clone()
    trained_for_some_steps(both)
    assert not torch.equal(both.towers["image"].encoder.encoder.projection.weight, before)


def test_the_backbone_learns_where_its_tower_does_and_through_every_modality():
    both = model(frozen=False, image=connected())
    both.embed("image", torch.randn(2, FEATURES))[:, 0].sum().backward()
    layer = both.towers["text"].encoder.layers()[0].attention.self.query.weight
    assert layer.grad is not None
    assert layer.grad.abs().max() > 0


def test_low_rank_changes_of_the_backbone_learn_through_every_modality():
    pytest.importorskip("peft")
    text = Tower(text_encoder(), head(), tuning=LoRA(rank=2))
    both = EmbeddingModel({"text": text, "image": Tower(connected(), head())})
    both.embed("image", torch.randn(2, FEATURES))[:, 0].sum().backward()
    learns = {name for name, p in both.named_parameters() if p.requires_grad}
    assert all(".lora_" in name or ".connector." in name for name in learns)
    touched = {n for n, p in both.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(".lora_B." in name for name in touched)


def test_all_modalities_share_one_copy_of_the_backbone():
    both = model(image=connected(), audio=connected(), depth=connected())
    text = both.towers["text"].encoder
    assert all(both.towers[n].encoder.backbone is text for n in ("image", "audio", "depth"))
    once = {id(p) for p in text.parameters()}
    assert sum(id(p) in once for p in both.parameters()) == len(once)
    names = both.state_dict().keys()
    assert sum(name.endswith("word_embeddings.weight") for name in names) == 1
    alone, file = io.BytesIO(), io.BytesIO()
    torch.save(both.state_dict(), file)
    torch.save(EmbeddingModel({"text": Tower(text, head())}).state_dict(), alone)
    connectors = sum(p.numel() for n, p in both.named_parameters() if ".text." not in n)
    assert file.tell() < alone.tell() + 4 * connectors + 20_000


def test_a_copy_of_the_model_has_its_own_backbone():
    both = model(image=connected())
    twin = copy.deepcopy(both)
    assert twin.towers["image"].encoder.backbone is twin.towers["text"].encoder
    assert twin.towers["text"].encoder is not both.towers["text"].encoder


def test_a_loaded_model_embeds_the_same():
    both = model(image=connected(template="it is {}", pooling="attention")).eval()
    other = model(image=connected(template="it is {}", pooling="attention")).eval()
    other.load_state_dict(both.state_dict())
    given = torch.randn(3, FEATURES)
    assert torch.equal(both.embed("image", given), other.embed("image", given))


@pytest.mark.parametrize(("pooling", "learns"), [("last", 0), ("mean", 0), ("attention", 1)])
def test_a_pooling_of_its_own(pooling, learns):
    both = model(image=connected(pooling=pooling)).eval()
    encoder, given = both.towers["image"].encoder, torch.randn(2, FEATURES)
    with torch.no_grad():
        output = encoder(given)
    expected = {"last": output.tokens[:, -1], "mean": output.tokens.mean(dim=1)}
    if pooling in expected:
        torch.testing.assert_close(output.features, expected[pooling])
    assert any(".pool." in n for n, p in both.named_parameters() if p.requires_grad) == bool(learns)


def test_features_are_one_token_and_can_be_kept():
    """What a cache holds goes the same way as what is computed."""
    inner = VisionTransformer(8, 3, partial(PatchStem, patch_size=4), Transformer(8, 1, 2))
    both = model(image=connected(inner, reads="features"), other=connected()).eval()
    image, given = both.towers["image"], torch.randn(3, 3, 8, 8)
    assert image.cached_width == 8
    assert both.towers["other"].cached_width is None
    assert image.frozen_module is inner
    kept = image.frozen_part(given)
    assert torch.equal(kept, inner(given).features)
    torch.testing.assert_close(image.from_frozen(kept), image(given))
    assert image.encoder(given).tokens.shape == (3, 3, WIDTH)  # start, the token, end


def test_a_frozen_encoder_stays_in_evaluation_mode():
    inner = nn.Sequential(nn.Dropout(0.5))
    inner.width = FEATURES
    encoder = ConnectedEncoder(inner, LinearConnector, WIDTH, Letters())
    assert encoder.train().connector.training
    assert not encoder.encoder.training


def test_tuning_the_encoder_trains_the_connector_too():
    inner = VisionTransformer(8, 3, partial(PatchStem, patch_size=4), Transformer(8, 3, 2))
    encoder = connected(inner, frozen=False, pooling="attention")
    LastLayers(1)(Tower(encoder, head()))
    learns = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learns} == {"encoder", "connector", "pool"}
    assert not any(".blocks.0." in name or ".blocks.1." in name for name in learns)
    deep = depths(Tower(encoder, head()))
    assert deep["encoder.connector.projection.weight"] == 4
    with pytest.raises(ValueError, match=r"is frozen: to tune it, set encoder\.frozen=false"):
        LastLayers(1)(Tower(connected(inner), head()))


def test_several_clips_are_averaged_as_of_any_tower():
    inner = VisionTransformer(8, 3, partial(PatchStem, patch_size=4), Transformer(8, 1, 2))
    both = model(image=connected(inner)).eval()
    clips = torch.randn(2, 3, 3, 8, 8)
    mean = torch.stack([both.embed("image", clips[:, i]) for i in range(3)]).mean(dim=0)
    torch.testing.assert_close(both.embed("image", clips), nn.functional.normalize(mean, dim=1))


@pytest.mark.parametrize(
    ("connector", "tokens", "trained"),
    [
        (partial(LinearConnector, tokens_per_input=2), 8, 8 * 2 * WIDTH + 2 * WIDTH + 16),
        (partial(MLPConnector, hidden=4), 4, None),
        (partial(ResamplerConnector, num_queries=3, hidden=8, num_heads=2), 3, None),
        (partial(PixelShuffleConnector, extra_tokens=1), 1, None),
    ],
)
def test_every_connector_between_a_picture_and_the_backbone(connector, tokens, trained):
    """A picture of 2 x 2 patches; the linear and MLP ones take the class token too."""
    inner = VisionTransformer(8, 3, partial(PatchStem, patch_size=4), Transformer(8, 1, 2))
    tokens = tokens + (2 if tokens == 8 else 1 if tokens == 4 else 0)
    both = model(image=connected(inner, connector=connector))
    output = both.towers["image"].encoder(torch.randn(2, 3, 8, 8))
    assert output.tokens.shape == (2, tokens + 2, WIDTH)
    own = both.towers["image"].encoder.connector
    if trained is not None:
        assert sum(p.numel() for p in own.parameters()) == trained
    output.features.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in own.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"template": "no place"}, r"template='no place': expected one \{\}"),
        ({"template": "{} and {}"}, r"expected one \{\}"),
        ({"pooling": "class"}, "pooling='class': expected one of last, mean, attention"),
        ({"reads": "words"}, "reads='words': expected one of tokens, features"),
    ],
)
def test_choices_that_do_not_exist(choices, message):
    with pytest.raises(ValueError, match=message):
        connected(**choices)


def test_backbones_that_do_not_fit():
    with pytest.raises(ValueError, match=r"towers\.image\.encoder\.backbone='words' is none of"):
        model(image=connected(backbone="words"))
    with pytest.raises(ValueError, match=r"backbone='image' is none of the other towers, text"):
        model(image=connected(backbone="image"))
    with pytest.raises(ValueError, match=r"towers\.image\.encoder: width=16, but .* has 32"):
        EmbeddingModel(
            {"text": Tower(text_encoder(), None), "image": Tower(connected(width=16), None)}
        )
    with pytest.raises(ValueError, match="a FeatureEncoder is none; choose a tower"):
        model(FeatureEncoder(WIDTH), image=connected())
    few = TextTransformer(20, 24, Transformer(WIDTH, 1, 2))
    with pytest.raises(ValueError, match="the token id 30, but the backbone text knows 20"):
        model(few, image=connected(template="z{}"))
    with pytest.raises(RuntimeError, match="works inside an EmbeddingModel"):
        Tower(connected(), head())(torch.zeros(1, FEATURES))
    clip = {"model_type": "clip_text_model", "hidden_size": WIDTH, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}  # fmt: skip
    with pytest.raises(ValueError, match="takes no vectors of its width in place of token ids"):
        model(HuggingFaceEncoder(config=clip), image=connected())


def test_more_tokens_than_the_backbone_has_positions_for():
    both = model(image=connected(FeatureEncoder(FEATURES, width=8)))
    with pytest.raises(Exception, match="expects at most 24 tokens, got 27"):
        both.embed("image", torch.randn(1, 25, FEATURES))


def test_a_head_of_its_own_may_follow():
    towers = {
        "text": Tower(text_encoder(), partial(LinearHead, embed_dim=8)),
        "image": Tower(connected(), partial(LinearHead, embed_dim=8)),
    }
    assert EmbeddingModel(towers).embed("image", torch.randn(2, FEATURES)).shape == (2, 8)
