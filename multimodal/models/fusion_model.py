"""The fusion model: towers, a fusion of their tokens, and tasks on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from multimodal.core.batch import Batch, EncoderOutput, scatter_present
from multimodal.core.similarity.similarities import Similarity
from multimodal.models.fusion.base import FusionOutput
from multimodal.models.tasks.base import FusedBatch, Task, TaskContext
from multimodal.models.towers import CompileScope, EmbeddingModel, Tower


class FusionModel(EmbeddingModel):
    """Towers, a fusion of their tokens, and tasks on the result.

    Args:
        towers: as of ``EmbeddingModel``; a head is only needed where embeddings are.
        fusion: called as ``fusion(widths={modality: width})``.
        tasks: name -> called as ``task(parts=TaskContext(...))``.
        fused: the modalities that the fusion reads; None for all towers.
        modality_dropout: probability that a sample's modality is left out in training; one always
            stays. The training module draws.
        compile: as of ``EmbeddingModel``; the fusion and its tasks are not compiled.

    Raises:
        ValueError: if given a fused modality without a tower, two towers that are one, no tasks and
            no heads, a dropout outside [0, 1); and by the tasks.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower | str],
        fusion: Callable[..., nn.Module],
        tasks: Mapping[str, Callable[..., Task]] | None = None,
        fused: Sequence[str] | None = None,
        modality_dropout: float = 0.0,
        compile: CompileScope | None = None,
    ) -> None:
        super().__init__(towers, compile)
        names = list(towers) if fused is None else list(fused)
        for name in names:
            self.tower(name)
        if not 0 <= modality_dropout < 1:
            raise ValueError(f"modality_dropout={modality_dropout} must be in [0, 1)")
        self.modality_dropout = modality_dropout
        # Where no sample of a batch has a modality, its encoder is left out; where ranks compute
        # together, all of them leave out what no rank has, which they have to be told.
        self.skips_absent = True
        self.absent: frozenset[str] = frozenset()
        encoders = {name: self.tower(name).encoder for name in towers}
        self.fusion = fusion(widths={name: encoders[name].width for name in names})
        parts = TaskContext(int(self.fusion.width), encoders, names)  # type: ignore[arg-type]
        self.tasks = nn.ModuleDict(
            {n: task(parts=parts) for n, task in (tasks or {}).items() if task is not None}
        )

    def compare_by(self, similarity: Similarity) -> None:
        """A fusion's pairs compare pooled embeddings.

        Raises:
            ValueError: if ``similarity`` is of tokens.
        """
        if similarity.per_token:
            raise ValueError("a fusion's pairs compare pooled embeddings: take similarity=cosine")
        super().compare_by(similarity)

    @property
    def fused(self) -> tuple[str, ...]:
        """The modalities that the fusion reads."""
        return tuple(self.fusion.modalities)  # type: ignore[arg-type]

    def encode(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
    ) -> dict[str, EncoderOutput]:
        """Features and tokens of every modality that the batch has and that has a tower.

        Only samples that have a modality pass its encoder; the others get zeros.
        """
        return {
            name: encoded
            for name, value in inputs.items()
            if name in self.towers
            and name not in self.absent
            and (encoded := self._encode_present(name, value, masks, presence)) is not None
        }

    def _encode_present(
        self,
        name: str,
        value: Tensor,
        masks: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
    ) -> EncoderOutput | None:
        mask, present = masks.get(name), presence.get(name)
        tower = self.tower(name)
        if present is None or bool(present.all()):
            with self.inputs_blamed(name):
                return tower.encode(value, mask)
        rows = present.nonzero().flatten()
        if not len(rows) and self.skips_absent:
            return None
        with self.inputs_blamed(name):
            some = self._encode_rows(tower, value, mask, rows)
        some_mask = None if some.mask is None else scatter_present(some.mask, present)
        features = scatter_present(some.features, present)
        return EncoderOutput(features, scatter_present(some.tokens, present), some_mask)

    @staticmethod
    def _encode_rows(
        tower: Tower, value: Tensor, mask: Tensor | None, rows: Tensor
    ) -> EncoderOutput:
        """Of some samples; of none, the encoder runs for all that, on one that is left out."""
        if len(rows):
            return tower.encode(value[rows], None if mask is None else mask[rows])
        one = tower.encode(value[:1], None if mask is None else torch.ones_like(mask[:1]))
        some_mask = None if one.mask is None else one.mask[:0]
        return EncoderOutput(one.features[:0], one.tokens[:0], some_mask)

    def fuse(
        self,
        encoded: Mapping[str, EncoderOutput],
        presence: Mapping[str, Tensor],
        need_attention: bool = False,
    ) -> FusionOutput:
        """The fusion's output for the modalities that it reads."""
        read = {name: encoded[name] for name in self.fused if name in encoded}
        fused: FusionOutput = self.fusion(read, presence, need_attention)
        return fused

    def fuse_batch(
        self,
        batch: Batch,
        presence: Mapping[str, Tensor] | None = None,
        need_attention: bool = False,
        key: int = 0,
    ) -> FusedBatch:
        """`forward` of a batch; with ``presence``, of that in place of the batch's own."""
        fused: FusedBatch = self(
            batch.inputs,
            batch.masks,
            batch.presence if presence is None else presence,
            need_attention=need_attention,
            sample_ids=batch.sample_ids,
            positive_keys=batch.positive_keys,
            key=key,
        )
        return fused

    def forward(  # type: ignore[override]
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        presence: Mapping[str, Tensor] | None = None,
        need_attention: bool = False,
        sample_ids: Tensor | None = None,
        positive_keys: Tensor | None = None,
        key: int = 0,
    ) -> FusedBatch:
        """Encode and fuse a batch, ready for the tasks.

        Args:
            inputs: name -> ``[B, ...]``; those without a tower are the tasks' targets.
            masks: name -> ``[B, T]``, where inputs vary in length.
            presence: name -> ``[B]``, where samples lack one.
            need_attention: also return attention weights.
            sample_ids: ``[B]`` int64; None numbers the samples.
            positive_keys: ``[B]`` int64, equal where samples belong together; None: none do.
            key: of the tasks' random choices.

        Raises:
            ValueError: if given a sample without any modality.
        """
        masks, presence = masks or {}, presence or {}
        encoded = self.encode(inputs, masks, presence)
        first = next(iter(inputs.values()))
        numbers = torch.arange(len(first), device=first.device)
        return FusedBatch(
            inputs=inputs,
            masks=masks,
            presence=presence,
            encoded=encoded,
            fused=self.fuse(encoded, presence, need_attention),
            fuse=self.fuse,
            sample_ids=numbers if sample_ids is None else sample_ids,
            positive_keys=numbers if positive_keys is None else positive_keys,
            embeddings={
                name: self.tower(name).project(output.features)
                for name, output in encoded.items()
                if self.tower(name).head is not None and name not in presence
            },
            key=key,
        )
