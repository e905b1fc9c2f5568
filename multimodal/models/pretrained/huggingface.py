"""Checkpoints of ``transformers``' CLIP and SigLIP, for our own towers.

Other architectures of ``transformers`` run unchanged, with ``encoder=huggingface``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import (
    KeyMap,
    TensorSource,
    WeightsError,
    affine,
    changed,
    flat,
    joined,
    same,
)
from multimodal.models.pretrained.open_clip import clip_text_transform
from multimodal.models.pretrained.plan import Plan, TowerPlan

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# What `transformers` assumes of a setting that a file leaves out.
CLIP_TEXT = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49408,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
CLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
SIGLIP_TEXT = {
    **CLIP_TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "max_position_embeddings": 64, "vocab_size": 32000, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}  # fmt: skip
SIGLIP_VISION = {
    **CLIP_VISION, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip


def describe(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> Plan:
    """The plan of a ``config.json`` whose ``model_type`` is ``clip`` or ``siglip``.

    Args:
        cfg: the file's content.
        state: the tensors; for their names only.

    Raises:
        WeightsError: if given another model, or a part that ours does not have.
    """
    kind = cfg.get("model_type")
    if kind not in ("clip", "siglip"):
        raise WeightsError(
            f"model_type {kind!r}: our towers hold 'clip' and 'siglip' of transformers; anything "
            "else runs unchanged with encoder=huggingface"
        )
    is_clip = kind == "clip"
    image = {**(CLIP_VISION if is_clip else SIGLIP_VISION), **(cfg.get("vision_config") or {})}
    words = {**(CLIP_TEXT if is_clip else SIGLIP_TEXT), **(cfg.get("text_config") or {})}
    embed_dim = cfg.get("projection_dim") or 512 if is_clip else image["hidden_size"]
    if not is_clip and (words.get("projection_size") or words["hidden_size"]) != embed_dim:
        raise WeightsError("SigLIP's text projection must be as wide as its image tower")
    towers: dict[str, TowerPlan | str] = {
        "image": _image(image, embed_dim, is_clip),
        "text": _text(words, embed_dim, is_clip),
    }
    ignored = tuple(name for name in state if name.endswith(".position_ids"))
    bias = None if is_clip else "logit_bias"
    return Plan(towers, embed_dim, ("image", "text"), "logit_scale", bias, ignored)


def _trunk(settings: Mapping[str, Any], **choices: Any) -> p.Config:
    if settings["hidden_act"] not in ACTIVATIONS:
        raise WeightsError(
            f"hidden_act {settings['hidden_act']!r}: known are {', '.join(ACTIVATIONS)}"
        )
    return p.transformer(
        settings["hidden_size"], settings["num_hidden_layers"], settings["num_attention_heads"],
        mlp_ratio=settings["intermediate_size"] / settings["hidden_size"],
        activation=ACTIVATIONS[settings["hidden_act"]],
        norm_eps=settings["layer_norm_eps"],
        **choices,
    )  # fmt: skip


def _image(settings: Mapping[str, Any], embed_dim: int, is_clip: bool) -> TowerPlan:
    size, patch = settings["image_size"], settings["patch_size"]
    theirs, num_layers = "vision_model", settings["num_hidden_layers"]
    embeddings = f"{theirs}.embeddings"
    key_map = (
        affine("encoder.stem.projection", f"{embeddings}.patch_embedding")
        | same("encoder.class_token", f"{embeddings}.class_embedding")
        | same("encoder.positions", f"{embeddings}.position_embedding.weight")
        | affine("encoder.trunk.pre_norm", f"{theirs}.pre_layrnorm")  # their spelling
        | affine("encoder.trunk.norm", f"{theirs}.post_layernorm")
        | _blocks(f"{theirs}.encoder.layers", num_layers)
        | same("head.projection.weight", "visual_projection.weight")
        | ({} if is_clip else _attention_pool(f"{theirs}.head", settings["hidden_size"]))
    )
    encoder = p.vision(
        size, p.patch_stem(patch, bias=not is_clip), _trunk(settings, pre_norm=is_clip),
        in_channels=settings.get("num_channels") or 3,
        pooling="class" if is_clip else "attention",
    )  # fmt: skip
    head = p.linear_head(embed_dim) if is_clip else p.identity_head(embed_dim)
    mean, std = (p.CLIP_MEAN, p.CLIP_STD) if is_clip else ([0.5] * 3, [0.5] * 3)
    return TowerPlan(
        p.tower(encoder, head), key_map, (size // patch,) * 2, p.image_transform(size, mean, std)
    )


def _text(settings: Mapping[str, Any], embed_dim: int, is_clip: bool) -> TowerPlan:
    context, vocab = settings["max_position_embeddings"], settings["vocab_size"]
    theirs, num_layers = "text_model", settings["num_hidden_layers"]
    projection = "text_projection" if is_clip else f"{theirs}.head"
    key_map = (
        same("encoder.embedding.weight", f"{theirs}.embeddings.token_embedding.weight")
        | same("encoder.positions", f"{theirs}.embeddings.position_embedding.weight")
        | _blocks(f"{theirs}.encoder.layers", num_layers)
        | affine("encoder.trunk.norm", f"{theirs}.final_layer_norm")
        | affine("head.projection", projection)
    )
    encoder = p.text(
        vocab, context, _trunk(settings, causal=is_clip),
        pooling="end" if is_clip else "last", attend_padding=not is_clip,
    )  # fmt: skip
    return TowerPlan(
        p.tower(encoder, p.linear_head(embed_dim, bias=not is_clip)),
        key_map,
        (context,),
        clip_text_transform(context) if is_clip and vocab == 49408 else None,
    )


def _blocks(theirs: str, num_layers: int) -> KeyMap:
    key_map: KeyMap = {}
    for index in range(num_layers):
        own, foreign = f"encoder.trunk.blocks.{index}", f"{theirs}.{index}"
        projections = [f"{foreign}.self_attn.{name}_proj" for name in "qkv"]
        key_map |= (
            affine(f"{own}.norm_1", f"{foreign}.layer_norm1")
            | affine(f"{own}.norm_2", f"{foreign}.layer_norm2")
            | joined(f"{own}.attention.qkv", projections)
            | affine(f"{own}.attention.out", f"{foreign}.self_attn.out_proj")
            | affine(f"{own}.mlp.fc1", f"{foreign}.mlp.fc1")
            | affine(f"{own}.mlp.fc2", f"{foreign}.mlp.fc2")
        )
    return key_map


def _attention_pool(theirs: str, width: int) -> KeyMap:
    """SigLIP's pooling, whose query, key and value maps are one tensor in ``transformers``."""
    key_map = (
        changed("encoder.pool.latent", f"{theirs}.probe", flat)
        | affine("encoder.pool.attention.out", f"{theirs}.attention.out_proj")
        | affine("encoder.pool.norm", f"{theirs}.layernorm")
        | affine("encoder.pool.mlp.fc1", f"{theirs}.mlp.fc1")
        | affine("encoder.pool.mlp.fc2", f"{theirs}.mlp.fc2")
    )
    for part in ("weight", "bias"):
        name = (f"{theirs}.attention.in_proj_{part}",)
        key_map[f"encoder.pool.attention.q.{part}"] = TensorSource(name, lambda x: x[:width])
        key_map[f"encoder.pool.attention.kv.{part}"] = TensorSource(name, lambda x: x[width:])
    return key_map
