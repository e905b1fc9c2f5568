"""Tiny random vision-language models, and pictures and texts for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from connected_cases import Letters
from torch import Tensor

from multimodal.data.transforms.image import ColourJitter
from multimodal.data.transforms.patches import PatchTransform
from multimodal.models.encoders.libraries.vision_language import VisionLanguageEncoder
from multimodal.models.heads import IdentityHead
from multimodal.models.towers import EmbeddingModel, Tower

WIDTH, SIDE, IMAGE_TOKEN, VIDEO_TOKEN = 16, 8, 40, 41
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
VISION = {"depth": 2, "num_heads": 2, "patch_size": SIDE // 2, "spatial_merge_size": 2,
          "hidden_size": WIDTH, "intermediate_size": 24, "out_hidden_size": WIDTH}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**VISION, "embed_dim": 8, "mlp_ratio": 2},
    "qwen2_5_vl": {**VISION, "window_size": 16, "fullatt_block_indexes": [1]},
    "qwen3_vl": {**VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
}
del KINDS["qwen2_vl"]["intermediate_size"], KINDS["qwen2_vl"]["out_hidden_size"]
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "bos_token_id": None, "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
}  # fmt: skip


class Signs(Letters):
    """Of any sign, digits too."""

    def encode(self, text: str) -> list[int]:
        return [5 + ord(sign) % 27 for sign in text]


def config(kind: str = "qwen2_vl") -> dict[str, Any]:
    tokens = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN,
              "vision_start_token_id": 42, "vision_end_token_id": 43}  # fmt: skip
    return {"model_type": kind, "vision_config": KINDS[kind], "text_config": TEXT, **tokens}


def encoder(kind: str = "qwen2_vl", **choices: Any) -> VisionLanguageEncoder:
    given: dict[str, Any] = {"config": config(kind), "template": "see {} now", **choices}
    return VisionLanguageEncoder(Signs(), **given)


def model(one: VisionLanguageEncoder, **choices: Any) -> EmbeddingModel:
    """Texts and pictures by one tower."""
    tower = Tower(one, partial(IdentityHead, embed_dim=WIDTH), **choices)
    return EmbeddingModel({"text": tower, "image": "text"})


def transform() -> PatchTransform:
    return PatchTransform(SIDE, 12, MEAN, STD, colours=ColourJitter())


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """uint8 of so many tokens, which no transform has to resize."""
    rng = np.random.default_rng((seed, rows, columns))
    return rng.integers(0, 256, (rows * SIDE, columns * SIDE, 3), dtype=np.uint8)


def pictures(*grids: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A batch of pictures of these grids, and its mask."""
    made = transform()
    inputs, mask = made.collate([made(picture(*grid), None) for grid in grids])
    assert mask is not None
    return inputs, mask
