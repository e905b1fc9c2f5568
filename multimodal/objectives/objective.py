"""The contrastive objective: a weighted sum of pairs, over the batch of all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from multimodal.core.distributed import world_size
from multimodal.core.similarity.similarities import COSINE, Similarity
from multimodal.objectives.candidates import Candidates, passes
from multimodal.objectives.gathered_batch import (
    GatheredBatch,
    ListedEmbeddings,
    check_shapes,
    gather_batch,
    gather_keys,
    local_batch,
    view_of,
)
from multimodal.objectives.host_values import HostValues
from multimodal.objectives.interfaces import Context, Loss, Negatives, compatible
from multimodal.objectives.kernels.tiles import TORCH, Tiles
from multimodal.objectives.losses.matryoshka import Matryoshka
from multimodal.objectives.matches import SampleKeys, related_rows
from multimodal.objectives.pair import Pair
from multimodal.objectives.pair_metrics import similarities_of


@dataclass(slots=True)
class ObjectiveOutput:
    """The loss and metrics of a step.

    Attributes:
        loss: scalar. Its mean over ranks is the loss of the global batch, and DDP's mean of the
            ranks' gradients is that loss's gradient.
        metrics: detached scalars on the device, per pair: ``loss/NAME``, ``accuracy/NAME``,
            ``logit_scale/NAME``, ``positive_similarity/NAME``,
            ``hardest_negative_similarity/NAME``, ``without_negatives/NAME`` (anchors of the global
            batch, both directions, for which the strategy found none). Their mean over ranks is
            the global value.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Prepared:
    """What the loss of a batch asks the device, sent for before the towers compute.

    Args:
        local: this rank's keys.
        active: the pairs of the batch.
    """

    def __init__(self, local: SampleKeys, active: Mapping[str, Pair]) -> None:
        gathers = any(pair.candidates.gathers for pair in active.values())
        self.keys = gather_keys(local) if gathers and world_size() > 1 else None
        asked = [related_rows(local), related_rows(local if self.keys is None else self.keys[0])]
        for pair in active.values():
            scale = pair.scale()
            asked += [scale, pair.bias(scale)]
        self._names = list(active)
        self._values = HostValues(asked)

    def related(self, gathers: bool) -> int:
        """`related_rows` of this rank's rows, or of all ranks'."""
        return int(self._values.read()[int(gathers)])

    def on_host(self, pair: str) -> tuple[float, float]:
        """A pair's scale and bias."""
        place = 2 + 2 * self._names.index(pair)
        scale, bias = self._values.read()[place : place + 2]
        return scale, bias


