"""Fusion modules and inputs for them, for the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from multimodal.core.batch import EncoderOutput
from multimodal.models.fusion.base import Fusion
from multimodal.models.fusion.cross import CoAttentionFusion, CrossAttentionFusion
from multimodal.models.fusion.latent import BottleneckFusion, MergedFusion, ResamplerFusion
from multimodal.models.fusion.pooled import ConcatFusion, GatedFusion, LowRankFusion, MeanFusion

WIDTHS = {"image": 12, "text": 8, "audio": 10}
LENGTHS = {"image": 5, "text": 4, "audio": 3}
WIDTH = 16


def cross(widths=WIDTHS, **options):
    return CrossAttentionFusion(widths, WIDTH, num_heads=4, num_layers=2, **options)


FUSIONS = {
    "mean": lambda widths=WIDTHS: MeanFusion(widths, WIDTH),
    "concat": lambda widths=WIDTHS: ConcatFusion(widths, WIDTH, hidden=20),
    "gated": lambda widths=WIDTHS: GatedFusion(widths, WIDTH),
    "low_rank": lambda widths=WIDTHS: LowRankFusion(widths, WIDTH, rank=3),
    "cross_attention": cross,
    "cross_attention_query": lambda widths=WIDTHS: cross(widths, query="text"),
    "co_attention": lambda widths=WIDTHS: CoAttentionFusion(widths, WIDTH, 4, num_layers=2),
    "bottleneck": lambda widths=WIDTHS: BottleneckFusion(widths, WIDTH, 4),
    "resampler": lambda widths=WIDTHS: ResamplerFusion(widths, WIDTH, 4),
    "merged": lambda widths=WIDTHS: MergedFusion(widths, WIDTH, 4),
}
TOKENS = [name for name in FUSIONS if name not in ("mean", "concat", "gated", "low_rank")]


def make(name: str, widths=WIDTHS, dtype=torch.float64) -> Fusion:
    torch.manual_seed(0)
    return FUSIONS[name](widths).to(dtype)


def encoded(
    batch: int = 3, masks: dict[str, Tensor] | None = None, dtype=torch.float64, lengths=LENGTHS
) -> dict[str, EncoderOutput]:
    torch.manual_seed(1)
    return {
        name: EncoderOutput(
            torch.randn(batch, width, dtype=dtype, requires_grad=True),
            torch.randn(batch, lengths[name], width, dtype=dtype, requires_grad=True),
            None if masks is None else masks.get(name),
        )
        for name, width in WIDTHS.items()
    }
