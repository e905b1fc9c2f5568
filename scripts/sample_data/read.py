"""Read the finished shards back, in order."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_samples(folder: Path, source: str, split: str) -> Iterator[dict[str, Any]]:
    """The members (bytes) of every sample of a split, and its key (text) as ``__key__``."""
    manifest = json.loads((folder / f"{source}.json").read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        if shard["split"] != split:
            continue
        sample: dict[str, Any] = {}
        with tarfile.open(folder / shard["name"]) as archive:
            for info in archive:
                key, field = info.name.split(".", 1)
                if sample and sample["__key__"] != key:
                    yield sample
                    sample = {}
                stream = archive.extractfile(info)
                if stream is None:
                    raise ValueError(f"{info.name} in {shard['name']} is not a file")
                sample |= {"__key__": key, field: stream.read()}
        yield sample