class ContrastiveObjective(nn.Module):
    """Compares embeddings pair by pair.

    Args:
        pairs: name -> pair.
        chunk_size: anchors whose similarities are held at a time; None decides by the number of
            candidates. It changes memory and time, never the loss.
        similarity: of all pairs; it says whether embeddings are of whole samples or of tokens.
        tiles: what computes InfoNCE, DCL and SigLIP in batch (`kernels.tiles`).

    Attributes:
        momentum: of the moving average of the towers that fills the pairs' queues; None without.

    Raises:
        ValueError: if there are no pairs, if their queues use different momenta, or if a pair's
            choices do not go with the similarity.
    """

    def __init__(
        self,
        pairs: Mapping[str, Pair],
        chunk_size: int | None = None,
        similarity: Similarity | None = None,
        tiles: Tiles = TORCH,
    ) -> None:
        super().__init__()
        if not pairs:
            raise ValueError("an objective needs at least one pair")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or null, given {chunk_size}")
        momenta = {pair.candidates.momentum for pair in pairs.values()} - {None}
        if len(momenta) > 1:
            raise ValueError("the pairs' queues use different momenta; one average fills all")
        self.similarity, self.tiles = similarity or COSINE, tiles
        for name, pair in pairs.items():
            if reason := compatible(
                pair.loss,
                pair.negatives,
                pair.candidates,
                per_token=self.similarity.per_token,
                bounded=self.similarity.bounded,
            ):
                raise ValueError(f"pairs.{name}: {reason}")
        self.pairs = nn.ModuleDict(pairs)
        self.chunk_size = chunk_size
        self.momentum: float | None = momenta.pop() if momenta else None

    def modalities(self, available: Iterable[str], source: str) -> list[str]:
        """Those of the available modalities that a pair needs in a batch of this source."""
        available = list(available)
        needed = _modalities(self._active(available, source).values())
        return [name for name in available if name in needed]

    def moved(self, available: Iterable[str], source: str) -> set[str]:
        """Those that a batch of these modalities from this source gives gradients to."""
        return {name for p in self._active(list(available), source).values() for name in p.moved}

    def active_pairs(self, available: Iterable[str], source: str) -> set[str]:
        """Names of the pairs that a batch of these modalities from this source trains."""
        return set(self._active(list(available), source))

    def queued_modalities(self, available: Iterable[str], source: str) -> list[str]:
        """Those of which embeddings of a batch of this source enter a queue."""
        return _modalities(p for p in self._active(available, source).values() if p.candidates.size)

    def queue_buffers(self) -> list[str]:
        """Names of the queues' buffers; every rank has the same content without broadcasting it."""
        return [name for name, _ in self.named_buffers() if ".queues." in name]

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        sample_ids: Tensor,
        positive_keys: Tensor,
        step: int,
        seed: int,
        source: str,
        momentum_embeddings: Mapping[str, Tensor] | None = None,
        prepared: Prepared | None = None,
        listed: Mapping[str, ListedEmbeddings] | None = None,
    ) -> ObjectiveOutput:
        """The loss of one batch. Every rank calls it, also one without samples.

        Where a pair has a queue, `update_queues` follows after the optimizer's step.

        Args:
            embeddings: modality -> ``[B, D]``, unit-norm; the same modalities on every rank. Of
                tokens ``[B, T, D]``, each unit-norm, and zeros at padding; T may differ by rank.
            sample_ids: ``[B]`` int64.
            positive_keys: ``[B]`` int64.
            step: the batch's position in the schedule.
            seed: of the experiment.
            source: the name of the batch's source.
            momentum_embeddings: the same by the moving average of the towers, for the queues;
                needed in training where `momentum` is set.
            prepared: by `prepare`, of the same batch; None asks the device, and waits for it.
            listed: modality -> negatives that this rank's samples list; the same modalities on
                every rank, among those of ``embeddings``, with as many rows as there are (or none).

        Raises:
            ValueError: if no pair is active, or there are fewer than two candidates; and by
                `check_shapes`.
        """
        active = self._active(embeddings, source)
        self._check(active, embeddings, source)
        with torch.autocast(sample_ids.device.type, enabled=False):
            local = local_batch(embeddings, sample_ids, positive_keys, listed)
            local, global_batch = _both_batches(local, active.values(), prepared)
            num_samples = len(global_batch.sample_keys)
            share = world_size() * len(local.sample_keys) / num_samples
            total, metrics = torch.zeros((), device=sample_ids.device), dict[str, Tensor]()
            for name, pair in active.items():
                _check_enough(name, pair, global_batch)
                gathered = view_of(pair.candidates, local, global_batch)
                context = self._context(seed, step, name, gathered.side(pair.other), prepared)
                value, without = pair(gathered, context, self.chunk_size)
                # the mean over ranks of W x (sum over own anchors) / N is the mean over all N
                value = value * world_size() / num_samples
                total = total + pair.weight * value
                metrics |= similarities_of(name, pair, gathered, share, self.similarity)
                metrics[f"loss/{name}"] = value.detach()
                metrics[f"logit_scale/{name}"] = context.scale.detach()
                metrics[f"without_negatives/{name}"] = world_size() * without
            if self.training:
                self._stage_for_queues(active.values(), global_batch, momentum_embeddings)
        return ObjectiveOutput(total, metrics)

    def _context(
        self, seed: int, step: int, name: str, other: Tensor, prepared: Prepared | None
    ) -> Context:
        scale = cast("Pair", self.pairs[name]).scale().to(other.dtype)
        on_host = None if prepared is None else prepared.on_host(name)
        width = other.shape[-1]
        return Context(seed, step, name, "", scale, width, on_host, self.similarity, self.tiles)

    def _check(
        self, active: Mapping[str, Pair], embeddings: Mapping[str, Tensor], source: str
    ) -> None:
        if not active:
            raise ValueError(
                f"no pair relates two of the modalities {sorted(embeddings)} of source '{source}'; "
                f"there are the pairs {', '.join(self.pairs)}"
            )
        check_shapes(embeddings, self.similarity)

    def prepare(
        self, available: Iterable[str], source: str, sample_ids: Tensor, positive_keys: Tensor
    ) -> Prepared | None:
        """Sends for what the loss of a batch will ask; called before its towers compute.

        Every rank calls it, or none does. None where no pair is active.
        """
        active = self._active(list(available), source)
        return Prepared(SampleKeys(sample_ids, positive_keys), active) if active else None

    def update_queues(self, applied: bool = True) -> None:
        """Call after an optimizer step: its batches enter the queues if it was applied."""
        for pair in self.pairs.values():
            cast("Pair", pair).update_queues(applied)

    def _active(self, modalities: Iterable[str], source: str) -> dict[str, Pair]:
        pairs = ((name, cast("Pair", pair)) for name, pair in self.pairs.items())
        return {name: pair for name, pair in pairs if pair.active(modalities, source)}

    def _stage_for_queues(
        self,
        active: Iterable[Pair],
        global_batch: GatheredBatch,
        momentum_embeddings: Mapping[str, Tensor] | None,
    ) -> None:
        """Passes the batch to the pairs that have a queue."""
        queued = [pair for pair in active if pair.candidates.size]
        if not queued:
            return
        if self.momentum is not None:
            if momentum_embeddings is None:
                raise ValueError(
                    "candidates.momentum is set, but no momentum_embeddings are given to fill the "
                    "queue; give them, or set candidates.momentum=null"
                )
            local_keys = global_batch.sample_keys[global_batch.local_rows]
            average = local_batch(
                momentum_embeddings, local_keys.sample_ids, local_keys.positive_keys
            )
            global_batch = gather_batch(average, _modalities(queued))
        for pair in queued:
            pair.stage_for_queue(global_batch)


