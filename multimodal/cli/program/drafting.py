"""From manifests to an experiment: what there is, what relates to what, how long to train."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multimodal.core.errors import UserError
from multimodal.data.decoding.decode import Signal
from multimodal.data.shards.manifest import Manifest, load_manifest
from multimodal.data.source import Source


@dataclass(frozen=True)
class Tower:
    """What reads a kind of members.

    Attributes:
        tower: choice of the group ``tower``.
        transform: choice of the group ``data/transform``.
        settings: of the tower.
        pretrained: its entry in the catalogue; None: random weights.
    """

    tower: str
    transform: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None


def _mlp(dropout: float, first: str = "norm") -> dict[str, Any]:
    """A head of one hidden layer; ``first``: ``norm``, or ``standardize`` by cached features."""
    return {
        "_target_": "multimodal.models.MLPHead", "hidden": 512, first: True, "dropout": dropout,
    }  # fmt: skip


# Kind of a member -> what reads it, from random weights. Text stands in a JSON as well.
TOWERS = {
    "image": Tower("image_resnet_small", "image_64"),
    "text": Tower("text_bag_small", "text"),
    "audio": Tower("audio_small", "audio_speech"),
    "depth": Tower("depth_small", "depth_64"),
    "imu": Tower("imu_small", "imu"),
    "array": Tower("features", "features"),
}
TAPS = [4, 7, 10, 14]
# The same with the small pretrained weights of the catalogue, frozen under heads that are trained,
# as in configs/experiment/imagebind.yaml.
PRETRAINED = {
    "image": Tower(
        "efficientnet_lite0", "image_lite0", {"encoder": {"taps": TAPS}, "head": _mlp(0.4)},
        "efficientnet_lite0",
    ),
    "text": Tower(
        "pretrained", "text_minilm", {"pretrained": "minilm", "head": _mlp(0.1)}, "minilm"
    ),
    "audio": Tower(
        "whisper_tiny", "audio_whisper",
        {"encoder": {"segments": 4}, "head": _mlp(0.4, "standardize")}, "whisper_tiny_en",
    ),
    "depth": Tower(
        "efficientnet_lite0", "depth_lite0",
        {"encoder": {"in_channels": 1, "taps": TAPS}, "head": _mlp(0.4)}, "efficientnet_lite0",
    ),
}  # fmt: skip
CACHED = 200_000  # seeded views of samples whose frozen features are kept, about 1 GB
VIEWS = 4
FIXED_SCALES = {"audio": 20.0, "depth": 20.0}  # 1 / temperature of a pair, by what it adds; else 10
CAPTIONS = ("caption", "captions", "text", "texts", "title", "name", "description", "label")
VALIDATION, TEST = ("val", "validation", "valid", "dev"), ("test", "testing")
MAIN = {"image", "text"}  # kinds of the pair that the others go by
ANCHORS = ("image", "text", "audio", "depth")  # the first of these that is there
READINGS = 32  # samples whose values set the mean and deviation of arrays


@dataclass
class Found:
    """A manifest, as an experiment reads it.

    Attributes:
        path: of the manifest, as it was given.
        manifest: its content.
        modalities: name -> entry of a source.
        kinds: name -> kind of the members.
        left_out: members that no tower here reads.
    """

    path: str
    manifest: Manifest
    modalities: dict[str, dict[str, Any]]
    kinds: dict[str, str]
    left_out: list[str] = field(default_factory=list)

    def split(self, names: Sequence[str]) -> str | None:
        """The first of ``names`` that is a split of it."""
        return next((name for name in names if name in self.manifest.splits), None)

    @property
    def name(self) -> str:
        """The manifest's, as a key of YAML."""
        name = re.sub(r"\W", "_", self.manifest.name, flags=re.ASCII)
        return name if name[:1].isalpha() else f"data_{name}"

    @property
    def train(self) -> str:
        """The split to train on."""
        return self.split(("train", "training")) or next(iter(self.manifest.splits))

    @property
    def samples(self) -> int:
        """How many there are to train on."""
        return int(self.manifest.split(self.train).samples.sum())


