"""Partial training of a tower: its last layers, its norms and biases, or low-rank adapters.

Each class here is called with a tower (``encoder`` and ``head``) and marks or adds trained
parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.core.extras import module_of


class Tuning(ABC):
    """Base of what says which part of a tower learns, the user's own too."""

    @abstractmethod
    def __call__(self, tower: nn.Module) -> None:
        """Marks or adds trained parameters."""


def layers_of(encoder: nn.Module) -> nn.ModuleList:
    """An encoder's list of equal layers, in order.

    Raises:
        ValueError: if it has none.
    """
    method: Any = getattr(encoder, "layers", None)
    layers = method() if callable(method) and not isinstance(method, nn.Module) else None
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(encoder).__name__} does not expose its layers")
    return layers


def freeze_encoder(encoder: nn.Module) -> None:
    """Marks an encoder as not trained, but for its new parts: a connector to a backbone."""
    encoder.requires_grad_(False)
    for name in ("connector", "pool") if hasattr(encoder, "connector") else ():
        part = getattr(encoder, name)
        if part is not None:
            part.requires_grad_(True)


class LastLayers(Tuning):
    """Trains the last layers of the encoder, what comes after them, and the head.

    Args:
        num_layers: how many; 0 trains the head alone (and a pooling that learns).
        norm: with ``num_layers`` 0, whether the encoder's final norm learns.

    Raises:
        ValueError: if the encoder has fewer layers, or does not expose them.
    """

    def __init__(self, num_layers: int, norm: bool = True) -> None:
        if num_layers < 0:
            raise ValueError(f"num_layers={num_layers}: expected 0 or more")
        self.num_layers = num_layers
        self.norm = norm

    def __call__(self, tower: nn.Module) -> None:
        """Marks the trained parameters."""
        encoder: Any = tower.encoder
        layers = layers_of(encoder)
        if self.num_layers > len(layers):
            raise ValueError(f"num_layers={self.num_layers}: the encoder has {len(layers)}")
        freeze_encoder(encoder)
        for layer in layers[len(layers) - self.num_layers :]:
            layer.requires_grad_(True)
        if self.num_layers or self.norm:
            for parameter in encoder.after_layers():
                parameter.requires_grad_(True)


class NormsAndBiases(Tuning):
    """Trains the LayerNorms and biases of the encoder, and the head.

    Sources: Zaken et al. 2022, "BitFit"; Frankle et al. 2021, "Training BatchNorm and Only
    BatchNorm", for norms.
    """

    def __call__(self, tower: nn.Module) -> None:
        """Marks the trained parameters."""
        encoder: Any = tower.encoder
        freeze_encoder(encoder)
        for module in encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
        for name, parameter in encoder.named_parameters():
            if name.rsplit(".", 1)[-1].endswith("bias"):
                parameter.requires_grad_(True)


class LoRA(Tuning):
    """Trains low-rank changes of the linear maps in the encoder's layers, and perhaps the head.

    At the start the changes are zero. Attention masks, norms and temperatures are the tower's own.

    Sources: Hu et al. 2022, "LoRA"; Liu et al. 2024, "DoRA", with ``dora``. Made by ``peft``, which
    the extra ``lora`` installs.

    Args:
        rank: of the changes.
        alpha: they are scaled by alpha / rank.
        dropout: on the adapters' input.
        targets: last names of the linear maps that are changed (``qkv``, ``out``, ``fc1``, ``fc2``
            in our transformers); None: all within the layers.
        dora: learn every output's magnitude apart from its direction.
        head: whether the head is trained too.

    Raises:
        ImportError: if ``peft`` is not installed.
        ValueError: if no linear map has such a name, or the encoder has no layers.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        dora: bool = False,
        head: bool = True,
    ) -> None:
        if rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
            raise ValueError(
                "rank >= 1, alpha > 0 and 0 <= dropout < 1 are needed, got "
                f"{rank}, {alpha} and {dropout}"
            )
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = None if targets is None else tuple(targets)
        self.dora = dora
        self.head = head

    def __call__(self, tower: nn.Module) -> None:
        """Adds the adapters and freezes the rest."""
        peft = module_of("lora", "peft", "tuning=lora or tuning=dora")
        encoder: Any = tower.encoder
        freeze_encoder(encoder)
        _head(tower).requires_grad_(self.head)
        peft.inject_adapter_in_model(self.peft_config(self._names(encoder)), encoder)

    def peft_config(self, targets: list[str]) -> Any:
        """These settings as a ``peft`` config, for the linear maps of these full names."""
        import peft

        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=targets,
            use_dora=self.dora,
        )

    def _names(self, encoder: nn.Module) -> list[str]:
        inside = {id(module) for module in layers_of(encoder).modules()}
        linear = [
            name
            for name, module in encoder.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside
        ]
        chosen = [n for n in linear if not self.targets or n.rsplit(".", 1)[-1] in self.targets]
        missing = set(self.targets or ()) - {name.rsplit(".", 1)[-1] for name in linear}
        if missing or not chosen:
            there = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ValueError(
                f"no linear map {', '.join(sorted(missing))} in the layers of "
                f"{type(encoder).__name__}; there are {', '.join(there)}"
            )
        return chosen


def _head(tower: nn.Module) -> nn.Module:
    head = tower.head
    assert isinstance(head, nn.Module)
    return head


# Adapters and the weights under them, by name.

_BASE_LAYER = ".base_layer"
_LORA = ".lora_"


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is an adapter's."""
    return _LORA in name


def plain_name(name: str) -> str:
    """The name that a tensor has, or would have, without adapters."""
    return name.replace(_BASE_LAYER, "")


def has_adapters(names: Sequence[str] | Mapping[str, Any]) -> bool:
    """Whether any of these names is an adapter's."""
    return any(is_adapter(name) for name in names)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict under the adapters, by the names it has without them."""
    state = module.state_dict()
    return {plain_name(name): tensor for name, tensor in state.items() if not is_adapter(name)}


def load_plain(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fills a module from weights without adapters; its own adapters are not changed.

    Raises:
        RuntimeError: if names or shapes differ.
    """
    own = {plain_name(name): name for name in module.state_dict() if not is_adapter(name)}
    if missing := own.keys() ^ state.keys():
        raise RuntimeError(f"other names: {', '.join(sorted(missing)[:5])}")
    module.load_state_dict({own[name]: tensor for name, tensor in state.items()}, strict=False)
    for layer in module.modules():
        magnitudes = getattr(layer, "lora_magnitude_vector", None)
        for name in magnitudes if magnitudes is not None else ():
            _init_dora_magnitude(layer, name)


@torch.no_grad()
def _init_dora_magnitude(layer: Any, name: str) -> None:
    """DoRA's magnitudes are those of the weights that it starts from."""
    changed = layer.get_base_layer().weight + layer.get_delta_weight(name)
    layer.lora_magnitude_vector[name].weight.copy_(changed.norm(dim=1))


@torch.no_grad()
def merge_adapters(module: nn.Module) -> int:
    """Adds every adapter to the weights under it and removes it; the output stays.

    Returns:
        how many there were.
    """
    adapted = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if hasattr(child, "lora_A") and hasattr(child, "base_layer")
    ]
    for parent, name, child in adapted:
        adapter: Any = child
        adapter.merge(safe_merge=True)
        setattr(parent, name, adapter.get_base_layer())
    return len(adapted)
