"""Rules about models of ``transformers``: their inputs are preprocessed as in their training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from multimodal.config.composing.catalogue import entry, names
from multimodal.config.problems import ConfigProblem, did_you_mean
from multimodal.config.rules.connected import is_connected
from multimodal.config.tree import at, block
from multimodal.core.hf_files import (
    ANY_SIZE,
    OWN_FEATURES,
    PREPROCESSOR,
    TOKENIZERS,
    content_of,
    file_of,
    input_settings,
)

Tree = dict[str, Any]
_ENCODERS = (".HuggingFaceEncoder", ".VisionLanguageEncoder")
_TAKES_OVER = "HuggingFaceSound"  # the transform that asks the model's own files


def _models(tree: Tree) -> Iterator[tuple[str, str, Tree]]:
    """Modality, name of its model, and block of its transform."""
    for modality, tower in block(tree, "model.towers").items():
        tower = at(tree, f"model.towers.{tower}") if isinstance(tower, str) else tower
        inner = "encoder.encoder" if is_connected(tower) else "encoder"
        target, name = at(tower, f"{inner}._target_"), at(tower, f"{inner}.name")
        transform = at(tree, f"data.transforms.{modality}")
        if str(target).endswith(_ENCODERS) and isinstance(name, str):
            yield modality, name, transform if isinstance(transform, dict) else {}


def inputs_of_models(tree: Tree) -> Iterator[ConfigProblem]:
    """Images and audio are resized and normalised as the model's files specify."""
    for modality, name, transform in _models(tree):
        where, target = f"data.transforms.{modality}", str(transform.get("_target_"))
        if target.endswith(_TAKES_OVER):
            if transform.get("name") != name:
                yield ConfigProblem(
                    f"{where}.name", f"given {transform.get('name')}, expected {name}"
                )
            continue
        content = content_of(name, PREPROCESSOR)
        kind = content.get("feature_extractor_type")
        if kind in OWN_FEATURES and target.endswith(".AudioTransform"):
            yield ConfigProblem(
                where,
                f"makes Kaldi filter banks, but {name} takes what a {kind} makes; "
                f"data/transform@{where}=sound_huggingface takes all its settings over",
            )
            continue
        sized = content_of(name, "config.json").get("model_type") not in ANY_SIZE
        for key, theirs in input_settings(name).items():
            ours = transform.get(key)
            if ours is not None and (sized or key != "size") and not _equal(ours, theirs):
                group = "picture" if key == "size" or isinstance(theirs, list) else "sound"
                yield ConfigProblem(
                    f"{where}.{key}",
                    f"given {ours}, but {name} was trained with {theirs} ({PREPROCESSOR}): set "
                    f"{where}.{key}={theirs}, or take all its settings over by "
                    f"data/transform@{where}={group}_huggingface",
                )


def tokenizers_of_models(tree: Tree) -> Iterator[ConfigProblem]:
    """Texts are tokenized by the model's own tokenizer, if its folder has one."""
    for modality, name, transform in _models(tree):
        given = transform.get("tokenizer")
        if given is None or not any(file_of(name, file) for file in TOKENIZERS):
            continue
        if at(given, "name") != name:
            where = f"data.transforms.{modality}.tokenizer"
            shown = at(given, "name") or at(given, "_target_") or given
            yield ConfigProblem(
                where,
                f"given {shown}, but {name} has its own tokenizer, for whose ids it was trained: "
                f"tokenizer=huggingface {where}.name={name}",
            )


def entries_of_towers(tree: Tree) -> Iterator[ConfigProblem]:
    """A tower's ``pretrained`` is in the catalogue, and its inputs are those of its training."""
    for modality, tower in block(tree, "model.towers").items():
        name = at(tower, "pretrained")
        if not isinstance(name, str):
            continue
        where = f"model.towers.{modality}.pretrained"
        if name not in names():
            yield ConfigProblem(
                where, f"no such entry in the catalogue: '{name}'; {did_you_mean(name, names())}"
            )
            continue
        one = entry(name)
        transform = block(tree, f"data.transforms.{modality}")
        for key, theirs in one.use.inputs.get(modality, {}).items():
            ours = transform.get(key)
            if ours is not None and not _equal(ours, theirs):
                choice = one.use.transforms.get(modality)
                yield ConfigProblem(
                    f"data.transforms.{modality}.{key}",
                    f"given {ours}, but {name} was trained with {theirs}: set it so, or take "
                    f"data/transform@data.transforms.{modality}={choice}",
                )


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    try:
        return math.isclose(float(ours), float(theirs), rel_tol=1e-3)
    except (TypeError, ValueError):
        return True  # a value that is wrong in another way, which another rule reports


def _resolve(name: str | None, key: str) -> Any:
    if name is None:
        raise ValueError("the encoder has no name, so no folder that states it")
    settings = input_settings(name)
    if key not in settings:
        raise ValueError(f"{name} has no {PREPROCESSOR} that states the {key}")
    return settings[key]


# ${inputs_of:FOLDER,mean} in a YAML.
OmegaConf.register_new_resolver("inputs_of", _resolve, replace=True)
