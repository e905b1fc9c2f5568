"""Our CLIP and SigLIP towers as ``transformers`` holds them: the way back of `huggingface`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.pretrained import huggingface
from multimodal.models.pretrained.keys import KeyMap, WeightsError, transposed
from multimodal.models.pretrained.plan import TowerPlan
from multimodal.models.towers import EmbeddingModel, Tower

ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu"}


def as_transformers(
    model: EmbeddingModel, scale: float, bias: float | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of a ``config.json``, and the tensors of ``model.safetensors``.

    Whoever calls reads them back by `inference.importing.import_weights` and compares: a tower
    that only looks like CLIP's is then told apart.

    Args:
        model: with the towers ``image`` and ``text`` and no other.
        scale: of the logits, 1 / temperature.
        bias: of the logits; None for a softmax loss.

    Raises:
        WeightsError: if the towers are not those of CLIP or SigLIP; the message says why.
    """
    vision, words = clip_encoders(model)
    image, text = model.tower("image"), model.tower("text")
    siglip = "encoder.pool.latent" in image.state_dict()
    cfg: dict[str, Any] = {
        "model_type": "siglip" if siglip else "clip",
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "vision_config": _vision(vision),
        "text_config": _text(words, text),
    }
    if not siglip:
        cfg["projection_dim"] = model.embed_dim
        for part in ("vision_config", "text_config"):
            cfg[part]["projection_dim"] = model.embed_dim
    plan = huggingface.describe(cfg, {})
    state: dict[str, Tensor] = {"logit_scale": torch.tensor(math.log(scale))}
    if siglip:
        state |= {"logit_scale": torch.tensor([math.log(scale)])}
        state |= {"logit_bias": torch.tensor([0.0 if bias is None else bias])}
    for name, tower in plan.towers.items():
        assert isinstance(tower, TowerPlan)
        state |= foreign_state(name, model.tower(name).state_dict(), tower.key_map)
    return cfg, {name: tensor.contiguous() for name, tensor in state.items()}


def clip_encoders(model: EmbeddingModel) -> tuple[VisionTransformer, TextTransformer]:
    """The two encoders of a model of CLIP's kind, on square patches of square pictures.

    Raises:
        WeightsError: if it has other towers or encoders.
    """
    if set(model.towers) != {"image", "text"}:
        raise WeightsError(f"it has the towers {', '.join(model.towers)}, not image and text")
    vision, words = model.tower("image").encoder, model.tower("text").encoder
    if not isinstance(vision, VisionTransformer) or not isinstance(words, TextTransformer):
        names = f"{type(vision).__name__} and {type(words).__name__}"
        raise WeightsError(f"its encoders are {names}, not a ViT and a text transformer")
    if getattr(vision.stem, "projection", None) is None or len(set(vision.size)) > 1:
        raise WeightsError("its image tower does not take square patches of square pictures")
    return vision, words


def trunk_settings(encoder: VisionTransformer | TextTransformer) -> dict[str, Any]:
    """Sizes, activation and epsilon of a transformer, as ``transformers`` names them.

    Raises:
        WeightsError: if its blocks are not CLIP's.
    """
    trunk: Any = encoder.trunk
    block: Any = trunk.blocks[0]
    fc1 = getattr(block.mlp, "fc1", None)
    activation: Any = getattr(block.mlp, "activation", None)
    name = ACTIVATIONS.get(type(activation).__name__)
    if fc1 is None or name is None:
        raise WeightsError(f"its blocks have a {type(block.mlp).__name__} that CLIP has not")
    if name == "gelu" and getattr(activation, "approximate", "none") == "tanh":
        name = "gelu_pytorch_tanh"
    return {
        "hidden_size": trunk.width,
        "intermediate_size": fc1.out_features,
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": trunk.num_heads,
        "hidden_act": name,
        "layer_norm_eps": trunk.norm_eps,
    }


def _vision(encoder: VisionTransformer) -> dict[str, Any]:
    stem: Any = encoder.stem
    return {
        **trunk_settings(encoder),
        "image_size": encoder.size[0],
        "patch_size": stem.projection.kernel_size[0],
        "num_channels": stem.projection.in_channels,
    }


def _text(encoder: TextTransformer, tower: Tower) -> dict[str, Any]:
    sizes = trunk_settings(encoder)
    # The class of CLIP before 4.30 took the largest id for the end of a text: so do ours.
    ends: dict[str, Any] = {
        "bos_token_id": encoder.vocab_size - 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    if not encoder.find_end:
        ends = {"projection_size": tower.embed_dim}
    context = {"max_position_embeddings": encoder.context_length, "vocab_size": encoder.vocab_size}
    return {**sizes, **context, **ends}


def foreign_state(name: str, ours: dict[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """The foreign tensors of one tower: those that ours are joined from are cut apart again.

    Args:
        name: of the tower, for messages.
        ours: its state dict.
        key_map: where its tensors came from.

    Raises:
        WeightsError: if it has tensors that the foreign model has not.
    """
    if own := sorted(ours.keys() - key_map.keys()):
        raise WeightsError(f"its {name} tower has what theirs has not: {', '.join(own[:4])}")
    tensors: dict[str, list[Tensor]] = {}
    for key, source in key_map.items():
        if key not in ours:
            continue  # a bias that a map of this model lacks
        whole = ours[key].T if source.change is transposed else ours[key]
        parts = whole.chunk(len(source.names))
        for foreign, part in zip(source.names, parts, strict=True):
            tensors.setdefault(foreign, []).append(part)
    joined = {
        key: parts[0] if len(parts) == 1 else torch.cat(parts) for key, parts in tensors.items()
    }
    return {
        key: tensor.reshape(1, 1, -1) if key.endswith(".probe") else tensor
        for key, tensor in joined.items()
    }
