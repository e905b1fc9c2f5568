"""The keys of each command's own root, checked as soon as they are composed."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, open_dict

from multimodal.config.annotations import mismatches
from multimodal.config.problems import ConfigError
from multimodal.config.schema import Train
from multimodal.config.tree import UNKNOWN, plain
from multimodal.core.bounds import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Bounds

_PORT = Bounds(least=0, most=65535)
_MODEL: dict[str, Any] = {
    "checkpoint": str,
    "device": str | None,
    "weights": Literal["average", "raw"] | None,
    "allowed_packages": list[str],
    "allowed_addresses": list[str],
}
_RATE = Annotated[float, ABOVE_0] | None
_DIM = Annotated[int, AT_LEAST_1] | None
_INDEX: dict[str, Any] = {
    "index": str,
    "approximate": bool,
    "dim": _DIM,
    "quantize": Literal["int8", "binary"] | None,
}
# Command -> key -> what it takes; keys that are not listed hold blocks, or anything.
ROOTS: Mapping[str, Mapping[str, Any]] = {
    "train": {
        key: hint
        for key, hint in typing.get_type_hints(Train).items()
        if key in ("name", "seed", "resume", "resume_allow", "sweep_metric", "allowed_packages")
    },
    "evaluate": _MODEL,
    "embed": {
        **_MODEL,
        "input": str,
        "output": str,
        "kind": Literal["normalized", "raw", "scaled"],
        "split": str,
        "modalities": dict[str, Any] | None,
        "modality": str | None,
        "rate_hz": _RATE,
        "previews": bool,
        "batch_size": Annotated[int, AT_LEAST_1],
        "dim": _DIM,
    },
    "mine": {
        **_MODEL,
        "input": str,
        "output": str,
        "anchor": str,
        "other": str,
        "split": str,
        "modalities": dict[str, Any] | None,
        "positive_key": str | None,
        "count": Annotated[int, AT_LEAST_1],
        "first": Annotated[int, AT_LEAST_0],
        "last": Annotated[int, AT_LEAST_1],
        "share": Annotated[float, ABOVE_0] | None,
        "margin": Annotated[float, AT_LEAST_0] | None,
        "approximate": bool,
        "batch_size": Annotated[int, AT_LEAST_1],
    },
    "search": {
        **_MODEL,
        **_INDEX,
        "query": str | float | list[Any] | dict[str, Any],
        "joint": bool,
        "k": Annotated[int, AT_LEAST_1],
        "modality": str | None,
        "rate_hz": _RATE,
    },
    "serve": {
        **_MODEL,
        **_INDEX,
        "title": str,
        "host": str,
        "port": Annotated[int, _PORT],
        "allowed_hosts": list[str],
        "api": bool,
        "onnx": str | None,
        "batching": dict[str, int | float],
        "max_upload_mb": Annotated[int, AT_LEAST_0],
        "rate_hz": _RATE,
    },
    "export": {
        **{key: hint for key, hint in _MODEL.items() if key != "device"},
        "output": str,
        "towers": list[str] | None,
        "formats": list[str],
        "opset": Annotated[int, AT_LEAST_1],
        "tolerance": Annotated[float, ABOVE_0],
        "zero_shot": dict[str, Any] | None,
        "quantize": Literal["int8", "int8_weights", "fp16", "bf16"] | None,
        "least_cosine": float,
    },
    "adapters": {
        **_MODEL,
        "output": str,
        "adapters": str | None,
        "merge": bool,
        "base": str | None,
        "share": Annotated[float, Bounds(least=0, most=1)],
        "towers": list[str] | None,
    },
    "import_weights": {
        "input": str,
        "output": str,
        "config": str | None,
        "source": str | None,
        "allow": list[str],
        "prefix": str | None,
        "image_size": Annotated[int, AT_LEAST_1] | None,
        "num_frames": Annotated[int, AT_LEAST_1] | None,
        "tubelet": Annotated[int, AT_LEAST_1],
    },
}

LATER = {"evaluate": ("data", "evaluation")}  # blocks that belong to the checkpoint's configuration


def check_root(cfg: DictConfig, command: str) -> None:
    """Rejects values of the command's own keys, and interpolations anywhere that lead nowhere.

    Before anything reads them: the folder of a run, a lock, secrets.

    Args:
        cfg: as composed, with or without Hydra's own block.
        command: name of its root configuration.

    Raises:
        ConfigError: listing every problem with its key.
    """
    own = cfg.copy()
    with open_dict(own):
        for group in ("hydra", *LATER.get(command, ())):
            own.pop(group, None)
    tree, problems = plain(own)
    for key, hint in ROOTS.get(command, {}).items():
        if key in tree and tree[key] is not UNKNOWN:
            problems += mismatches(tree[key], hint, key)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
