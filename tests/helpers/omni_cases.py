"""A tiny random model of the Qwen-Omni kind, and what goes into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vlm_cases import IMAGE_TOKEN, TEXT, VIDEO_TOKEN, VISION, WIDTH, Signs

from multimodal.models.encoders.libraries.vision_language import VisionLanguageEncoder

SOUND_TOKEN, SOUND_AROUND, SEEN_AROUND = 46, (47, 48), (42, 43)
BINS = 8
AUDIO = {"num_mel_bins": BINS, "encoder_layers": 1, "encoder_attention_heads": 2,
         "encoder_ffn_dim": 16, "d_model": 16, "max_source_positions": 100, "n_window": 10,
         "output_dim": WIDTH}  # fmt: skip
SEEN = {**VISION, "window_size": 16, "fullatt_block_indexes": [1]}


def config() -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_omni_thinker", "audio_config": AUDIO, "vision_config": SEEN,
        "text_config": {**TEXT, "pad_token_id": None},
        "image_token_index": IMAGE_TOKEN, "video_token_index": VIDEO_TOKEN,
        "audio_token_index": SOUND_TOKEN, "vision_start_token_id": SEEN_AROUND[0],
        "vision_end_token_id": SEEN_AROUND[1], "audio_start_token_id": SOUND_AROUND[0],
        "audio_end_token_id": SOUND_AROUND[1],
    }  # fmt: skip


def encoder(**choices: Any) -> VisionLanguageEncoder:
    given: dict[str, Any] = {"config": config(), "template": "see {} now", **choices}
    return VisionLanguageEncoder(given.pop("tokenizer", Signs()), **given)


def sounds(*lengths: int) -> tuple[Tensor, Tensor]:
    """Log-mel of so many frames each, padded with what nobody may read, and which are real."""
    longest = max(lengths)
    values = torch.randn(len(lengths), BINS, longest, generator=torch.manual_seed(3))
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return values.masked_fill(~mask[:, None], 1e3), mask
