"""Foreign checkpoints on disk; nothing in them is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from multimodal.core import strict_json
from multimodal.core.strict_json import is_text
from multimodal.pretrained.keys import WeightsError

WEIGHTS = (  # in a folder, the first of these
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
INDEX = "model.safetensors.index.json"
CONFIGS = ("open_clip_config.json", "config.json")
PREFIXES = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every name


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder as ``transformers`` and OpenCLIP write it.

    Safetensors are preferred; anything else is read by ``torch.load(weights_only=True)``, which
    refuses whatever is more than tensors and plain containers.

    Raises:
        WeightsError: if there is no such file, or it cannot be read in this way.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        if (target / INDEX).is_file():
            return _sharded(target)
        found = [target / name for name in WEIGHTS if (target / name).is_file()]
        if not found:
            raise WeightsError(f"{target} holds none of {', '.join((*WEIGHTS, INDEX))}")
        target = found[0]
    if not target.is_file():
        raise WeightsError(f"no file or folder {target}")
    state = load_file(target) if target.suffix == ".safetensors" else _load(target)
    return {_bare(name): tensor for name, tensor in state.items()}


def _sharded(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    content = _object(folder / INDEX).get("weight_map")
    if not isinstance(content, dict) or not all(map(is_text, content.values())):
        raise WeightsError(f"{folder / INDEX}: 'weight_map' must give the file of each tensor")
    for name in sorted(set(content.values())):
        if not name or "\0" in name or Path(name).name != name:
            raise WeightsError(f"{folder / INDEX} names a file outside of its folder: {name}")
        state |= load_file(folder / name)
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
    for key in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {n: t for n, t in content.items() if isinstance(t, Tensor)} if content else {}
    if not isinstance(content, dict) or not tensors or len(tensors) < len(content):
        raise WeightsError(f"{path} is no state dict: a dict of tensors, by name, was expected")
    return tensors


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


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
        found = [folder / name for name in CONFIGS if (folder / name).is_file()]
        if not found:
            return None
        path = found[0]
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
