"""Collectives with exact gradients; without a process group they act as one rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if _initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _initialized() else 1


@contextmanager
def torchrun_process_group() -> Iterator[int]:
    """Within, the ranks that torchrun has started are a process group (gloo: objects, CPU tensors).

    Yields:
        This rank's place on its machine, to choose a device by; 0 without torchrun.
    """
    if not dist.is_torchelastic_launched():
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield int(os.environ["LOCAL_RANK"])
    finally:
        dist.destroy_process_group()


def is_split(tensor: Any) -> TypeGuard[DTensor]:
    """Whether ``tensor`` is a DTensor, of which each rank has a part.

    Asked without importing DTensor, which brings sympy: where it is not imported, there is none.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def gather_sizes(size: int, device: torch.device | str = "cpu") -> list[int]:
    """``size`` of every rank, in rank order. Give a CUDA ``device`` under NCCL."""
    if world_size() == 1:
        return [size]
    own = torch.tensor([size], dtype=torch.int64, device=device)
    every = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(every, own)
    return [int(n) for n in torch.cat(every).tolist()]


def all_gather(tensor: Tensor, sizes: list[int] | None = None) -> Tensor:
    """All ranks' rows, joined in rank order, with the exact gradient of that.

    The gradient of a rank's rows is the sum of what all ranks ask of them, so a sum of losses over
    ranks is differentiated as a whole. Ranks may have different numbers of rows, also none; every
    rank has to call this, and to run the backward if the result takes part in it.

    Args:
        tensor: ``[n, ...]`` of any dtype, equal on all ranks but for ``n``.
        sizes: every rank's ``n`` where known (`gather_sizes`); saves exchanging them here.

    Returns:
        ``[sum of sizes, ...]``; ``tensor`` itself without other ranks.
    """
    if world_size() == 1:
        return tensor
    if sizes is None:
        sizes = gather_sizes(tensor.shape[0], tensor.device)
    if tensor.shape[0] != sizes[rank()]:
        raise ValueError(
            f"rank {rank()} has {tensor.shape[0]} rows, but sizes says {sizes[rank()]}"
        )
    gathered: Tensor = _AllGather.apply(tensor, sizes)  # type: ignore[no-untyped-call]
    return gathered


class Coming(NamedTuple):
    """A tensor that is on its way from the rank before."""

    tensor: Tensor
    sent: Tensor  # has to stay until it has left
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """The tensor, once it is here and the own one has left."""
        for work in self.works:
            work.wait()
        return self.tensor


def pass_on(tensor: Tensor) -> Coming:
    """Sends ``tensor`` to the next rank, and takes one of its shape from the rank before.

    Every rank has to call it, in the same order. Neither may be written to until ``wait``. Without
    a gradient.
    """
    sent, received = tensor.contiguous(), torch.empty_like(tensor)
    own, ranks = rank(), world_size()
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, sent, (own + 1) % ranks),
            dist.P2POp(dist.irecv, received, (own - 1) % ranks),
        ]
    )
    return Coming(received, sent, works)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over ranks, without a gradient; the argument is not modified."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def all_gather_object(value: Any) -> list[Any]:
    """Every rank's picklable ``value``, in rank order."""
    every: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(every, value)
    return every


def all_gather_results(work: Callable[[], Iterable[T]]) -> list[T]:
    """The results of ``work`` of all ranks, in rank order, on every rank.

    Every rank has to call. An error of one rank is raised on all, so that none waits.
    """
    mine: list[T] = []
    failure: Exception | None = None
    try:
        mine = list(work())
    except Exception as error:
        failure = error
    every: list[tuple[list[T], Exception | None]] = all_gather_object((mine, failure))
    for _, theirs in every:
        if theirs is not None:
            raise theirs
    return [part for parts, _ in every for part in parts]


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


class _AllGather(torch.autograd.Function):
    """Pads every rank's rows to the longest, gathers, and cuts the padding off again."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes  # type: ignore[attr-defined]
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded)
        return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()  # all_reduce writes in place
        dist.all_reduce(total)
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None
