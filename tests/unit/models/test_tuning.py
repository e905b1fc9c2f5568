"""What of a tower is trained: layers, norms, adapters; and at which rate."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.tower_optim import TowerOptim, no_weight_decay
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import (
    LastLayers,
    LoRA,
    NormsAndBiases,
    has_adapters,
    is_adapter,
    load_plain,
    merge_adapters,
    plain_state,
)
from multimodal.training.optim import (
    clip_towers,
    parameter_groups,
    scale_learning_rates,
    tower_optim,
)

HEAD = partial(LinearHead, embed_dim=6)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image_tower(**choices) -> Tower:
    stem = partial(PatchStem, patch_size=4)
    return Tower(
        VisionTransformer(8, 3, stem, Transformer(16, 3, 2, pre_norm=True)), HEAD, **choices
    )


def text_tower(**choices) -> Tower:
    return Tower(TextTransformer(30, 7, Transformer(16, 3, 2, causal=True)), HEAD, **choices)


def trained(tower: nn.Module) -> set[str]:
    return {name for name, p in tower.named_parameters() if p.requires_grad}


def steps(tower: Tower, inputs: Tensor, count: int = 3) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(tower, 0.1), lr=0.05)
    for _ in range(count):
        optimizer.zero_grad()
        tower(inputs)[:, 0].sum().backward()
        optimizer.step()


PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TEXTS = torch.randint(1, 29, (4, 7), generator=torch.Generator().manual_seed(1))


def test_the_last_layers_learn_and_nothing_before_them():
    tower = image_tower(tuning=LastLayers(1))
    names = trained(tower)
    assert {n.split(".")[3] for n in names if "blocks" in n} == {"2"}
    assert {n for n in names if "blocks" not in n} == {
        "encoder.trunk.norm.weight", "encoder.trunk.norm.bias", "head.projection.weight",
    }  # fmt: skip
    assert trained(image_tower(tuning=LastLayers(0, norm=False))) == {"head.projection.weight"}
    with pytest.raises(ValueError, match="num_layers=4: the encoder has 3"):
        image_tower(tuning=LastLayers(4))


def test_norms_and_biases_learn_and_no_matrix():
    names = trained(image_tower(tuning=NormsAndBiases()))
    assert "encoder.trunk.blocks.0.attention.qkv.bias" in names
    assert "encoder.trunk.blocks.0.norm_1.weight" in names
    matrices = {n for n in names if n.endswith("weight") and "norm" not in n}
    assert matrices == {"head.projection.weight"}


@pytest.mark.parametrize(
    "tuning",
    [LastLayers(1), LastLayers(0, norm=False), NormsAndBiases(), LoRA(2), LoRA(2, dora=True)],
)
def test_what_is_frozen_stays_bit_exactly_and_what_is_not_moves(tuning):
    tower = image_tower(tuning=tuning)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    steps(tower, PICTURES)
    names = trained(tower)
    assert names
    for name, value in tower.state_dict().items():
        assert torch.equal(value, before[name]) != (name in names), name


def test_frozen_and_tuned_exclude_each_other():
    with pytest.raises(ValueError, match="a frozen tower has no tuning"):
        image_tower(frozen=True, tuning=LastLayers(1))


@pytest.mark.parametrize("make", [image_tower, text_tower])
def test_lora_is_the_identity_at_the_start_bit_exactly(make):
    inputs = PICTURES if make is image_tower else TEXTS
    plain = make()
    adapted = make(tuning=LoRA(4))
    load_plain(adapted, plain.state_dict())
    assert has_adapters(adapted.state_dict())
    with torch.no_grad():
        assert torch.equal(adapted(inputs), plain(inputs))
        dora = make(tuning=LoRA(4, dora=True))
        load_plain(dora, plain.state_dict())
        torch.testing.assert_close(dora(inputs), plain(inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("make", [image_tower, text_tower])
def test_merging_keeps_the_outputs_and_removes_the_adapters(make, dora):
    inputs = PICTURES if make is image_tower else TEXTS
    tower = make(tuning=LoRA(4, dora=dora))
    start = tower(inputs).detach()
    steps(tower, inputs)
    tower.eval()
    with torch.no_grad():
        learned = tower(inputs)
        assert (learned - start).abs().max() > 1e-2
        assert merge_adapters(tower) == 3 * 4
        assert (tower(inputs) - learned).abs().max() < 1e-5
    plain = make().eval()
    plain.load_state_dict(tower.state_dict())  # the names of a tower that never had any
    with torch.no_grad():
        assert torch.equal(plain(inputs), tower(inputs))


@pytest.mark.parametrize("causal", [True, False])
def test_the_causal_mask_holds_under_lora(causal):
    encoder = TextTransformer(30, 7, Transformer(16, 3, 2, causal=causal), pooling="last")
    tower = Tower(encoder, HEAD, tuning=LoRA(4))
    steps(tower, TEXTS)
    changed = TEXTS.clone()
    changed[:, 5] = (changed[:, 5] % 28) + 1
    with torch.no_grad():
        before, after = tower.encode(TEXTS).tokens, tower.encode(changed).tokens
    assert not torch.equal(before[:, 5:], after[:, 5:])
    assert torch.equal(before[:, :5], after[:, :5]) == causal


def test_lora_changes_only_what_is_asked_for_and_says_what_there_is():
    tower = image_tower(tuning=LoRA(2, targets=["qkv"], head=False))
    names = trained(tower)
    assert names
    assert all(is_adapter(name) and "attention.qkv" in name for name in names)
    with pytest.raises(ValueError, match=r"no linear map q_proj .*there are fc1, fc2, out, qkv"):
        image_tower(tuning=LoRA(2, targets=["q_proj"]))


def test_plain_weights_go_under_adapters_and_come_back():
    plain, adapted = text_tower(), text_tower(tuning=LoRA(2))
    load_plain(adapted, plain.state_dict())
    back = plain_state(adapted)
    assert back.keys() == plain.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in plain.state_dict().items())
    with pytest.raises(RuntimeError, match="other names"):
        load_plain(adapted, {"head.projection.weight": torch.zeros(6, 16)})


def test_rates_fall_from_the_head_down():
    rates = TowerOptim(lr=3.0, weight_decay=0.7, layer_decay=0.5)
    model = EmbeddingModel({"image": image_tower(rates=rates), "text": text_tower()})
    scales = {name: scale for name, (_, scale) in tower_optim(model).items()}
    expected = {
        "head.projection.weight": 1.0,
        "encoder.trunk.norm.weight": 1.0,
        "encoder.trunk.blocks.2.mlp.fc1.weight": 0.5,
        "encoder.trunk.blocks.0.norm_1.bias": 0.125,
        "encoder.stem.projection.weight": 0.0625,
        "encoder.positions": 0.0625,
        "encoder.trunk.pre_norm.weight": 0.0625,
    }
    assert {n: scales[f"towers.image.{n}"] for n in expected} == expected
    assert not [name for name in scales if "text" in name]
    groups = parameter_groups(model, 0.1)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    optimizer = torch.optim.AdamW(groups, lr=2.0)
    scale_learning_rates(optimizer)
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        image = "image" in name
        assert group["lr"] == (3.0 * scales[name] if image else 2.0)
        decay = 0.7 if image else 0.1
        assert group["weight_decay"] == (0.0 if no_weight_decay(name, parameter) else decay)
    assert optimizer.param_groups[0]["lr"] == 2.0  # the one that is logged


def test_a_towers_own_norm_clips_its_gradients_apart():
    model = EmbeddingModel(
        {"image": image_tower(rates=TowerOptim(max_norm=5.0)), "text": text_tower()}
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rest = clip_towers(model)
    assert {id(p) for p in rest} == {id(p) for p in model.towers["text"].parameters()}
    norms = {
        name: torch.cat([p.grad.flatten() for p in tower.parameters()]).norm()
        for name, tower in model.towers.items()
    }
    assert float(norms["image"]) == pytest.approx(5.0, rel=1e-4)
    assert float(norms["text"]) > 50


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"max_norm": -1.0}, {"weight_decay": -0.1}, {"layer_decay": 0.0}]
)
def test_rates_out_of_range_are_rejected(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TowerOptim(**wrong)


def test_no_decay_on_the_class_tokens_and_positions_of_other_libraries():
    shapes = {
        "embeddings.cls_token": (1, 1, 8),
        "x.position_embeddings": (1, 5, 8),
        "embeddings.position_embeddings.weight": (5, 8),
        "a.bias": (8,),
    }
    for name, shape in shapes.items():
        assert no_weight_decay(name, torch.zeros(shape)), name
    assert not no_weight_decay("layer.0.attention.query.weight", torch.zeros(8, 8))
