"""Whisper's encoder, in OpenAI's layout and in that of ``transformers``.

The sizes are read from the tensors; every head is 64 wide (Radford et al. 2022, table 1). Its
decoder is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import KeyMap, TensorSource, WeightsError, affine, same
from multimodal.models.pretrained.plan import Plan, TowerPlan, count_blocks, shape_of

HEAD_WIDTH = 64
# Names of OpenAI's layout, and of that of `transformers`.
OPENAI = {
    "prefix": "encoder.", "blocks": "encoder.blocks.", "positions": "encoder.positional_embedding",
    "norm": "encoder.ln_post", "norm_1": "attn_ln", "norm_2": "mlp_ln", "q": "attn.query",
    "k": "attn.key", "v": "attn.value", "out": "attn.out", "fc1": "mlp.0", "fc2": "mlp.2",
}  # fmt: skip
TRANSFORMERS = {
    "prefix": "encoder.", "blocks": "encoder.layers.",
    "positions": "encoder.embed_positions.weight", "norm": "encoder.layer_norm",
    "norm_1": "self_attn_layer_norm", "norm_2": "final_layer_norm", "q": "self_attn.q_proj",
    "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj", "fc1": "fc1",
    "fc2": "fc2",
}  # fmt: skip


def describe(cfg: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Plan:
    """The plan of a state dict, its names without what stands before ``encoder.``.

    Args:
        cfg: ``num_heads`` where the heads are not 64 wide; or the ``config.json`` of
            ``transformers``.
        state: the tensors.

    Raises:
        WeightsError: if the names are of neither layout.
    """
    layouts = [names for names in (OPENAI, TRANSFORMERS) if names["positions"] in state]
    if not layouts:
        raise WeightsError(
            f"weights of Whisper hold {OPENAI['positions']} or {TRANSFORMERS['positions']}; these "
            f"begin with {', '.join(sorted(state)[:3])}"
        )
    names = layouts[0]
    context_length, width = shape_of(state, names["positions"])
    num_mel_bins = shape_of(state, "encoder.conv1.weight")[1]
    num_layers = count_blocks(state, names["blocks"])
    settings = cfg or {}
    heads = settings.get("num_heads") or settings.get("encoder_attention_heads")
    key_map = (
        same("encoder.positions", names["positions"])
        | affine("encoder.conv_1", "encoder.conv1")
        | affine("encoder.conv_2", "encoder.conv2")
        | affine("encoder.trunk.norm", names["norm"])
    )
    for index in range(num_layers):
        key_map |= _block(f"encoder.trunk.blocks.{index}", f"{names['blocks']}{index}", names)
    encoder = {
        "_target_": "multimodal.models.WhisperEncoder",
        "num_mel_bins": num_mel_bins, "context_length": context_length,
        "trunk": p.transformer(width, num_layers, heads or width // HEAD_WIDTH),
        "pooling": "mean",
    }  # fmt: skip
    transform = {"_target_": "multimodal.data.WhisperTransform", "num_mel_bins": num_mel_bins}
    tower = TowerPlan(
        p.tower(encoder, p.identity_head(width)), key_map, (context_length,), transform
    )
    ignored = tuple(name for name in state if not name.startswith("encoder."))
    return Plan({"audio": tower}, width, ignored=ignored)


def _block(ours: str, theirs: str, names: Mapping[str, str]) -> KeyMap:
    query, key, value = (f"{theirs}.{names[part]}" for part in "qkv")
    return (
        affine(f"{ours}.norm_1", f"{theirs}.{names['norm_1']}")
        | affine(f"{ours}.norm_2", f"{theirs}.{names['norm_2']}")
        | affine(f"{ours}.attention.out", f"{theirs}.{names['out']}")
        | affine(f"{ours}.mlp.fc1", f"{theirs}.{names['fc1']}")
        | affine(f"{ours}.mlp.fc2", f"{theirs}.{names['fc2']}")
        | {
            f"{ours}.attention.qkv.weight": TensorSource(
                (f"{query}.weight", f"{key}.weight", f"{value}.weight"), _stacked
            ),
            # Whisper's keys have no bias.
            f"{ours}.attention.qkv.bias": TensorSource(
                (f"{query}.bias", f"{value}.bias"), _without_key
            ),
        }
    )


def _stacked(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _without_key(query: Tensor, value: Tensor) -> Tensor:
    return torch.cat([query, torch.zeros_like(query), value])
