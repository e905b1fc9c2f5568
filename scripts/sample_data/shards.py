"""Write WebDataset shards whose bytes depend on nothing but the samples, and their manifest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "multimodal-manifest/1"
BLOCK = 512  # a tar member takes a header block, then its bytes padded to whole blocks
SAMPLES_PER_SHARD = 512


@dataclass
class Sample:
    """One sample: a key without dots, the bytes of each field, and its metadata.

    ``members`` maps a field (what follows the first dot of a member's name) to bytes; the metadata
    becomes the member ``json``.
    """

    key: str
    members: dict[str, bytes]
    metadata: dict[str, Any]

    def fields(self) -> dict[str, bytes]:
        """All members in the order in which they are written."""
        text = json.dumps(self.metadata, ensure_ascii=False, separators=(",", ":"))
        return dict(sorted({**self.members, "json": text.encode()}.items()))


@dataclass(frozen=True)
class Licence:
    """What is licensed, how, to whom it is owed, and where it says so."""

    what: str
    licence: str
    attribution: str
    url: str


@dataclass(frozen=True)
class Description:
    """What a manifest says about its source besides the shard table."""

    name: str
    description: str
    origin: str
    licences: Sequence[Licence]
    fields: Mapping[str, Mapping[str, Any]]


def shard_bytes(samples: Iterable[Sample]) -> bytes:
    """A tar of ``samples`` in order of their keys; equal samples give equal bytes.

    Raises:
        ValueError: a key holds a dot or a slash, or comes twice.
    """
    buffer = io.BytesIO()
    seen: set[str] = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for sample in sorted(samples, key=lambda sample: sample.key):
            if "." in sample.key or "/" in sample.key or sample.key in seen:
                raise ValueError(f"key {sample.key!r} has a dot or a slash, or comes twice")
            seen.add(sample.key)
            for field, data in sample.fields().items():
                info = tarfile.TarInfo(f"{sample.key}.{field}")  # mtime, uid and gid are 0
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_cost(size: int) -> int:
    """The bytes that a member of ``size`` bytes takes in a tar."""
    return BLOCK + -(-size // BLOCK) * BLOCK


def write_source(
    folder: Path, about: Description, splits: Mapping[str, Sequence[Sample]]
) -> dict[str, Any]:
    """Write one source: a shard or more per split, and ``<name>.json`` beside them.

    Shards of the source that are there already are removed, so that the folder holds one version.

    Returns:
        The manifest, as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{about.name}-*.tar"):
        old.unlink()
    shards = []
    for split, samples in splits.items():
        ordered = sorted(samples, key=lambda sample: sample.key)
        count = max(1, -(-len(ordered) // SAMPLES_PER_SHARD))
        for part in range(count):
            chosen = ordered[part::count]  # interleaved: every shard holds a bit of everything
            data = shard_bytes(chosen)
            name = f"{about.name}-{split.replace('_', '-')}-{part:03d}.tar"
            (folder / name).write_bytes(data)
            shards.append(
                {
                    "name": name,
                    "split": split,
                    "samples": len(chosen),
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    manifest = {
        "format": FORMAT,
        "name": about.name,
        "description": about.description,
        "origin": about.origin,
        "licences": [vars(licence) for licence in about.licences],
        "fields": {name: dict(field) for name, field in about.fields.items()},
        "shards": shards,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{about.name}.json").write_text(text, encoding="utf-8")
    return manifest
