"""A model in the layout of ``transformers`` (CLIP, SigLIP), of OpenCLIP, or in ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from multimodal.data.tokenizers.clip import CLIPTokenizer
from multimodal.data.transforms.image import ImageTransform
from multimodal.inference.checkpoint.weights import bias_of
from multimodal.inference.embedder import Embedder
from multimodal.inference.export import manifest, writing
from multimodal.inference.export.preprocessing import settings_of
from multimodal.inference.importing import import_weights
from multimodal.inference.publish import sentences
from multimodal.inference.publish.pictures import write_processor
from multimodal.models.pretrained.keys import WeightsError, same_bits
from multimodal.models.pretrained.to_huggingface import as_transformers
from multimodal.models.pretrained.to_open_clip import as_open_clip
from multimodal.models.towers import EmbeddingModel

Converter = Callable[
    [EmbeddingModel, float, float | None], tuple[dict[str, Any], dict[str, Tensor]]
]

SENTENCES = "sentence-transformers"
OPEN_CLIP = "open_clip"
LAYOUTS = ("auto", "transformers", OPEN_CLIP, SENTENCES, "ours")
# What makes sentence-transformers open the folder: CLIP as its only module, then unit norm.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"},
    {
        "idx": 1,
        "name": "1",
        "path": "1_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]


def write(
    embedder: Embedder,
    cfg: DictConfig,
    folder: Path,
    layout: str,
    source: Mapping[str, Any],
    tower: str | None = None,
) -> tuple[str, str | None]:
    """Fills an empty folder.

    Args:
        embedder: the model on the CPU, and its transforms.
        cfg: the configuration that it comes from.
        folder: that is filled.
        layout: ``transformers``, ``ours``, or ``auto``: the first where the model has it;
            ``open_clip``; or ``sentence-transformers``, of one tower alone.
        source: what ours says of where it comes from.
        tower: ``text`` or ``image``, of ``sentence-transformers``; None: the first that is there.

    Returns:
        the layout, and why ``transformers`` has none for this model; None where it has.

    Raises:
        WeightsError: if the model has not the layout that is asked for: it is neither CLIP nor
            SigLIP, or its tower has no place in ``sentence-transformers``; or if given a tower
            with another layout.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"layout={layout}: expected one of {', '.join(LAYOUTS)}")
    if tower is not None and layout != SENTENCES:
        raise WeightsError(f"tower={tower}: only layout={SENTENCES} has one tower, not {layout}")
    writers = {
        "transformers": lambda: _transformers(embedder, cfg, folder),
        OPEN_CLIP: lambda: _open_clip(embedder, cfg, folder),
        SENTENCES: lambda: sentences.write(embedder, folder, tower),
    }
    reason = None
    if layout != "ours":
        used = "transformers" if layout == "auto" else layout
        try:
            writers[used]()
            return used, None
        except WeightsError as error:
            if layout != "auto":
                raise WeightsError(f"layout={layout}: {error}") from error
            reason = str(error)
    folder.rmdir()
    writing.export(embedder, cfg, folder, writing.Choices(formats=["onnx"]), source)
    return "ours", reason


def _transformers(embedder: Embedder, cfg: DictConfig, folder: Path) -> None:
    """``config.json``, ``model.safetensors`` and what prepares the inputs."""
    config, state = _converted(embedder, cfg, as_transformers)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    save_file(state, folder / manifest.WEIGHTS, {"format": "pt"})
    _write_inputs(embedder, folder, siglip=config["model_type"] == "siglip")


def _open_clip(embedder: Embedder, cfg: DictConfig, folder: Path) -> None:
    """``open_clip_config.json``, ``open_clip_model.safetensors``, and CLIP's merges for us."""
    text: Any = embedder.transforms.get("text")
    if text is not None and not isinstance(text.tokenizer, CLIPTokenizer):
        kind = type(text.tokenizer).__name__
        raise WeightsError(f"its texts are tokenized by a {kind}: it takes CLIP's tokenizer alone")
    config, state = _converted(embedder, cfg, as_open_clip)
    content: dict[str, Any] = {"model_cfg": config, "preprocess_cfg": {}}
    image = embedder.transforms.get("image")
    if isinstance(image, ImageTransform):
        how = settings_of(image).settings
        content["preprocess_cfg"] = {
            "mean": list(how["mean"]), "std": list(how["std"]),
            "interpolation": how["interpolation"], "resize_mode": "shortest",
        }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    save_file(state, folder / "open_clip_model.safetensors", {"format": "pt"})
    made = None if text is None else settings_of(text).tokenizer
    if made is not None:
        (folder / "merges.txt").write_text(_merges(made), "utf-8")


def _converted(
    embedder: Embedder, cfg: DictConfig, convert: Converter
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors in another project's names; read back, compared bit by bit."""
    temperature = embedder.temperatures.get(frozenset(("image", "text")), 0.07)
    config, state = convert(embedder.model, 1 / temperature, bias_of(cfg, "image", "text"))
    with torch.no_grad():
        again = import_weights(state, config)
    own = embedder.model.state_dict()
    theirs = again.model.state_dict()
    if own.keys() != theirs.keys() or not all(same_bits(theirs[k], t) for k, t in own.items()):
        raise WeightsError("its weights, read back, are not the same")
    _compare(embedder, again.model)
    return config, state


@torch.no_grad()
def _compare(embedder: Embedder, again: Any) -> None:
    """Refuses a model that has the same tensors and computes something else with them."""
    generator = torch.Generator().manual_seed(0)
    vision: Any = embedder.model.tower("image").encoder
    words: Any = embedder.model.tower("text").encoder
    pictures = torch.randn(2, vision.in_channels, *vision.size, generator=generator)
    ids = torch.randint(1, words.vocab_size - 1, (2, words.context_length), generator=generator)
    ids[:, -1] = words.vocab_size - 1
    for name, inputs in (("image", pictures), ("text", ids)):
        apart = embedder.model.embed(name, inputs) - again.eval().embed(name, inputs)
        if not float(apart.abs().max()) < 1e-5:
            raise WeightsError(f"its {name} tower computes something else than theirs")


def _merges(tokenizer: str) -> str:
    """``merges.txt`` of a ``tokenizer.json``."""
    merges = json.loads(tokenizer)["model"]["merges"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    return "\n".join(["#version: 0.2", *pairs]) + "\n"


def _write_inputs(embedder: Embedder, folder: Path, siglip: bool) -> None:
    image, text = (embedder.transforms.get(name) for name in ("image", "text"))
    if isinstance(image, ImageTransform):
        write_processor(image, folder, squeezed=siglip)
    made = None if text is None else settings_of(text).tokenizer
    if made is None:
        return
    (folder / "tokenizer.json").write_text(made, "utf-8")
    words: Any = embedder.model.tower("text").encoder
    about = {"model_max_length": words.context_length}
    if not siglip:
        (folder / "merges.txt").write_text(_merges(made), "utf-8")
        vocabulary = json.dumps(json.loads(made)["model"]["vocab"])
        (folder / "vocab.json").write_text(vocabulary, "utf-8")
        about |= {"tokenizer_class": "CLIPTokenizer"}
        (folder / "modules.json").write_text(json.dumps(MODULES, indent=1) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
