"""Our CLIP towers as OpenCLIP holds them: the way back of `open_clip`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.pretrained import open_clip
from multimodal.models.pretrained.to_huggingface import clip_encoders, foreign_state, trunk_settings
from multimodal.models.towers import EmbeddingModel

DEFAULT_EPS = 1e-5  # of OpenCLIP's norms


def as_open_clip(
    model: EmbeddingModel, scale: float, bias: float | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The ``model_cfg`` of an ``open_clip_config.json``, and the tensors beside it.

    Whoever calls reads them back and compares, as with `as_transformers`.

    Args:
        model: with the towers ``image`` and ``text`` and no other.
        scale: of the logits, 1 / temperature.
        bias: of the logits; None for a softmax loss.

    Raises:
        WeightsError: if the towers are not those of OpenCLIP; the message says why.
    """
    vision, words = clip_encoders(model)
    image, text = trunk_settings(vision), trunk_settings(words)
    quick = image["hidden_act"] == "quick_gelu"
    stem: Any = vision.stem
    cfg: dict[str, Any] = {
        "embed_dim": model.embed_dim,
        "vision_cfg": {
            "image_size": vision.size[0],
            "patch_size": stem.projection.kernel_size[0],
            **_trunk(vision, image),
            "head_width": image["hidden_size"] // image["num_attention_heads"],
        },
        "text_cfg": {
            "context_length": words.context_length,
            "vocab_size": words.vocab_size,
            **_trunk(words, text),
            "heads": text["num_attention_heads"],
        },
    }
    if quick:
        cfg["quick_gelu"] = True
    if "encoder.trunk.pre_norm.weight" not in model.tower("image").state_dict():
        cfg["vision_cfg"]["no_ln_pre"] = True
    trunk: Any = words.trunk
    if not trunk.causal:
        cfg["text_cfg"]["no_causal_mask"] = True
    if not words.find_end:
        cfg["text_cfg"]["pool_type"] = "last"
    if "head.projection.bias" in model.tower("text").state_dict():
        cfg["text_cfg"]["proj_bias"] = True
    if bias is not None:
        cfg["init_logit_bias"] = bias
    state = {"logit_scale": torch.tensor(math.log(scale))}
    if bias is not None:
        state["logit_bias"] = torch.tensor(bias)
    for name, tower in open_clip.describe(cfg, {}, "open_clip").own_towers().items():
        state |= foreign_state(name, model.tower(name).state_dict(), tower.key_map)
    return cfg, {name: tensor.contiguous() for name, tensor in state.items()}


def _trunk(
    encoder: VisionTransformer | TextTransformer, settings: dict[str, Any]
) -> dict[str, Any]:
    settings_of_trunk = {"width": settings["hidden_size"], "layers": settings["num_hidden_layers"]}
    ratio = settings["intermediate_size"] / settings["hidden_size"]
    if ratio != 4:
        settings_of_trunk["mlp_ratio"] = ratio
    if settings["hidden_act"] == "gelu_pytorch_tanh":
        settings_of_trunk["act_kwargs"] = {"approximate": "tanh"}
    if settings["layer_norm_eps"] != DEFAULT_EPS:
        settings_of_trunk["norm_kwargs"] = {"eps": settings["layer_norm_eps"]}
    trunk: Any = encoder.trunk
    factor = getattr(trunk.blocks[0].scale_1, "scale", None)
    if factor is not None:  # what it begins as plays no part in trained weights
        settings_of_trunk["ls_init_value"] = 1e-5
    return settings_of_trunk
