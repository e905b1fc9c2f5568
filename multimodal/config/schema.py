"""The root keys that our own code reads; a `_target_` block is validated by its signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from multimodal.config.annotations import Target


@dataclass
class Anchor:
    """The run that frozen towers are loaded from, or whose towers teach."""

    experiment: str | None
    checkpoint: str | None
    towers: list[str]
    folder: str
    pairs: list[list[str]] | None = None
    teaches: list[str] | None = None


@dataclass
class CacheFrozen:
    """Where the embeddings of frozen towers are kept, and how many views of each sample."""

    views: int | None
    folder: str
    views_of: dict[str, int] = field(default_factory=dict)


@dataclass
class Evaluation:
    """The held-out sets; the entries are `multimodal.evaluation.EvaluationSet`."""

    sets: dict[str, Any]
    every: int | None = None
    unit: Literal["steps", "epochs"] = "steps"
    in_training: list[str] | None = None


@dataclass
class Negatives:
    """Hard negatives that samples list: one of the first five, and how many of them a use gets."""

    key: str | None = None
    samples: str | None = None
    member: str | list[str] | None = None
    table: str | None = None
    swap: str | list[str] | None = None
    count: int = 1


@dataclass
class Modality:
    """Which members hold a modality; of a JSON one, the key or template of a text, or a value."""

    member: str | list[str]
    key: str | None = None
    weights: str | list[float] | None = None
    template: str | list[str] | None = None
    value: str | None = None
    keep: Literal["one", "all"] = "one"
    optional: bool = False
    window: list[float] | None = None
    unit_m: float | None = None
    inverse: bool = False
    encoding: Literal["plain", "sun_rgbd"] = "plain"
    focal: str | None = None
    baseline: str | None = None
    negatives: Negatives | None = None


@dataclass
class Prefixes:
    """Widths of embeddings that the losses see, and their weights: `objectives.Matryoshka`."""

    dims: list[int] | None = None
    weights: list[float] | None = None


@dataclass
class Train:
    """The root of `configs/train.yaml`, where every key is explained."""

    name: str
    seed: int
    embed_dim: int
    micro_batch_size: int | None
    resume: str | None
    resume_allow: list[str]
    sweep_metric: str | None
    model: Target
    pairs: dict[str, Any]
    loss: Target | None
    negatives: Target | None
    candidates: Target | None
    data: Target
    optimizer: Target
    scheduler: Target | None
    trainer: Target
    callbacks: dict[str, Target | None]
    logger: dict[str, Target | None] | None
    evaluation: Evaluation | None
    anchor: Anchor | None
    cache_frozen: CacheFrozen
    debug: Literal["fast", "overfit", "profile"] | None
    allowed_packages: list[str]
    fusion: Target | None = None
    tasks: dict[str, Target | None] | None = None
    allowed_addresses: list[str] | None = None
    matryoshka: Prefixes | None = None
    similarity: Target | None = None
    self_distillation: Target | None = None
    kernels: Literal["torch", "triton", "triton_bf16"] = "torch"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"


@dataclass
class Stored(Train):
    """The root of a configuration that came with a file: its trainer is only a record."""

    trainer: dict[str, Any]  # type: ignore[assignment]
