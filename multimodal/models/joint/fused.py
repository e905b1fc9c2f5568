"""A joint embedding of the towers' outputs: their weighted sum, and what a fusion adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.models.fusion.base import Fusion
from multimodal.models.joint.base import Joint, JointInputs, present_matrix, towers_of

if TYPE_CHECKING:
    from multimodal.models.towers import Tower

JointReads = Literal["embeddings", "features", "tokens"]


class FusedJoint(Joint):
    """The weighted sum of the modalities' embeddings, plus what a fusion makes of them.

    ``sum_m w_m e_m + P fusion(x)``: ``w`` is a softmax over the modalities that a sample has, ``e``
    their normalised embeddings, ``P`` begins at zero. So a joint embedding starts as the mean of
    the modalities', which is what composed queries are made of, and learns what the sum cannot say.
    Sources: Baldrati et al. 2022, "Effective conditioned and composed image retrieval combining
    CLIP-based features", section 3.2, for a learned mix plus a learned residual; Neverova et al.
    2016, "ModDrop", for modality dropout.

    Args:
        modalities: two or more.
        towers: modality -> `Tower` (not named by the annotation, which is resolved to judge a
            stored configuration).
        fusion: called as ``fusion(widths={modality: width})``; None: the weighted sum alone.
        reads: what the fusion reads: ``embeddings``, or ``features`` or ``tokens`` of the encoders
            (their towers then encode once more for this embedding).
        modality_dropout: probability that a sample's modality is left out in training.

    Raises:
        ValueError: if a modality has no tower with a head, or given another choice of ``reads``.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        towers: Mapping[str, Any],
        fusion: Callable[..., Fusion] | None = None,
        reads: JointReads = "embeddings",
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__(modalities, modality_dropout)
        if reads not in get_args(JointReads):
            raise ValueError(f"reads={reads!r}: expected one of {', '.join(get_args(JointReads))}")
        own = towers_of(self.modalities, towers)
        self.reads = "embeddings" if fusion is None else reads
        dims = {name: int(tower.embed_dim or 0) for name, tower in own.items()}
        widths: dict[str, Any] = {name: tower.encoder.width for name, tower in own.items()}
        embed_dim = next(iter(dims.values()))
        self.weights = nn.Parameter(torch.zeros(len(self.modalities)))
        self.fusion = (
            None
            if fusion is None
            else fusion(widths=dims if self.reads == "embeddings" else widths)
        )
        self.project: nn.Linear | None = None
        if self.fusion is not None:
            self.project = nn.Linear(self.fusion.width, embed_dim, bias=False)
            nn.init.zeros_(self.project.weight)

    def needs_inputs(self, modality: str, tower: Tower) -> bool:
        """Of a frozen tower a cache keeps the embeddings, of a frozen encoder the features."""
        return self.reads == "tokens" or (self.reads == "features" and tower.frozen)

    def from_embeddings(
        self, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]
    ) -> Tensor:
        """``[B, D]`` from normalised embeddings ``[B, D]``, where it reads no more than those."""
        # Of unit norm, the numbers of an embedding are about D^-1/2: a fusion expects about 1.
        read = {
            name: EncoderOutput(scaled, scaled[:, None])
            for name in self.modalities
            for scaled in [embeddings[name] * embeddings[name].shape[1] ** 0.5]
        }
        return self._joined(embeddings, read, presence)

    def forward(self, towers: Mapping[str, Tower], given: JointInputs) -> Tensor:
        """``[B, D]`` from inputs, or from what a cache has kept."""
        embeddings: dict[str, Tensor] = {}
        outputs: dict[str, EncoderOutput] = {}
        for name in self.modalities:
            tower = towers[name]
            if name in given.cached:
                embeddings[name] = tower.from_frozen(given.cached[name])
                features = given.cached[name]
                outputs[name] = EncoderOutput(features, features[:, None])
                continue
            inputs, mask = given.inputs[name], given.masks.get(name)
            if self.reads == "embeddings":
                embeddings[name] = tower(inputs, mask)
            else:
                outputs[name] = tower.encode(inputs, mask)
                embeddings[name] = tower.project(outputs[name].features)
        if self.reads == "embeddings":
            return self.from_embeddings(embeddings, given.presence)
        if self.reads == "features":
            outputs = {
                n: EncoderOutput(o.features, o.features[:, None]) for n, o in outputs.items()
            }
        return self._joined(embeddings, outputs, given.presence)

    def _joined(
        self,
        embeddings: Mapping[str, Tensor],
        outputs: Mapping[str, EncoderOutput],
        presence: Mapping[str, Tensor],
    ) -> Tensor:
        stacked_BMD = torch.stack([embeddings[name] for name in self.modalities], dim=1)
        present_BM = present_matrix(self.modalities, presence, len(stacked_BMD), stacked_BMD.device)
        scores = self.weights.to(stacked_BMD.dtype).expand(present_BM.shape)
        weights_BM = scores.masked_fill(~present_BM, float("-inf")).softmax(dim=1)
        mixed: Tensor = torch.einsum("bm,bmd->bd", weights_BM, stacked_BMD)
        if self.fusion is None or self.project is None:
            return mixed
        fused = self.fusion({name: outputs[name] for name in self.modalities}, presence)
        residual: Tensor = self.project(fused.features)
        return mixed + residual.to(mixed.dtype)
