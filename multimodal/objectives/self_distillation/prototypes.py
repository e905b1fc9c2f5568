"""Prototypes: features as a distribution over learned directions, which student and teacher share.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers" (DINO),
section 3.1 and appendix A; of single patches Zhou et al. 2022, "iBOT", section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrototypeHead(nn.Module):
    """An MLP to a unit vector, and its cosines with prototypes of unit norm.

    Args:
        width: of the features.
        prototypes: how many.
        hidden: width of the MLP's two hidden layers.
        bottleneck: width of the unit vector.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self, width: int, prototypes: int = 4096, hidden: int = 1024, bottleneck: int = 256
    ) -> None:
        super().__init__()
        sizes = {"prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size}: expected at least 1")
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck) / bottleneck**0.5)

    def vectors(self, features: Tensor) -> Tensor:
        """``[..., width]`` to unit vectors ``[..., bottleneck]``, at least float32."""
        made: Tensor = self.mlp(features)
        return F.normalize(_single(made), dim=-1)

    def logits(self, vectors: Tensor) -> Tensor:
        """Unit vectors ``[..., bottleneck]`` to cosines ``[..., prototypes]``.

        Without a bias: the mean of many vectors' logits is the logits of their mean.
        """
        return F.linear(vectors, F.normalize(self.prototypes.to(vectors.dtype), dim=-1))


def distribution(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's distribution ``[..., K]``, centred against collapse onto one prototype.

    Args:
        logits: ``[..., K]``.
        centre: ``[K]``, the running mean of the teacher's logits.
        temperature: below the student's, which sharpens against collapse to a uniform one.
    """
    return ((_single(logits) - centre) / temperature).softmax(dim=-1)


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """``-sum_k target_k log softmax_k(logits / temperature)`` of each row, ``[...]``.

    Args:
        target: distributions ``[..., K]``.
        logits: the student's, ``[..., K]``.
        temperature: the student's.
    """
    return -(target * (_single(logits) / temperature).log_softmax(dim=-1)).sum(dim=-1)


def _single(values: Tensor) -> Tensor:
    """At least float32, under autocast too."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
