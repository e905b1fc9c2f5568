"""Exports low-rank adapters in ``peft``'s format, and attaches or merges them.

A folder for every tower: ``adapter_config.json`` and ``adapter_model.safetensors``, whose names are
those of the encoder (of the model of ``transformers``, where it is one), so that
``peft.PeftModel.from_pretrained(encoder, folder)`` takes them; and ``head.safetensors`` where the
head was trained with them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from multimodal.config.portable import portable_yaml
from multimodal.core import strict_json
from multimodal.core.files import write_bytes, write_errors, written_beside
from multimodal.core.strict_json import excerpt, is_text
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.encoders.libraries.vision_language import VisionLanguageEncoder
from multimodal.models.pretrained.files import read_safetensors
from multimodal.models.pretrained.keys import WeightsError, require_finite, same_bits
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import LoRA, has_adapters, is_adapter, merge_adapters

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
_PEFT = "base_model.model."  # before every name in peft's files
_NAME = ".default"  # of the one adapter, in modules
# What our adapters do not have -> its value where it is not used.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none",), "use_rslora": (False,), "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None), "modules_to_save": (None, []), "fan_in_fan_out": (False,),
    "layer_replication": (None,), "trainable_token_indices": (None,), "lora_bias": (False,),
}  # fmt: skip


def backbone(tower: nn.Module) -> nn.Module:
    """The module of a tower that adapters are named after."""
    encoder: Any = tower.encoder
    theirs = isinstance(encoder, HuggingFaceEncoder | VisionLanguageEncoder)
    module: nn.Module = encoder.model if theirs else encoder
    return module


def adapters_of(tower: nn.Module) -> dict[str, Tensor]:
    """A tower's adapters, by the names that peft gives them in its files."""
    state = backbone(tower).state_dict()
    return {_theirs(name): tensor for name, tensor in state.items() if is_adapter(name)}


def _theirs(name: str) -> str:
    magnitude = f"lora_magnitude_vector{_NAME}.weight"
    bare = name.removesuffix(".weight") if name.endswith(magnitude) else name
    return _PEFT + bare.replace(_NAME, "")


def save_adapters(tower: Tower, tuning: LoRA, folder: Path) -> int:
    """Writes a tower's adapters, and its head where the tuning trains it.

    Args:
        tower: with adapters.
        tuning: that made them.
        folder: is made.

    Returns:
        number of tensors.
    """
    state = adapters_of(tower)
    targets = sorted({name.removeprefix(_PEFT).split(".lora_")[0] for name in state})
    _save(state, folder / WEIGHTS)
    if tuning.head:
        assert isinstance(tower.head, nn.Module)
        _save(tower.head.state_dict(), folder / HEAD)
    # Last: a folder without it holds no adapters.
    with (
        write_errors(folder / CONFIG),
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        tuning.peft_config(targets).save_pretrained(scratch)
        write_bytes(folder / CONFIG, Path(scratch, CONFIG).read_bytes())
    return len(state)


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    with written_beside(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)


def load_adapters(tower: Tower, folder: Path) -> dict[str, Any]:
    """Puts the adapters of a folder onto a tower that has none.

    Returns:
        the block of the tuning that makes such adapters, for the tower's configuration.

    Raises:
        WeightsError: if the folder holds something else, or adapters of other maps or sizes.
    """
    if has_adapters(tower.state_dict()):
        raise WeightsError("the tower has adapters already: merge them first")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder} holds no {name}: not a folder of adapters")
    block = {**_settings(folder / CONFIG), "head": (folder / HEAD).is_file()}
    LoRA(**block)(tower)
    module = backbone(tower)
    own = {_theirs(name): name for name in module.state_dict() if is_adapter(name)}
    state = read_safetensors(folder / WEIGHTS)
    require_finite(state, state, str(folder / WEIGHTS))
    problems = [f"only in the folder: {name}" for name in sorted(state.keys() - own.keys())]
    problems += [f"only in the tower: {name}" for name in sorted(own.keys() - state.keys())]
    here = module.state_dict()
    problems += [
        f"{name}: the folder has {list(state[name].shape)}, the tower {list(here[own[name]].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != here[own[name]].shape
    ]
    if problems:
        raise WeightsError("\n  ".join([f"{folder} does not fit the tower:", *problems[:20]]))
    module.load_state_dict({own[name]: tensor for name, tensor in state.items()}, strict=False)
    if block["head"]:
        assert isinstance(tower.head, nn.Module)
        head = read_safetensors(folder / HEAD)
        require_finite(head, head, str(folder / HEAD))
        try:
            tower.head.load_state_dict(head)
        except RuntimeError as error:
            raise WeightsError(f"{folder / HEAD}: {error}") from error
    return {"_target_": "multimodal.models.LoRA", **block}


