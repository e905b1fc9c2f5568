"""A packed batch gives what a padded one gives, gradients too."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from multimodal.models.encoders.text import TextTransformer
from multimodal.models.layers.packing import Packing
from multimodal.models.layers.transformer import Transformer

MASK = torch.arange(6) < torch.tensor([[6], [2], [1], [4]])
IDS = (torch.arange(24).view(4, 6) % 19 + 1) * MASK


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def text(packed: bool, pooling: str = "end", **options) -> TextTransformer:
    trunk = Transformer(16, 3, 4, **{"causal": True, **options})
    return TextTransformer(20, 8, trunk, pooling=pooling, packed=packed)


def test_only_real_tokens_are_packed_and_come_back_to_their_places():
    x = torch.randn(4, 6, 3)
    packing = Packing.of(MASK)
    packed = packing.pack(x)
    assert torch.equal(packed, x[MASK])
    assert torch.equal(packing.unpack(packed), x * MASK[..., None])
    assert packing.per_token(torch.arange(4)).tolist() == [0] * 6 + [1] * 2 + [2] + [3] * 4


def test_gradients_of_both_ways_are_those_of_finite_differences():
    packing = Packing.of(MASK)
    x = torch.randn(4, 6, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(int(MASK.sum()), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(packing.pack, (x,))
    assert torch.autograd.gradcheck(packing.unpack, (packed,))


def pairs_of_encoders(**options) -> tuple[nn.Module, nn.Module]:
    padded = text(packed=False, **options)
    packed = text(packed=True, **options)
    packed.load_state_dict(padded.state_dict())
    return padded, packed


CASES = {
    "causal": {},
    "both ways": {"causal": False},
    "mean": {"pooling": "mean", "causal": False},
    "attention pooling": {"pooling": "attention"},
    "learned key": {"bias_kv": True},
    "queries and keys are normed": {"qk_norm": True, "norm": "rms", "mlp": "swiglu"},
    "checkpointing": {"checkpointing": True},
    "scaled branches": {"layer_scale": 0.1, "pre_norm": True},
    "stochastic depth": {"drop_path": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_packed_equals_padded_with_gradients(case: str):
    outputs = []
    for encoder in pairs_of_encoders(**CASES[case]):
        torch.manual_seed(1)
        output = encoder(IDS, MASK)
        torch.manual_seed(2)
        (output.features * torch.randn(4, 16)).sum().backward()
        outputs.append((encoder, output))
    (padded, theirs), (packed, ours) = outputs
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(ours.features, theirs.features, **close)
    torch.testing.assert_close(ours.tokens[MASK], theirs.tokens[MASK], **close)
    assert torch.equal(ours.mask, theirs.mask)
    for (name, own), (_, other) in zip(
        packed.named_parameters(), padded.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, other.grad, **close, msg=name)


def test_no_padding_reaches_a_projection():
    encoder = text(packed=True)
    rows: list[int] = []
    for block in encoder.trunk.blocks:
        block.mlp.fc1.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[0]))
    encoder(IDS, MASK)
    assert rows == [int(MASK.sum())] * 3


def test_an_exported_graph_takes_texts_of_other_lengths():
    encoder = text(packed=True).eval()
    dims = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},) * 2
    program = torch.export.export(_Features(encoder), (IDS, MASK), dynamic_shapes=dims)
    few, mask = IDS[:3, :5].contiguous(), MASK[:3, :5].contiguous()
    torch.testing.assert_close(program.module()(few, mask), encoder(few, mask).features)


class _Features(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(ids, mask).features


def test_padding_that_is_read_cannot_be_left_out():
    with pytest.raises(ValueError, match="attend_padding"):
        TextTransformer(20, 8, Transformer(16, 1, 4), "last", attend_padding=True, packed=True)
