"""What the classes of earlier versions are called now, so that old configurations go on working."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

Node = TypeVar("Node")

# Module of release 0.1 -> where what it defined is offered now, by the same name.
RENAMED = {
    "multimodal.config.faults": "multimodal.config",
    "multimodal.config.faults.Fault": "multimodal.config.ConfigProblem",
    "multimodal.core.errors": "multimodal.core",
    "multimodal.data.clip_bpe": "multimodal.data",
    "multimodal.data.datamodule": "multimodal.data",
    "multimodal.data.decode": "multimodal.data",
    "multimodal.data.draw": "multimodal.data",
    "multimodal.data.errors": "multimodal.data",
    "multimodal.data.errors.BadSample": "multimodal.data.BadSampleError",
    "multimodal.data.errors.OtherBatches": "multimodal.data.DataMismatchError",
    "multimodal.data.errors.TooManyBadSamples": "multimodal.data.TooManyBadSamplesError",
    "multimodal.data.huggingface_tokenizer": "multimodal.data",
    "multimodal.data.manifest": "multimodal.data",
    "multimodal.data.source": "multimodal.data",
    "multimodal.data.stream": "multimodal.data",
    "multimodal.data.tokenizers": "multimodal.data",
    "multimodal.data.transforms.array": "multimodal.data",
    "multimodal.data.transforms.audio": "multimodal.data",
    "multimodal.data.transforms.base": "multimodal.data",
    "multimodal.data.transforms.depth": "multimodal.data",
    "multimodal.data.transforms.huggingface": "multimodal.data",
    "multimodal.data.transforms.image": "multimodal.data",
    "multimodal.data.transforms.imu": "multimodal.data",
    "multimodal.data.transforms.target": "multimodal.data",
    "multimodal.data.transforms.text": "multimodal.data",
    "multimodal.data.transforms.thermal": "multimodal.data",
    "multimodal.data.transforms.video": "multimodal.data",
    "multimodal.embedding": "multimodal.inference",
    "multimodal.encoders.audio": "multimodal.models",
    "multimodal.encoders.category": "multimodal.models",
    "multimodal.encoders.convolutional": "multimodal.models",
    "multimodal.encoders.features": "multimodal.models",
    "multimodal.encoders.huggingface": "multimodal.models",
    "multimodal.encoders.imu": "multimodal.models",
    "multimodal.encoders.text": "multimodal.models",
    "multimodal.encoders.transformer": "multimodal.models",
    "multimodal.encoders.vision": "multimodal.models",
    "multimodal.evaluation.results": "multimodal.evaluation",
    "multimodal.evaluation.sets": "multimodal.evaluation",
    "multimodal.fusion.contract": "multimodal.models",
    "multimodal.fusion.cross": "multimodal.models",
    "multimodal.fusion.latent": "multimodal.models",
    "multimodal.fusion.pooled": "multimodal.models",
    "multimodal.fusion_model": "multimodal.models",
    "multimodal.heads": "multimodal.models",
    "multimodal.layers.activations": "multimodal.models",
    "multimodal.layers.pooling": "multimodal.models",
    "multimodal.layers.stems": "multimodal.models",
    "multimodal.layers.transformer": "multimodal.models",
    "multimodal.objectives.candidates": "multimodal.objectives",
    "multimodal.objectives.contract": "multimodal.objectives",
    "multimodal.objectives.margin_losses": "multimodal.objectives",
    "multimodal.objectives.negatives": "multimodal.objectives",
    "multimodal.objectives.objective": "multimodal.objectives",
    "multimodal.objectives.pair": "multimodal.objectives",
    "multimodal.objectives.sigmoid_loss": "multimodal.objectives",
    "multimodal.objectives.softmax_losses": "multimodal.objectives",
    "multimodal.objectives.weighting": "multimodal.objectives",
    "multimodal.runs.sweep": "multimodal.cli",
    "multimodal.tasks.captioning": "multimodal.models",
    "multimodal.tasks.contract": "multimodal.models",
    "multimodal.tasks.labels": "multimodal.models",
    "multimodal.tasks.matching": "multimodal.models",
    "multimodal.tasks.numbers": "multimodal.models",
    "multimodal.training.callbacks": "multimodal.training",
    "multimodal.training.checkpoint_io": "multimodal.inference",
    "multimodal.training.checkpoints": "multimodal.training",
    "multimodal.training.contrastive": "multimodal.training",
    "multimodal.training.data_wait": "multimodal.training",
    "multimodal.training.ddp": "multimodal.training",
    "multimodal.training.ema": "multimodal.training",
    "multimodal.training.fsdp": "multimodal.training",
    "multimodal.training.fusion": "multimodal.training",
    "multimodal.training.loggers": "multimodal.training",
    "multimodal.training.nonfinite": "multimodal.training",
    "multimodal.training.optim": "multimodal.training",
    "multimodal.training.optim.constant": "multimodal.training.Constant",
    "multimodal.training.optim.warmup_cosine": "multimodal.training.WarmupCosine",
    "multimodal.training.spikes": "multimodal.training",
    "multimodal.training.stop": "multimodal.training",
    "multimodal.training.wandb_logger": "multimodal.training",
    "multimodal.tuning": "multimodal.models",
    "multimodal.tuning.Rates": "multimodal.models.TowerOptim",
    "multimodal.types": "multimodal.core",
}


def renamed(target: str) -> str:
    """The present path of a class or function."""
    if target in RENAMED:
        return RENAMED[target]
    module, _, name = target.rpartition(".")
    return f"{RENAMED[module]}.{name}" if module in RENAMED else target


def with_new_names(node: Node) -> Node:
    """A configuration, or plain dicts and lists, with the present path in every `_target_`."""
    if not isinstance(node, DictConfig | ListConfig):
        return _plain(node)  # type: ignore[no-any-return]
    if not any(renamed(target) != target for target in _targets(node)):
        return node
    copied = copy.deepcopy(node)
    copied._set_parent(node._get_parent())
    with flag_override(copied, ["readonly", "struct"], [False, False]):
        _in_place(copied)
    return copied


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        new = {key: _plain(value) for key, value in node.items()}
        if isinstance(target := new.get("_target_"), str):
            new["_target_"] = renamed(target)
        return new
    return [_plain(item) for item in node] if isinstance(node, list) else node


def _children(node: Any) -> list[tuple[Any, Any]]:
    """(key, node) of what a block holds, interpolations left as they are."""
    if not isinstance(node, DictConfig | ListConfig):
        return []
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return []
    keys: Any = node.keys() if isinstance(node, DictConfig) else range(len(node))
    return [(key, node._get_node(key)) for key in keys]


def _targets(node: Any) -> list[str]:
    found = []
    for key, child in _children(node):
        found += _targets(child)
        if key == "_target_" and isinstance(child._value(), str):
            found.append(child._value())
    return found


def _in_place(node: Any) -> None:
    for key, child in _children(node):
        _in_place(child)
        if key == "_target_" and isinstance(child._value(), str):
            OmegaConf.update(node, "_target_", renamed(child._value()))
