"""The sums over a similarity matrix by Triton: no tile of logits reaches the memory.

Only the backward's weights of a tile are written, and both gradients are matrix products with them.
Products are of float32 (TF32 where `torch.set_float32_matmul_precision` allows it) or of bfloat16,
sums always of float32.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from multimodal.objectives.kernels import triton_kernels
from multimodal.objectives.kernels.tiles import Logs
from multimodal.objectives.matches import PositiveIndex, SampleKeys

ROWS, COLUMNS = 4096, 16384  # of a tile, whose weights are written at a time
BLOCK = 128  # rows and columns of a program: tensor cores are kept busy by no less
DEPTH_BYTES = 128  # of a row's numbers that are loaded at a time
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # by Python, on any device: for tests


class TritonTiles:
    """`Tiles` on a GPU, of float32 embeddings.

    Args:
        half: whether products are of bfloat16; a cosine is then right to some 2^-9.
    """

    def __init__(self, half: bool = False) -> None:
        self.half = half

    def log_sums(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, bool]:
        """See `Tiles`."""
        row_logs = anchors.new_full((len(anchors),), -torch.inf)
        column_logs = candidates.new_full((len(candidates),), -torch.inf)
        for tile in self._tiles(anchors, candidates, scale, positive_index):
            to_rows = anchors.new_empty(tile.grid[1], tile.shape[0])
            to_columns = anchors.new_empty(tile.grid[0], tile.shape[1])
            tile.run(triton_kernels.log_sums, to_rows, to_columns)
            for logs, part, more in (
                (row_logs, tile.rows, to_rows), (column_logs, tile.columns, to_columns)
            ):  # fmt: skip
                logs[part] = torch.logaddexp(logs[part], more.logsumexp(0))
        return row_logs, column_logs, True

    def softmax_gradients(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        positive_index: PositiveIndex,
        of_rows: Logs,
        of_columns: Logs,
        safe: bool,
    ) -> tuple[Tensor, Tensor]:
        """See `Tiles`."""
        totals = torch.zeros_like(anchors), torch.zeros_like(candidates)
        for tile in self._tiles(anchors, candidates, scale, positive_index):
            weights = tile.buffer()
            rows = [values[tile.rows] for values in of_rows]
            columns = [values[tile.columns] for values in of_columns]
            tile.run(triton_kernels.softmax_gradients, *rows, *columns, weights)
            tile.add_products(weights, *totals)
        return totals[0], totals[1].mul_(scale)

    def sigmoid(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        positive_index: PositiveIndex,
        grad: bool,
        on_host: tuple[float, float] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `Tiles`."""
        total, to_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        totals = torch.zeros_like(anchors), torch.zeros_like(candidates)
        ignored = positive_index.diagonal is None and not positive_index.keys_are_positives
        for tile in self._tiles(anchors, candidates, scale, positive_index, bias):
            values, of_bias = (anchors.new_zeros(tile.grid) for _ in range(2))
            weights = tile.buffer() if grad else values
            choices = {"KEYS_IGNORED": ignored, "GRADIENT": grad}
            tile.run(triton_kernels.sigmoid, values, of_bias, weights, **choices)
            total += values.sum()
            if grad:
                to_bias += of_bias.sum()
                tile.add_products(weights, *totals)
        return total, totals[0], totals[1].mul_(scale), to_bias

    def _tiles(
        self,
        anchors: Tensor,
        candidates: Tensor,
        scale: Tensor,
        index: PositiveIndex,
        bias: Tensor | None = None,
    ) -> Iterator[_Tile]:
        if anchors.dtype != torch.float32 or candidates.dtype != torch.float32:
            kinds = f"{anchors.dtype} and {candidates.dtype}"
            raise TypeError(f"kernels=triton takes float32 embeddings, given {kinds}; take torch")
        a, c = anchors.contiguous(), candidates.contiguous()
        if self.half:
            a, c = a.bfloat16(), c.bfloat16()
        numbers = (scale,) if bias is None else (scale, bias)
        for top in range(0, len(a), ROWS):
            rows = slice(top, min(top + ROWS, len(a)))
            for left in range(0, len(c), COLUMNS):
                columns = slice(left, min(left + COLUMNS, len(c)))
                keys = index.anchors[rows], index.candidates[columns]
                yield _Tile(rows, columns, a[rows], c[columns], numbers, keys)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A part of the matrix: which rows and columns, and what a kernel reads of them."""

    rows: slice
    columns: slice
    anchors: Tensor
    candidates: Tensor
    numbers: tuple[Tensor, ...]
    keys: tuple[SampleKeys, SampleKeys]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.anchors), len(self.candidates)

    @property
    def grid(self) -> tuple[int, int]:
        return triton.cdiv(self.shape[0], BLOCK), triton.cdiv(self.shape[1], BLOCK)

    def buffer(self) -> Tensor:
        """Room for the gradient of its logits."""
        return self.anchors.new_empty(self.shape)

    def run(self, kernel: Any, *results: Tensor, **choices: bool) -> None:
        """Runs one of the kernels on all of its blocks."""
        ids = (of(each) for of in (_ids, _keys) for each in self.keys)
        row_ids, column_ids, row_keys, column_keys = (each.contiguous() for each in ids)
        kernel[self.grid](
            self.anchors, self.candidates, *self.numbers,
            row_ids, row_keys, column_ids, column_keys,
            *results, *self.shape, self.anchors.shape[1],
            **choices, **block(self.anchors.dtype),
        )  # fmt: skip

    def add_products(self, weights: Tensor, to_anchors: Tensor, to_candidates: Tensor) -> None:
        """Adds what the gradient of the logits is to both sides, without the scale."""
        _add_product(to_anchors[self.rows], weights, self.candidates)
        _add_product(to_candidates[self.columns], weights.T, self.anchors)


def block(dtype: torch.dtype) -> dict[str, Any]:
    """What the kernels are compiled for: sizes, precision of products, warps and stages."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "BLOCK": BLOCK,
        "DEPTH": DEPTH_BYTES // dtype.itemsize,
        "PRECISION": "ieee" if exact else "tf32",
        "WIDEN": INTERPRETED,  # the interpreter's products take bfloat16 for integers
        "num_warps": 8,
        "num_stages": 3,
    }


def _ids(keys: SampleKeys) -> Tensor:
    return keys.sample_ids


def _keys(keys: SampleKeys) -> Tensor:
    return keys.positive_keys


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, with sums of float32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda:
        total += torch.mm(left, right, out_dtype=torch.float32)
    else:
        total.addmm_(left.float(), right.float())
