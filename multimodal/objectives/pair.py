"""One pair of modalities: its choices, its parameters, and its loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from multimodal.core.names.modalities import side_name, teacher_of
from multimodal.core.similarity.tokens import joined
from multimodal.objectives.candidates import Candidates, EmbeddingQueue
from multimodal.objectives.columns import Columns, ListedColumns
from multimodal.objectives.gathered_batch import GatheredBatch, ListedEmbeddings, gather_whole
from multimodal.objectives.interfaces import Context, Loss, Negatives, compatible
from multimodal.objectives.kernels.blockwise import Direction, block_sum, chunked_direction
from multimodal.objectives.kernels.fused import fused_sum, has_fused_kernel
from multimodal.objectives.kernels.hardest import hardest_k, mined_directions
from multimodal.objectives.kernels.ring import round_the_ranks
from multimodal.objectives.losses.affinity import AffinityLoss, affinity_directions
from multimodal.objectives.losses.matryoshka import Matryoshka, cut, prefix
from multimodal.objectives.losses.target import TargetLoss
from multimodal.objectives.matches import SampleKeys, index_positives
from multimodal.objectives.negatives.selection import InBatch
from multimodal.objectives.negatives.warmup import strength


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


class Pair(nn.Module):
    """Two modalities that are aligned.

    Args:
        anchor: the first modality; rows of the similarity matrix. A list of modalities is their
            joint embedding, which is one modality more.
        other: the second modality, or a list; columns.
        loss: one of the losses, or one over prefixes of the embeddings (`Matryoshka`).
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
        embed_dim: D of the embeddings; needed for a queue.
        stop_gradient: the modality that this pair does not move, as the anchor of LiT (Zhai et al.
            2022, arXiv:2111.07991) and ImageBind is locked: the other one alone is pulled to it.
            None: both are moved.

    Raises:
        ValueError: if loss and negatives do not go together, or a value is out of its range.
    """

    def __init__(
        self,
        anchor: str | list[str],
        other: str | list[str],
        loss: Loss,
        negatives: Negatives,
        candidates: Candidates,
        weight: float = 1.0,
        sources: Iterable[str] | None = None,
        logit_scale: Mapping[str, Any] | None = None,
        logit_bias: float | None = None,
        equal_keys: Literal["positives", "ignored"] = "positives",
        embed_dim: int | None = None,
        stop_gradient: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        anchor, other = side_name(anchor), side_name(other)
        stop_gradient = None if stop_gradient is None else side_name(stop_gradient)
        if stop_gradient not in (None, anchor, other):
            raise ValueError(
                f"stop_gradient must be '{anchor}' or '{other}', or null, given '{stop_gradient}'"
            )
        if reason := compatible(loss, negatives, candidates):
            raise ValueError(reason)
        if weight < 0:
            raise ValueError(f"weight must be at least 0, given {weight}")
        if equal_keys not in ("positives", "ignored"):
            raise ValueError(f"equal_keys must be 'positives' or 'ignored', given '{equal_keys}'")
        self.anchor, self.other = anchor, other
        self.moved = tuple(name for name in (anchor, other) if name != stop_gradient)
        self.matryoshka = loss if isinstance(loss, Matryoshka) else None
        loss = loss.loss if isinstance(loss, Matryoshka) else loss
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
        self.queues = nn.ModuleDict()
        self._pending: list[tuple[tuple[Tensor, Tensor], SampleKeys]] = []
        if candidates.size:
            if embed_dim is None:
                raise ValueError("a queue needs embed_dim")
            for name in (anchor, other):
                self.queues[name] = EmbeddingQueue(candidates.size, embed_dim)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the embeddings that the loss reads: both sides, and their teachers'."""
        ends = (self.anchor, self.other)
        teachers = map(teacher_of, ends) if isinstance(self.loss, AffinityLoss) else ()
        return tuple(dict.fromkeys((*ends, *teachers)))

    def active(self, modalities: Iterable[str], source: str) -> bool:
        """Whether a batch of these modalities from this source trains the pair."""
        return set(self.modalities) <= set(modalities) and (
            self.sources is None or source in self.sources
        )

    def scale(self) -> Tensor:
        """The multiplier of the cosines: a scalar, at most ``logit_scale.max``.

        In training the parameter itself is clamped to its bound, where it still gets a gradient.
        """
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():
                self.logit_scale.clamp_(max=self.max_logit_scale)
            return self.logit_scale.exp()
        return self.logit_scale.clamp(max=self.max_logit_scale).exp()

    def bias(self, scale: Tensor) -> Tensor:
        """What is added to the logits: a scalar of the type of ``scale``, 0 without a bias."""
        return scale.new_zeros(()) if self.logit_bias is None else self.logit_bias.to(scale.dtype)

    def forward(
        self, gathered: GatheredBatch, context: Context, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss summed over this rank's samples, and how many anchors had no negative.

        Args:
            gathered: the batch.
            context: of the step; its direction is filled in here.
            chunk_size: rows per block; None decides by the number of candidates.

        Returns:
            two scalars: the sum, both directions joined as the loss says, not yet weighted; and
            the count, over both directions, of the whole width.

        Raises:
            ValueError: if the widest prefix is not the embeddings' width.
        """
        if self.matryoshka is None:
            return self._of_width(gathered, context, chunk_size, gathered)
        ends, width = (self.anchor, self.other), context.embed_dim
        if self.matryoshka.dims[-1] != width:
            raise ValueError(
                f"matryoshka: the last of dims={list(self.matryoshka.dims)} must be the "
                f"embeddings' width, {width}"
            )
        total, without = context.scale.new_zeros(()), context.scale.new_zeros(())
        for dim, share in self.matryoshka.shares():
            of_dim = replace(context, embed_dim=dim)
            part, without = self._of_width(cut(gathered, ends, dim), of_dim, chunk_size, gathered)
            total = total + share * part
        return total, without

    def _of_width(
        self,
        gathered: GatheredBatch,
        context: Context,
        chunk_size: int | None,
        whole: GatheredBatch,
    ) -> tuple[Tensor, Tensor]:
        """The same of embeddings of one width; a teacher's are those of the ``whole`` width."""
        if isinstance(self.loss, AffinityLoss):
            ends = (self.anchor, self.other)
            sides = (self._side(gathered, self.anchor), self._side(gathered, self.other))
            directions = affinity_directions(self.loss, ends, whole, chunk_size)
            scale = context.scale
            total, without = block_sum(directions, sides, scale, self.bias(scale))
            return total / len(directions), without
        if isinstance(self.loss, TargetLoss):
            anchors, targets = (
                self._side(gathered, name)[gathered.local_rows]
                for name in (self.anchor, self.other)
            )
            cosines = context.similarity.between(self.anchor, self.other).paired(anchors, targets)
            return self.loss.per_cosine(cosines).sum(), anchors.new_zeros(())
        part = strength(self.negatives, context.step) if self.training else 1.0
        if part == 1:
            total, without = self._sum(self.negatives, gathered, context, chunk_size)
        else:
            total, without = self._sum(InBatch(), gathered, context, chunk_size)
            if part > 0:
                value, without = self._sum(self.negatives, gathered, context, chunk_size)
                total = torch.lerp(total, value, part)
        return total / 2 if self.loss.directions == "mean" else total, without

    def _sum(
        self,
        negatives: Negatives,
        gathered: GatheredBatch,
        context: Context,
        chunk_size: int | None,
    ) -> tuple[Tensor, Tensor]:
        """The sum of both directions, on the fastest path for the combination."""
        names = (self.anchor, self.other)
        scale, bias = context.scale, self.bias(context.scale)
        sides = (self._side(gathered, self.anchor), self._side(gathered, self.other))
        if gathered.whole is not None:
            total = round_the_ranks(sides, gathered, self.keys_are_positives, context, bias)
            if total is not None:
                return total
            gathered = gather_whole(gathered, names)
            sides = (self._side(gathered, self.anchor), self._side(gathered, self.other))
        listed = [gathered.listed.get(name) for name in names]
        fused, mined = (
            has_fused_kernel(self.loss, negatives),
            hardest_k(self.loss, negatives),
        )
        plain = not self.queues and not context.similarity.per_token and listed == [None, None]
        if plain and (fused or mined):
            positive_index = index_positives(
                gathered.sample_keys,
                gathered.local_rows,
                self.keys_are_positives,
                gathered.related,
            )
            if positive_index is not None and fused:
                return fused_sum(
                    self.loss, sides, positive_index, gathered, scale, bias, context.tiles,
                    context.on_host,
                )  # fmt: skip
            if positive_index is not None and mined:
                directions = mined_directions(self.loss, sides, positive_index, gathered, *mined)
                return block_sum(directions, sides, scale, bias)
        directions = [
            self._direction(side, gathered, listed[1 - side], negatives, context, chunk_size)
            for side in ((0,) if self.loss.directions == "once" else (0, 1))
        ]
        if self.loss.directions == "once" and listed[0] is not None and len(listed[0].owners):
            # the matrix of the other direction, of whose columns these alone are not yet counted
            directions.append(
                self._direction(1, gathered, listed[0], negatives, context, chunk_size, False)
            )
        extended = (self._extended(sides[0], 0, listed), self._extended(sides[1], 1, listed))
        return block_sum(directions, extended, scale, bias)

    def _direction(
        self,
        side: int,
        gathered: GatheredBatch,
        listed: ListedEmbeddings | None,
        negatives: Negatives,
        context: Context,
        chunk_size: int | None,
        in_batch: bool = True,
    ) -> Direction:
        """Anchors of ``side`` against the other side's candidates, block by block."""
        names = (self.anchor, self.other)
        queue = self._past(names[1 - side], context.embed_dim) if in_batch else None
        embeddings, past = queue or (None, None)
        compare = context.similarity.between(names[side], names[1 - side])
        kept = compare.kept(*(gathered.side(names[at]) for at in (side, 1 - side)))
        extra = None
        if listed is not None:
            only_owner = getattr(self.candidates, "listed", "batch") == "anchor"
            extra = ListedColumns(listed.keys, listed.owners if only_owner else None)
        return chunked_direction(
            side,
            gathered.local_rows,
            Columns(gathered.sample_keys, self.keys_are_positives, extra, past, in_batch),
            embeddings,
            self.loss,
            negatives,
            replace(context, direction=f"{names[side]}->{names[1 - side]}"),
            compare,
            kept,
            chunk_size,
        )

    def _extended(
        self, side: Tensor, place: int, listed: Sequence[ListedEmbeddings | None]
    ) -> Tensor:
        """A side's rows of the batch, and then those that are listed."""
        extra = listed[place]
        if extra is None:
            return side
        moved = (self.anchor, self.other)[place] in self.moved
        rows = extra.embeddings if moved else extra.embeddings.detach()
        return joined([side, rows])

    def _side(self, gathered: GatheredBatch, modality: str) -> Tensor:
        side = gathered.side(modality)
        return side if modality in self.moved else side.detach()

    def _past(self, modality: str, dim: int | None = None) -> tuple[Tensor, SampleKeys] | None:
        if not self.queues:
            return None
        rows, keys = cast("EmbeddingQueue", self.queues[modality]).content()
        return (rows if dim is None else prefix(rows, dim)), keys

    def num_queued(self) -> int:
        """Past embeddings among the candidates; waits for the device."""
        past = self._past(self.other)
        return 0 if past is None or past[1].filled is None else int(past[1].filled.sum())

    def stage_for_queue(self, global_batch: GatheredBatch) -> None:
        """Keeps all ranks' batch for the queues until its step is applied or skipped."""
        sides = global_batch.side(self.anchor).detach(), global_batch.side(self.other).detach()
        self._pending.append((sides, global_batch.sample_keys))

    def update_queues(self, applied: bool) -> None:
        """Queues the batches since the last call, or drops them if the step was not applied."""
        for sides, batch in self._pending if applied else []:
            for name, embeddings in zip((self.anchor, self.other), sides, strict=True):
                cast("EmbeddingQueue", self.queues[name]).enqueue(embeddings, batch)
        self._pending.clear()