def _settings(path: Path) -> dict[str, Any]:
    """The file's description of the adapters; untrusted."""
    try:
        given = strict_json.read(path)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(given, dict):
        raise WeightsError(f"{path} holds no JSON object")
    for key, values in PLAIN.items():
        if key in given and given[key] not in values:
            raise WeightsError(f"{path}: {key}={excerpt(given[key])} is not built here")
    targets = given.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(map(is_text, targets)):
        raise WeightsError(f"{path}: target_modules must be a list of names")
    for key, least, most in (("r", 1, 1 << 16), ("lora_alpha", 0, 1e6), ("lora_dropout", 0, 1)):
        value = given.get(key)
        good = isinstance(value, int if key == "r" else int | float) and least <= value <= most
        if not good or isinstance(value, bool):
            expected = f"a number from {least} to {most:,}"
            raise WeightsError(f"{path}: {key} must be {expected}, got {excerpt(value)}")
    return {
        "rank": given["r"],
        "alpha": float(given["lora_alpha"]),
        "dropout": float(given["lora_dropout"]),
        "targets": sorted({name.rsplit(".", 1)[-1] for name in targets}),
        "dora": given.get("use_dora", False) is True,
    }


# Of checkpoints


def export(
    checkpoint: str,
    folder: Path,
    allowed_packages: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> dict[str, int]:
    """Writes the adapters of a run's towers, a folder each; tower -> number of tensors.

    Raises:
        WeightsError: if no tower has any.
    """
    model, cfg = load_model(checkpoint, allowed_packages, addresses=addresses)
    counts = {}
    for name, block in _tuned(cfg).items():
        arguments = {key: value for key, value in block.items() if key != "_target_"}
        counts[name] = save_adapters(model.tower(name), LoRA(**arguments), folder / name)
    if not counts:
        raise WeightsError(f"{checkpoint}: no tower has adapters; it has {', '.join(model.towers)}")
    return counts


def rewrite(
    checkpoint: str,
    output: str,
    adapters: Path | None = None,
    merge: bool = False,
    allowed_packages: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> tuple[EmbeddingModel, dict[str, str]]:
    """A checkpoint of the same weights with adapters put on, or with all of them merged.

    Optimizer and schedule stay behind: the result is to embed with, or to begin a run from.

    Args:
        checkpoint: a run's, or an imported one.
        output: the checkpoint that is written.
        adapters: a folder of folders, one for each tower, put onto the weights; None: no more.
        merge: adds all adapters to the weights under them.
        allowed_packages: as in ``load_model``.
        addresses: as in ``load_model``.

    Returns:
        the model, and what was done to each tower.

    Raises:
        WeightsError: if there is nothing to put on or to merge, or it does not fit.
    """
    model, cfg = load_model(checkpoint, allowed_packages, addresses=addresses)
    done: dict[str, str] = {}
    folders = sorted(f for f in adapters.iterdir() if f.is_dir()) if adapters else []
    for folder in folders:
        if not isinstance(OmegaConf.select(cfg, f"model.towers.{folder.name}"), DictConfig):
            known = ", ".join(model.towers)
            raise WeightsError(f"{folder}: the checkpoint has no tower of that name, but {known}")
        block = load_adapters(model.tower(folder.name), folder)
        cfg.model.towers[folder.name].frozen = False
        cfg.model.towers[folder.name].tuning = block
        done[folder.name] = f"adapters of rank {block['rank']} put on"
    for name in list(_tuned(cfg)) if merge else []:
        count = merge_adapters(model.tower(name))
        cfg.model.towers[name].tuning = None
        done[name] = f"{count} adapters merged"
    if not done:
        raise WeightsError(f"nothing to do: {checkpoint} has no adapters, and none were given")
    write_model(checkpoint, output, model, cfg, allowed_packages, addresses)
    return model, done


def write_model(
    checkpoint: str,
    output: str,
    model: EmbeddingModel,
    cfg: DictConfig,
    allowed_packages: Sequence[str] = (),
    addresses: Sequence[str] = (),
) -> None:
    """Writes a checkpoint with another model's weights, without optimizer and schedule.

    Args:
        checkpoint: that the rest comes from.
        output: the checkpoint that is written.
        model: whose weights it holds.
        cfg: that builds the model.
        allowed_packages: as in ``load_model``.
        addresses: as in ``load_model``.

    Raises:
        WeightsError: if the file, read back, differs.
    """
    content = store.read(checkpoint)
    state = {n: t for n, t in content["state_dict"].items() if not n.startswith("model.")}
    state |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    kept: dict[str, Any] = {
        key: content[key] for key in ("global_step", "origin") if key in content
    }
    checkpoint_file.write_atomically(
        {**kept, "state_dict": state, "config": portable_yaml(cfg)}, output
    )
    again = load_model(output, allowed_packages, addresses=addresses)[0].state_dict()
    if not all(same_bits(again[name], tensor) for name, tensor in model.state_dict().items()):
        raise WeightsError(f"{output}: the file, read back, differs from what was written")


def _tuned(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Tower -> the block of its LoRA."""
    tuned: dict[str, dict[str, Any]] = {}
    for name, tower in cfg.model.towers.items():
        tuning = None if isinstance(tower, str) else tower.get("tuning")
        if tuning is not None and str(tuning.get("_target_")).endswith(".LoRA"):
            block: Any = OmegaConf.to_container(tuning, resolve=True)
            tuned[str(name)] = block
    return tuned
