"""Towers, and the model that holds one per modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.types import EncoderOutput


class Tower(nn.Module):
    """An encoder and a head: one modality's way into the shared space.

    A frozen tower computes no gradient, stays in evaluation mode even after ``.train()``, and its
    parameters do not ask for gradients, so that an optimizer built from those that do leaves
    it alone: its weights stay bit by bit what they are.

    Args:
        encoder: ``forward(inputs, mask) -> EncoderOutput``, with an attribute ``width``.
        head: called as ``head(width=encoder.width)``; the module has an attribute ``embed_dim``.
        frozen: whether to keep the weights as they are.
    """

    def __init__(
        self, encoder: nn.Module, head: Callable[..., nn.Module], frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head(width=encoder.width)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
        self.train()

    @property
    def embed_dim(self) -> int:
        """Dimensions of the shared space."""
        return int(self.head.embed_dim)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Tower:
        """Set training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def encode(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        """Features and tokens before the head; see the encoder for the shapes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output: EncoderOutput = self.encoder(inputs, mask)
        return output

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed a batch.

        Args:
            inputs: ``[B, ...]``, as the encoder takes them.
            mask: bool ``[B, T]``, True = real, where inputs vary in length.

        Returns:
            ``[B, embed_dim]``, each of norm 1; float32 under autocast too.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            projected: Tensor = self.head(self.encode(inputs, mask).features)
            dtype = torch.promote_types(projected.dtype, torch.float32)
            return F.normalize(projected.to(dtype), dim=-1)


class EmbeddingModel(nn.Module):
    """Towers into one shared space, by modality.

    Args:
        towers: modality -> tower, or -> the name of another modality whose tower it shares.

    Raises:
        ValueError: when there is no tower, a shared one does not exist, or the towers differ in
            ``embed_dim``.
    """

    def __init__(self, towers: Mapping[str, Tower | str]) -> None:
        super().__init__()
        own = {name: tower for name, tower in towers.items() if not isinstance(tower, str)}
        if not own:
            raise ValueError("towers is empty: expected at least one modality with a tower")
        self.towers = nn.ModuleDict()
        for name, tower in towers.items():
            if isinstance(tower, str) and tower not in own:
                raise ValueError(
                    f"towers.{name} shares the tower of {tower!r}, which is none of {sorted(own)}"
                )
            self.towers[name] = own[tower] if isinstance(tower, str) else tower
        dims = {name: tower.embed_dim for name, tower in own.items()}
        if len(set(dims.values())) > 1:
            listed = ", ".join(f"{name} {dim}" for name, dim in dims.items())
            raise ValueError(f"all towers must have the same embed_dim, got {listed}")
        self.embed_dim = next(iter(dims.values()))

    def tower(self, modality: str) -> Tower:
        """The tower of a modality.

        Raises:
            ValueError: when there is none.
        """
        if modality not in self.towers:
            raise ValueError(
                f"no tower for modality {modality!r}: the model has {', '.join(self.towers)}"
            )
        tower = self.towers[modality]
        assert isinstance(tower, Tower)
        return tower

    def embed(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed a batch of one modality: ``[B, embed_dim]``, each of norm 1.

        Raises:
            ValueError: for a modality without a tower, and for inputs that do not fit it.
        """
        embeddings: Tensor = self.tower(modality)(inputs, mask)
        return embeddings

    def forward(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Embed a batch of several modalities: name -> ``[B, embed_dim]``."""
        masks = masks or {}
        return {name: self.embed(name, value, masks.get(name)) for name, value in inputs.items()}


def no_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether weight decay spares a parameter.

    It spares biases, norms, class tokens, learned keys and queries, and scales (all of fewer than
    two dimensions), and position tables.
    """
    return parameter.ndim < 2 or name.rsplit(".", 1)[-1] == "positions"
