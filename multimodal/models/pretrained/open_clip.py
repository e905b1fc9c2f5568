"""OpenAI's CLIP and OpenCLIP's own towers, of which the names are the same.

Sources: Radford et al. 2021 (CLIP); Ilharco et al. 2021 (OpenCLIP). OpenAI's weights were trained
with QuickGELU; OpenCLIP's configuration says it of each model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import (
    KeyMap,
    WeightsError,
    affine,
    changed,
    same,
    transposed,
)
from multimodal.models.pretrained.plan import Plan, Settings, TowerPlan

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # numbers kept as tensors


def blocks(ours: str, theirs: str, num_layers: int) -> KeyMap:
    """The residual blocks of a CLIP transformer."""
    key_map: KeyMap = {}
    for index in range(num_layers):
        own, foreign = f"{ours}.{index}", f"{theirs}.{index}"
        for norm in ("1", "2"):
            key_map |= affine(f"{own}.norm_{norm}", f"{foreign}.ln_{norm}")
            key_map |= same(f"{own}.scale_{norm}.scale", f"{foreign}.ls_{norm}.gamma")
        for part in ("weight", "bias"):
            key_map |= same(f"{own}.attention.qkv.{part}", f"{foreign}.attn.in_proj_{part}")
        key_map |= affine(f"{own}.attention.out", f"{foreign}.attn.out_proj")
        key_map |= affine(f"{own}.mlp.fc1", f"{foreign}.mlp.c_fc")
        key_map |= affine(f"{own}.mlp.fc2", f"{foreign}.mlp.c_proj")
    return key_map


def describe(cfg: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> Plan:
    """The plan of a configuration with ``embed_dim``, ``vision_cfg`` and ``text_cfg``.

    Args:
        cfg: as OpenCLIP writes it (``model_cfg`` of its ``open_clip_config.json``).
        state: the tensors; for their names only.
        source: ``openai`` makes QuickGELU the default.

    Raises:
        WeightsError: if given settings that our towers do not have.
    """
    settings = Settings(cfg, "the configuration")
    embed_dim = settings.need("embed_dim")
    quick = settings("quick_gelu", source == "openai")
    image = Settings(settings.need("vision_cfg"), "vision_cfg")
    words = Settings(settings.need("text_cfg"), "text_cfg")
    settings.expect("custom_text", False, True)
    settings.expect("init_logit_bias", None, settings("init_logit_bias"))
    settings("init_logit_scale")
    settings.done()
    towers: dict[str, TowerPlan | str] = {
        "image": _image(image, embed_dim, quick),
        "text": text_tower(words, embed_dim, quick, "text." if _is_custom(state) else ""),
    }
    bias = "logit_bias" if "logit_bias" in state else None
    prefix = "text." if _is_custom(state) else ""
    return Plan(
        towers, embed_dim, ("image", "text"), "logit_scale", bias,
        ignored=(*OPENAI_SIZES, f"{prefix}attn_mask"),
    )  # fmt: skip


def _is_custom(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("text.") for name in state)


def _activation(settings: Settings, quick: bool) -> str:
    keywords = settings("act_kwargs", {}) or {}
    if unknown := set(keywords) - {"approximate"}:
        raise WeightsError(f"{settings.where}.act_kwargs: unknown {', '.join(sorted(unknown))}")
    if quick:
        return "quick_gelu"
    return "gelu_tanh" if keywords.get("approximate") == "tanh" else "gelu"


def _norm_eps(settings: Settings) -> float:
    keywords = settings("norm_kwargs", {}) or {}
    if unknown := set(keywords) - {"eps"}:
        raise WeightsError(f"{settings.where}.norm_kwargs: unknown {', '.join(sorted(unknown))}")
    return float(keywords.get("eps", 1e-5))


def _image(settings: Settings, embed_dim: int, quick: bool) -> TowerPlan:
    if settings("timm_model_name"):
        raise WeightsError("vision_cfg has a timm model: import it with source=siglip")
    if isinstance(settings("layers", 12), list):
        raise WeightsError("a ResNet (vision_cfg.layers is a list): only ViTs are built here")
    width, head_width = settings("width", 768), settings("head_width", 64)
    image_size, patch = settings("image_size", 224), settings("patch_size", 16)
    settings.expect("attentional_pool", False)
    settings.expect("final_ln_after_pool", False)
    settings.expect("pos_embed_type", "learnable")
    settings.expect("input_patchnorm", False)
    settings.expect("global_average_pool", False)
    settings.expect("pool_type", "tok")
    settings("output_tokens")  # matters to the loader of the other project only
    num_layers, dropped = settings("layers", 12), settings("patch_dropout", 0.0)
    trunk = p.transformer(
        width, num_layers, width // head_width,
        mlp_ratio=settings("mlp_ratio", 4.0),
        activation=_activation(settings, quick),
        pre_norm=not settings("no_ln_pre", False),
        layer_scale=settings("ls_init_value"),
        norm_eps=_norm_eps(settings),
    )  # fmt: skip
    settings.done()
    key_map = (
        same("encoder.stem.projection.weight", "visual.conv1.weight")
        | same("encoder.class_token", "visual.class_embedding")
        | same("encoder.positions", "visual.positional_embedding")
        | affine("encoder.trunk.pre_norm", "visual.ln_pre")
        | blocks("encoder.trunk.blocks", "visual.transformer.resblocks", num_layers)
        | affine("encoder.trunk.norm", "visual.ln_post")
        | changed("head.projection.weight", "visual.proj", transposed)
    )
    stem, training = p.patch_stem(patch, bias=False), {"patch_dropout": dropped} if dropped else {}
    encoder = p.vision(image_size, stem, trunk, pooling="class", **training)
    sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    return TowerPlan(
        p.tower(encoder, p.linear_head(embed_dim)),
        key_map,
        (sides[0] // patch, sides[1] // patch),
        p.image_transform(image_size, p.CLIP_MEAN, p.CLIP_STD),
    )


def text_tower(settings: Settings, embed_dim: int, quick: bool, prefix: str) -> TowerPlan:
    """OpenCLIP's text tower, causal or not, under ``prefix``."""
    if settings("hf_model_name"):
        raise WeightsError("text_cfg has a Hugging Face model: use encoder=huggingface for it")
    width, num_layers = settings("width", 512), settings("layers", 12)
    context, vocab = settings("context_length", 77), settings("vocab_size", 49408)
    settings.expect("embed_cls", False)
    settings.expect("proj_type", "linear")
    bidirectional = settings("no_causal_mask", False)
    pool, bias = settings("pool_type", "argmax"), settings("proj_bias", False)
    if pool not in ("argmax", "last"):
        raise WeightsError(f"text_cfg.pool_type = {pool!r} is not built here: argmax or last")
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "eos_id", "output_tokens",
                "final_ln_after_pool", "hf_model_pretrained"):  # fmt: skip
        settings(key)
    trunk = p.transformer(
        width, num_layers, settings("heads", 8),
        mlp_ratio=settings("mlp_ratio", 4.0),
        activation=_activation(settings, quick),
        causal=not bidirectional,
        layer_scale=settings("ls_init_value"),
        norm_eps=_norm_eps(settings),
    )  # fmt: skip
    settings.done()
    key_map = (
        same("encoder.embedding.weight", f"{prefix}token_embedding.weight")
        | same("encoder.positions", f"{prefix}positional_embedding")
        | blocks("encoder.trunk.blocks", f"{prefix}transformer.resblocks", num_layers)
        | affine("encoder.trunk.norm", f"{prefix}ln_final")
    )
    if bias:
        key_map |= affine("head.projection", f"{prefix}text_projection")
    else:
        key_map |= changed("head.projection.weight", f"{prefix}text_projection", transposed)
    encoder = p.text(
        vocab, context, trunk,
        pooling="end" if pool == "argmax" else "last", attend_padding=pool == "last",
    )  # fmt: skip
    clip = vocab == 49408 and pool == "argmax"
    return TowerPlan(
        p.tower(encoder, p.linear_head(embed_dim, bias=bias)),
        key_map,
        (context,),
        clip_text_transform(context) if clip else None,
    )


