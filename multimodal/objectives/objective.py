"""The contrastive objective: a weighted sum of pairs, over the batch of all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from multimodal.distributed import all_gather, gather_sizes, world_size
from multimodal.objectives.candidates import Candidates
from multimodal.objectives.contract import Context, Loss, Negatives
from multimodal.objectives.items import Items
from multimodal.objectives.metrics import similarity_metrics
from multimodal.objectives.pair import Pair, Side


@dataclass(slots=True)
class ObjectiveOutput:
    """What a step learns from, and what it shows.

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


class ContrastiveObjective(nn.Module):
    """Compares embeddings pair by pair.

    Args:
        pairs: name -> pair.
        chunk_size: anchors whose similarities are held at a time; None decides by the number of
            candidates. It changes memory and time, never the loss.
    """

    def __init__(self, pairs: Mapping[str, Pair], chunk_size: int | None = None) -> None:
        super().__init__()
        if not pairs:
            raise ValueError("an objective needs at least one pair")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or null, given {chunk_size}")
        self.pairs = nn.ModuleDict(pairs)
        self.chunk_size = chunk_size

    def modalities(self, available: Iterable[str], source: str) -> list[str]:
        """Those of the available modalities that a pair needs in a batch of this source."""
        available = list(available)
        pairs = self._active(available, source).values()
        needed = {name for pair in pairs for name in (pair.anchor, pair.other)}
        return [name for name in available if name in needed]

    def _active(self, modalities: Iterable[str], source: str) -> dict[str, Pair]:
        pairs = ((name, cast("Pair", pair)) for name, pair in self.pairs.items())
        return {name: pair for name, pair in pairs if pair.active(modalities, source)}

    def forward(
        self,
        embeddings: Mapping[str, Tensor],
        sample_ids: Tensor,
        positive_keys: Tensor,
        step: int,
        seed: int,
        source: str,
    ) -> ObjectiveOutput:
        """The loss of one batch. Every rank calls it, also one without samples.

        Args:
            embeddings: modality -> ``[B, D]``, unit-norm; the same modalities on every rank.
            sample_ids: ``[B]`` int64.
            positive_keys: ``[B]`` int64.
            step: the batch's position in the schedule.
            seed: of the experiment.
            source: the name of the batch's source.

        Raises:
            ValueError: if no pair is active, or there are fewer than two candidates.
        """
        active = self._active(embeddings, source)
        if not active:
            raise ValueError(
                f"no pair relates two of the modalities {sorted(embeddings)} of source '{source}'; "
                f"there are the pairs {', '.join(self.pairs)}"
            )
        device = sample_ids.device
        with torch.autocast(device.type, enabled=False):
            sides, num_samples = self._gather(active, embeddings, sample_ids, positive_keys)
            share = world_size() / max(1, num_samples)  # its mean over ranks is the global mean
            total = torch.zeros((), device=device)
            metrics: dict[str, Tensor] = {}
            for name, pair in active.items():
                anchors, others = sides[pair.anchor], sides[pair.other]
                _check_enough(name, num_samples)
                scale = pair.scale()
                context = Context(seed, step, name, "", scale, others.local.embeddings.shape[1])
                value, without = pair(anchors, others, context, self.chunk_size)
                value = value * share
                total = total + pair.weight * value
                seen = similarity_metrics(
                    anchors.local, pair.candidates_of(others), pair.keys_are_positives
                )
                weight = share * len(anchors.local)
                metrics |= {f"{metric}/{name}": mean * weight for metric, mean in seen.items()}
                metrics[f"loss/{name}"] = value.detach()
                metrics[f"logit_scale/{name}"] = scale.detach()
                metrics[f"without_negatives/{name}"] = without * world_size()
        return ObjectiveOutput(total, metrics)

    def _gather(
        self,
        active: Mapping[str, Pair],
        embeddings: Mapping[str, Tensor],
        sample_ids: Tensor,
        positive_keys: Tensor,
    ) -> tuple[dict[str, Side], int]:
        """The needed modalities, here and on all ranks, each sent once; and the global count."""
        sizes = gather_sizes(len(sample_ids), sample_ids.device)
        ids, keys = all_gather(sample_ids, sizes), all_gather(positive_keys, sizes)
        sides = {}
        needed = {name for pair in active.values() for name in (pair.anchor, pair.other)}
        for name in sorted(needed):  # the same order on every rank
            local = embeddings[name]
            if len(local) != len(sample_ids):
                raise ValueError(
                    f"{len(local)} embeddings of '{name}' for {len(sample_ids)} sample ids"
                )
            local = local if local.dtype == torch.float64 else local.float()
            sent = any(
                pair.candidates.gathers and name in (pair.anchor, pair.other)
                for pair in active.values()
            )
            items = Items(local, sample_ids, positive_keys)
            everyone = Items(all_gather(local, sizes), ids, keys) if sent else items
            sides[name] = Side(items, everyone)
        return sides, sum(sizes)


def build_objective(
    pairs: Mapping[str, Mapping[str, Any] | None],
    loss: Loss | None,
    negatives: Negatives | None,
    candidates: Candidates | None,
    embed_dim: int | None = None,
    chunk_size: int | None = None,
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

    Raises:
        ValueError: naming the pair and what is wrong with it.
    """
    defaults = {"loss": loss, "negatives": negatives, "candidates": candidates}
    built = {}
    for name, given in pairs.items():
        if given is None:
            continue
        choices = {key: given.get(key) or default for key, default in defaults.items()}
        try:
            built[name] = Pair(**{**given, **choices})
        except (TypeError, ValueError) as error:
            raise ValueError(f"pairs.{name}: {error}") from error
    return ContrastiveObjective(built, chunk_size)


def _check_enough(name: str, num_candidates: int) -> None:
    if num_candidates < 2:
        raise ValueError(
            f"pair '{name}' has fewer than two candidates, so there is nothing to contrast with; "
            "raise data.batch_size, or choose candidates=queue"
        )
