"""From samples to a batch: decode, transform, collate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from multimodal.core.batch import Batch, ListedInputs, scatter_present
from multimodal.core.suggest import suggest
from multimodal.data.decoding.decode import Value
from multimodal.data.errors import BadSampleError, DecodeError, ShardError
from multimodal.data.loading.cached_views import read_views
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.loading.tally import Rejection
from multimodal.data.sample_decoder import Decoded, SampleDecoder, ShardReader
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Place, Source
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.finishing import Finishing


class ListedInput(NamedTuple):
    """A negative that a sample lists, as the encoder takes it; see ``ListedValue``."""

    inputs: Tensor
    sample_id: int
    positive_key: int


class Sample(NamedTuple):
    """One sample ready for its batch.

    Attributes:
        decoded: what the source gave.
        inputs: modality -> tensor.
        repeat: which use of the sample within its epoch this is; without a draw, which caption.
        embeddings: modality -> cached embedding of its frozen tower.
        listed: modality -> negatives that it lists.
    """

    decoded: Decoded
    inputs: dict[str, Tensor]
    repeat: int
    embeddings: dict[str, Tensor]
    listed: Mapping[str, list[ListedInput]] = {}


def load(
    source: Source,
    transforms: Mapping[str, Transform],
    index: int,
    rng: SampleRNG | None,
    modalities: Collection[str] | None = None,
    frozen: Mapping[str, FrozenEmbeddings] | None = None,
    caption: int = 0,
) -> Sample | Rejection:
    """Reads, decodes and transforms one sample, or says why that is not possible.

    Args:
        source: of the sample.
        transforms: by modality.
        index: of the sample.
        rng: its random choices; None for none.
        modalities: those wanted; None for all.
        frozen: those that are read as embeddings, see `read_views`.
        caption: which of several captions, without a draw.

    Raises:
        RuntimeError: if given an error of the transform rather than of the sample; the message
            locates the sample.
    """
    wanted = source.modalities if modalities is None else modalities
    try:
        repeat = caption if rng is None else rng.repeat
        embeddings, rng = read_views(source, index, rng, frozen or {})
        wanted = [name for name in wanted if name not in embeddings]
        min_size = {
            name: functools.partial(transforms[name].min_size, rng)  # type: ignore[attr-defined]
            for name in wanted
            if getattr(transforms[name], "reduced", False)
        }
        names = source.decoder.listings
        listed = [name for name in names if modalities is None or name in modalities]
        decoded = source.decode(
            index, rng, wanted, min_size, caption, () if rng is None else listed
        )

        def where() -> Place:
            return source.place(index)

        inputs = _inputs(source.decoder, transforms, decoded, rng, where)
        negatives = _listed_inputs(source.decoder, transforms, decoded, where)
    except BadSampleError as error:
        place = source.place(index)
        whole_shard = isinstance(error, ShardError)
        return Rejection(source.name, place.shard, place.key, error.reason, str(error), whole_shard)
    return Sample(decoded, inputs, repeat, embeddings, negatives)


def load_from(
    decoder: SampleDecoder, transforms: Mapping[str, Transform], sample: ShardReader, rng: SampleRNG
) -> Sample | Rejection:
    """The same for a single sample from a stream."""
    place = Place(sample.path.name, sample.keys[0])
    try:
        decoded = decoder.decode(sample, 0, place.shard, rng)
        for name in decoder.listings:
            decoded.listed[name] = decoder.listed(name, sample, 0, decoded, rng)
        inputs = _inputs(decoder, transforms, decoded, rng, lambda: place)
        negatives = _listed_inputs(decoder, transforms, decoded, lambda: place)
    except BadSampleError as error:
        return Rejection(decoder.name, *place, error.reason, str(error))
    return Sample(decoded, inputs, 0, {}, negatives)


def _inputs(
    decoder: SampleDecoder,
    transforms: Mapping[str, Transform],
    decoded: Decoded,
    rng: SampleRNG | None,
    where: Callable[[], Place],
) -> dict[str, Tensor]:
    def transformed(name: str, value: Value) -> Tensor | None:
        try:
            return _transform(transforms[name], name, value, rng, decoder.name, where)
        except DecodeError as error:
            # Whether a video has sound shows only when somebody listens.
            if error.reason == "missing" and decoder.is_optional(name):
                return None
            raise

    made = {name: transformed(name, value) for name, value in decoded.values.items()}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def _listed_inputs(
    decoder: SampleDecoder,
    transforms: Mapping[str, Transform],
    decoded: Decoded,
    where: Callable[[], Place],
) -> dict[str, list[ListedInput]]:
    return {
        name: [
            ListedInput(
                _transform(transforms[name], name, each.value, each.rng, decoder.name, where),
                each.sample_id,
                each.positive_key,
            )
            for each in values
        ]
        for name, values in decoded.listed.items()
    }


def _transform(
    transform: Transform,
    name: str,
    value: Value,
    rng: SampleRNG | None,
    source: str,
    where: Callable[[], Place],
) -> Tensor:
    # What collate finishes may come unfinished.
    prepare: Callable[[Value, SampleRNG | None], Tensor] = getattr(transform, "prepare", transform)
    try:
        return prepare(value, rng)
    except BadSampleError:
        raise
    except Exception as error:  # a user's transform may fail in any way
        place = where()
        raise RuntimeError(
            f"the transform of {name!r} fails on {source}, shard {place.shard}, key "
            f"{place.key!r}: {type(error).__name__}: {error}"
        ) from error


def collate(
    samples: list[Sample],
    transforms: Mapping[str, Transform],
    source: str,
    step: int,
    with_metadata: bool,
    as_bytes: bool = False,
) -> Batch:
    """One batch of samples of the same source; ``as_bytes`` leaves to `finished` what it can."""
    inputs, masks, presence = {}, {}, {}
    for name in dict.fromkeys(name for sample in samples for name in sample.inputs):
        present = torch.tensor([name in sample.inputs for sample in samples])
        given = [sample.inputs[name] for sample in samples if name in sample.inputs]
        inputs[name], mask = _collated(transforms[name], given, as_bytes)
        if not present.all():
            presence[name] = present
            inputs[name] = scatter_present(inputs[name], present)
            mask = None if mask is None else scatter_present(mask, present)
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
        embeddings={
            name: torch.stack([sample.embeddings[name] for sample in samples])
            for name in samples[0].embeddings
        },
        metadata=[sample.decoded.metadata for sample in samples] if with_metadata else [],
        presence=presence,
        listed={
            name: _collate_listed(samples, name, transforms[name]) for name in samples[0].listed
        },
    )


def _collated(
    transform: Transform, given: list[Tensor], as_bytes: bool
) -> tuple[Tensor, Tensor | None]:
    if as_bytes and isinstance(transform, Finishing):
        made = transform.collate_bytes(given)
        if made is not None:
            return made
    return transform.collate(given)


def _collate_listed(samples: list[Sample], name: str, transform: Transform) -> ListedInputs:
    """The negatives that the samples list, one after the other."""
    rows = [(sample.decoded.sample_id, each) for sample in samples for each in sample.listed[name]]
    inputs, mask = transform.collate([each.inputs for _, each in rows]) if rows else (None, None)
    return ListedInputs(
        inputs,
        mask,
        owners=torch.tensor([owner for owner, _ in rows], dtype=torch.int64),
        sample_ids=torch.tensor([each.sample_id for _, each in rows], dtype=torch.int64),
        positive_keys=torch.tensor([each.positive_key for _, each in rows], dtype=torch.int64),
    )


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
    apart = [m for m in geometries if getattr(transforms[m], "moves_apart", False)]
    if len(geometries) > 1 and apart:
        others = ", ".join(m for m in geometries if m != apart[0])
        raise ValueError(
            f"source {name!r}: {apart[0]} is turned and shifted by RandAugment, and {others} would "
            f"not follow: set augment_spatial=false in the transform of {apart[0]}"
        )
    for modality, geometry in geometries.items():
        first, reference = next(iter(geometries.items()))
        if geometry != reference:
            raise ValueError(
                f"source {name!r}: {first} and {modality} are crops of one view, so scale, ratio "
                f"and flip of their transforms must be equal; {first} has {reference}, {modality} "
                f"has {geometry}"
            )
