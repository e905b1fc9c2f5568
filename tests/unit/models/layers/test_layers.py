"""The layers against torch's own modules and plain formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.models.layers.activations import QuickGELU, make_activation
from multimodal.models.layers.attending import attend
from multimodal.models.layers.choices import DropPath, LayerScale, SwiGLU
from multimodal.models.layers.cross import self_attention_weights
from multimodal.models.layers.pooling import AttentionPool, LastPool, MeanPool, make_pooler
from multimodal.models.layers.positions import sincos_positions
from multimodal.models.layers.stems import ConvStem, PatchStem
from multimodal.models.layers.transformer import (
    MLP,
    Attention,
    Block,
    CrossAttention,
    Transformer,
)

B, T, W, H = 3, 7, 24, 4
MASK = torch.arange(T) < torch.tensor([[7], [4], [1]])


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_attention(module: Attention, x: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention head by head; ``visible`` is [B, T, S]."""
    weight, bias = module.qkv.weight, module.qkv.bias
    q, k, v = (x @ weight[i * W : (i + 1) * W].T + bias[i * W : (i + 1) * W] for i in range(3))
    size = W // H
    heads = []
    for head in range(H):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        heads.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ v[..., part])
    return torch.cat(heads, -1) @ module.out.weight.T + module.out.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_softmax_over_the_visible_keys(causal: bool, masked: bool):
    x = torch.randn(B, T, W)
    visible = torch.ones(B, T, T, dtype=torch.bool)
    if causal:
        visible = visible.tril()
    if masked:
        visible = visible & MASK[:, None, :]
    module = Attention(W, H, causal=causal)
    out = module(x, MASK if masked else None)
    torch.testing.assert_close(out, plain_attention(module, x, visible))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_bias_kv_is_that_of_torch_multihead_attention(causal: bool, masked: bool):
    ours = Attention(W, H, causal=causal, bias_kv=True)
    theirs = nn.MultiheadAttention(W, H, add_bias_kv=True, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.bias_k.copy_(ours.bias_k)
        theirs.bias_v.copy_(ours.bias_v)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(B, T, W)
    expected, _ = theirs(
        x,
        x,
        x,
        key_padding_mask=~MASK if masked else None,
        attn_mask=~torch.ones(T, T, dtype=torch.bool).tril() if causal else None,
    )
    torch.testing.assert_close(ours(x, MASK if masked else None), expected)


def test_cross_attention_is_that_of_torch_multihead_attention():
    ours = CrossAttention(W, H, context_width=10)
    theirs = nn.MultiheadAttention(W, H, kdim=10, vdim=10, batch_first=True)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(ours.q.weight)
        theirs.k_proj_weight.copy_(ours.kv.weight[:W])
        theirs.v_proj_weight.copy_(ours.kv.weight[W:])
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.kv.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, context = torch.randn(B, 2, W), torch.randn(B, T, 10)
    expected, _ = theirs(x, context, context, key_padding_mask=~MASK)
    torch.testing.assert_close(ours(x, context, MASK), expected)


@pytest.mark.parametrize("bias_kv", [False, True])
def test_a_masked_token_has_no_influence(bias_kv: bool):
    trunk = Transformer(W, 2, H, bias_kv=bias_kv)
    x = torch.randn(B, T, W, requires_grad=True)
    out = trunk(x, MASK)
    changed = torch.where(MASK[..., None], x, 1e3 * torch.randn(B, T, W))
    assert torch.equal(trunk(changed, MASK)[MASK], out[MASK])
    out[MASK].square().sum().backward()
    assert (x.grad[~MASK] == 0).all()
    assert (x.grad[MASK] != 0).any(-1).all()


@pytest.mark.parametrize("bias_kv", [False, True])
def test_causal_tokens_do_not_see_later_ones(bias_kv: bool):
    trunk = Transformer(W, 2, H, causal=True, bias_kv=bias_kv)
    x = torch.randn(B, T, W)
    changed = x.clone()
    changed[:, 4:] = torch.randn(B, T - 4, W)
    before, after = trunk(x), trunk(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


def test_block_is_torch_encoder_layer_with_norm_first():
    ours = Block(W, H)
    theirs = nn.TransformerEncoderLayer(
        W, H, 4 * W, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    theirs.self_attn.out_proj.load_state_dict(ours.attention.out.state_dict())
    theirs.linear1.load_state_dict(ours.mlp.fc1.state_dict())
    theirs.linear2.load_state_dict(ours.mlp.fc2.state_dict())
    for norm in (ours.norm_1, ours.norm_2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    theirs.norm1.load_state_dict(ours.norm_1.state_dict())
    theirs.norm2.load_state_dict(ours.norm_2.state_dict())
    x = torch.randn(B, T, W)
    torch.testing.assert_close(ours(x, MASK), theirs(x, src_key_padding_mask=~MASK))


def test_pre_norm_and_final_norm_frame_the_blocks():
    trunk = Transformer(W, 2, H, pre_norm=True)
    x = torch.randn(B, T, W)
    expected = F.layer_norm(x, (W,))
    for block in trunk.blocks:
        expected = block(expected)
    torch.testing.assert_close(trunk(x), F.layer_norm(expected, (W,)))


def test_norm_eps_reaches_every_norm():
    trunk = Transformer(W, 2, H, pre_norm=True, norm_eps=1e-3)
    norms = [module for module in trunk.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 2
    assert {norm.eps for norm in norms} == {1e-3}


def test_activations():
    x = torch.linspace(-4, 4, 41)
    torch.testing.assert_close(make_activation("gelu")(x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    assert isinstance(Transformer(W, 1, H, activation="quick_gelu").blocks[0].mlp[1], QuickGELU)
    with pytest.raises(ValueError, match=r"'relu'.*gelu, gelu_tanh, quick_gelu"):
        MLP(W, W, activation="relu")


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop = DropPath(0.3)
    x = torch.rand(4000, 2, 3) + 1.0
    out = drop(x)
    dropped = (out == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    torch.testing.assert_close(out[~dropped[:, 0]], x[~dropped[:, 0]] / 0.7)
    deviation = (0.3 * 0.7 / len(x)) ** 0.5
    assert abs(dropped[:, 0].double().mean() - 0.3) < 4 * deviation
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rises_linearly_with_depth():
    trunk = Transformer(W, 5, H, drop_path=0.4)
    assert [b.drop_path.rate for b in trunk.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match="drop_path=1"):
        Transformer(W, 2, H, drop_path=1.0)


def test_layer_scale_of_zero_leaves_the_residual_stream_alone():
    x = torch.randn(B, T, W)
    assert torch.equal(Block(W, H, layer_scale=0.0)(x), x)
    assert torch.equal(LayerScale(W, 0.5)(x), 0.5 * x)


def test_initial_weights_have_the_documented_deviations():
    torch.set_default_dtype(torch.float32)
    width, layers = 512, 3
    block = Transformer(width, layers, 8).blocks[1]
    expected = {
        block.attention.qkv: width**-0.5,
        block.attention.out: (2 * width * layers) ** -0.5,
        block.mlp.fc1: (2 * width) ** -0.5,
        block.mlp.fc2: (2 * width * layers) ** -0.5,
    }
    for linear, deviation in expected.items():
        assert linear.weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert not linear.bias.any()


@pytest.mark.parametrize("make", [Attention, CrossAttention, lambda w, h: Transformer(w, 1, h)])
def test_heads_must_divide_the_width(make):
    with pytest.raises(ValueError, match=r"width=24 .* num_heads=5"):
        make(24, 5)


def test_patch_stem_is_a_linear_map_of_patches():
    stem = PatchStem(2, W, 2, patch_size=[4, 2])
    x = torch.randn(B, 2, 8, 6)
    patches = x.reshape(B, 2, 2, 4, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, 6, -1)
    expected = patches @ stem.projection.weight.flatten(1).T + stem.projection.bias
    torch.testing.assert_close(stem(x), expected)
    assert stem.grid((8, 6)) == (2, 3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(24,), (8, 12), (4, 8, 8)])
def test_patches_side_by_side_are_a_convolution(size: tuple[int, ...], bias: bool):
    patch = [2, 4, 4][-len(size) :]
    stem = PatchStem(3, W, len(size), patch_size=patch, bias=bias)
    x = torch.randn(B, 3, *size, requires_grad=True)
    expected = stem.projection(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(x), expected)
    moved = torch.autograd.grad(stem(x).square().sum(), stem.projection.weight)
    wanted = torch.autograd.grad(expected.square().sum(), stem.projection.weight)
    torch.testing.assert_close(moved, wanted)


@pytest.mark.parametrize(
    ("stem", "size"),
    [
        (PatchStem(1, W, 2, patch_size=16, stride=10, bias=False, norm=True), (128, 204)),
        (PatchStem(6, W, 1, patch_size=8), (2000,)),
        (PatchStem(3, W, 3, patch_size=[2, 14, 14]), (2, 28, 28)),
        (ConvStem(1, W, 2, channels=[4, 8, 8]), (64, 32)),
        (ConvStem(6, W, 1, channels=[4, 8]), (40,)),
    ],
)
def test_a_stem_gives_as_many_tokens_as_its_grid_has(stem: nn.Module, size: tuple[int, ...]):
    stem = stem.double()
    channels = next(stem.parameters()).shape[1]
    tokens = stem(torch.randn(2, channels, *size))
    assert tokens.shape == (2, math.prod(stem.grid(size)), W)


def test_overlapping_patches_of_imagebind_audio():
    assert PatchStem(1, W, 2, patch_size=16, stride=10).grid((128, 204)) == (12, 19)


def test_stem_norm_has_its_own_epsilon():
    stem = PatchStem(1, W, 1, patch_size=2, norm=True, norm_eps=1e-3)
    x = torch.randn(B, 1, 8)
    raw = stem.projection(x).transpose(1, 2)
    torch.testing.assert_close(stem(x), F.layer_norm(raw, (W,), eps=1e-3))


def test_conv_stem_keeps_samples_apart():
    stem = ConvStem(3, W, 2, channels=[8, 8])
    x = torch.randn(B, 3, 16, 16)
    torch.testing.assert_close(stem(x)[1:2], stem(x[1:2]))


@pytest.mark.parametrize(
    ("stem", "size", "message"),
    [
        (PatchStem(3, W, 2, patch_size=16), (60, 64), r"\[60, 64\] .* patch_size=\[16, 16\]"),
        (PatchStem(3, W, 2, patch_size=16, stride=10), (12, 64), r"\[12, 64\] is smaller"),
        (ConvStem(3, W, 2, channels=[8, 8, 8]), (60, 64), r"\[60, 64\] is not a multiple of 8"),
    ],
)
def test_a_stem_refuses_a_size_that_it_cannot_cut(stem, size, message: str):
    with pytest.raises(ValueError, match=message):
        stem.grid(size)


def test_a_stem_refuses_a_patch_of_the_wrong_dimensions():
    with pytest.raises(ValueError, match=r"patch_size=\[2, 14, 14\]"):
        PatchStem(3, W, 2, patch_size=[2, 14, 14])
    with pytest.raises(ValueError, match="channels"):
        ConvStem(3, W, 2, channels=[])


@pytest.mark.parametrize("grid", [(9,), (3, 5), (2, 3, 4)])
def test_sincos_similarity_depends_on_the_offset_alone(grid: tuple[int, ...]):
    table = sincos_positions(grid, W).double()
    assert table.shape == (math.prod(grid), W)
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).reshape(len(table), -1)
    found: dict[tuple[int, ...], float] = {}
    for place, row in zip(places, table, strict=True):
        for other_place, other in zip(places, table, strict=True):
            offset = tuple((place - other_place).tolist())
            similarity = (row @ other).item()
            assert found.setdefault(offset, similarity) == pytest.approx(similarity, abs=1e-5)
    assert max(found, key=found.__getitem__) == (0,) * len(grid)


def test_sincos_refuses_a_width_that_it_cannot_share_out():
    with pytest.raises(ValueError, match="width=26"):
        sincos_positions((3, 3), 26)


def test_mean_pool_is_the_mean_of_the_real_tokens():
    tokens = torch.randn(B, T, W)
    tokens[~MASK] = math.nan
    pooled = MeanPool()(tokens, MASK)
    for i, length in enumerate((7, 4, 1)):
        torch.testing.assert_close(pooled[i], tokens[i, :length].mean(0))
    torch.testing.assert_close(MeanPool()(tokens[:1]), tokens[:1].mean(1))


def test_last_pool_takes_the_last_real_token():
    tokens = torch.randn(B, T, W)
    pooled = LastPool()(tokens, MASK)
    assert torch.equal(pooled, torch.stack([tokens[0, 6], tokens[1, 3], tokens[2, 0]]))
    assert torch.equal(LastPool()(tokens), tokens[:, -1])
    assert torch.equal(LastPool()(tokens, MASK.flip(1)), tokens[:, -1])  # padded on the left


def test_attention_pool_is_one_query_then_a_residual_mlp():
    pool = AttentionPool(Transformer(W, 1, H, activation="quick_gelu", norm_eps=1e-3))
    tokens = torch.randn(B, T, W)
    for i, length in enumerate((7, 4, 1)):
        real = tokens[i : i + 1, :length]
        x = pool.attention(pool.latent.reshape(1, 1, W), real)
        hidden = QuickGELU()(pool.mlp.fc1(F.layer_norm(x, (W,), eps=1e-3)))
        expected = (x + pool.mlp.fc2(hidden))[0, 0]
        torch.testing.assert_close(pool(tokens, MASK)[i], expected)


def test_an_unknown_pooling_is_rejected():
    with pytest.raises(ValueError, match=r"'max'.*class, mean, last, attention"):
        make_pooler("max", Transformer(W, 1, H))


def test_bfloat16_attention_on_the_cpu_is_that_of_float32_rounded_once():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 8).bfloat16() for _ in range(3))
    exact = attend(q.float(), k.float(), v.float(), 2, None, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        given = attend(q, k, v, 2, None, causal=True)
    assert given.dtype == torch.bfloat16
    assert torch.equal(given, exact.bfloat16())


def test_what_is_off_adds_no_parameter_and_what_is_on_is_what_its_paper_says():
    plain = {name for name, _ in Transformer(W, 2, H).named_parameters()}
    assert {name.rpartition(".")[0].split(".")[-1] for name in plain} == {
        "qkv", "out", "norm_1", "norm_2", "fc1", "fc2", "norm"
    }  # fmt: skip
    chosen = Transformer(W, 2, H, norm="rms", mlp="swiglu", qk_norm=True)
    new = {name for name, _ in chosen.named_parameters()} - plain
    assert {name.split(".", 2)[2] for name in new} == {
        "attention.norm_q.weight", "attention.norm_k.weight"
    }  # fmt: skip
    block, x = chosen.blocks[0], torch.randn(B, T, W)
    with torch.no_grad():
        for parameter in chosen.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def rms(value, weight):
        return value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    attention = block.attention
    q, k, v = (
        part.unflatten(-1, (H, -1)).transpose(1, 2)
        for part in attention.qkv(rms(x, block.norm_1.weight)).chunk(3, -1)
    )
    q, k = rms(q, attention.norm_q.weight), rms(k, attention.norm_k.weight)
    weights = (q @ k.transpose(-1, -2) * (W // H) ** -0.5).softmax(-1)
    shown = self_attention_weights(attention, block.norm_1(x), None)
    torch.testing.assert_close(shown.double(), weights, rtol=1e-5, atol=1e-6)
    mixed = (weights @ v).transpose(1, 2)
    y = x + attention.out(mixed.flatten(2))
    gate, value = block.mlp.fc1(rms(y, block.norm_2.weight)).chunk(2, -1)
    expected = y + block.mlp.fc2(gate * torch.sigmoid(gate) * value)
    torch.testing.assert_close(block(x), expected)


def test_a_gated_mlp_has_about_the_parameters_of_the_plain_one():
    count = [
        sum(p.numel() for p in mlp.parameters()) for mlp in (SwiGLU(768, 3072), MLP(768, 3072))
    ]
    assert abs(count[0] / count[1] - 1) < 0.01


@pytest.mark.parametrize("choice", [{"norm": "batch"}, {"mlp": "gated"}])
def test_other_choices_are_refused(choice):
    with pytest.raises(ValueError, match="expected one of"):
        Transformer(W, 1, H, **choice)


def test_checkpointing_changes_memory_and_no_gradient():
    plain = Transformer(W, 3, H, drop_path=0.5)
    recomputing = Transformer(W, 3, H, drop_path=0.5, checkpointing=True)
    recomputing.load_state_dict(plain.state_dict())
    x = torch.randn(B, T, W, requires_grad=True)
    found, kept = [], []
    for trunk in (plain, recomputing):
        torch.manual_seed(1)
        count = [0]

        def keep(tensor, count=count):
            count[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = trunk(x, MASK).square().sum()
        kept.append(count[0])
        found.append(torch.autograd.grad(loss, [x, *trunk.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert kept[1] < kept[0] / 4
