"""Triton kernels of the sums over a similarity matrix: one program, one block of the matrix.

A program computes the products of a block of rows and a block of columns and goes on with them in
its registers: masks, exponentials, sums. Sums are of float32; there are no atomic additions, so
equal inputs give equal bits.

All take ``anchors`` ``[num_rows, width]`` and ``candidates`` ``[num_columns, width]``, contiguous,
of float32 or bfloat16; scalars on the device; and the ids and keys of the rows and columns, int64.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _logits(
    anchors, candidates, scale, rows, columns, num_rows, num_columns, width,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """``scale * anchors @ candidates.T`` of a block."""
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    row_starts, column_starts = rows.to(tl.int64) * width, columns.to(tl.int64) * width
    for start in range(0, width, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        within = depth < width
        a = tl.load(
            anchors + row_starts[:, None] + depth[None, :],
            mask=(rows < num_rows)[:, None] & within[None, :], other=0.0,
        )  # fmt: skip
        c = tl.load(
            candidates + column_starts[None, :] + depth[:, None],
            mask=(columns < num_columns)[None, :] & within[:, None], other=0.0,
        )  # fmt: skip
        if WIDEN:
            a, c = a.to(tl.float32), c.to(tl.float32)
        products = tl.dot(a, c, products, input_precision=PRECISION)
    return products * tl.load(scale)


@triton.jit
def _same(row_values, column_values, rows, columns, num_rows, num_columns):
    """Where a row's number equals a column's."""
    of_rows = tl.load(row_values + rows, mask=rows < num_rows, other=0)
    of_columns = tl.load(column_values + columns, mask=columns < num_columns, other=0)
    return of_rows[:, None] == of_columns[None, :]


@triton.jit
def _inside(rows, columns, num_rows, num_columns):
    return (rows < num_rows)[:, None] & (columns < num_columns)[None, :]


@triton.jit
def _log_sum(logits, axis: tl.constexpr):
    """Of each row (1) or column (0); -inf where all are."""
    top = tl.max(logits, axis)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log(tl.sum(tl.exp(logits - tl.expand_dims(top, axis)), axis))


@triton.jit
def log_sums(
    anchors, candidates, scale, row_ids, row_keys, column_ids, column_keys, to_rows, to_columns,
    num_rows, num_columns, width,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Log-sums of the negatives of a block, along its rows and along its columns."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits = _logits(
        anchors, candidates, scale, rows, columns, num_rows, num_columns, width,
        BLOCK, DEPTH, PRECISION, WIDEN,
    )  # fmt: skip
    related = _same(row_ids, column_ids, rows, columns, num_rows, num_columns)
    related |= _same(row_keys, column_keys, rows, columns, num_rows, num_columns)
    counted = _inside(rows, columns, num_rows, num_columns) & ~related
    logits = tl.where(counted, logits, float("-inf"))
    row_place = to_rows + tl.program_id(1) * num_rows + rows
    column_place = to_columns + tl.program_id(0) * num_columns + columns
    tl.store(row_place, _log_sum(logits, 1), mask=rows < num_rows)
    tl.store(column_place, _log_sum(logits, 0), mask=columns < num_columns)


@triton.jit
def softmax_gradients(
    anchors, candidates, scale, row_ids, row_keys, column_ids, column_keys,
    row_logs, row_gradients, column_logs, column_gradients, weights,
    num_rows, num_columns, width,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Gradient of a block's logits: both softmaxes, each times its log-sum's gradient."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits = _logits(
        anchors, candidates, scale, rows, columns, num_rows, num_columns, width,
        BLOCK, DEPTH, PRECISION, WIDEN,
    )  # fmt: skip
    related = _same(row_ids, column_ids, rows, columns, num_rows, num_columns)
    related |= _same(row_keys, column_keys, rows, columns, num_rows, num_columns)
    row_log = tl.load(row_logs + rows, mask=rows < num_rows, other=0.0)
    row_gradient = tl.load(row_gradients + rows, mask=rows < num_rows, other=0.0)
    column_log = tl.load(column_logs + columns, mask=columns < num_columns, other=0.0)
    column_gradient = tl.load(column_gradients + columns, mask=columns < num_columns, other=0.0)
    logits = tl.where(related, float("-inf"), logits)
    gradient = tl.exp(logits - row_log[:, None]) * row_gradient[:, None]
    gradient += tl.exp(logits - column_log[None, :]) * column_gradient[None, :]
    place = weights + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    kind = weights.dtype.element_ty
    tl.store(place, gradient.to(kind), mask=_inside(rows, columns, num_rows, num_columns))


@triton.jit
def _log_1_plus(x):
    """Exact to float32 where ``x`` is small, which a GPU's logarithm of 1 + x is not."""
    series = x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6))))))
    return tl.where(x < 0.1, series, tl.log(1 + x))


@triton.jit
def sigmoid(
    anchors, candidates, scale, bias, row_ids, row_keys, column_ids, column_keys,
    values, to_bias, weights, num_rows, num_columns, width,
    KEYS_IGNORED: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """``log(1 + exp(logit))`` summed over a block, and its gradient by the logits."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(bias) + _logits(
        anchors, candidates, scale, rows, columns, num_rows, num_columns, width,
        BLOCK, DEPTH, PRECISION, WIDEN,
    )  # fmt: skip
    counted = _inside(rows, columns, num_rows, num_columns)
    if KEYS_IGNORED:
        related = _same(row_keys, column_keys, rows, columns, num_rows, num_columns)
        own = _same(row_ids, column_ids, rows, columns, num_rows, num_columns)
        counted &= own | ~related
    small = tl.exp(-tl.abs(logits))
    value = tl.maximum(logits, 0.0) + _log_1_plus(small)
    block = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(values + block, tl.sum(tl.sum(tl.where(counted, value, 0.0), 1), 0))
    if GRADIENT:
        gradient = tl.where(logits >= 0, 1.0, small) / (1.0 + small)
        gradient = tl.where(counted, gradient, 0.0)
        tl.store(to_bias + block, tl.sum(tl.sum(gradient, 1), 0))
        place = weights + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        kind = weights.dtype.element_ty
        tl.store(place, gradient.to(kind), mask=_inside(rows, columns, num_rows, num_columns))
