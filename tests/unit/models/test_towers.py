"""Heads, towers, frozen towers, and the model of several."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.heads import LinearHead, MLPHead
from multimodal.models.layers.pooling import AttentionPool
from multimodal.models.layers.transformer import Transformer
from multimodal.models.tower_optim import no_weight_decay
from multimodal.models.towers import EmbeddingModel, Tower


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tower(embed_dim: int = 8, frozen: bool = False, dropout: float = 0.0) -> Tower:
    head = partial(LinearHead, embed_dim=embed_dim, norm=True, dropout=dropout)
    return Tower(FeatureEncoder(10, 12, hidden=16), head, frozen)


@pytest.mark.parametrize("head", [LinearHead, MLPHead])
def test_heads_project_and_have_the_parts_asked_for(head):
    features = torch.randn(4, 12)
    plain = head(12, 8, bias=False)
    assert plain(features).shape == (4, 8)
    assert plain.embed_dim == 8
    assert not [name for name, _ in plain.named_parameters() if name.endswith("bias")]
    full = head(12, 8, norm=True, dropout=0.5, bias=True)
    assert not torch.equal(full(features), full(features))
    full.eval()
    torch.testing.assert_close(full(3.0 * features + 1.0), full(features), atol=1e-4, rtol=1e-4)


def test_hidden_dropout_is_of_the_hidden_layer_and_of_training_alone():
    torch.manual_seed(0)
    head = MLPHead(12, 8, hidden=1000, hidden_dropout=0.3)
    plain = MLPHead(12, 8, hidden=1000)
    plain.load_state_dict(head.state_dict())  # no key of its own
    features, seen = torch.randn(4, 12), []
    head.mlp.fc2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(features)
    hidden = plain.mlp.activation(plain.mlp.fc1(features))
    kept = seen[0] != 0
    assert 0.66 < kept.float().mean() < 0.74
    torch.testing.assert_close(seen[0][kept], hidden[kept] / 0.7)
    assert torch.equal(head.eval()(features), plain(features))


def test_linear_head_is_a_matrix():
    head = LinearHead(12, 8)
    features = torch.randn(4, 12)
    torch.testing.assert_close(head(features), features @ head.projection.weight.T)


def test_embeddings_are_the_head_on_the_features_with_norm_one():
    model, inputs = tower(), torch.randn(4, 10)
    embeddings = model(inputs)
    assert model.embed_dim == 8
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    expected = model.head(model.encode(inputs).features)
    torch.testing.assert_close(embeddings, expected / expected.norm(dim=1, keepdim=True))


def test_embeddings_are_float32_under_autocast_and_keep_float64():
    model, inputs = tower(), torch.randn(4, 10)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model(inputs)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert model.double()(inputs.double()).dtype == torch.float64


def test_a_frozen_tower_stays_bit_unchanged_beside_a_trained_one():
    model = EmbeddingModel({"image": tower(frozen=True, dropout=0.5), "audio": tower()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 0.1)
    inputs = torch.randn(4, 10)
    model.train()
    frozen = model.embed("image", inputs)
    assert not frozen.requires_grad
    assert not [p for p in model.towers["image"].parameters() if p.requires_grad]
    assert torch.equal(model.embed("image", inputs), frozen)  # no dropout: in evaluation mode
    for _ in range(2):
        logits = model.embed("audio", inputs) @ model.embed("image", inputs).T
        F.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("towers.image."), name


def test_train_mode_reaches_all_towers_but_the_frozen():
    model = EmbeddingModel({"image": tower(frozen=True), "audio": tower()})
    for mode in (True, False, True):
        model.train(mode)
        assert {module.training for module in model.towers["audio"].modules()} == {mode}
        assert {module.training for module in model.towers["image"].modules()} == {False}


def test_a_trained_tower_respects_no_grad():
    with torch.no_grad():
        assert not tower()(torch.randn(4, 10)).requires_grad


def test_two_modalities_can_share_a_tower():
    model = EmbeddingModel({"image": tower(), "video": "image", "audio": tower()})
    inputs = torch.randn(4, 10)
    assert model.towers["video"] is model.towers["image"]
    assert torch.equal(model.embed("video", inputs), model.embed("image", inputs))
    assert not torch.equal(model.embed("audio", inputs), model.embed("image", inputs))
    assert len(list(model.parameters())) == 2 * len(list(tower().parameters()))


def test_a_shared_tower_may_come_first_or_be_the_same_instance():
    one = tower()
    first = EmbeddingModel({"video": "image", "image": one})
    assert list(first.towers) == ["video", "image"]
    same = EmbeddingModel({"image": one, "video": one})
    assert same.towers["image"] is same.towers["video"]


def test_a_model_survives_its_state_dict():
    model = EmbeddingModel({"image": tower(), "video": "image"})
    other = EmbeddingModel({"image": tower(), "video": "image"})
    other.load_state_dict(model.state_dict())
    inputs = torch.randn(4, 10)
    assert torch.equal(other.embed("video", inputs), model.embed("image", inputs))


def test_forward_embeds_every_modality_with_its_mask():
    head = partial(LinearHead, embed_dim=8)
    text = Tower(TextTransformer(20, 6, Transformer(12, 1, 2), pooling="mean"), head)
    model = EmbeddingModel({"image": tower(), "text": text})
    ids, mask = torch.randint(1, 20, (3, 6)), torch.arange(6) < torch.tensor([[6], [2], [4]])
    inputs = {"image": torch.randn(3, 10), "text": ids}
    out = model(inputs, {"text": mask})
    assert torch.equal(out["image"], model.embed("image", inputs["image"]))
    assert torch.equal(out["text"], model.embed("text", ids, mask))
    assert not torch.allclose(out["text"], model(inputs)["text"])


def test_what_a_model_rejects():
    with pytest.raises(ValueError, match="image 8, audio 9"):
        EmbeddingModel({"image": tower(8), "audio": tower(9)})
    with pytest.raises(ValueError, match="towers is empty"):
        EmbeddingModel({})
    with pytest.raises(ValueError, match=r"towers.video shares .*'photo'.*\['image'\]"):
        EmbeddingModel({"image": tower(), "video": "photo"})
    with pytest.raises(ValueError, match=r"'depth'.*image"):
        EmbeddingModel({"image": tower()}).embed("depth", torch.randn(1, 10))


def test_only_weight_matrices_decay():
    trunk = Transformer(12, 1, 2, bias_kv=True, layer_scale=0.1, pre_norm=True)
    model = nn.ModuleDict({"text": TextTransformer(20, 6, trunk), "pool": AttentionPool(trunk)})
    decayed = {n for n, p in model.named_parameters() if not no_weight_decay(n, p)}
    block = "text.trunk.blocks.0"
    assert decayed == {
        "text.embedding.weight",
        f"{block}.attention.qkv.weight",
        f"{block}.attention.out.weight",
        f"{block}.mlp.fc1.weight",
        f"{block}.mlp.fc2.weight",
        "pool.attention.q.weight",
        "pool.attention.kv.weight",
        "pool.attention.out.weight",
        "pool.mlp.fc1.weight",
        "pool.mlp.fc2.weight",
    }
