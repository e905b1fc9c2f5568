"""From samples to a batch: decode, transform, collate, and account for samples that are bad."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from multimodal.data.draw import Draw
from multimodal.data.errors import BadSample
from multimodal.data.manifest import suggest
from multimodal.data.source import Decoded, Source
from multimodal.data.transforms.base import Transform
from multimodal.types import Batch

log = logging.getLogger(__name__)

_TOLERATED_FROM = 1000  # samples: the fraction of bad ones means little before


class Sample(NamedTuple):
    """One sample ready for its batch.

    Attributes:
        decoded: what the source gave.
        inputs: modality -> tensor.
        repeat: which use of the sample within its epoch this is.
    """

    decoded: Decoded
    inputs: dict[str, Tensor]
    repeat: int


class Rejection(NamedTuple):
    """A sample that was stepped over, and why."""

    source: str
    shard: str
    key: str
    reason: str
    message: str


class TooManyBadSamples(RuntimeError):
    """More samples are bad than ``max_bad_fraction`` allows."""


def load(
    source: Source,
    transforms: Mapping[str, Transform],
    index: int,
    draw: Draw | None,
    modalities: Collection[str] | None = None,
) -> Sample | Rejection:
    """Reads, decodes and transforms one sample, or says why that is not possible."""
    try:
        decoded = source.decode(index, draw, modalities)
        inputs = {name: transforms[name](value, draw) for name, value in decoded.values.items()}
    except BadSample as error:
        place = source.place(index)
        return Rejection(source.name, place.shard, place.key, error.reason, str(error))
    return Sample(decoded, inputs, 0 if draw is None else draw.repeat)


def collate(
    samples: list[Sample],
    transforms: Mapping[str, Transform],
    source: str,
    step: int,
    with_metadata: bool,
) -> Batch:
    """One batch of samples of the same source."""
    inputs, masks = {}, {}
    for name in samples[0].inputs:
        inputs[name], mask = transforms[name].collate([sample.inputs[name] for sample in samples])
        if mask is not None:
            masks[name] = mask
    return Batch(
        inputs=inputs,
        masks=masks,
        sample_ids=torch.tensor([sample.decoded.sample_id for sample in samples]),
        positive_keys=torch.tensor([sample.decoded.positive_key for sample in samples]),
        repeats=torch.tensor([sample.repeat for sample in samples]),
        source=source,
        step=step,
        keys=[sample.decoded.key for sample in samples],
        metadata=[sample.decoded.metadata for sample in samples] if with_metadata else [],
    )


class Tally:
    """Counts delivered and bad samples, and stops the run when too many are bad.

    Args:
        max_bad_fraction: of all samples met, but never counted of fewer than 1,000.

    Attributes:
        delivered: samples in batches, replacements included.
        reasons: bad samples by reason.

    Raises:
        ValueError: if ``max_bad_fraction`` is not in [0, 1].
    """

    def __init__(self, max_bad_fraction: float) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction must be in [0, 1], got {max_bad_fraction}")
        self.max_bad_fraction = max_bad_fraction
        self.delivered = 0
        self.reasons: Counter[str] = Counter()

    def add(self, delivered: int, rejections: Iterable[Rejection]) -> None:
        """Counts one batch and logs its rejections.

        Raises:
            TooManyBadSamples: if the limit is passed; the message names the last one.
        """
        self.delivered += delivered
        for rejection in rejections:
            self.reasons[rejection.reason] += 1
            log.warning(
                "bad sample of %s, shard %s, key %r: %s",
                rejection.source,
                rejection.shard,
                rejection.key,
                rejection.message,
            )
            bad = self.reasons.total()
            met = self.delivered + bad
            if bad > self.max_bad_fraction * max(met, _TOLERATED_FROM):
                raise TooManyBadSamples(
                    f"{bad} of {met} samples are bad ({self}), over "
                    f"max_bad_fraction={self.max_bad_fraction:g}; the last: {rejection.source}, "
                    f"shard {rejection.shard}, key {rejection.key!r}: {rejection.message}"
                )

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())


def check_transforms(
    name: str, modalities: Iterable[str], transforms: Mapping[str, Transform]
) -> None:
    """Checks that a source's modalities can be transformed, and aligned ones alike.

    Raises:
        ValueError: if a modality has no transform, or two have different geometry, so that a
            picture's crop would not be its depth map's.
    """
    geometries = {}
    for modality in modalities:
        if modality not in transforms:
            raise ValueError(
                f"source {name!r} has the modality {modality!r}, for which data.transforms has "
                f"none; {suggest(modality, transforms)}"
            )
        geometry = getattr(transforms[modality], "geometry", None)
        if geometry is not None:
            geometries[modality] = geometry
    for modality, geometry in geometries.items():
        first, reference = next(iter(geometries.items()))
        if geometry != reference:
            raise ValueError(
                f"source {name!r}: {first} and {modality} are crops of one view, so scale, ratio "
                f"and flip of their transforms must be equal; {first} has {reference}, {modality} "
                f"has {geometry}"
            )
