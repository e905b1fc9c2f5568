"""EfficientNet-Lite of the PyTorch ports, whose tensors are `_conv_stem`, `_blocks.N...`.

Source of the layout: Tan and Le's release, as PyTorch ports name its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import KeyMap, WeightsError, same
from multimodal.models.pretrained.plan import Plan, TowerPlan

LITE0 = {
    "stem_channels": 32, "channels": [16, 24, 40, 80, 112, 192, 320],
    "blocks": [1, 2, 2, 3, 3, 4, 1], "kernels": [3, 3, 5, 3, 5, 5, 3],
    "strides": [1, 2, 2, 2, 1, 2, 1], "expansions": [1, 6, 6, 6, 6, 6, 6], "top_channels": 1280,
}  # fmt: skip
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3  # (x - 127) / 128 of bytes
SIZE = 224


def describe(cfg: Mapping[str, Any] | None, state: Mapping[str, Tensor]) -> Plan:
    """The plan of a state dict.

    Args:
        cfg: the encoder's sizes, as ``EfficientNetLite`` takes them; None: Lite0's.
        state: the tensors; the classifier ``_fc`` is left out.

    Raises:
        WeightsError: if given sizes that are not known.
    """
    if unknown := sorted(set(cfg or {}) - set(LITE0)):
        raise WeightsError(f"sizes of EfficientNet-Lite that are not known: {', '.join(unknown)}")
    sizes = {**LITE0, **(cfg or {})}
    encoder = {"_target_": "multimodal.models.EfficientNetLite", "in_channels": 3, **sizes}
    tower = p.tower(encoder, p.identity_head(sizes["top_channels"]))
    key_map = _encoder(sizes["blocks"], sizes["expansions"])
    # A count of batches means nothing to fixed statistics.
    ignored = tuple(n for n in state if n.startswith("_fc.") or n.endswith("num_batches_tracked"))
    plan = TowerPlan(tower, key_map, (), p.image_transform(SIZE, MEAN, STD))
    return Plan({"image": plan}, sizes["top_channels"], ignored=ignored)


def _encoder(blocks: Sequence[int], expansions: Sequence[int]) -> KeyMap:
    key_map = _convolution("encoder.stem", "_conv_stem", "_bn0")
    each = [ratio for count, ratio in zip(blocks, expansions, strict=True) for _ in range(count)]
    for number, expansion in enumerate(each):
        own, theirs = f"encoder.blocks.{number}", f"_blocks.{number}"
        if expansion > 1:
            key_map |= _convolution(f"{own}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        key_map |= _convolution(f"{own}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        key_map |= _convolution(f"{own}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
    return key_map | _convolution("encoder.top", "_conv_head", "_bn1")


def _convolution(ours: str, theirs: str, norm: str) -> KeyMap:
    """A convolution and the batch normalisation behind it."""
    key_map = same(f"{ours}.0.weight", f"{theirs}.weight")
    for part in ("weight", "bias", "running_mean", "running_var"):
        key_map |= same(f"{ours}.1.{part}", f"{norm}.{part}")
    return key_map
