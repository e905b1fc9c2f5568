"""What a source says of a modality: the members that hold it, and what of them is its value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from multimodal.core.suggest import suggest
from multimodal.data.negatives.listing import Listing, parse_listing
from multimodal.data.reading import READING_KEYS, Reading, parse_reading
from multimodal.data.shards.manifest import Manifest
from multimodal.data.templates import Template

METADATA = "json"  # the member that describes a sample
_KEYS = (
    "member", "key", "weights", "template", "value", "keep", "optional", "negatives", *READING_KEYS,
)  # fmt: skip


class Modality(NamedTuple):
    """A modality's entry, checked.

    Attributes:
        members: the alternatives; a sample holds at least one.
        key: of a JSON member's object, under which texts are.
        templates: over that object's keys.
        kind: what the members hold.
        target: key of that object whose value is used unchanged.
        optional: whether a sample may lack it.
        keeps_all: whether evaluation keeps all texts under ``key``.
        reading: how the members' numbers are meant.
        weights: of the texts under ``key``: by their places, or the key of such a list.
        listing: the negatives that samples list; None for none.
    """

    members: tuple[str, ...]
    key: str | None
    templates: tuple[Template, ...]
    kind: str
    target: str | None
    optional: bool
    keeps_all: bool
    reading: Reading
    weights: str | tuple[float, ...] | None = None
    listing: Listing | None = None

    def is_absent(self, fields: Collection[str], metadata: Mapping[str, Any]) -> bool:
        """Whether a sample of these members and metadata lacks the modality."""
        if not any(member in fields for member in self.members):
            return True
        wanted = self.target or self.key
        return wanted is not None and metadata.get(wanted) is None


def unaligned(modalities: Mapping[str, Modality]) -> frozenset[str]:
    """Those whose random choices need not agree with those of any other modality.

    Pictures and maps of one sample are crops of one view, and what is read from one member has one
    moment; a text, a sound or a motion of its own is aligned with nothing.
    """
    files = Counter(m for each in modalities.values() for m in set(each.members) - {METADATA})
    return frozenset(
        name
        for name, each in modalities.items()
        if each.kind in ("text", "json", "audio", "imu")
        and all(files[member] <= 1 for member in each.members)
    )


def parse_modality(name: str, entry: Mapping[str, Any], manifest: Manifest, split: str) -> Modality:
    """One modality's entry, checked against a split of the manifest.

    Raises:
        ValueError: if it asks for what the manifest does not have, or contradicts itself.
    """
    for given in entry:
        if given not in _KEYS:
            raise ValueError(f"modality {name!r}: {given!r}; {suggest(given, _KEYS)}")
    member, key = entry.get("member"), entry.get("key")
    members = (member,) if isinstance(member, str) else tuple(member or ())
    if not members:
        raise ValueError(f"modality {name!r} needs a 'member', or a list of them")
    kinds = {manifest.field(member, split).kind for member in members}
    if len(kinds) > 1:
        raise ValueError(
            f"modality {name!r}: its members are of different kinds: {', '.join(sorted(kinds))}"
        )
    text = entry.get("template")
    templates = tuple(Template(t) for t in ((text,) if isinstance(text, str) else text or ()))
    target = entry.get("value")
    if (key is not None) + bool(templates) + (target is not None) != (kinds == {"json"}):
        raise ValueError(
            f"modality {name!r}: a JSON member needs a 'key', a 'template' or a 'value', and only "
            "it does"
        )
    chosen = [each for each in (key, target) if each is not None]
    keys = set(chosen) | {key for each in templates for key in each.keys}
    for member in members:
        for wanted in sorted(keys):
            check_key(manifest, split, member, wanted)
    optional = bool(entry.get("optional", False))
    keep = entry.get("keep", "one")
    if keep not in ("one", "all") or (keep == "all" and key is None):
        raise ValueError(
            f"modality {name!r}: keep is one or all, and all needs the 'key' of a list of texts, "
            f"got keep={keep!r} and key={key!r}"
        )
    (kind,) = kinds
    reading = parse_reading(name, entry, kind)
    for wanted in reading.keys:
        check_key(manifest, split, METADATA, wanted)
    weights = _weights(name, entry)
    if isinstance(weights, str):
        for member in members:
            check_key(manifest, split, member, weights)
    is_text = kind == "text" or key is not None or bool(templates)
    listing = _listing(name, entry, manifest, split, kind, is_text)
    return Modality(
        members, key, templates, kind, target, optional, keep == "all", reading, weights, listing
    )


def _listing(
    name: str, entry: Mapping[str, Any], manifest: Manifest, split: str, kind: str, is_text: bool
) -> Listing | None:
    """The negatives that samples list, checked against a split of the manifest."""
    if entry.get("negatives") is None:
        return None
    listing = parse_listing(name, entry["negatives"], is_text)
    for wanted in (listing.key, listing.samples):
        if wanted is not None:
            check_key(manifest, split, METADATA, wanted)
    for member in listing.members:
        theirs = manifest.field(member, split).kind
        if theirs != kind or kind == "json":
            raise ValueError(
                f"modality {name!r}: negatives: the member {member!r} holds {theirs}, expected "
                f"{'a kind of file, not JSON' if kind == 'json' else kind}"
            )
    return listing


def _weights(name: str, entry: Mapping[str, Any]) -> str | tuple[float, ...] | None:
    """How likely each text is to be drawn: by its place, or the key of each sample's own list."""
    given = entry.get("weights")
    if given is None or isinstance(given, str):
        weights: str | tuple[float, ...] | None = given
    else:
        weights = tuple(float(weight) for weight in given)
        if not weights or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(
                f"modality {name!r}: weights must be numbers from 0, one above 0, got {list(given)}"
            )
    if weights is not None and entry.get("key") is None:
        raise ValueError(f"modality {name!r}: weights are for the texts under a 'key'")
    return weights


def check_key(manifest: Manifest, split: str, member: str, key: str) -> None:
    """Checks that a JSON member may have a key.

    Raises:
        ValueError: if the manifest lists the member's keys without this one.
    """
    known = manifest.field(member, split).keys
    if known and key not in known:
        raise ValueError(f"{manifest.path}: {member!r} has no key {key!r}; {suggest(key, known)}")
