"""One pair of modalities: its choices, what it learns, and its loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multimodal.objectives.candidates import Candidates
from multimodal.objectives.chunked import chunked_sum
from multimodal.objectives.contract import Context, Loss, Negatives, compatible
from multimodal.objectives.items import Items


@dataclass(frozen=True)
class LogitScale:
    """How a pair turns cosines into logits.

    Args:
        init: the multiplier at the start, 1 / temperature; None takes the loss's default.
        learned: a parameter (CLIP), or fixed for good (ImageBind).
        max: the multiplier never exceeds this.
    """

    init: float | None = None
    learned: bool = True
    max: float = 100.0

    def __post_init__(self) -> None:
        if self.init is not None and not 0 < self.init <= self.max:
            raise ValueError(
                f"logit_scale.init must be above 0 and at most max={self.max}, given {self.init}"
            )


@dataclass(frozen=True, slots=True)
class Side:
    """One modality of a global batch: this rank's items, and those of all ranks."""

    local: Items
    everyone: Items


class Pair(nn.Module):
    """Two modalities that are brought together.

    Args:
        anchor: the first modality; rows of the similarity matrix.
        other: the second modality; columns.
        loss: one of the losses.
        negatives: a strategy that goes with the loss.
        candidates: where candidates come from.
        weight: factor on this pair's loss, at least 0.
        sources: names of the sources whose batches train this pair; None for all that carry both
            modalities.
        logit_scale: init, learned, max; None for the loss's default, learned.
        logit_bias: where the bias starts, for a loss that has one (SigLIP); None takes the loss's
            default.
        equal_keys: ``positives`` makes samples with equal positive keys positives of each other;
            ``ignored`` only keeps them from being negatives.

    Raises:
        ValueError: if loss and negatives do not go together, or a value is out of its range.
    """

    def __init__(
        self,
        anchor: str,
        other: str,
        loss: Loss,
        negatives: Negatives,
        candidates: Candidates,
        weight: float = 1.0,
        sources: Iterable[str] | None = None,
        logit_scale: Mapping[str, Any] | None = None,
        logit_bias: float | None = None,
        equal_keys: Literal["positives", "ignored"] = "positives",
    ) -> None:
        super().__init__()
        if reason := compatible(loss, negatives, candidates):
            raise ValueError(reason)
        if weight < 0:
            raise ValueError(f"weight must be at least 0, given {weight}")
        if equal_keys not in ("positives", "ignored"):
            raise ValueError(f"equal_keys must be 'positives' or 'ignored', given '{equal_keys}'")
        self.anchor, self.other = anchor, other
        self.loss, self.negatives, self.candidates = loss, negatives, candidates
        self.weight = weight
        self.sources = None if sources is None else frozenset(sources)
        self.keys_are_positives = equal_keys == "positives"

        choice = LogitScale(**(logit_scale or {}))
        init = loss.default_scale if choice.init is None else choice.init
        self.max_logit_scale = math.log(choice.max)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(init)), choice.learned)
        self.logit_bias: nn.Parameter | None = None
        if loss.default_bias is not None:
            bias = loss.default_bias if logit_bias is None else logit_bias
            self.logit_bias = nn.Parameter(torch.tensor(float(bias)))
        elif logit_bias is not None:
            raise ValueError(
                f"{type(loss).__name__} has no bias, but logit_bias is {logit_bias}; set it to null"
            )

    def active(self, modalities: Iterable[str], source: str) -> bool:
        """Whether a batch of these modalities from this source trains the pair."""
        return {self.anchor, self.other} <= set(modalities) and (
            self.sources is None or source in self.sources
        )

    def scale(self) -> Tensor:
        """The multiplier of the cosines: a scalar, at most ``logit_scale.max``.

        In training the parameter itself is brought back to its bound, where a gradient can still
        move it.
        """
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(max=self.max_logit_scale)
        return self.logit_scale.clamp(max=self.max_logit_scale).exp()

    def forward(
        self, anchors: Side, others: Side, context: Context, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss summed over this rank's samples, and how many anchors had no negative.

        Args:
            anchors: the anchor modality.
            others: the other modality: the same samples in the same order.
            context: of the step; its direction is filled in here.
            chunk_size: see `chunked_sum`.

        Returns:
            two scalars: the sum, both directions joined as the loss says, not yet weighted; and
            the count, over both directions.
        """
        dtype = anchors.local.embeddings.dtype
        scale = context.scale.to(dtype)
        bias = scale.new_zeros(()) if self.logit_bias is None else self.logit_bias.to(dtype)
        ways = [(anchors, others, f"{self.anchor}->{self.other}")]
        if self.loss.directions != "once":
            ways.append((others, anchors, f"{self.other}->{self.anchor}"))
        results = [
            chunked_sum(
                rows.local,
                self.candidates_of(columns),
                scale,
                bias,
                self.loss,
                self.negatives,
                replace(context, direction=direction),
                self.keys_are_positives,
                chunk_size,
            )
            for rows, columns, direction in ways
        ]
        total = torch.stack([total for total, _ in results]).sum()
        without = torch.stack([count for _, count in results]).sum()
        return total / 2 if self.loss.directions == "mean" else total, without

    def candidates_of(self, side: Side) -> Items:
        """The items of one modality that the other's anchors are compared with."""
        return side.everyone if self.candidates.gathers else side.local
