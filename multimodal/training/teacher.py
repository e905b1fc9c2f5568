"""The teacher of a distillation: a trained model, which embeds the samples before training.

Its embeddings are cached (``data.cache_frozen``) as those of frozen towers are, and read from there
at every step: the teacher itself takes no part in training, and no checkpoint holds it. That a
student and its teacher are given the same views of a sample, and how few of them are enough, is
from Beyer et al. 2022 (arXiv:2106.05237) and MobileCLIP (Vasu et al. 2024, arXiv:2311.17049).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multimodal.config import build, named_by
from multimodal.core.names.modalities import TEACHER
from multimodal.data.transforms.base import Transform
from multimodal.inference.checkpoint.load import load_checkpoint
from multimodal.models.towers import EmbeddingModel
from multimodal.training.anchor import AnchorError


@dataclass(frozen=True)
class Teacher:
    """A trained model, and what feeds it.

    Attributes:
        model: in evaluation mode.
        modalities: those that it embeds.
        transforms: modality -> its own transform.
        settings: modality -> the transform's configuration.
    """

    model: EmbeddingModel
    modalities: tuple[str, ...]
    transforms: Mapping[str, Transform]
    settings: Mapping[str, Any]


def load_teacher(cfg: DictConfig, path: str, transforms: Mapping[str, Transform]) -> Teacher | None:
    """The teacher in the anchor's checkpoint; None where ``anchor.teaches`` names no modality.

    Args:
        cfg: this run's configuration.
        path: of the anchor's checkpoint.
        transforms: this run's, by modality.

    Raises:
        AnchorError: if it has no such tower, is given other crops of the pictures than the student,
            or embeds in another width than a pair compares it with.
        CheckpointError, ConfigError: as `load_checkpoint`.
    """
    names = tuple(cfg.anchor.get("teaches") or ())
    if not names:
        return None
    packages = list(cfg.get("allowed_packages") or ())
    loaded = load_checkpoint(path, packages, addresses=named_by(cfg))
    problems = [
        f"anchor.teaches: it has no tower '{name}', but {', '.join(loaded.model.towers)}"
        for name in names
        if name not in loaded.model.towers
    ]
    own = {
        name: build(loaded.cfg, "data", "transforms", name, convert="all")
        for name in names
        if name in loaded.model.towers
    }
    for name, transform in own.items():
        theirs = getattr(transform, "geometry", None)
        ours = getattr(transforms.get(name), "geometry", None)
        if ours is not None and theirs is not None and ours != theirs:
            problems.append(
                f"data.transforms.{name}: teacher and student are given the same crop of a sample, "
                f"so scale, ratio and flip must be equal; the teacher has {theirs}, this run has "
                f"{ours}"
            )
    width = loaded.model.embed_dim
    problems += [
        f"pairs.{name}: compares embeddings of width {cfg.embed_dim} with the teacher's of "
        f"{width}; set embed_dim={width}, or compare similarities alone (loss affinity)"
        for name, pair in cfg.pairs.items()
        if pair is not None
        and width != cfg.embed_dim
        and sum(str(pair[side]).startswith(TEACHER) for side in ("anchor", "other")) == 1
    ]
    if problems:
        shown = "\n  ".join(problems)
        raise AnchorError.mistake(f"{path} cannot teach this run:\n  {shown}")
    settings = {name: OmegaConf.to_container(loaded.cfg.data.transforms[name]) for name in names}
    return Teacher(loaded.model.requires_grad_(False), names, own, settings)
