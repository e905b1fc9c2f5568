"""Triton's kernels, by its interpreter on a CPU, beside PyTorch's; and what GPUs they suit."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from largest import Largest
from torch import Tensor
from torch.nn import functional as F

from multimodal.objectives.candidates import AllRanks
from multimodal.objectives.kernels.tiled import logsumexp_both_ways, sigmoid_loss_sum
from multimodal.objectives.kernels.tiles import TORCH, Tiles, choose_tiles
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import DCL, InfoNCE
from multimodal.objectives.matches import PositiveIndex, SampleKeys, index_positives
from multimodal.objectives.negatives.selection import InBatch
from multimodal.objectives.objective import make_objective

pytestmark = pytest.mark.triton
ROWS, SIZE, DIM = slice(10, 60), 70, 40
IDS = torch.arange(SIZE)
KEYS = {"own": IDS, "pairs": IDS // 2, "one": IDS * 0}


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """The kernels, interpreted, with blocks and tiles of which a small matrix has several."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "run `make test-triton`, which sets it"
    found = importlib.import_module("multimodal.objectives.kernels.triton_tiles")
    monkeypatch.setattr(found, "BLOCK", 16)
    monkeypatch.setattr(found, "ROWS", 32)
    monkeypatch.setattr(found, "COLUMNS", 48)
    return found


def sides(dtype: torch.dtype, size: int = SIZE, rows: slice = ROWS) -> list[Tensor]:
    """Anchors and candidates of norm 1, rounded to what bfloat16 can say."""
    torch.manual_seed(0)
    pair = [F.normalize(torch.randn(size, DIM), dim=1).bfloat16() for _ in range(2)]
    return [side.to(dtype).requires_grad_() for side in (pair[0][rows], pair[1])]


def layout(keys: str, keys_are_positives: bool) -> PositiveIndex:
    batch = SampleKeys(torch.arange(SIZE), KEYS[keys])
    related = 0 if keys == "own" else 1
    index = index_positives(batch, ROWS, keys_are_positives, related)
    assert index is not None
    return index


def sums(tiles: Tiles, dtype: torch.dtype, index: PositiveIndex, scale: float) -> list[Tensor]:
    """Log-sums, positives and SigLIP's sum, and the gradients of a mixture of each."""
    a, c = sides(dtype)
    s, b = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (scale, -3.0))
    logs = logsumexp_both_ways(a, c, s, index, tiles)
    parts = [each.clamp(min=-1e3) for each in logs]  # of empty rows
    shares = [torch.linspace(0.3, 1, len(each), dtype=dtype) for each in parts]
    mixed = sum(((p * w).sum() for p, w in zip(parts, shares, strict=True)), a.new_zeros(()))
    total = sigmoid_loss_sum(a, c, s, b, index, tiles)
    with torch.no_grad():
        alone = sigmoid_loss_sum(a, c, s, b, index, tiles)
    values = [*parts, total, alone]
    gradients = [
        *torch.autograd.grad(mixed, (a, c, s)),
        *torch.autograd.grad(1.7 * total, (a, c, s, b)),
    ]
    return [each.detach().double() for each in (*values, *gradients)]


