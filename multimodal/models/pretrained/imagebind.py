"""ImageBind: six modalities around the image.

Source: Girdhar et al. 2023, "ImageBind: One Embedding Space To Bind Them All", section 3.2 and
appendix; the names are those of its released weights, whose licence is CC BY-NC-SA 4.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import KeyMap, affine, changed, flat, rows, same
from multimodal.models.pretrained.open_clip import clip_text_transform
from multimodal.models.pretrained.plan import Config, Plan, Settings, TowerPlan

EPS = 1e-6  # of every LayerNorm but those of the stems
SCALES = {"text": p.START_SCALE, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
MAX_SCALE = 100.0
HUGE = {  # width, layers, heads of the released model
    "vision": (1280, 32, 16), "text": (1024, 24, 16), "audio": (768, 12, 12),
    "depth": (384, 12, 8), "thermal": (768, 12, 12), "imu": (512, 6, 8),
}  # fmt: skip
DROP_PATH = {"audio": 0.1, "imu": 0.7}
STEMS = {"audio": "rgbt_stem", "thermal": "rgbt_stem", "depth": "depth_stem", "imu": "imu_stem"}


def huge() -> dict[str, Any]:
    """The configuration of the released model."""
    sizes: dict[str, Any] = {"out_embed_dim": 1024}
    for name, values in HUGE.items():
        keys = (f"{name}_embed_dim", f"{name}_num_blocks", f"{name}_num_heads")
        sizes |= dict(zip(keys, values, strict=True))
    return sizes


def describe(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> Plan:
    """The plan of an ImageBind model.

    Args:
        cfg: ``out_embed_dim`` and for each modality ``*_embed_dim``, ``*_num_blocks``,
            ``*_num_heads``; the rest (kernels, strides, frames, drop paths) where it differs from
            the released model.
        state: the tensors; for their names only.

    Raises:
        WeightsError: if given settings that our towers do not have.
    """
    settings = Settings(cfg, "the configuration")
    embed_dim = settings("out_embed_dim", 1024)
    plans = {name: _tower(name, settings, embed_dim) for name in HUGE}
    settings.done()
    towers: dict[str, TowerPlan | str] = {"image": plans.pop("vision"), "video": "image", **plans}
    return Plan(towers, embed_dim, ignored=("modality_preprocessors.text.mask",))


def _tower(name: str, settings: Settings, embed_dim: int) -> TowerPlan:
    width, num_layers, num_heads = (
        settings(f"{name}_{key}", released)
        for key, released in zip(("embed_dim", "num_blocks", "num_heads"), HUGE[name], strict=True)
    )
    trunk = p.transformer(
        width, num_layers, num_heads,
        causal=name == "text", pre_norm=name == "vision", bias_kv=name in STEMS,
        drop_path=settings(f"{name}_drop_path", DROP_PATH.get(name, 0.0)) if name in STEMS else 0.0,
        norm_eps=EPS,
    )  # fmt: skip
    encoder, grid, transform = _encoder(name, settings, trunk)
    head = p.linear_head(embed_dim, dropout=0.5 if name == "imu" else 0.0)
    return TowerPlan(
        p.tower(encoder, head, SCALES.get(name)), _key_map(name, num_layers), grid, transform
    )


def _encoder(
    name: str, settings: Settings, trunk: Config
) -> tuple[Config, tuple[int, ...], Config | None]:
    """The encoder's block, the grid of its positions, its transform."""
    if name == "vision":
        frames, kernel = settings("video_frames", 2), settings("kernel_size", [2, 14, 14])
        encoder = p.vision(224, p.patch_stem(list(kernel), bias=False), trunk)
        encoder["_target_"] = "multimodal.models.VideoTransformer"
        encoder["num_frames"] = frames
        grid = tuple(size // k for size, k in zip((frames, 224, 224), kernel, strict=True))
        return encoder, grid, p.image_transform(224, p.CLIP_MEAN, p.CLIP_STD)
    if name == "text":
        return p.text(49408, 77, trunk), (77,), clip_text_transform(77)
    if name == "imu":
        window = settings("imu_kernel_size", 8)
        encoder = {
            "_target_": "multimodal.models.IMUTransformer", "in_channels": 6,
            "length": 2000, "stem": p.patch_stem(window, bias=False, norm=True), "trunk": trunk,
        }  # fmt: skip
        return encoder, (2000 // window,), None
    kernel = settings(f"{name}_kernel_size", 16)
    if name == "audio":
        stride = settings("audio_stride", 10)
        bins, frames = settings("audio_num_mel_bins", 128), settings("audio_target_len", 204)
        stem = p.patch_stem(kernel, stride=stride, bias=False, norm=True)
        encoder = {
            "_target_": "multimodal.models.AudioTransformer", "num_mel_bins": bins,
            "num_frames": frames, "stem": stem, "trunk": trunk,
        }  # fmt: skip
        return encoder, ((bins - kernel) // stride + 1, (frames - kernel) // stride + 1), None
    stem = p.patch_stem(kernel, bias=False, norm=True)
    return p.vision(224, stem, trunk, in_channels=1), (224 // kernel,) * 2, None


def _key_map(name: str, num_layers: int) -> KeyMap:
    before, head = f"modality_preprocessors.{name}", f"modality_heads.{name}"
    trunk = f"modality_trunks.{name}"
    helper = ".pos_embedding_helper" if name not in ("text", "imu") else ""
    key_map = changed("encoder.positions", f"{before}{helper}.pos_embed", rows)
    key_map |= changed("encoder.class_token", f"{before}.cls_token", flat)
    key_map |= same("encoder.embedding.weight", f"{before}.token_embedding.weight")
    if name == "vision":
        key_map |= same("encoder.stem.projection.weight", f"{before}.rgbt_stem.proj.1.weight")
        key_map |= affine("encoder.trunk.pre_norm", f"{trunk}.pre_transformer_layer.0")
    if name in STEMS:
        stem = f"{before}.{STEMS[name]}"
        key_map |= affine("encoder.stem.norm", f"{stem}.norm_layer")
        change = _windows if name == "imu" else _unchanged
        key_map |= changed("encoder.stem.projection.weight", f"{stem}.proj.weight", change)
    key_map |= _blocks(f"{trunk}.blocks", num_layers)
    norm, projection = (
        (f"{head}.proj.0", f"{head}.proj.1") if name == "text"
        else (f"{head}.0", f"{head}.3" if name == "imu" else f"{head}.2")
    )  # fmt: skip
    key_map |= affine("encoder.trunk.norm", norm)  # before the choice of the token: the same
    key_map |= same("head.projection.weight", f"{projection}.weight")
    if name in SCALES:
        key_map |= changed("scale", f"modality_postprocessors.{name}.1.log_logit_scale", _scale)
    return key_map


def _blocks(theirs: str, num_layers: int) -> KeyMap:
    key_map: KeyMap = {}
    for index in range(num_layers):
        own, foreign = f"encoder.trunk.blocks.{index}", f"{theirs}.{index}"
        for name in ("norm_1", "norm_2", "mlp.fc1", "mlp.fc2"):
            key_map |= affine(f"{own}.{name}", f"{foreign}.{name}")
        for part in ("weight", "bias"):
            key_map |= same(f"{own}.attention.qkv.{part}", f"{foreign}.attn.in_proj_{part}")
        key_map |= affine(f"{own}.attention.out", f"{foreign}.attn.out_proj")
        for name in ("bias_k", "bias_v"):
            key_map |= changed(f"{own}.attention.{name}", f"{foreign}.attn.{name}", flat)
    return key_map


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _windows(weight: Tensor) -> Tensor:
    """The linear map of flattened windows ``[W, 6 * n]`` as a convolution ``[W, 6, n]``."""
    return weight.view(len(weight), 6, -1)


def _scale(logarithm: Tensor) -> Tensor:
    return logarithm.exp().clamp(max=MAX_SCALE)
