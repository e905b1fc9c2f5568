"""How fast a tower learns: its own rates, and rates by depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from multimodal.models.tuning import layers_of


def depths(tower: nn.Module) -> dict[str, int]:
    """Parameter name -> its depth: 0 before the first layer, L + 1 after the last of L.

    Raises:
        ValueError: if the encoder does not expose its layers.
    """
    encoder: Any = tower.encoder
    layers = layers_of(encoder)
    place = {id(p): i + 1 for i, layer in enumerate(layers) for p in layer.parameters()}
    after = {id(p) for p in (*encoder.after_layers(), *_parameters(tower.head))}
    last = len(layers) + 1
    return {
        name: last if id(p) in after else place.get(id(p), 0)
        for name, p in tower.named_parameters()
    }


def _parameters(module: Any) -> Iterator[nn.Parameter]:
    yield from () if module is None else module.parameters()


class TowerOptim:
    """A tower's own optimizer settings.

    Args:
        lr: its peak learning rate; None: the optimizer's.
        weight_decay: None: the optimizer's.
        max_norm: its gradients' largest norm, clipped apart from the others'; None: with them.
        layer_decay: learning rate of each layer over that of the next, from the head down (Clark et
            al. 2020, "ELECTRA"; Bao et al. 2022, "BEiT"); 1 for equal rates.

    Raises:
        ValueError: if given a value out of its range.
    """

    def __init__(
        self,
        lr: float | None = None,
        weight_decay: float | None = None,
        max_norm: float | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay={layer_decay}: expected a number in (0, 1]")
        for name, value in (("lr", lr), ("max_norm", max_norm)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: expected a number above 0, or null")
        if weight_decay is not None and weight_decay < 0:
            raise ValueError(f"weight_decay={weight_decay}: expected 0 or more, or null")
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_norm = max_norm
        self.layer_decay = layer_decay


def no_weight_decay(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is excluded from weight decay.

    Excluded are biases, norms, class tokens, learned keys and queries, and scales (none of them
    longer than 1 in two dimensions), and position tables, by whatever name.
    """
    sides = sum(side > 1 for side in parameter.shape)
    return sides < 2 or "position" in name.rsplit(".", 1)[-1] or "position_embed" in name
