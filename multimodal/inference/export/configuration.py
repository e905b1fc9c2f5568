"""The configuration in an exported folder: what builds the model again, and nothing of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multimodal.config import for_use
from multimodal.config.portable import portable_yaml
from multimodal.core.names.modalities import parts_of
from multimodal.inference.export.preprocessing import Preprocessing

KEPT = ("name", "embed_dim", "model", "fusion", "tasks", "pairs", "loss")
_FILES = {"BPETokenizer": "path", "HuggingFaceTokenizer": "name", "CLIPTokenizer": "vocabulary"}


def configuration(
    cfg: DictConfig, towers: list[str], preprocessing: dict[str, Preprocessing]
) -> tuple[str, dict[str, str]]:
    """The YAML of a model of ``towers``, and the files of its tokenizers, name -> content.

    Args:
        cfg: that of the run.
        towers: those that are exported; where one is left out, a fusion is, too.
        preprocessing: of each.
    """
    used: Any = OmegaConf.to_container(for_use(cfg), resolve=True)
    tree = {key: used[key] for key in KEPT if used.get(key) is not None}
    if sorted(used["model"]["towers"]) != sorted(towers):
        tree = {key: tree[key] for key in ("name", "embed_dim", "pairs", "loss") if key in tree}
        blocks = used["model"]["towers"]
        own = {name: blocks[name] for name in towers}
        own = {n: blocks[b] if isinstance(b, str) and b not in own else b for n, b in own.items()}
        tree["model"] = {"_target_": "multimodal.models.EmbeddingModel", "towers": own}
    pairs = tree.get("pairs") or {}
    tree["pairs"] = {
        name: pair
        for name, pair in pairs.items()
        if pair is not None
        and {*parts_of(pair["anchor"]), *parts_of(pair["other"])} <= set(towers)
        and (tree["model"].get("joint") or not _joint(pair))
    }
    transforms = {name: used["data"]["transforms"][name] for name in towers}
    files: dict[str, str] = {}
    for name, block in transforms.items():
        if "tokenizer" in block and preprocessing[name].tokenizer is not None:
            files |= _tokenizer_beside(name, block, str(preprocessing[name].tokenizer))
    tree["data"] = {"transforms": transforms}
    tree["allowed_packages"] = list(cfg.get("allowed_packages") or [])
    return portable_yaml(OmegaConf.create(tree)), files


def _joint(pair: dict[str, Any]) -> bool:
    return not all(isinstance(pair[side], str) for side in ("anchor", "other"))


def _tokenizer_beside(modality: str, block: dict[str, Any], made: str) -> dict[str, str]:
    """Points a transform to its tokenizer in the folder; returns that file."""
    tokenizer = block["tokenizer"]
    if isinstance(tokenizer, str):
        tokenizer = {"_target_": "multimodal.data.BPETokenizer", "path": tokenizer}
    kind = tokenizer["_target_"].rsplit(".", 1)[-1]
    if kind not in _FILES:
        return {}
    if kind == "CLIPTokenizer":
        merges = json.loads(made)["model"]["merges"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        name, content = f"{modality}.merges.txt", "\n".join(["#version: 0.2", *pairs]) + "\n"
    else:
        name, content = f"{modality}.tokenizer.json", made
    block["tokenizer"] = {**tokenizer, _FILES[kind]: name}
    return {name: content}


def with_paths(cfg: DictConfig, folder: Path) -> DictConfig:
    """The same, with the tokenizers in ``folder``."""
    for block in cfg.data.transforms.values():
        tokenizer = block.get("tokenizer")
        if isinstance(tokenizer, DictConfig):
            key = _FILES.get(str(tokenizer._target_).rsplit(".", 1)[-1])
            if key and tokenizer.get(key) and (folder / str(tokenizer[key])).is_file():
                tokenizer[key] = str((folder / str(tokenizer[key])).absolute())
    return cfg
