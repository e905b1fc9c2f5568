"""A tower in the layout of sentence-transformers: a model, its pooling, a head, unit norm.

The folder holds a tower of texts or of pictures alone, as a list of modules (``modules.json``),
each with its configuration and weights in a folder of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.image import ImageTransform
from multimodal.inference.embedder import Embedder
from multimodal.inference.export.preprocessing import settings_of
from multimodal.inference.publish.pictures import write_processor
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.heads import IdentityHead, LinearHead, MLPHead
from multimodal.models.layers.pooling import FirstPool, LastPool, MeanPool
from multimodal.models.pretrained.keys import WeightsError

WEIGHTS = "model.safetensors"
TYPES = "sentence_transformers.models."
MODALITIES = ("text", "image")
MODALITY_CONFIG = "modality_config"  # what the first module takes, in its configuration
# Our pooling -> theirs; `attention` has none there.
POOLINGS: dict[type[nn.Module], str] = {
    FirstPool: "pooling_mode_cls_token",
    MeanPool: "pooling_mode_mean_tokens",
    LastPool: "pooling_mode_lasttoken",
}
Step = tuple[str, dict[str, Any], dict[str, Tensor]]  # kind, configuration, weights


def write(embedder: Embedder, folder: Path, name: str | None = None) -> None:
    """Fills an empty folder with one tower.

    Args:
        embedder: the model on the CPU, and its transforms.
        folder: that is filled.
        name: ``text`` or ``image``; None: the first that is there.

    Raises:
        WeightsError: if there is no such tower of ``transformers``, or a part of it has no place in
            that layout.
    """
    there = [each for each in MODALITIES if each in embedder.model.towers]
    if name is None and not there:
        raise WeightsError("it has neither a text nor an image tower")
    name = name or there[0]
    if name not in there:
        raise WeightsError(f"it has no {name} tower for this layout; there are {there}")
    tower = embedder.model.tower(name)
    encoder, transform = tower.encoder, embedder.transforms[name]
    if not isinstance(encoder, HuggingFaceEncoder):
        kind = type(encoder).__name__
        raise WeightsError(f"its {name} encoder is a {kind}, none of transformers")
    pooling = POOLINGS.get(type(encoder.pool))
    if pooling is None:
        raise WeightsError(f"its pooling is {type(encoder.pool).__name__}")
    inputs = _of_texts if name == "text" else _of_pictures
    settings = inputs(transform, encoder, folder)
    modes = {mode: mode == pooling for mode in POOLINGS.values()}
    steps: list[Step] = [("Pooling", {"word_embedding_dimension": encoder.width, **modes}, {})]
    steps += [*_head(tower.head), ("Normalize", {}, {})]
    encoder.model.save_pretrained(folder, safe_serialization=True)
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}Transformer"}]
    for number, (kind, config, weights) in enumerate(steps, start=1):
        path = folder / f"{number}_{kind}"
        path.mkdir()
        _json(path / "config.json", config)
        if weights:
            save_file({k: t.detach().contiguous() for k, t in weights.items()}, path / WEIGHTS)
        entry = {"idx": number, "name": str(number), "path": path.name, "type": TYPES + kind}
        modules.append(entry)
    _json(folder / "modules.json", modules)
    _json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    _json(folder / "sentence_bert_config.json", settings)


def _of_texts(text: Transform, encoder: HuggingFaceEncoder, folder: Path) -> dict[str, Any]:
    """Writes the tokenizer's files; what the first module is told of texts."""
    made = settings_of(text).tokenizer
    if made is None or getattr(text, "instruction", None):
        raise WeightsError("it has no tokenizer.json, or its texts have an instruction")
    length = int(text.context_length)  # type: ignore[attr-defined]
    (folder / "tokenizer.json").write_text(made, "utf-8")
    padding = Tokenizer.from_str(made).id_to_token(int(encoder.model.config.pad_token_id or 0))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length}
    _json(folder / "tokenizer_config.json", {**about, "pad_token": padding})
    return {"max_seq_length": length, "do_lower_case": False}


def _of_pictures(image: Transform, encoder: HuggingFaceEncoder, folder: Path) -> dict[str, Any]:
    """Writes what prepares pictures; what the first module is told of them (since 5.5)."""
    if not isinstance(image, ImageTransform):
        raise WeightsError(f"its pictures are prepared by a {type(image).__name__}")
    write_processor(image, folder)
    given = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        "transformer_task": "feature-extraction",
        MODALITY_CONFIG: {"image": given},
        "module_output_name": "token_embeddings",
    }


def _head(head: nn.Module | None) -> list[Step]:
    """The steps of a head.

    Raises:
        WeightsError: if it has none there.
    """
    if isinstance(head, IdentityHead):
        return []
    if isinstance(head, LinearHead):
        return [*_norm(head.norm), _dense(head.projection, nn.Identity())]
    if isinstance(head, MLPHead) and isinstance(head.standardize, nn.Identity):
        first = _dense(head.mlp.fc1, head.mlp.activation)
        return [*_norm(head.norm), first, _dense(head.mlp.fc2, nn.Identity())]
    raise WeightsError(f"its head is a {type(head).__name__} that standardises, or not ours")


def _norm(norm: nn.Module) -> list[Step]:
    if not isinstance(norm, nn.LayerNorm):
        return []
    weights: dict[str, Tensor] = {"norm.weight": norm.weight, "norm.bias": norm.bias}
    return [("LayerNorm", {"dimension": norm.normalized_shape[0]}, weights)]


def _dense(linear: nn.Linear, activation: nn.Module) -> Step:
    kind = type(activation)
    exact = getattr(activation, "approximate", "none") == "none"
    if not kind.__module__.startswith("torch.") or not exact:
        raise WeightsError(f"the activation of its head is {activation}")
    weights: dict[str, Tensor] = {f"linear.{n}": t for n, t in linear.named_parameters()}
    config: dict[str, Any] = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{kind.__module__}.{kind.__name__}",
    }
    return "Dense", config, weights


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
