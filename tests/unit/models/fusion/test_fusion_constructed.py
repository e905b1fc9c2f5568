"""Data on which only relating the modalities helps: which word matches which patch decides.

A picture is eight patches, each of another kind and of another colour. The word names a kind, the
label is the colour of that kind's patch. Pooled, all pictures are equal.
"""

import pytest
import torch
from torch.nn import functional as F

from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.fusion.cross import CrossAttentionFusion
from multimodal.models.fusion.pooled import ConcatFusion, MeanFusion
from multimodal.models.fusion_model import FusionModel
from multimodal.models.tasks.labels import Classification
from multimodal.models.towers import Tower

KINDS = 8
COLOURS = [f"colour {number}" for number in range(KINDS)]


def batch(count, seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, KINDS, generator=generator).argsort(dim=1)  # kind at each place
    colours = torch.rand(count, KINDS, generator=generator).argsort(dim=1)
    word = torch.randint(KINDS, (count,), generator=generator)
    place = (order == word[:, None]).int().argmax(dim=1)
    patches = torch.cat([F.one_hot(order, KINDS), F.one_hot(colours, KINDS)], dim=2).float()
    label = colours[torch.arange(count), place]
    inputs = {"image": patches, "text": F.one_hot(word, KINDS).float(), "label": label}
    return inputs, place


def trained(fusion, steps):
    torch.manual_seed(0)
    model = FusionModel(
        {
            "image": Tower(FeatureEncoder(2 * KINDS), head=None),
            "text": Tower(FeatureEncoder(KINDS), head=None),
        },
        fusion,
        {"colour": lambda parts: Classification(parts, "label", COLOURS)},
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        terms = model.tasks["colour"].loss(model(batch(128, step)[0]))
        loss = terms["fused"].total / terms["fused"].count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model):
    inputs, _ = batch(2000, 10**6)
    task = model.tasks["colour"]
    return task.score(task.observe(model(inputs))).values["accuracy"]


@pytest.mark.slow
def test_cross_attention_finds_the_patch_that_decides():
    model = trained(
        lambda widths: CrossAttentionFusion(widths, 32, num_heads=1, query="text"), steps=300
    )
    assert accuracy(model) > 0.95
    inputs, place = batch(500, 10**6 + 1)
    with torch.no_grad():
        (found,) = model(inputs, need_attention=True).fused.attention
    assert found.query == "text"
    on_patch = found.over("image")[torch.arange(500), 0, place]
    assert on_patch.mean() > 0.5  # one in eight by chance


@pytest.mark.parametrize("fusion", [MeanFusion, ConcatFusion])
def test_pooled_features_cannot(fusion):
    model = trained(lambda widths: fusion(widths, 32), steps=100)
    assert accuracy(model) < 0.2  # 0.125 by chance
