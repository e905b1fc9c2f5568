"""Collectives, alone and between processes."""

from __future__ import annotations

import os

import pytest
import torch
from gloo import run_ranks

from multimodal.core.distributed import (
    all_gather,
    all_gather_object,
    all_reduce_sum,
    gather_sizes,
    rank,
    world_size,
)


def test_without_a_process_group_there_is_one_rank():
    rows = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size(), gather_sizes(3)) == (0, 1, [3])
    assert all_gather(rows) is rows
    total = all_reduce_sum(rows)
    assert torch.equal(total, rows)
    assert not total.requires_grad
    assert all_gather_object({"a": 1}) == [{"a": 1}]


SIZES = [(2, 2, 2), (3, 0, 1), (0, 0, 4), (0, 0, 0)]


def _gathers(rank_: int) -> None:
    assert (rank(), world_size()) == (rank_, 3)
    generator = torch.Generator().manual_seed(0)
    for sizes in SIZES:
        whole = torch.randn(sum(sizes), 2, dtype=torch.float64, generator=generator)
        weights = torch.randn(3, sum(sizes), 2, dtype=torch.float64, generator=generator)
        start = sum(sizes[:rank_])
        own = whole[start : start + sizes[rank_]].clone().requires_grad_()
        assert gather_sizes(len(own)) == list(sizes)
        gathered = all_gather(own)
        assert torch.equal(gathered, whole)
        (gathered * weights[rank_]).sum().backward()  # each rank asks for something else
        expected = weights.sum(0)[start : start + sizes[rank_]]
        torch.testing.assert_close(own.grad, expected, rtol=1e-14, atol=1e-14)
        for dtype in (torch.int64, torch.bool, torch.float32, torch.bfloat16):
            part = (10 * own.detach()).to(dtype)
            assert torch.equal(all_gather(part, list(sizes)), (10 * whole).to(dtype))
    total = all_reduce_sum(torch.tensor([1, rank_]))
    assert total.tolist() == [3, 3]
    assert all_gather_object(f"rank {rank_}") == ["rank 0", "rank 1", "rank 2"]
    with pytest.raises(ValueError, match=f"rank {rank_} has 5 rows"):
        all_gather(torch.zeros(5, 2), [1, 1, 1])


def test_three_ranks(tmp_path):
    run_ranks(_gathers, 3, tmp_path)


def test_an_error_in_a_rank_is_raised(tmp_path):
    with pytest.raises(Exception, match="rank 1 has 1 rows"):
        run_ranks(_fails, 2, tmp_path)


def _fails(rank_: int) -> None:
    if rank_ == 1:
        all_gather(torch.zeros(1), [1, 2])


def _aborts(rank_: int) -> None:
    if rank_ == 1:
        os.write(2, b"terminate called: the reason\n")
        os.abort()


def test_a_rank_that_aborts_is_reported_with_what_it_wrote(tmp_path):
    with pytest.raises(RuntimeError, match=r"SIGABRT[^$]*terminate called: the reason"):
        run_ranks(_aborts, 2, tmp_path)
