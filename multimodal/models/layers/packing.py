"""Sequences of different lengths without their padding: the real tokens of a batch, one after the
other.

What is computed for every token by itself (norms, projections, MLPs) is then computed for real
tokens only; attention lays them out with padding again. Source: Krell et al. 2021, "Efficient
Sequence Packing without Cross-contamination"; Zeng et al. 2022, "Boosting Distributed Training
Performance of the Unpadded BERT Model".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch are.

    Attributes:
        places: int64 ``[N]``, ascending: of every real token in the ``B * T`` places of the batch.
        batch: B.
        length: T.
    """

    places: Tensor
    batch: int
    length: int

    @classmethod
    def of(cls, mask: Tensor) -> Packing:
        """The packing of a batch with this mask, bool ``[B, T]`` (True = real).

        Waits for the device, which has to say how many tokens are real.
        """
        return cls(mask.flatten().nonzero().flatten(), mask.shape[0], mask.shape[1])

    def pack(self, x: Tensor) -> Tensor:
        """``[B, T, W]`` to ``[N, W]``: the real tokens."""
        packed: Tensor = _Pack.apply(x, self.places)  # type: ignore[no-untyped-call]
        return packed

    def unpack(self, x: Tensor) -> Tensor:
        """``[N, W]`` to ``[B, T, W]``, with zeros at the padding."""
        padded: Tensor = _Unpack.apply(x, self.places, self.batch, self.length)  # type: ignore[no-untyped-call]
        return padded

    def per_token(self, x: Tensor) -> Tensor:
        """``[B, ...]``, one value per sample, to ``[N, ...]``: each token's own sample's."""
        return x[torch.div(self.places, self.length, rounding_mode="floor")]


# Every place occurs once, so each is the other's gradient: a copy of rows, where autograd's own
# gradient of a selection would add them up one by one.


def _select(x: Tensor, places: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, places)


def _spread(x: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
    rows = x.new_zeros(batch * length, x.shape[1]).index_copy_(0, places, x)
    return rows.view(batch, length, x.shape[1])


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.sides = x.shape[:2]
        return _select(x, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _spread(grads[0], places, *ctx.sides), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, batch: int, length: int) -> Tensor:
        ctx.save_for_backward(places)
        return _spread(x, places, batch, length)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return _select(grads[0], places), None, None, None