def clip_text_transform(context_length: int) -> p.Config:
    """The block of the transform for texts that CLIP's vocabulary encodes."""
    tokenizer = {"_target_": "multimodal.data.CLIPTokenizer", "vocabulary": None}
    target = "multimodal.data.TextTransform"
    return {"_target_": target, "tokenizer": tokenizer, "context_length": context_length}


def configuration_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of an OpenAI checkpoint, from its shapes: its heads all are 64 wide.

    Raises:
        WeightsError: if the tensors are of something else.
    """
    if "visual.layer1.0.conv1.weight" in state:
        raise WeightsError("these weights are of a CLIP ResNet: only ViTs are built here")
    width, _, patch, _ = p.shape_of(state, "visual.conv1.weight")
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    text_width = p.shape_of(state, "ln_final.weight")[0]
    return {
        "embed_dim": p.shape_of(state, "text_projection")[1],
        "vision_cfg": {
            "image_size": grid * patch, "patch_size": patch, "width": width,
            "layers": p.count_blocks(state, "visual.transformer.resblocks."),
        },
        "text_cfg": {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": len(state["token_embedding.weight"]),
            "width": text_width, "heads": text_width // 64,
            "layers": p.count_blocks(state, "transformer.resblocks."),
        },
    }  # fmt: skip
