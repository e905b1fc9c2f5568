"""The sum over a query's tokens of the most similar token of a document, tile by tile.

All tokens of Q queries against all tokens of C documents are Q x T x C x U numbers. One tile of
them is held at a time; kept for the gradient are the places of the maxima, Q x T x C integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from multimodal.core.similarity.tokens import real_tokens

CPU_TILE, TILE = 2**20, 2**24  # products of tokens held at a time; on a CPU in its cache


def max_similarity(queries: Tensor, documents: Tensor) -> Tensor:
    """``sum_t max_u <q_t, d_u>`` (ColBERT, Khattab & Zaharia 2020, arXiv:2004.12832, Eq. 3).

    Padding, rows of zeros, takes no part on either side. A document without tokens gives 0. Of
    equal maxima one gets the gradient.

    Args:
        queries: ``[Q, T, D]``.
        documents: ``[C, U, D]`` of the same type.

    Returns:
        ``[Q, C]``, with gradients to both.
    """
    scores: Tensor = _MaxSimilarity.apply(  # type: ignore[no-untyped-call]
        queries, documents, torch.is_grad_enabled()
    )
    return scores


def paired_max_similarity(queries: Tensor, documents: Tensor) -> Tensor:
    """`max_similarity` of each query and its own document ``[N]``: the diagonal alone."""
    products = queries @ documents.transpose(1, 2)  # [N, T, U]
    real = real_tokens(documents)
    best = products.masked_fill(~real[:, None], -torch.inf).amax(dim=2)
    counted = real_tokens(queries) & real.any(dim=1, keepdim=True)
    return best.masked_fill(~counted, 0).sum(dim=1)


class _MaxSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, grad: bool) -> Tensor:
        real = real_tokens(documents)
        empty = ~real.any(dim=1)
        needed = grad and any(ctx.needs_input_grad[:2])
        shape = (len(queries), queries.shape[1], len(documents))
        total = queries.new_zeros(shape[0], shape[2])
        places = torch.empty(shape if needed else 0, dtype=torch.int32, device=queries.device)
        for rows, columns in _tiles(queries, documents):
            tile = _products(queries[rows], documents[columns])
            best, where = tile.masked_fill_(~real[columns], -torch.inf).max(dim=3)
            total[rows, columns] = best.masked_fill_(empty[columns], 0).sum(dim=1)
            if needed:
                places[rows, :, columns] = where.int()
        if needed:
            ctx.save_for_backward(queries, documents, places)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, places = ctx.saved_tensors
        to_queries, to_documents = torch.zeros_like(queries), torch.zeros_like(documents)
        asked, some = real_tokens(queries), real_tokens(documents).any(dim=1)
        dim = queries.shape[2]
        for rows, columns in _tiles(queries, documents):
            part = grads[0][rows, columns] * some[columns]
            weights = part[:, None] * asked[rows, :, None]  # [q, T, c]
            tile = queries.new_zeros(*weights.shape, documents.shape[1])
            tile.scatter_(3, places[rows, :, columns, None].long(), weights[..., None])
            tile = tile.flatten(2).flatten(0, 1)  # [q T, c U]
            to_queries[rows].view(-1, dim).addmm_(tile, documents[columns].reshape(-1, dim))
            to_documents[columns].view(-1, dim).addmm_(tile.T, queries[rows].reshape(-1, dim))
        return to_queries, to_documents, None


def _products(queries: Tensor, documents: Tensor) -> Tensor:
    """``[q, T, c, U]``: every token of some queries with every token of some documents."""
    dim = queries.shape[2]
    products = queries.reshape(-1, dim) @ documents.reshape(-1, dim).T
    return products.view(*queries.shape[:2], *documents.shape[:2])


def _tiles(queries: Tensor, documents: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of queries and of documents, of at most a tile's products, or of one pair."""
    limit = CPU_TILE if queries.device.type == "cpu" else TILE
    pairs = max(1, limit // max(1, queries.shape[1] * documents.shape[1]))
    height = max(1, min(len(queries), round(pairs**0.5)))
    width = max(1, pairs // height)
    for top in range(0, len(queries), height):
        rows = slice(top, min(top + height, len(queries)))
        for left in range(0, len(documents), width):
            yield rows, slice(left, min(left + width, len(documents)))
