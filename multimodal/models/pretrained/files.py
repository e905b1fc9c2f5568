"""Reads foreign checkpoints; nothing in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from multimodal.core import strict_json
from multimodal.core.strict_json import is_text
from multimodal.models.pretrained.keys import WeightsError

WEIGHTS = (  # in a folder, the first of these
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
MODULES = "modules.json"  # of sentence-transformers
INDEX = "model.safetensors.index.json"
CONFIGS = ("open_clip_config.json", "config.json")
# Where trainers put the weights, the most usual first.
NESTED = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "ema_state_dict", "ema",
    "net", "weights", "params", "student", "teacher",
)  # fmt: skip


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with weights, as ``transformers`` or OpenCLIP write it."""
    return path.is_dir() and any((path / name).is_file() for name in (*WEIGHTS, INDEX))


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder as ``transformers`` and OpenCLIP write it.

    Safetensors are preferred; anything else is read by ``torch.load(weights_only=True)``, which
    rejects anything but tensors and plain containers.

    Raises:
        WeightsError: if there is no such file, or it cannot be read in this way.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        if (target / INDEX).is_file():
            return _sharded(target)
        candidates = [target / name for name in WEIGHTS if (target / name).is_file()]
        if not candidates:
            raise WeightsError(f"{target} holds none of {', '.join((*WEIGHTS, INDEX))}")
        target = candidates[0]
    if not target.is_file():
        raise WeightsError(f"no file or folder {target}")
    return read_safetensors(target) if target.suffix == ".safetensors" else _load(target)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file.

    Raises:
        WeightsError: if it cannot be read, or is of another format.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error


def _sharded(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    content = _object(folder / INDEX).get("weight_map")
    if not isinstance(content, dict) or not all(map(is_text, content.values())):
        raise WeightsError(f"{folder / INDEX}: 'weight_map' must give the file of each tensor")
    for name in sorted(set(content.values())):
        if not name or "\0" in name or Path(name).name != name:
            raise WeightsError(f"{folder / INDEX} names a file outside of its folder: {name}")
        state |= read_safetensors(folder / name)
    return state


def _load(path: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise WeightsError(
                    f"{path} is a TorchScript archive, which holds a program besides the weights, "
                    "as OpenAI's own downloads do; take the same weights as safetensors (the "
                    "`timm/...openai` and `openai/clip-vit-...` repositories of the hub have them)"
                )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        raise WeightsError(
            f"{path} cannot be read with weights_only=True (damaged, or it holds more than "
            f"tensors and plain containers): {error}"
        ) from error
    tensors = _nested(content)
    if tensors is None:
        raise WeightsError(
            f"{path} is not a state dict: expected a dict of named tensors, or one under "
            f"{', '.join(NESTED)}; it holds {_shown(content)}"
        )
    return tensors


def _nested(content: Any, depth: int = 4) -> dict[str, Tensor] | None:
    """The state dict in ``content``: that itself, or what it holds under one of `NESTED`."""
    if not isinstance(content, Mapping) or not content or depth == 0:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return {str(name): tensor for name, tensor in content.items()}
    states = (_nested(content[key], depth - 1) for key in NESTED if key in content)
    return next((tensors for tensors in states if tensors is not None), None)


def _shown(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"the keys {', '.join(map(str, list(content)[:8]))}" if content else "nothing"


def read_config(path: str | Path | None, weights: str | Path) -> dict[str, Any] | None:
    """The foreign configuration: the named file, or the one beside the weights.

    Args:
        path: a JSON file; None looks for ``open_clip_config.json`` and ``config.json`` in the
            folder of the weights.
        weights: the file or folder of the weights.

    Returns:
        its content; None where there is none.

    Raises:
        WeightsError: if a named file is not there or holds no JSON object.
    """
    if path is None:
        folder = Path(weights).expanduser()
        folder = folder if folder.is_dir() else folder.parent
        candidates = [folder / name for name in CONFIGS if (folder / name).is_file()]
        if not candidates:
            return None
        path = candidates[0]
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"no configuration {file}")
    return _object(file)


def _object(file: Path) -> dict[str, Any]:
    try:
        content = strict_json.read(file)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds no JSON object")
    return content
