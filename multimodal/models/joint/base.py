"""The interface of joint embeddings, and the collection of them that a model holds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from multimodal.core.batch import Batch
from multimodal.core.names.modalities import joint_name

if TYPE_CHECKING:
    from multimodal.models.towers import Tower


@dataclass(slots=True)
class JointInputs:
    """What a batch has of the modalities of a joint embedding.

    Attributes:
        inputs: modality -> ``[B, ...]``, as its encoder takes it.
        masks: modality -> bool ``[B, T]``, True where a value is real.
        cached: modality -> what a cache has kept of its tower ``[B, F]``; absent in ``inputs``.
        presence: modality -> bool ``[B]``, False where it is left out; one that is not named is
            there for all.
    """

    inputs: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    cached: Mapping[str, Tensor]
    presence: Mapping[str, Tensor]

    @classmethod
    def of(cls, joint: Joint, batch: Batch, presence: Mapping[str, Tensor]) -> JointInputs:
        """Of a batch, what a joint embedding reads."""
        kinds = (batch.inputs, batch.masks, batch.embeddings, presence)
        return cls(*({n: kind[n] for n in joint.modalities if n in kind} for kind in kinds))

    def flat(self) -> dict[str, Tensor]:
        """All tensors in one dictionary, of which every value has a row for each sample."""
        return {
            f"{kind.name}/{name}": tensor
            for kind in fields(self)
            for name, tensor in getattr(self, kind.name).items()
        }

    @classmethod
    def from_flat(cls, tensors: Mapping[str, Tensor]) -> JointInputs:
        """From what `flat` gives."""
        parts: dict[str, dict[str, Tensor]] = {kind.name: {} for kind in fields(cls)}
        for place, tensor in tensors.items():
            kind, name = place.split("/", 1)
            parts[kind][name] = tensor
        return cls(**parts)


class Joint(nn.Module):
    """Several modalities of a sample as one embedding: a side of a pair like any other.

    Args:
        modalities: two or more, in any order.
        modality_dropout: probability that a sample's modality is left out in training; one always
            stays. The training module draws.

    Attributes:
        name: of the modalities together, ``image&text``.
        reads: ``embeddings`` of the towers, which are computed anyway, or what is before them.

    Raises:
        ValueError: if given fewer than two modalities, or a dropout outside [0, 1).
    """

    reads: str = "embeddings"

    def __init__(self, modalities: Sequence[str], modality_dropout: float = 0.0) -> None:
        super().__init__()
        if isinstance(modalities, str) or len(set(modalities)) < 2:
            raise ValueError(f"modalities={modalities!r}: expected a list of two or more")
        if not 0 <= modality_dropout < 1:
            raise ValueError(f"modality_dropout={modality_dropout} must be in [0, 1)")
        self.modalities = tuple(sorted(set(modalities)))
        self.modality_dropout = modality_dropout

    @property
    def name(self) -> str:
        """Of the modalities together."""
        return joint_name(self.modalities)

    @abstractmethod
    def forward(self, towers: Mapping[str, Tower], given: JointInputs) -> Tensor:
        """Encodes a batch: ``[B, D]``, not normalised."""

    def from_embeddings(
        self, embeddings: Mapping[str, Tensor], presence: Mapping[str, Tensor]
    ) -> Tensor:
        """The same from the towers' embeddings, where it ``reads`` nothing else."""
        raise NotImplementedError

    def needs_inputs(self, modality: str, tower: Tower) -> bool:
        """Whether what a cache keeps of a tower is not enough."""
        return False


class JointEmbeddings(nn.ModuleDict):
    """The joint embeddings of a model, by the name of their modalities together.

    Args:
        made: any name -> called as ``joint(towers=towers)``; an entry of None was taken out.
        towers: modality -> tower.

    Raises:
        ValueError: if a modality has no tower, or two entries are of the same modalities.
    """

    def __init__(
        self, made: Mapping[str, Callable[..., Joint] | None], towers: nn.ModuleDict
    ) -> None:
        super().__init__()
        by_modality = _typed(towers)
        for key, make in made.items():
            if make is None:
                continue
            try:
                joint = make(towers=by_modality)
            except ValueError as error:
                raise ValueError(f"joint.{key}: {error}") from error
            if joint.name in self:
                raise ValueError(f"joint.{key}: there is one of {joint.name} already")
            self[joint.name] = joint

    def of(self, name: str) -> Joint:
        """The joint embedding that is called ``image&text``.

        Raises:
            ValueError: if there is none.
        """
        if name not in self:
            known = f"the model has {', '.join(self)}" if len(self) else "the model has none"
            raise ValueError(f"no joint embedding {name!r}: {known} (model.joint)")
        return cast("Joint", self[name])

    def joined(self, modalities: Iterable[str]) -> list[str]:
        """``modalities``, and the joint embeddings that can be made of them."""
        available = list(modalities)
        return [*available, *(n for n in self if set(self.of(n).modalities) <= {*available})]

    def parts(self, name: str) -> tuple[str, ...]:
        """The modalities of a joint embedding; of another name, itself."""
        return self.of(name).modalities if name in self else (name,)

    def need_inputs(self, modality: str, tower: Tower) -> bool:
        """Whether one of them needs more of a modality than a cache keeps of its tower."""
        every = (self.of(name) for name in self)
        return any(
            modality in joint.modalities and joint.needs_inputs(modality, tower) for joint in every
        )

    def embed(
        self, name: str, towers: nn.ModuleDict, given: JointInputs, raw: bool = False
    ) -> Tensor:
        """Embeds several modalities of a batch together.

        Args:
            name: ``image&text``.
            towers: modality -> tower.
            given: the batch.
            raw: leaves the norm as it comes.

        Returns:
            ``[B, D]``, else each of norm 1.

        Raises:
            ValueError: if there is no such joint embedding.
        """
        embeddings: Tensor = self.of(name)(_typed(towers), given)
        return embeddings if raw else normalize(embeddings, dim=-1)


def _typed(towers: nn.ModuleDict) -> dict[str, Tower]:
    return {name: cast("Tower", tower) for name, tower in towers.items()}


def towers_of(modalities: Iterable[str], towers: Mapping[str, Tower]) -> dict[str, Tower]:
    """The towers of ``modalities``.

    Raises:
        ValueError: if one has none, or none with a head.
    """
    for name in modalities:
        if name not in towers:
            raise ValueError(f"no tower for {name!r}: the model has {', '.join(towers)}")
        if towers[name].embed_dim is None:
            raise ValueError(f"the tower of {name!r} has no head, so it has no embeddings")
    return {name: towers[name] for name in modalities}


def present_matrix(
    modalities: Sequence[str], presence: Mapping[str, Tensor], rows: int, device: torch.device
) -> Tensor:
    """``[B, M]`` bool: which modalities a sample has."""
    everywhere = torch.ones(rows, dtype=torch.bool, device=device)
    return torch.stack([presence.get(name, everywhere) for name in modalities], dim=1)
