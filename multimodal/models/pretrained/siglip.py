"""SigLIP as OpenCLIP holds it: a timm ViT that pools by attention, a bidirectional text tower.

Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; no class token, biased
patches, no projection of the image, a projection with bias of the last text token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import (
    KeyMap,
    WeightsError,
    affine,
    changed,
    flat,
    rows,
    same,
)
from multimodal.models.pretrained.open_clip import text_tower
from multimodal.models.pretrained.plan import Plan, Settings, TowerPlan

TIMM_SIZES = {  # timm's names of ViTs -> width, layers, heads, MLP ratio
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 4304 / 1152),
    "giantopt": (1536, 40, 16, 4.0),
}
NAME = re.compile(r"vit_(?P<size>[a-z0-9]+)_patch(?P<patch>\d+)_siglip")


def describe(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> Plan:
    """The plan of a SigLIP model.

    Args:
        cfg: OpenCLIP's (``embed_dim``, ``vision_cfg`` with a ``timm_model_name``, ``text_cfg``), or
            one that spells the image tower out: ``embed_dim``, ``width``, ``heads``, ``layers``,
            ``patch`` and ``text_cfg``, perhaps ``mlp_ratio`` and ``image_size``.
        state: the tensors; a square image size that the configuration lacks is read from them.

    Raises:
        WeightsError: if given settings that our towers do not have.
    """
    settings = Settings(cfg, "the configuration")
    embed_dim = settings.need("embed_dim")
    settings.expect("custom_text", True, False)
    for key in ("init_logit_bias", "init_logit_scale"):
        settings(key)
    words = Settings(settings.need("text_cfg"), "text_cfg")
    if settings("vision_cfg"):
        image = _from_timm(Settings(settings.need("vision_cfg"), "vision_cfg"))
    else:
        keys = ("width", "heads", "layers", "patch")
        image = {key: settings.need(key) for key in keys}
        image |= {"mlp_ratio": settings("mlp_ratio", 4.0), "image_size": settings("image_size")}
        image |= {"activation": settings("activation", "gelu")}
    quick = settings("quick_gelu", False)
    settings.done()
    towers: dict[str, TowerPlan | str] = {
        "image": _image(image, embed_dim, state),
        "text": text_tower(words, embed_dim, quick, "text."),
    }
    return Plan(towers, embed_dim, ("image", "text"), "logit_scale", "logit_bias")


def _from_timm(settings: Settings) -> dict[str, Any]:
    name = settings.need("timm_model_name")
    match = NAME.match(name)
    if match is None or match["size"] not in TIMM_SIZES:
        known = ", ".join(TIMM_SIZES)
        raise WeightsError(f"{name}: expected vit_SIZE_patchN_siglip..., SIZE one of {known}")
    settings.expect("timm_pool", "map")
    settings.expect("timm_proj", "none")
    for key in ("timm_model_pretrained", "timm_drop", "timm_drop_path", "timm_proj_bias"):
        settings(key)
    width, layers, heads, mlp_ratio = TIMM_SIZES[match["size"]]
    image_size = settings("image_size", 224)
    settings.done()
    # timm gives the tanh form to the sizes that were trained with it and published later.
    tanh = match["size"] in ("so400m", "giantopt")
    return {
        "width": width, "heads": heads, "layers": layers, "patch": int(match["patch"]),
        "mlp_ratio": mlp_ratio, "image_size": image_size,
        "activation": "gelu_tanh" if tanh else "gelu",
    }  # fmt: skip


def _image(image: Mapping[str, Any], embed_dim: int, state: Mapping[str, Tensor]) -> TowerPlan:
    width, patch, num_layers = image["width"], image["patch"], image["layers"]
    side = image["image_size"]
    if side is None:
        side = patch * round(p.shape_of(state, "visual.trunk.pos_embed")[-2] ** 0.5)
    trunk = p.transformer(
        width, num_layers, image["heads"],
        mlp_ratio=image["mlp_ratio"], activation=image["activation"], norm_eps=1e-6,
    )  # fmt: skip
    encoder = p.vision(side, p.patch_stem(patch, bias=True), trunk, pooling="attention")
    sides = [side] * 2 if isinstance(side, int) else list(side)
    return TowerPlan(
        p.tower(encoder, p.identity_head(embed_dim)),
        trunk_map("visual.trunk", num_layers),
        (sides[0] // patch, sides[1] // patch),
        p.image_transform(side, [0.5] * 3, [0.5] * 3),
    )


def trunk_map(theirs: str, num_layers: int) -> KeyMap:
    """A timm ViT with an attention pool."""
    key_map = (
        affine("encoder.stem.projection", f"{theirs}.patch_embed.proj")
        | changed("encoder.positions", f"{theirs}.pos_embed", rows)
        | affine("encoder.trunk.norm", f"{theirs}.norm")
        | changed("encoder.pool.latent", f"{theirs}.attn_pool.latent", flat)
        | affine("encoder.pool.attention.out", f"{theirs}.attn_pool.proj")
        | affine("encoder.pool.norm", f"{theirs}.attn_pool.norm")
    )
    for name in ("q", "kv"):
        key_map |= affine(f"encoder.pool.attention.{name}", f"{theirs}.attn_pool.{name}")
    for name in ("fc1", "fc2"):
        key_map |= affine(f"encoder.pool.mlp.{name}", f"{theirs}.attn_pool.mlp.{name}")
    for index in range(num_layers):
        own, foreign = f"encoder.trunk.blocks.{index}", f"{theirs}.blocks.{index}"
        key_map |= (
            affine(f"{own}.norm_1", f"{foreign}.norm1")
            | affine(f"{own}.norm_2", f"{foreign}.norm2")
            | affine(f"{own}.attention.qkv", f"{foreign}.attn.qkv")
            | affine(f"{own}.attention.out", f"{foreign}.attn.proj")
            | affine(f"{own}.mlp.fc1", f"{foreign}.mlp.fc1")
            | affine(f"{own}.mlp.fc2", f"{foreign}.mlp.fc2")
            | same(f"{own}.scale_1.scale", f"{foreign}.ls1.gamma")
            | same(f"{own}.scale_2.scale", f"{foreign}.ls2.gamma")
        )
    return key_map