def look_at(given: str) -> Found:
    """What the manifest holds, or the one in a folder.

    Raises:
        UserError: if there is no manifest, or nothing in it that a tower here reads.
    """
    path = _manifest_of(given)
    try:
        manifest = load_manifest(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError.mistake(f"new: {error}") from error
    draft = Found(path, manifest, {}, {})
    split = draft.train
    for member, entry in manifest.fields.items():
        if entry.splits is not None and split not in entry.splits:
            continue
        if entry.kind == "json":
            key = next((key for key in CAPTIONS if key in entry.keys), None)
            if key is not None:
                draft.modalities.setdefault("text", {"member": member, "key": key})
                draft.kinds["text"] = "text"
        elif entry.kind in TOWERS:
            name = member.rpartition(".")[0] if entry.kind == "array" else entry.kind
            name = name.replace(".", "_") or "array"
            known = draft.modalities.setdefault(name, {"member": []})
            if isinstance(known["member"], list):  # alternatives, of which one is drawn
                known["member"].append(member)
            else:  # a text beside a JSON: the member is the text
                draft.modalities[name] = {"member": [member]}
            draft.kinds[name] = entry.kind
        else:
            draft.left_out.append(member)
    for entry_ in draft.modalities.values():
        if isinstance(entry_["member"], list) and len(entry_["member"]) == 1:
            (entry_["member"],) = entry_["member"]
    if len(draft.modalities) < 2:
        held = ", ".join(f"{name} ({e.kind})" for name, e in manifest.fields.items())
        raise UserError.mistake(
            f"new: {path} has fewer than two modalities to relate; it holds {held}. A JSON is a "
            f"text where it has one of the keys {', '.join(CAPTIONS)} in every sample"
        )
    return draft


def _manifest_of(given: str) -> str:
    folder = Path(given).expanduser()
    if "://" in given or not folder.is_dir():
        return given
    files = [p for p in sorted(folder.glob("*.json")) if b'"multimodal-manifest/' in _head(p)]
    if len(files) != 1:
        named = ", ".join(path.name for path in files) or "none"
        raise UserError.mistake(
            f"new: --data {given}: expected one manifest in that folder, found {named}"
        )
    return str(files[0])


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def pairs_of(drafts: Sequence[Found], anchor: str | None) -> dict[str, tuple[str, str]]:
    """Name -> (anchor, other): each modality with the anchor where they meet, else with another.

    Raises:
        UserError: if the anchor that was asked for is in no manifest.
    """
    names = list(dict.fromkeys(name for each in drafts for name in each.modalities))
    meet = {
        name: {other for each in drafts if name in each.modalities for other in each.modalities}
        - {name}
        for name in names
    }
    if anchor is not None and anchor not in names:
        raise UserError.mistake(f"new: --anchor {anchor}: the manifests have {', '.join(names)}")
    order = [name for name in ANCHORS if name in names] + names
    chosen = anchor or next(name for name in order if meet[name])
    pairs: dict[str, tuple[str, str]] = {}
    reached = [chosen]
    while reached:
        centre = reached.pop(0)
        for other in names:
            joined = {name for ends in pairs.values() for name in ends} | {chosen}
            if other in meet[centre] and other not in joined:
                pairs[f"{centre}_{other}"] = (centre, other)
                reached.append(other)
    left = [name for name in names if not any(name in ends for ends in pairs.values())]
    for name in left:  # manifests that share nothing with the anchor's
        other = sorted(meet[name])[0]
        if f"{other}_{name}" not in pairs:
            pairs[f"{name}_{other}"] = (name, other)
    for each in drafts:  # whose modalities are all related to others, and not to each other
        own = [name for name in order if name in each.modalities]
        if not any(set(ends) <= set(own) for ends in pairs.values()):
            pairs |= {f"{own[0]}_{other}": (own[0], other) for other in own[1:] if other != own[0]}
    return pairs


def pair_blocks(
    pairs: Mapping[str, tuple[str, str]], kinds: Mapping[str, str], scratch: bool
) -> dict[str, dict[str, Any]]:
    """The pairs' entries: on pretrained towers as in configs/experiment/imagebind.yaml.

    The anchor's place is that of the texts (or the images) of the one pair that moves both; the
    others are pulled to it at a fixed temperature. Without such a pair all move, as with random
    towers.

    Args:
        pairs: name -> (anchor, other).
        kinds: modality -> kind of its members.
        scratch: whether towers are random.
    """
    blocks: dict[str, dict[str, Any]] = {
        name: {"anchor": anchor, "other": other} for name, (anchor, other) in pairs.items()
    }
    main = next((n for n, ends in pairs.items() if {kinds[e] for e in ends} == MAIN), None)
    if scratch or main is None:
        return blocks
    for name, (anchor, other) in pairs.items():
        if name == main:
            blocks[name]["logit_scale"] = {"init": 14.2857, "learned": True, "max": 50.0}
            continue
        blocks[name]["weight"] = 0.1
        if anchor == pairs[main][0]:
            blocks[name]["stop_gradient"] = anchor
        scale = FIXED_SCALES.get(kinds[other], 10.0)
        blocks[name]["logit_scale"] = {"init": scale, "learned": False}
    return blocks


def tower_for(kind: str, scratch: bool, cached: bool, more: bool) -> Tower:
    """What reads members of a kind: from random weights, or pretrained where there is such.

    Args:
        kind: of the members.
        scratch: whether towers are random.
        cached: whether features of frozen towers are kept, by which a head can standardise.
        more: whether there is more than images and texts, as in the imagebind experiment.
    """
    tower = TOWERS[kind] if scratch else PRETRAINED.get(kind, TOWERS[kind])
    head = dict(tower.settings.get("head", {}))
    if not head:
        return tower
    if not cached and head.pop("standardize", False):
        head["norm"] = True
    if more and kind != "text":
        head["hidden_dropout"] = 0.3
    return replace(tower, settings={**tower.settings, "head": head})


def may_cache(drafts: Sequence[Found]) -> bool:
    """Whether frozen features of all samples are few enough to be kept on disk."""
    return VIEWS * sum(each.samples for each in drafts) <= CACHED


def settings_of(drafts: Found, name: str, tower: Tower) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the encoder and the transform of an array or a signal have to be told."""
    if drafts.kinds[name] not in ("array", "imu") and tower.transform != "audio_whisper":
        return {}, {}
    source = Source(drafts.path, {name: drafts.modalities[name]}, drafts.train)
    values: list[Any] = [
        source.decode(index, None).values[name] for index in range(min(READINGS, len(source)))
    ]
    first = values[0]
    if tower.transform == "audio_whisper":  # whole sounds, of up to 30 s
        longest = max(value.samples.shape[1] / value.rate for value in values)
        return {}, {"seconds": float(min(30, max(1, math.ceil(longest))))}
    if isinstance(first, Signal):
        channels = [[float(v.samples[c].mean()) for v in values] for c in range(len(first.samples))]
        spread = [[float(v.samples[c].std()) for v in values] for c in range(len(first.samples))]
        length = 8 * math.ceil(first.samples.shape[1] / 8)  # three convolutions of stride 2
        encoder = {"in_channels": len(channels), "length": length}
        transform = {
            "rate_hz": first.rate, "length": length,
            "mean": [round(sum(c) / len(c), 4) for c in channels],
            "std": [round(max(sum(c) / len(c), 1e-3), 4) for c in spread],
            **({"rotation": 0.0} if len(channels) % 3 else {}),
        }  # fmt: skip
        return encoder, transform
    mean = sum(float(value.mean()) for value in values) / len(values)
    std = sum(float(value.std()) for value in values) / len(values)
    # A sequence of vectors, or one; more axes are one vector.
    encoder = {"in_features": int(first.shape[-1]), "width": 128, "norm": True}
    return encoder, {
        "shape": list(first.shape), "mean": round(mean, 4), "std": round(max(std, 1e-4), 4),
    }  # fmt: skip


def sizes_of(drafts: Sequence[Found], most: int = 128) -> Mapping[str, int]:
    """Batch size (at most ``most``), steps, steps between validations, by the samples' number."""
    smallest, total = min(each.samples for each in drafts), sum(each.samples for each in drafts)
    if smallest < 4:
        raise UserError.mistake(
            f"new: {smallest} samples to train on are too few; expected at least 4"
        )
    batch = min(most, 2 ** ((smallest // 2).bit_length() - 1))
    steps = max(200, min(5000, 50 * total // batch))
    return {"batch_size": batch, "max_steps": steps, "every": max(1, steps // 10)}
