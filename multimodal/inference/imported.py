"""Writes an imported model as a checkpoint: to train from, embed with, evaluate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch import nn

from multimodal.config import config_dir
from multimodal.config.portable import portable_yaml
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.importing import Imported
from multimodal.models.pretrained.keys import WeightsError, same_bits
from multimodal.models.towers import EmbeddingModel, Tower

SIGLIP_VOCABULARY = 32_000  # of the first release, whose texts are lower case without punctuation


def run_config(imported: Imported, name: str) -> DictConfig:
    """The configuration that goes into the checkpoint: that of a run, without sources.

    Args:
        imported: the model.
        name: of the configuration.
    """
    if GlobalHydra.instance().is_initialized():
        cfg = compose("train")
    else:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("train")
    OmegaConf.set_struct(cfg, False)
    cfg.name, cfg.embed_dim = name, imported.model.embed_dim
    cfg.model, cfg.pairs = imported.config, {}
    cfg.logger = None
    if imported.pair is not None:
        anchor, other = imported.pair
        scale = {"init": min(imported.logit_scale or 1.0, 100.0)}
        pair: dict[str, Any] = {"anchor": anchor, "other": other, "logit_scale": scale}
        if imported.logit_bias is not None:
            pair["logit_bias"] = imported.logit_bias
            cfg.loss = {"_target_": "multimodal.objectives.SigLIP"}
        cfg.pairs[f"{anchor}_{other}"] = pair
    cfg.data = {
        "_target_": "multimodal.data.MultimodalDataModule",
        "sources": {},
        "transforms": imported.transforms,
        "batch_size": 256,
        "num_workers": 0,
        "seed": 0,
    }
    return cfg


def take_tokenizer(imported: Imported, folder: Path) -> None:
    """Points the transform of texts to the tokenizer beside the weights, where there is one.

    CLIP's `merges.txt` needs no package; SigLIP's `tokenizer.json` needs `transformers`.

    Args:
        imported: the model; its transforms are changed.
        folder: of the weights.
    """
    text = imported.transforms.get("text")
    merges, whole = folder / "merges.txt", folder / "tokenizer.json"
    if text is not None and merges.is_file():
        text["tokenizer"] = {**text["tokenizer"], "vocabulary": str(merges.absolute())}
    elif text is None and "text" in imported.model.towers and whole.is_file():
        encoder: Any = imported.model.tower("text").encoder
        if encoder.vocab_size != SIGLIP_VOCABULARY:
            return  # others prepare their texts in ways of their own
        imported.transforms["text"] = {
            "_target_": "multimodal.data.TextTransform",
            "tokenizer": {
                "_target_": "multimodal.data.HuggingFaceTokenizer",
                "name": str(folder.absolute()),
                "canonical": True,
            },
            "context_length": encoder.context_length,
            "fill": True,
        }


def save(imported: Imported, path: str | Path, name: str = "imported") -> None:
    """Writes a checkpoint and reads it back.

    Args:
        imported: the model.
        path: of the checkpoint, ``.ckpt`` by convention.
        name: of the configuration in it.

    Raises:
        WeightsError: if the checkpoint, read back, is not bit-identical.
    """
    state = {f"model.{key}": tensor for key, tensor in imported.model.state_dict().items()}
    if imported.pair is not None and imported.logit_scale is not None:
        objective = f"objective.pairs.{'_'.join(imported.pair)}"
        state[f"{objective}.logit_scale"] = torch.tensor(math.log(imported.logit_scale))
        if imported.logit_bias is not None:
            state[f"{objective}.logit_bias"] = torch.tensor(imported.logit_bias)
    config = portable_yaml(run_config(imported, name))
    content = {"state_dict": state, "config": config, "global_step": 0}
    checkpoint_file.write_atomically(content, path)
    # Its tokenizer may be missing, and is not compared.
    again = load_model(path, transforms=OmegaConf.create({}))[0].state_dict()
    for key, tensor in imported.model.state_dict().items():
        if not same_bits(again[key], tensor):
            raise WeightsError(f"{path}: {key} differs from what was written")


def table(model: EmbeddingModel) -> Table:
    """The towers, one a row: encoder, sizes, parameters."""
    made = Table("tower", "encoder", "width", "layers", "heads", "input", "parameters")
    seen: dict[int, str] = {}
    for name in model.towers:
        tower = model.tower(name)
        if id(tower) in seen:
            made.add_row(name, f"that of {seen[id(tower)]}")
            continue
        seen[id(tower)] = name
        made.add_row(name, *_row(tower))
    return made


def _row(tower: Tower) -> tuple[str, ...]:
    encoder: Any = tower.encoder
    trunk = getattr(encoder, "trunk", None)
    layers, heads = (
        (str(len(trunk.blocks)), str(trunk.num_heads)) if trunk is not None else ("", "")
    )
    size = getattr(encoder, "size", None) or (getattr(encoder, "context_length", ""),)
    return (
        type(encoder).__name__,
        str(encoder.width),
        layers,
        heads,
        " x ".join(map(str, size)),
        f"{count(tower):,}",
    )


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
