"""How many tokens each sample has, told from its recorded lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.data.loading.token_batches import TokenBudget
from multimodal.data.shards.lengths import column_of, read_lengths
from multimodal.data.source import Source
from multimodal.data.transforms.base import Transform

Indices = NDArray[np.int64]

NOTHING_COUNTED = (
    "data.max_tokens is set, and no source has a modality whose tokens are counted: pictures, "
    "depth maps and sounds as patches (data/transform=image_patches, depth_patches, "
    "sound_patches), or texts; set data.max_tokens=null"
)


def budget_of(
    source: Source, transforms: Mapping[str, Transform], max_tokens: int | None, world_size: int
) -> TokenBudget | None:
    """The budget of a source's global batches; None where none is set, or nothing is counted.

    Args:
        source: the samples.
        transforms: by modality.
        max_tokens: of each device.
        world_size: number of devices.

    Raises:
        ValueError: if the lengths were not recorded, or a batch would be too small.
    """
    if max_tokens is None:
        return None
    tokens = sample_tokens(source, transforms)
    if tokens is None:
        return None
    budget = TokenBudget(tokens, world_size * max_tokens, source.table.starts)
    if budget.fewest < world_size:
        raise ValueError(
            f"data.max_tokens={max_tokens}: a batch of source {source.name!r} may have "
            f"{budget.fewest} samples for {world_size} devices: raise it to three times the "
            f"longest sample, {3 * budget.longest}, or use fewer devices"
        )
    return budget


def sample_tokens(source: Source, transforms: Mapping[str, Transform]) -> Indices | None:
    """Tokens of each sample of a source, of all its modalities whose transforms count them.

    Of several members or texts, of which one is drawn, the longest counts.

    Returns:
        ``[N]`` int64, at least 1 each; None where no transform counts any.

    Raises:
        ValueError: if the lengths were not recorded, or the source is joined of two manifests.
    """
    counted = {
        name: transforms[name].token_counts  # type: ignore[attr-defined]
        for name in source.modalities
        if hasattr(transforms[name], "token_counts")
    }
    if not counted:
        return None
    if len(source.folders) > 1:
        raise ValueError(
            f"source {source.name!r} joins two manifests, whose samples have no recorded lengths: "
            "set data.max_tokens=null"
        )
    total = np.zeros(len(source), np.int64)
    for name, count in counted.items():
        total += count(_lengths(source, name))
    return np.maximum(total, 1)


def _lengths(source: Source, name: str) -> Any:
    """Sizes ``[N, 2]`` of pictures and maps, milliseconds ``[N]`` of sounds, bytes of texts.

    Of alternatives the longest.
    """
    modality = source.decoder.modality(name)
    manifest, splits = source.manifest, source.splits

    def column(member: str, key: str | None = None) -> Indices:
        return read_lengths(manifest, splits, column_of(member, key)).astype(np.int64)

    if modality.templates:
        filled = [
            sum((column(member, key) for key in template.keys), np.int64(len(template.text)))
            for template in modality.templates
            for member in modality.members
        ]
        return np.max(np.stack(filled), axis=0)
    columns = [column(member, modality.key) for member in modality.members]
    if columns[0].ndim == 1:
        return np.max(np.stack(columns), axis=0)
    every = np.stack(columns)  # the member of most pixels
    largest = every.prod(-1).argmax(0)
    return every[largest, np.arange(every.shape[1])]
