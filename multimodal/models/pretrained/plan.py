"""A foreign model as our configuration: its towers, and the key map of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multimodal.models.layers.stems import inflate
from multimodal.models.pretrained.keys import KeyMap, TensorSource, WeightsError

Config = dict[str, Any]

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # Radford et al. 2021, code of the release
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
START_SCALE = 1 / 0.07  # of CLIP's logits


@dataclass
class TowerPlan:
    """One tower.

    Attributes:
        config: the tower's block, with ``_target_`` at every level.
        key_map: where its tensors come from.
        grid: the grid of the foreign position table, which is resized where ours differs.
        transform: the block of the transform that feeds it; None where it is not known.
    """

    config: Config
    key_map: KeyMap
    grid: tuple[int, ...] = ()
    transform: Config | None = None


@dataclass
class Plan:
    """A whole model.

    Attributes:
        towers: by modality; a name for a tower that is shared.
        embed_dim: of the shared space.
        pair: anchor and other of the pair that the scale belongs to; None where there is none.
        scale: foreign name of the logarithm of the pair's logit scale.
        bias: foreign name of its bias.
        ignored: foreign tensors that hold no weights (masks, indices), which our towers make.
    """

    towers: dict[str, TowerPlan | str]
    embed_dim: int
    pair: tuple[str, str] | None = None
    scale: str | None = None
    bias: str | None = None
    ignored: tuple[str, ...] = ()

    def own_towers(self) -> dict[str, TowerPlan]:
        """Those that share no other's weights."""
        return {n: tower for n, tower in self.towers.items() if isinstance(tower, TowerPlan)}


@dataclass
class Settings:
    """A foreign configuration that is read key by key: an unread key is an error.

    Ignoring one would build a different model.
    """

    given: Mapping[str, Any]
    where: str
    read: set[str] = field(default_factory=set)

    def __call__(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default of the project that the configuration is from."""
        self.read.add(key)
        value = self.given.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of a key that has no default.

        Raises:
            WeightsError: if it is not there.
        """
        if self(key) is None:
            raise WeightsError(f"{self.where} lacks '{key}'")
        return self.given[key]

    def expect(self, key: str, *values: Any) -> None:
        """Rejects any other value: ours has no such part.

        Raises:
            WeightsError: if it has another value; the message names it and the valid ones.
        """
        if self(key, values[0]) not in values:
            works = " or ".join(repr(value) for value in values)
            raise WeightsError(
                f"{self.where}.{key} = {self.given[key]!r} is not built here; what works: {works}"
            )

    def done(self) -> None:
        """Every key was read.

        Raises:
            WeightsError: if any key was not; the message names them.
        """
        if unread := sorted(set(self.given) - self.read):
            raise WeightsError(
                f"{self.where} has settings that are not known here: {', '.join(unread)}"
            )


def transformer(width: int, num_layers: int, num_heads: int, **choices: Any) -> Config:
    """The block of a ``Transformer``; ``choices`` are its other parameters."""
    sizes = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
    return {"_target_": "multimodal.models.Transformer", **sizes, **choices}


def patch_stem(patch_size: int | Sequence[int], **choices: Any) -> Config:
    """The block of a ``PatchStem``."""
    target = {"_target_": "multimodal.models.PatchStem", "_partial_": True}
    return {**target, "patch_size": patch_size, **choices}


def vision(
    image_size: Any, stem: Config, trunk: Config, in_channels: int = 3, **choices: Any
) -> Config:
    """The block of a ``VisionTransformer``."""
    return {
        "_target_": "multimodal.models.VisionTransformer",
        "image_size": image_size, "in_channels": in_channels, "stem": stem, "trunk": trunk,
        **choices,
    }  # fmt: skip


def text(vocab_size: int, context_length: int, trunk: Config, **choices: Any) -> Config:
    """The block of a ``TextTransformer``."""
    return {
        "_target_": "multimodal.models.TextTransformer",
        "vocab_size": vocab_size, "context_length": context_length, "trunk": trunk,
        **choices,
    }  # fmt: skip


def tower(encoder: Config, head: Config, scale: float | None = None) -> Config:
    """The block of a ``Tower``."""
    block = {"_target_": "multimodal.models.Tower", "encoder": encoder, "head": head}
    return block if scale is None else {**block, "scale": scale}


def linear_head(embed_dim: int, **choices: Any) -> Config:
    """The block of a ``LinearHead``."""
    target = {"_target_": "multimodal.models.LinearHead", "_partial_": True}
    return {**target, "embed_dim": embed_dim, **choices}


def identity_head(embed_dim: int) -> Config:
    """The block of an ``IdentityHead``."""
    target = {"_target_": "multimodal.models.IdentityHead", "_partial_": True}
    return {**target, "embed_dim": embed_dim}


def image_transform(size: Any, mean: Sequence[float], std: Sequence[float]) -> Config:
    """The block of an ``ImageTransform`` that changes nothing at random."""
    if not isinstance(size, int):
        if len(set(size)) > 1:
            return {}
        size = size[0]
    target = "multimodal.data.ImageTransform"
    return {"_target_": target, "size": size, "mean": list(mean), "std": list(std)}


def with_image_size(plan: TowerPlan, image_size: int) -> None:
    """Another picture size for a vision tower: its positions will be resized."""
    plan.config["encoder"]["image_size"] = image_size
    if plan.transform:
        plan.transform["size"] = image_size


def with_context_length(plan: TowerPlan, context_length: int) -> None:
    """Texts of another length for a text tower: its positions will be stretched or cut."""
    plan.config["encoder"]["context_length"] = context_length
    if plan.transform:
        plan.transform["context_length"] = context_length


def as_video(plan: TowerPlan, num_frames: int, tubelet: int) -> None:
    """A vision tower on clips: its kernel is inflated over ``tubelet`` frames."""
    encoder = plan.config["encoder"]
    if encoder["_target_"] != "multimodal.models.VisionTransformer":
        raise WeightsError(f"only a VisionTransformer is inflated, not {encoder['_target_']}")
    encoder["_target_"] = "multimodal.models.VideoTransformer"
    encoder["num_frames"] = num_frames
    patch = encoder["stem"]["patch_size"]
    encoder["stem"]["patch_size"] = [tubelet, *([patch] * 2 if isinstance(patch, int) else patch)]
    names, change = plan.key_map["encoder.stem.projection.weight"]

    def inflated(*tensors: Tensor) -> Tensor:
        return inflate(change(*tensors), tubelet)

    plan.key_map["encoder.stem.projection.weight"] = TensorSource(names, inflated)


def shape_of(state: Mapping[str, Tensor], name: str) -> torch.Size:
    """The shape of a foreign tensor that the sizes are read from.

    Raises:
        WeightsError: if it is not there.
    """
    if name not in state:
        near = ", ".join(sorted(state)[:5])
        raise WeightsError(f"the weights lack '{name}'; they begin with {near}")
    return state[name].shape


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks whose names begin with ``prefix`` and a number."""
    numbers = {n[len(prefix) :].split(".")[0] for n in state if n.startswith(prefix)}
    return len(numbers)
