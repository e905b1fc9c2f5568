"""The model of a checkpoint, and the configuration that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from multimodal.config import (
    ConfigProblem,
    StoredConfigError,
    build,
    for_use,
    stored_config,
)
from multimodal.core.process.quiet import note
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.tokenizer_check import (
    check_same_tokenizers,
    check_vocab_size,
    fingerprints,
    tokenizers_of,
)
from multimodal.inference.checkpoint.weights import (
    STATE,
    keep_trained_biases,
    pair_temperatures,
    uses_average,
    weights_of,
)
from multimodal.models.towers import EmbeddingModel

MODEL_PARTS = ("fusion", "tasks")  # groups of the root that the model is called with


def build_model(cfg: DictConfig) -> EmbeddingModel:
    """The towers of ``cfg.model``, and the fusion, tasks and similarity of the root where given."""
    model = build(cfg, "model", groups=MODEL_PARTS)
    assert isinstance(model, EmbeddingModel)
    if cfg.get("similarity") is not None:
        model.compare_by(build(cfg, "similarity"))
    return model


class Loaded(NamedTuple):
    """What a checkpoint holds for inference.

    Attributes:
        model: its towers, filled, in evaluation mode.
        cfg: the configuration that they come from.
        temperatures: of the pairs of modalities that it was trained on, see `pair_temperatures`.
    """

    model: EmbeddingModel
    cfg: DictConfig
    temperatures: dict[frozenset[str], float]


def load_model(
    path: str | Path,
    allowed_packages: Sequence[str] = (),
    weights: str | None = None,
    transforms: DictConfig | None = None,
    addresses: Sequence[str] = (),
) -> tuple[EmbeddingModel, DictConfig]:
    """The model and the configuration of `load_checkpoint`, of the same arguments."""
    return load_checkpoint(path, allowed_packages, weights, transforms, addresses)[:2]


def load_checkpoint(
    path: str | Path,
    allowed_packages: Sequence[str] = (),
    weights: str | None = None,
    transforms: DictConfig | None = None,
    addresses: Sequence[str] = (),
) -> Loaded:
    """The trained towers of a checkpoint, in eval mode, and the configuration they come from.

    Args:
        path: of the checkpoint.
        allowed_packages: of the caller's own, that the checkpoint's towers may come from; what
            the checkpoint itself says of it does not count.
        weights: ``average`` or ``raw``, see `uses_average`; None: as the run evaluates.
        transforms: the configuration of those that will feed it, checked by the caller; None:
            the checkpoint's own.
        addresses: that the caller names; no other one in the checkpoint is opened.

    Raises:
        CheckpointError: if the file is missing or damaged, has no configuration in it, or not the
            weights that are asked for; or if a tokenizer is not the one it was trained with.
        ConfigError: if its configuration names what may not stand there, or a tokenizer gives
            ids that the model does not know.
    """
    checkpoint = store.read(path)
    cfg = for_use(config_of(checkpoint, path, allowed_packages, addresses))
    for block in ("model", "data.transforms"):
        if not isinstance(OmegaConf.select(cfg, block), DictConfig):
            problems = [
                ConfigProblem(block, "is not a block of keys: nothing can be embedded with it")
            ]
            raise StoredConfigError(problems, str(path))
    model = build_model(cfg)
    prefix = "model."
    used_weights = weights_of(checkpoint, path, weights)
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in used_weights.items()
        if name.startswith(prefix)
    }
    model.load_state_dict(state)
    if STATE in checkpoint:
        average = uses_average(checkpoint, path, weights)
        used = "the moving average of the weights is used (weights=raw: the weights themselves)"
        other = "the weights themselves are used (weights=average: their moving average)"
        note(f"{path}: {used if average else other}")
    own = cfg if transforms is None else _with_transforms(cfg, transforms)
    tokenizers = tokenizers_of(own)
    check_vocab_size(model, tokenizers)
    check_same_tokenizers(checkpoint, fingerprints(tokenizers), path)
    keep_trained_biases(cfg, used_weights)
    return Loaded(model.eval(), cfg, pair_temperatures(cfg, used_weights))


def _with_transforms(cfg: DictConfig, transforms: DictConfig) -> DictConfig:
    changed = cfg.copy()
    changed.data.transforms = OmegaConf.to_container(transforms, resolve=True)
    return changed


def config_of(
    checkpoint: dict[str, Any],
    path: str | Path,
    allowed_packages: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> DictConfig:
    """The configuration inside a checkpoint, judged (`stored_config`) and not yet used.

    Raises:
        CheckpointError: if it holds none.
        ConfigError: if it names what may not stand there.
    """
    if "config" not in checkpoint:
        raise checkpoint_file.CheckpointError(
            f"{path} contains no configuration: not written by multimodal"
        )
    return stored_config(checkpoint["config"], path, allowed_packages, addresses)
