"""The training module of contrastive models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from multimodal.core.batch import Batch
from multimodal.core.distributed import all_gather, gather_sizes
from multimodal.core.hashing import stable_hash
from multimodal.core.similarity.tokens import joined, padded
from multimodal.evaluation.metrics.retrieval import retrieval
from multimodal.models.encoders.connected import ConnectedEncoder
from multimodal.models.gradient_caching import encode_microbatched, encode_pieces
from multimodal.models.joint.base import JointInputs
from multimodal.models.towers import EmbeddingModel
from multimodal.objectives.gathered_batch import ListedEmbeddings
from multimodal.objectives.matches import SampleKeys
from multimodal.objectives.objective import ContrastiveObjective, ObjectiveOutput
from multimodal.objectives.pair import Pair
from multimodal.training.modules.base import TrainingModule
from multimodal.training.modules.fusion import drop_modalities
from multimodal.training.modules.momentum import MomentumCopy
from multimodal.training.modules.self_distilled import SelfDistiller
from multimodal.training.modules.single_keys import SingleKeyWarning

OURS = ("multimodal.", "torch.nn.")
KEYS = "positive_keys"  # beside the modalities' embeddings, in what validation keeps


class ContrastiveModule(TrainingModule):
    """Trains an ``EmbeddingModel`` under a ``ContrastiveObjective``.

    Args:
        model: the towers.
        objective: the pairs with their losses, negatives, candidates and logit scales.
        optimizer: called with parameter groups, returns the optimizer.
        scheduler: called with the optimizer, returns a schedule stepped once per optimizer step;
            None for a constant learning rate.
        weight_decay: of the parameters that decay.
        seed: keys the random choices of the negatives, together with the batch's step.
        micro_batch_size: samples encoded at a time, under activation checkpointing; the loss is
            still over the whole batch. None encodes the batch at once.
        self_distiller: self-distillation of its towers, beside the pairs; None for none.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        objective: ContrastiveObjective,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        weight_decay: float,
        seed: int,
        micro_batch_size: int | None = None,
        self_distiller: SelfDistiller | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, weight_decay, self_distiller)
        self.model = model
        self.objective = objective
        self.momentum_model: MomentumCopy | None = None
        # DDP sends buffers at every step, but the queues of all ranks are equal anyway
        queues = [f"objective.{name}" for name in objective.queue_buffers()]
        self._ddp_params_and_buffers_to_ignore = queues
        self._has_queues = bool(queues)
        self._seed = seed
        self._micro_batch_size = micro_batch_size
        self.step_metrics: dict[str, Tensor] = {}
        self._single_keys = SingleKeyWarning()
        self._validation: dict[str, dict[str, list[Tensor]]] = {}

    def setup(self, stage: str) -> None:
        """As the base; and the moving average of the towers that fills the queues."""
        super().setup(stage)
        if self.objective.momentum is not None and self.momentum_model is None:
            self.momentum_model = MomentumCopy(self.model, self.objective.momentum)

    def may_leave_unused(self, sources: Mapping[str, Collection[str]]) -> bool:
        """Whether a source's pairs leave a trained tower or scale out, or a tower is not ours.

        Of our own encoders and heads every parameter takes part in every batch; a model of another
        library may hold some that never do.
        """
        towers = {name: self.model.tower(name) for name in self.model.towers}
        joint = self.model.joint
        learning = [part for part in (*towers.values(), *joint.values()) if _learns(part)]
        trained = {id(part): part for part in learning}
        pairs = {name for name, pair in self.objective.pairs.items() if _learns(pair)}
        if not sources or not all(_all_used(tower) for tower in trained.values()):
            return True
        for source, modalities in sources.items():
            if self.self_distiller is not None and self.self_distiller.lacks(modalities):
                return True
            available = joint.joined(modalities)
            moved = self.objective.moved(available, source)
            parts = {part for name in moved for part in joint.parts(name)}
            used = {id(towers[part]) for part in parts if part in towers}  # no teacher's
            used |= {id(joint[name]) for name in moved if name in joint}
            if trained.keys() - used or pairs - self.objective.active_pairs(available, source):
                return True
        return False

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings ``[B, D]`` of those modalities of ``batch`` that one of its pairs needs.

        Raises:
            ValueError: if no pair relates two modalities of this batch.
        """
        available = self._available(batch)
        needed = self.objective.modalities(available, batch.source)
        if not needed:
            raise ValueError(
                f"no pair relates two of the modalities {sorted(available)} of source "
                f"'{batch.source}'; add a pair, or remove the source"
            )
        return self._embed_each(needed, batch, self.model)

    def _available(self, batch: Batch) -> list[str]:
        """The modalities of a batch, and the joint embeddings of them."""
        return self.model.joint.joined([*batch.inputs, *batch.embeddings])

    def _embed_each(
        self, names: Collection[str], batch: Batch, model: EmbeddingModel
    ) -> dict[str, Tensor]:
        """Embeddings of modalities, and then of several together, from theirs where possible."""
        joints = [name for name in names if name in model.joint]
        read = [n for j in joints if model.joint.of(j).reads == "embeddings"
                for n in model.joint.parts(j)]  # fmt: skip
        alone = dict.fromkeys([*(name for name in names if name not in model.joint), *read])
        made = {name: self._embed_one(name, batch, model) for name in alone}
        made |= {name: self._embed_joint(name, batch, model, made) for name in joints}
        return {name: made[name] for name in names}

    def _embed_joint(
        self, name: str, batch: Batch, model: EmbeddingModel, made: Mapping[str, Tensor]
    ) -> Tensor:
        joint, presence = model.joint.of(name), dict[str, Tensor]()
        if self.training and joint.modality_dropout:
            key = stable_hash(self._seed, batch.step, name)
            presence = drop_modalities(
                joint.modalities, {}, batch.sample_ids, joint.modality_dropout, key
            )
        if joint.reads == "embeddings":
            return normalize(joint.from_embeddings(made, presence), dim=-1)
        given = JointInputs.of(joint, batch, presence).flat()

        def encode(piece: Mapping[str, Tensor]) -> Tensor:
            return model.joint.embed(name, model.towers, JointInputs.from_flat(piece))

        return encode_pieces(encode, given, self._micro_batch_size)

    def _embed_listed(
        self, batch: Batch, embeddings: dict[str, Tensor]
    ) -> dict[str, ListedEmbeddings]:
        """Embeddings of the negatives that the samples list, of the modalities that are trained."""
        embedded = {}
        for name in batch.listed.keys() & embeddings.keys():
            rows = batch.listed[name]

            def encode(inputs: Tensor, mask: Tensor | None, name: str = name) -> Tensor:
                return self.model.embed(name, inputs, mask)

            # without any, no rows of what there is: the gradients' collectives stay in step
            vectors = embeddings[name][:0]
            if rows.inputs is not None:
                vectors = encode_microbatched(
                    encode, rows.inputs, rows.mask, self._micro_batch_size
                )
            keys = SampleKeys(rows.sample_ids, rows.positive_keys)
            embedded[name] = ListedEmbeddings(vectors, rows.owners, keys)
        return embedded

    def _embed_one(self, modality: str, batch: Batch, model: EmbeddingModel) -> Tensor:
        def encode(inputs: Tensor, mask: Tensor | None) -> Tensor:
            return model.embed(modality, inputs, mask)

        def finish(cached: Tensor, mask: Tensor | None) -> Tensor:
            return tower.from_frozen(cached)

        if modality not in model.towers:  # a teacher's
            return batch.embeddings[modality]
        tower, size = model.tower(modality), self._micro_batch_size
        if modality in batch.embeddings:  # from the cache; a head needs no pieces, a backbone does
            size = size if isinstance(tower.encoder, ConnectedEncoder) else None
            return encode_microbatched(finish, batch.embeddings[modality], None, size)
        inputs, mask = batch.inputs[modality], batch.masks.get(modality)
        return encode_microbatched(encode, inputs, mask, size)

    @torch.no_grad()
    def _momentum_embeddings(self, batch: Batch) -> dict[str, Tensor] | None:
        """The momentum towers' embeddings for the queues."""
        if self.momentum_model is None:
            return None
        model = cast("EmbeddingModel", self.momentum_model.module)
        queued = self.objective.queued_modalities(self._available(batch), batch.source)
        return self._embed_each(queued, batch, model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective of one batch over all ranks; DDP's mean of gradients is its gradient."""
        keys = batch.sample_ids, batch.positive_keys
        prepared = self.objective.prepare(
            self._available(batch), batch.source, *keys
        )  # before the towers
        embeddings = self.embed(batch)
        output: ObjectiveOutput = self.objective(
            embeddings,
            *keys,
            step=batch.step,
            seed=self._seed,
            source=batch.source,
            momentum_embeddings=self._momentum_embeddings(batch),
            prepared=prepared,
            listed=self._embed_listed(batch, embeddings),
        )
        more, parts = self.self_distilled(batch, self._seed, self._micro_batch_size)
        loss, self.step_metrics = output.loss + more, output.metrics | parts  # for error reports
        metrics = {f"train/{name}": value for name, value in self.step_metrics.items()}
        self._single_keys.note(batch, output.metrics)
        self.accumulate({"train/loss": loss.detach(), **metrics})
        return loss

    def interval_means(self) -> dict[str, float]:
        """As the base; what the batches lacked is said where their metrics are read."""
        self._single_keys.report()
        return super().interval_means()

    def on_train_end(self) -> None:
        """Says it of the batches after the last logged step."""
        self._single_keys.report()

    @property
    def asks_if_applied(self) -> bool:
        """As the base; queues do."""
        return super().asks_if_applied or self._has_queues

    def after_step(self, applied: bool) -> None:
        """As the base; queues and what fills them move on, if the step was applied."""
        super().after_step(applied)
        if applied and self.momentum_model is not None:
            self.momentum_model.update(self.model)
        self.objective.update_queues(applied)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps the embeddings of a validation batch for `on_validation_epoch_end`."""
        kept = self._validation.setdefault(batch.source, defaultdict(list))
        kept[KEYS].append(batch.positive_keys)
        for modality, embeddings in self.embed(batch).items():
            kept[modality].append(embeddings)

    def on_validation_epoch_end(self) -> None:
        """Logs R@1 both ways of every pair as `val/SOURCE/A_to_B_r@1`, over all ranks' samples.

        `val/score` is the mean of them.
        """
        recalls = []
        for source, kept in self._validation.items():
            keys = all_gather(torch.cat(kept.pop(KEYS)))
            whole = {name: _of_all_ranks(joined(rows)) for name, rows in kept.items()}
            pairs = [cast("Pair", pair) for pair in self.objective.pairs.values()]
            for pair in pairs:
                if not pair.active(whole, source):
                    continue
                for a, b in ((pair.anchor, pair.other), (pair.other, pair.anchor)):
                    compare = self.objective.similarity.between(a, b)
                    scores = retrieval(whole[a], whole[b], keys, keys, compare=compare)
                    self.log(f"val/{source}/{a}_to_{b}_r@1", scores.recall[1])
                    recalls.append(scores.recall[1])
        self._validation.clear()
        self.log_score(recalls)


def _of_all_ranks(rows: Tensor) -> Tensor:
    """All ranks' embeddings ``[N, D]``, or of tokens, padded to the longest."""
    if rows.ndim == 3:
        rows = padded(rows, max(gather_sizes(rows.shape[1], rows.device)))
    return all_gather(rows)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _all_used(tower: nn.Module) -> bool:
    """Whether every parameter of a tower takes part in every batch."""
    if getattr(tower, "per_token", False):  # a pooling does not
        return False
    return all(type(module).__module__.startswith(OURS) for module in tower.modules())
