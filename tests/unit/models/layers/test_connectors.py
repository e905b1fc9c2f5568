"""Connectors against plain loops, and how their tokens start."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from multimodal.models.layers.connectors import (
    Connector,
    LinearConnector,
    MLPConnector,
    PixelShuffleConnector,
    ResamplerConnector,
)

F, W = 12, 8
ALL = [
    LinearConnector,
    partial(LinearConnector, tokens_per_input=3),
    MLPConnector,
    partial(MLPConnector, tokens_per_input=2, hidden=5),
    partial(ResamplerConnector, num_queries=5, num_heads=2, num_layers=2),
    partial(PixelShuffleConnector, grid=(2, 8)),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("make", ALL)
def test_tokens_start_with_the_size_of_word_vectors(make):
    sizes = []
    for rms in (0.05, 0.2):
        connector = make(in_features=64, width=128, init_rms=rms).eval()
        tokens, mask = connector(10 * torch.randn(20, 16, 64) + 3)
        assert mask is None
        sizes.append(float(tokens.detach().square().mean().sqrt()) / rms)
    assert all(0.5 < size < 1.6 for size in sizes), sizes


@pytest.mark.parametrize("make", ALL[:5])
def test_padding_reaches_no_token(make):
    connector: Connector = make(in_features=F, width=W).double()
    given = torch.randn(2, 6, F, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([6, 4])[:, None]
    spoilt = given.masked_fill(~mask[..., None], torch.nan)
    tokens, kept = connector(spoilt, mask)
    short, _ = connector(given[1:, :4])
    alone = tokens[1] if kept is None else tokens[1][kept[1]]
    torch.testing.assert_close(alone, short[0])
    assert kept is None or int(kept[0].sum()) == tokens.shape[1]


def test_tokens_of_one_input_stand_side_by_side():
    connector = LinearConnector(F, W, tokens_per_input=2, norm=False)
    given = torch.randn(1, 3, F)
    mask = torch.tensor([[True, True, False]])
    tokens, kept = connector(given, mask)
    weight, bias = connector.projection.weight, connector.projection.bias
    for t in range(2):
        for k in range(2):
            rows = slice(k * W, (k + 1) * W)
            expected = weight[rows] @ given[0, t] + bias[rows]
            torch.testing.assert_close(tokens[0, 2 * t + k], expected)
    assert kept is not None
    assert kept.tolist() == [[True, True, True, True, False, False]]


@pytest.mark.parametrize(("grid", "extra"), [(None, 2), ((2, 8), 1)])
def test_squares_of_a_grid_are_joined(grid, extra):
    connector = PixelShuffleConnector(F, W, extra_tokens=extra, grid=grid, norm=False)
    height, width = grid or (4, 4)
    given = torch.randn(2, extra + 16, F)
    tokens, _ = connector(given)
    assert tokens.shape == (2, 4, W)
    picture = given[:, extra:].reshape(2, height, width, F)
    for y in range(height // 2):
        for x in range(width // 2):
            corners = [picture[:, 2 * y + i, 2 * x + j] for i in range(2) for j in range(2)]
            expected = connector.mlp(torch.cat(corners, dim=1))
            torch.testing.assert_close(tokens[:, y * (width // 2) + x], expected)


def test_every_query_reads_every_token():
    connector = ResamplerConnector(F, W, num_queries=3, num_heads=2).double()
    given = torch.randn(1, 7, F, dtype=torch.float64, requires_grad=True)
    tokens, _ = connector(given)
    assert tokens.shape == (1, 3, W)
    for query in range(3):
        (gradient,) = torch.autograd.grad(tokens[0, query].sum(), given, retain_graph=True)
        assert gradient.abs().sum(dim=2).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearConnector(F, W, tokens_per_input=0), "tokens_per_input=0: .* at least 1"),
        (lambda: LinearConnector(F, W, init_rms=0.0), "init_rms=0.0: expected a number above 0"),
        (lambda: ResamplerConnector(F, W, num_heads=3), "width=8 cannot be divided"),
        (lambda: ResamplerConnector(F, W, num_queries=0), "num_queries=0"),
        (lambda: LinearConnector(F, W)(torch.zeros(2, F)), r"expects tokens \[B, T, 12\], got"),
        (lambda: PixelShuffleConnector(F, W)(torch.zeros(1, 17, F)), "17 tokens .* not a grid"),
        (
            lambda: PixelShuffleConnector(F, W)(torch.zeros(1, 9, F)),
            "not a grid of 3 x 3 that 2 x 2",
        ),
        (
            lambda: PixelShuffleConnector(F, W)(torch.zeros(1, 4, F), torch.ones(1, 4).bool()),
            "takes whole grids",
        ),
    ],
)
def test_what_does_not_fit_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
