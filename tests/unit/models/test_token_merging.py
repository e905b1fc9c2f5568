"""Token merging: exact where tokens are equal, by brute force where they are not."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Attention, Transformer
from multimodal.models.token_merging import Merged, TokenMerging, merge, merge_tokens, proportional
from multimodal.models.towers import EmbeddingModel, Tower


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias_kv", [False, True])
@torch.no_grad()
def test_tokens_that_are_equal_merge_without_a_change(bias_kv):
    trunk = Transformer(16, 1, 2, bias_kv=bias_kv, pre_norm=True).double().eval()
    x = torch.randn(2, 6, 16, dtype=torch.float64).repeat_interleave(2, dim=1)
    merging = TokenMerging(trunk, 6, keep_first=False)
    torch.testing.assert_close(merging(x), trunk(x), rtol=1e-6, atol=1e-6)
    seen = []
    trunk.blocks[0].mlp.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    merging(x)
    assert seen == [6]


@pytest.mark.parametrize("bias_kv", [False, True])
@torch.no_grad()
def test_a_token_of_a_size_is_seen_as_that_many(bias_kv):
    attention = Attention(16, 2, bias_kv=bias_kv).double()
    x, sizes = torch.randn(2, 4, 16, dtype=torch.float64), torch.tensor([3, 1, 2, 1])
    spread = attention(x.repeat_interleave(sizes, dim=1))[:, [0, 3, 4, 6]]
    found, _ = proportional(attention, x, sizes.double().expand(2, -1))
    torch.testing.assert_close(found, spread)


@torch.no_grad()
def test_the_most_alike_merge_weighted_by_size():
    x, keys = torch.randn(2, 9, 4), torch.randn(2, 9, 3)
    sizes = torch.tensor([1.0, 2, 3, 1, 1, 4, 1, 1, 2]).repeat(2, 1)
    places = torch.arange(9).repeat(2, 1)
    found = merge(Merged(x, sizes, places), keys, 2, keep_first=True)
    assert found.tokens.shape == (2, 7, 4)
    for row in range(2):
        unit = keys[row] / keys[row].norm(dim=1, keepdim=True)
        pairs = []
        for even in (2, 4, 6, 8):  # 0 is kept
            cosines = {odd: float(unit[even] @ unit[odd]) for odd in (1, 3, 5, 7)}
            odd = max(cosines, key=cosines.get)
            pairs.append((cosines[odd], even, odd))
        gone = {even: odd for _, even, odd in sorted(pairs, reverse=True)[:2]}
        for place in range(9):
            group = [gone.get(place, place)]
            group += [even for even, odd in gone.items() if odd == group[0]]
            weights = sizes[row, group]
            expected = (x[row, group] * weights[:, None]).sum(0) / weights.sum()
            now = int(found.places[row, place])
            torch.testing.assert_close(found.tokens[row, now], expected)
            assert found.sizes[row, now] == weights.sum()
        assert found.places[row, 0] == 0


@torch.no_grad()
def test_towers_on_a_grid_get_it_and_stay_near():
    def tower(pooling):
        stem = partial(PatchStem, patch_size=4)
        trunk = Transformer(32, 4, 4)
        return Tower(
            VisionTransformer(32, 3, stem, trunk, pooling=pooling), partial(LinearHead, embed_dim=8)
        )

    towers = {
        name: tower(pooling)
        for name, pooling in {"image": "class", "depth": "mean", "thermal": "attention"}.items()
    }
    model = EmbeddingModel(towers).eval()
    pictures = torch.nn.functional.interpolate(torch.randn(3, 3, 4, 4), size=32)  # flat areas
    before = {name: model.embed(name, pictures) for name in towers}
    assert merge_tokens(model, 8) == list(towers)
    seen = []
    model.tower("image").encoder.trunk.blocks[3].mlp.register_forward_hook(
        lambda m, i, o: seen.append(o.shape[1])
    )
    for name, rows in before.items():
        assert (model.embed(name, pictures) * rows).sum(1).min() > 0.9
    assert seen == [65 - 4 * 8]
    with pytest.raises(ValueError, match="not causal"):
        TokenMerging(Transformer(16, 1, 2, causal=True), 2, keep_first=False)
    with pytest.raises(ValueError, match="from 1"):
        TokenMerging(Transformer(16, 1, 2), 0, keep_first=False)
