"""Every fusion module: shapes, masks, presence, gradients, order, attention, half precision."""

import pytest
import torch
from fusion_cases import FUSIONS, LENGTHS, TOKENS, WIDTH, WIDTHS, encoded, make

from multimodal.core.batch import EncoderOutput
from multimodal.models.fusion.base import masked_mean
from multimodal.models.fusion.pooled import GatedFusion, LowRankFusion
from multimodal.models.layers.cross import CrossBlock, attention_weights

TEXT_MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
PRESENCE = {
    "image": torch.tensor([True, False, True]),
    "text": torch.tensor([True, True, True]),
    "audio": torch.tensor([True, True, False]),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_shapes_and_that_everything_is_learned_from(name):
    fusion, inputs = make(name), encoded(masks={"text": TEXT_MASK})
    out = fusion(inputs)
    assert out.features.shape == (3, WIDTH)
    assert out.tokens.shape[::2] == (3, WIDTH)
    assert out.mask.shape == out.tokens.shape[:2]
    assert out.mask.dtype == torch.bool
    assert max(stop for _, stop in out.spans.values()) == out.tokens.shape[1]
    assert out.attention == []
    # Tokens too: captioning reads them.
    (out.features.square().sum() + (out.tokens * out.mask[..., None]).square().sum()).backward()
    unlearned = [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert unlearned == (["stand_in"] if name == "cross_attention_query" else [])


@pytest.mark.parametrize("name", FUSIONS)
def test_a_masked_token_has_no_influence(name):
    fusion, inputs = make(name), encoded(masks={"text": TEXT_MASK})
    before = fusion(inputs, need_attention=True)
    (before.features.sum() + (before.tokens * before.mask[..., None]).sum()).backward()
    if name in TOKENS:
        grad = inputs["text"].tokens.grad
        assert torch.equal(grad[~TEXT_MASK], torch.zeros_like(grad[~TEXT_MASK]))
        assert grad[TEXT_MASK].abs().sum(dim=-1).all()
    for junk in (1e6, torch.nan):
        tokens = inputs["text"].tokens.detach().clone()
        tokens[~TEXT_MASK] = junk
        changed = {**inputs, "text": EncoderOutput(inputs["text"].features, tokens, TEXT_MASK)}
        after = fusion(changed, need_attention=True)
        assert torch.equal(after.features, before.features)
        assert torch.equal(after.tokens[after.mask], before.tokens[before.mask])
        for a, b in zip(after.attention, before.attention, strict=True):
            real = slice(None) if a.mask is None else a.mask[:, None, :, None].expand_as(a.weights)
            assert torch.equal(a.weights[real], b.weights[real])


@pytest.mark.parametrize("name", FUSIONS)
def test_an_absent_modality_has_no_influence(name):
    fusion, inputs = make(name), encoded()
    before = fusion(inputs, PRESENCE)
    (before.features.sum() + (before.tokens * before.mask[..., None]).sum()).backward()
    for modality, present in PRESENCE.items():
        for part in (inputs[modality].features, inputs[modality].tokens):
            if part.grad is not None:
                assert not part.grad[~present].any()
                assert part.grad.isfinite().all()
    spoiled = {}
    for modality, present in PRESENCE.items():
        features, tokens = (
            x.detach().clone() for x in (inputs[modality].features, inputs[modality].tokens)
        )
        features[~present] = torch.nan
        tokens[~present] = torch.nan
        spoiled[modality] = EncoderOutput(features, tokens)
    after = fusion(spoiled, PRESENCE)
    assert torch.equal(after.features, before.features)
    assert torch.equal(after.tokens[after.mask], before.tokens[before.mask])


@pytest.mark.parametrize("name", FUSIONS)
def test_one_absent_everywhere_is_as_if_absent_in_each_sample(name):
    fusion, inputs = make(name), encoded()
    for gone in WIDTHS:
        left_out = fusion({n: x for n, x in inputs.items() if n != gone})
        nobody = {gone: torch.zeros(3, dtype=torch.bool)}
        assert torch.allclose(left_out.features, fusion(inputs, nobody).features, atol=1e-12)
    alone = fusion({"audio": inputs["audio"]})
    assert alone.features.isfinite().all()


@pytest.mark.parametrize("name", FUSIONS)
def test_a_sample_does_not_depend_on_its_batch(name):
    fusion, inputs = make(name), encoded(masks={"text": TEXT_MASK})
    whole = fusion(inputs, PRESENCE).features
    for row in range(3):
        one = {
            n: EncoderOutput(
                x.features[row : row + 1],
                x.tokens[row : row + 1],
                None if x.mask is None else x.mask[row : row + 1],
            )
            for n, x in inputs.items()
            if PRESENCE[n][row]
        }
        assert torch.allclose(fusion(one).features, whole[row : row + 1], atol=1e-12)


@pytest.mark.parametrize("name", FUSIONS)
def test_padded_and_unpadded_batches_agree(name):
    fusion, inputs = make(name), encoded()
    padded = {}
    for modality, output in inputs.items():
        tokens = torch.cat([output.tokens, torch.full_like(output.tokens[:, :2], 7.0)], dim=1)
        mask = torch.arange(tokens.shape[1]) < LENGTHS[modality]
        padded[modality] = EncoderOutput(output.features, tokens, mask.expand(3, -1))
    a, b = fusion(inputs), fusion(padded)
    assert torch.allclose(a.features, b.features, atol=1e-12)
    assert torch.allclose(a.tokens[a.mask], b.tokens[b.mask], atol=1e-12)


@pytest.mark.parametrize("name", FUSIONS)
def test_the_order_of_modalities_does_not_matter(name):
    fusion, inputs = make(name), encoded()
    backwards = dict(reversed(inputs.items()))
    assert torch.equal(fusion(backwards).features, fusion(inputs).features)
    if name == "concat":  # its weights are by place
        return
    other = make(name, dict(reversed(WIDTHS.items())))
    state = fusion.state_dict()
    if name == "gated":  # the gates see all features side by side

        def turn(weight):
            return weight.unflatten(1, (3, WIDTH)).flip(1).flatten(1)

        state = {
            n: turn(w) if n.startswith("gates") and w.ndim == 2 else w for n, w in state.items()
        }
    other.load_state_dict(state)
    assert torch.allclose(other(inputs).features, fusion(inputs).features, atol=1e-12)


@pytest.mark.parametrize("name", TOKENS)
def test_attention_rows_sum_to_one_over_what_is_present(name):
    fusion, inputs = make(name), encoded(masks={"text": TEXT_MASK})
    plain, out = fusion(inputs, PRESENCE), fusion(inputs, PRESENCE, need_attention=True)
    assert torch.equal(plain.features, out.features)
    assert out.attention
    for found in out.attention:
        keys = torch.zeros(found.weights.shape[0], found.weights.shape[3], dtype=torch.bool)
        for owner, (start, stop) in found.spans.items():
            present = PRESENCE.get(owner, torch.ones(3, dtype=torch.bool))
            real = present[:, None].expand(-1, stop - start)
            keys[:, start:stop] = real & TEXT_MASK if owner == "text" else real
        sums = found.weights.sum(dim=-1)
        some = keys.any(dim=1)[:, None, None].expand_as(sums)
        assert torch.allclose(sums, some.to(sums.dtype), atol=1e-6)
        assert not found.weights[~keys[:, None, None].expand_as(found.weights)].any()


def test_the_weights_shown_are_those_used():
    torch.manual_seed(0)
    block = CrossBlock(WIDTH, 4).double()
    x, context = torch.randn(2, 3, WIDTH).double(), torch.randn(2, 5, WIDTH).double()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    values = block.attention.kv(block.norm_kv(context)).chunk(2, dim=-1)[1]
    values = values.view(2, 5, 4, -1).transpose(1, 2)
    read = (block.weights(x, context, mask).double() @ values).transpose(1, 2).flatten(2)
    y = x + block.attention.out(read)
    expected = y + block.mlp(block.norm_mlp(y))
    assert torch.allclose(block(x, context, mask), expected, atol=1e-6)


def test_attention_weights_equal_a_loop():
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 8).double(), torch.randn(2, 4, 8).double()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    found = attention_weights(q, k, 2, mask)
    for b in range(2):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            for t in range(3):
                scores = [float(q[b, t, part] @ k[b, s, part]) / 2 for s in range(4)]
                exps = [torch.tensor(s).exp() if mask[b, i] else 0.0 for i, s in enumerate(scores)]
                total = sum(exps)
                for s in range(4):
                    expected = float(exps[s] / total) if total else 0.0
                    assert float(found[b, h, t, s]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", FUSIONS)
def test_gradients_are_right(name):
    fusion = make(name, {"image": 2, "text": 3})
    inputs = {"image": (2, 2), "text": (2, 3)}
    torch.manual_seed(2)
    tensors = [
        torch.randn(2, w, dtype=torch.float64, requires_grad=True) for _, w in inputs.values()
    ]
    tensors += [
        torch.randn(2, t, w, dtype=torch.float64, requires_grad=True) for t, w in inputs.values()
    ]
    presence = {"image": torch.tensor([True, False])}

    def features(a, b, tokens_a, tokens_b):
        given = {"image": EncoderOutput(a, tokens_a), "text": EncoderOutput(b, tokens_b)}
        return fusion(given, presence).features[:, :3]

    assert torch.autograd.gradcheck(features, tensors, fast_mode=True)


@pytest.mark.parametrize("name", FUSIONS)
def test_bf16_is_near_float32(name):
    fusion, inputs = make(name, dtype=torch.float32), encoded(dtype=torch.float32)
    masked = {
        **inputs,
        "text": EncoderOutput(*(inputs["text"].features, inputs["text"].tokens), TEXT_MASK),
    }
    exact = fusion(masked, PRESENCE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = fusion(masked, PRESENCE, need_attention=True)
    assert (
        rough.features.float() - exact.features
    ).abs().max() < 0.05 * exact.features.abs().max() + 0.02
    rough.features.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_a_sample_without_any_modality_is_an_error(name):
    presence = {n: torch.tensor([True, False, True]) for n in WIDTHS}
    with pytest.raises(ValueError, match=r"samples \[1\] of the batch have no modality"):
        make(name)(encoded(), presence)
    with pytest.raises(ValueError, match="every sample needs at least one"):
        make(name)({})
    with pytest.raises(ValueError, match="given smell"):
        make(name)({"smell": encoded()["image"]})


def test_low_rank_is_the_tensor_product():
    """Against the full tensor of Liu et al. 2018, equation 4, built from the factors."""
    torch.manual_seed(0)
    fusion = LowRankFusion({"a": 3, "b": 3}, 3, rank=2).double()
    inputs = {
        n: EncoderOutput(torch.randn(4, 3).double(), torch.randn(4, 1, 3).double()) for n in "ab"
    }
    ones = {n: fusion.norms[n](fusion.inputs[n](inputs[n].features)) for n in "ab"}
    ones = {n: torch.cat([x, torch.ones(4, 1).double()], dim=1) for n, x in ones.items()}
    factors = {
        n: torch.cat([f.weight, f.bias[:, None]], dim=1).view(2, 3, 4)  # [R, W, w + 1]
        for n, f in fusion.factors.items()
    }
    full = torch.einsum("r,rwi,rwj->wij", fusion.mix.weight[0], factors["a"], factors["b"])
    expected = torch.einsum("wij,bi,bj->bw", full, ones["a"], ones["b"]) + fusion.bias
    assert torch.allclose(fusion(inputs).features, expected, atol=1e-10)


def test_gates_are_those_of_the_paper():
    torch.manual_seed(0)
    fusion = GatedFusion({"a": 3, "b": 2}, 4).double()
    a, b = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    inputs = {"a": EncoderOutput(a, a[:, None]), "b": EncoderOutput(b, b[:, None])}
    x = {"a": fusion.inputs["a"](a), "b": fusion.inputs["b"](b)}
    both = torch.cat([x["a"], x["b"]], dim=1)
    expected = sum(torch.sigmoid(fusion.gates[n](both)) * torch.tanh(x[n]) for n in "ab")
    assert torch.allclose(fusion(inputs).features, expected, atol=1e-12)


def test_the_mean_of_no_token_is_zero():
    mean = masked_mean(torch.full((1, 2, 3), torch.nan), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(mean, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("name", "options"),
    [("cross_attention", {"query": "smell"}), ("cross_attention", {"num_layers": 0})],
)
def test_impossible_arguments_are_rejected(name, options):
    from multimodal.models.fusion.cross import CrossAttentionFusion

    with pytest.raises(ValueError, match="|".join(options)):
        CrossAttentionFusion(WIDTHS, WIDTH, num_heads=4, **options)