@pytest.mark.parametrize("scale", [14.0, 100.0])
@pytest.mark.parametrize("keys_are_positives", [True, False])
@pytest.mark.parametrize("keys", KEYS)
def test_values_and_gradients_equal_those_in_float64(keys, keys_are_positives, scale):
    index = layout(keys, keys_are_positives)
    exact = sums(TORCH, torch.float64, index, scale)
    found = sums(choose_tiles("triton"), torch.float32, index, scale)
    for each, right in zip(found, exact, strict=True):
        torch.testing.assert_close(each, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("keys", KEYS)
def test_products_in_bfloat16_are_summed_in_float32(keys):
    """Of numbers that bfloat16 can say: values are exact, and gradients but for their weights."""
    index = layout(keys, True)
    exact = sums(TORCH, torch.float64, index, 14.0)
    found = sums(choose_tiles("triton_bf16"), torch.float32, index, 14.0)
    for number, (each, right) in enumerate(zip(found, exact, strict=True)):
        near = 1e-5 if number < 5 else 2**-7
        torch.testing.assert_close(each, right, rtol=near, atol=near * float(right.abs().max()))


def loss_and_gradients(loss: Any, tiles: Tiles, keys: str, equal_keys: str) -> list[Tensor]:
    pairs = {"p": {"anchor": "a", "other": "b", "equal_keys": equal_keys}}
    objective = make_objective(pairs, loss, InBatch(), AllRanks(), tiles=tiles)
    a, b = sides(torch.float32, rows=slice(None))
    out = objective({"a": a, "b": b}, torch.arange(SIZE), KEYS[keys], step=0, seed=0, source="s")
    out.loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    return [out.loss.detach(), a.grad, b.grad, *(p.grad for p in objective.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("loss", [InfoNCE(), DCL(), SigLIP()], ids=str)
@pytest.mark.parametrize(
    ("keys", "equal_keys"), [("own", "positives"), ("pairs", "positives"), ("pairs", "ignored")]
)
def test_an_objective_gives_the_same(loss, keys, equal_keys):
    right, found = (
        loss_and_gradients(loss, tiles, keys, equal_keys)
        for tiles in (TORCH, choose_tiles("triton"))
    )
    for each, wanted in zip(found, right, strict=True):
        torch.testing.assert_close(each, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_rank_without_samples(module):
    batch = SampleKeys(torch.arange(SIZE), torch.arange(SIZE))
    index = index_positives(batch, slice(0, 0), True, 0)
    assert index is not None
    a, c = sides(torch.float32, rows=slice(0, 0))
    scale, bias = torch.tensor(14.0), torch.tensor(-3.0)
    total = sigmoid_loss_sum(a, c, scale, bias, index, choose_tiles("triton"))
    rows, columns, _ = logsumexp_both_ways(a, c, scale, index, choose_tiles("triton"))
    (total + rows.sum()).backward()
    assert total == 0
    assert len(rows) == 0
    assert (columns == torch.finfo(torch.float32).min).all()
    assert c.grad is not None
    assert not c.grad.any()


@pytest.mark.parametrize("kernels", ["triton", "triton_bf16"])
def test_no_tensor_grows_with_the_square_of_the_batch(kernels):
    """A tile of the weights has 32 x 48 numbers; the embeddings, 40 a sample, are more."""
    for size in (64, 256):
        batch = SampleKeys(torch.arange(size), torch.arange(size))
        index = index_positives(batch, slice(0, size), True, 0)
        assert index is not None
        a, c = sides(torch.float32, size, slice(None))
        scale, bias = torch.tensor(14.0), torch.tensor(-3.0)
        with Largest() as seen:
            rows, _, _ = logsumexp_both_ways(a, c, scale, index, choose_tiles(kernels))
            total = sigmoid_loss_sum(a, c, scale, bias, index, choose_tiles(kernels))
            (rows.sum() + total).backward()
        assert seen.bytes <= 4 * max(32 * 48, 40 * size)


def test_other_types_of_numbers_are_refused():
    index = layout("own", True)
    with pytest.raises(TypeError, match=r"takes float32 embeddings, given torch\.float64"):
        sums(choose_tiles("triton"), torch.float64, index, 14.0)


COMPILE = """
import itertools, json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from multimodal.objectives.kernels import triton_kernels, triton_tiles

torch.set_float32_matmul_precision("high")
kernels = {
    triton_kernels.log_sums: {},
    triton_kernels.softmax_gradients: {},
    triton_kernels.sigmoid: {"KEYS_IGNORED": True, "GRADIENT": True},
}
kind, capability = sys.argv[1], int(sys.argv[2])
dtype = getattr(torch, kind)
for kernel, more in kernels.items():
    sizes = triton_tiles.block(dtype)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    sizes |= more
    types = {}
    for name in kernel.arg_names:
        if name in sizes:
            types[name] = "constexpr"
        elif name in ("anchors", "candidates", "weights"):
            types[name] = {"float32": "*fp32", "bfloat16": "*bf16"}[kind]
        elif name.endswith(("_ids", "_keys")):
            types[name] = "*i64"
        else:
            types[name] = "i32" if name in ("num_rows", "num_columns", "width") else "*fp32"
    # as at run time: addresses and sizes that 16 divides
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names) if types[name] != "constexpr"
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=sizes, attrs=even)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    print(json.dumps([made.metadata.shared, made.asm["ptx"].count("mma"), len(made.asm["cubin"])]))
"""
SHARED = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}  # bytes a program may have


@pytest.mark.parametrize(
    ("kind", "capability"),
    [("bfloat16", 80), ("bfloat16", 86), ("bfloat16", 90), ("float32", 90)],
)
def test_they_compile_for_gpus_of_that_kind(kind, capability, tmp_path, monkeypatch):
    """No GPU is needed for that: they use tensor cores, and fit the memory of a multiprocessor."""
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    program = tmp_path / "compile.py"
    program.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, str(program), kind, str(capability)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    for shared, products, size in lines:
        assert 0 < shared <= SHARED[capability]
        assert products > 0
        assert size > 0