def make_objective(
    pairs: Mapping[str, Mapping[str, Any] | None],
    loss: Loss | None,
    negatives: Negatives | None,
    candidates: Candidates | None,
    embed_dim: int | None = None,
    chunk_size: int | None = None,
    matryoshka: Mapping[str, Any] | None = None,
    similarity: Similarity | None = None,
    tiles: Tiles = TORCH,
) -> ContrastiveObjective:
    """The objective of a configuration's ``pairs``.

    Args:
        pairs: name -> the arguments of `Pair`; a choice that is missing or None takes the
            experiment-wide one. An entry that is None was taken out.
        loss: for every pair that names no own; so are ``negatives`` and ``candidates``.
        negatives: see above.
        candidates: see above.
        embed_dim: D, for queues.
        chunk_size: see `ContrastiveObjective`.
        matryoshka: ``dims`` and ``weights`` of `Matryoshka`, for every pair whose loss is not one;
            None, or ``dims`` of None: the whole width alone.
        similarity: of all pairs; None for the cosine.
        tiles: see `ContrastiveObjective`.

    Raises:
        ValueError: if a pair is invalid; the message names it and the error.
    """
    defaults = {"loss": loss, "negatives": negatives, "candidates": candidates}
    built, widths = {}, dict(matryoshka or {})
    for name, given in pairs.items():
        if given is None:
            continue
        choices: dict[str, Any] = {
            key: given.get(key) or default for key, default in defaults.items()
        }
        try:
            if widths.get("dims") and not isinstance(choices["loss"], Matryoshka):
                choices["loss"] = Matryoshka(choices["loss"], **widths)
            built[name] = Pair(**{**given, **choices, "embed_dim": embed_dim})
        except (TypeError, ValueError) as error:
            raise ValueError(f"pairs.{name}: {error}") from error
    return ContrastiveObjective(built, chunk_size, similarity, tiles)


def _both_batches(
    local: GatheredBatch, active: Iterable[Pair], prepared: Prepared | None
) -> tuple[GatheredBatch, GatheredBatch]:
    """This rank's batch and all ranks' one, with what `prepare` has computed."""
    sent = _modalities(p for p in active if p.candidates.gathers and not passes(p.candidates))
    if prepared is None:
        return local, gather_batch(local, sent)
    whole = replace(gather_batch(local, sent, prepared.keys), related=prepared.related(True))
    return replace(local, related=prepared.related(False)), whole


def _modalities(pairs: Iterable[Pair]) -> list[str]:
    """The pairs' modalities, in an order that every rank has."""
    return sorted({name for pair in pairs for name in pair.modalities})


def _check_enough(name: str, pair: Pair, global_batch: GatheredBatch) -> None:
    gathers = pair.candidates.gathers
    num_samples = len(global_batch.sample_keys) if gathers else global_batch.max_rows
    if num_samples < 2 and num_samples + pair.num_queued() < 2:
        raise ValueError(
            f"pair '{name}' has fewer than two candidates, so there is nothing to contrast with; "
            "raise data.batch_size, or choose candidates="
            + ("queue (and fill it with larger batches)" if gathers else "all_ranks or queue")
        )
