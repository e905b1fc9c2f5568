"""What a packing is to make: names, splits, sizes, and what samples must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multimodal.core.hashing import stable_hash
from multimodal.data.decoding.decode import Limits


@dataclass(frozen=True, slots=True)
class Plan:
    """How to pack.

    Attributes:
        name: of the source; the shards begin with it.
        splits: name -> share of the samples; the shares sum to 1. None for the splits that the data
            say themselves, else ``train``.
        group: metadata key whose equal values stay in one split; None: each sample for itself.
        max_samples: most samples of a shard.
        max_bytes: most bytes of a shard, about.
        required: members, or kinds of them, that every sample must have.
        optional: keys of captions that samples may lack.
        kinds: of members whose names do not imply their kind.
        label: metadata key whose values' balance is reported.
        seed: of the order of the samples; the splits do not depend on it.
        description: one line about the data.
        origin: where they come from.
        licence: its name.
        header: DICOM keywords whose values go into the metadata, in lower case with an underscore
            between words (``body_part_examined``); nothing else of a header does.
        limits: of decoded sizes.
    """

    name: str
    splits: Mapping[str, float] | None = None
    group: str | None = None
    max_samples: int = 10_000
    max_bytes: int = 1 << 30
    required: Sequence[str] = ()
    optional: Sequence[str] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    seed: int = 0
    description: str = ""
    origin: str = ""
    licence: str = ""
    header: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("/\\.:"):
            raise ValueError(f"name must be a plain word, got {self.name!r}")
        if self.splits is not None and (
            not self.splits or any(share <= 0 for share in self.splits.values())
        ):
            raise ValueError(f"every split needs a share above 0, got {dict(self.splits)}")
        if self.splits and abs(sum(self.splits.values()) - 1) > 1e-6:
            raise ValueError(f"the splits' shares must sum to 1, got {dict(self.splits)}")
        if self.max_samples < 1 or self.max_bytes < 1:
            raise ValueError("max_samples and max_bytes must be at least 1")

    def of_manifest(self) -> dict[str, Any]:
        """What the manifest says of it, as plain values: arguments of another plan."""
        names = ("name", "description", "origin", "licence")
        return {name: getattr(self, name) for name in names} | {"kinds": dict(self.kinds)}


def split_of(value: Any, splits: Mapping[str, float]) -> str:
    """The split of a sample or group: a stable hash of its name, so that it never moves.

    A group stays where it is when samples are added, taken away or packed again; splits are taken
    in alphabetical order of their names.
    """
    place = (stable_hash("split", str(value)) + 2**63) / 2**64
    names = sorted(splits)
    for name in names:
        place -= splits[name]
        if place < 0:
            return name
    return names[-1]
