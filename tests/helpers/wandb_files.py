"""Reads the files that Weights and Biases writes without a network."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


def records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: LevelDB's log format after seven bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            return
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class OfflineRun:
    """What one `offline-run-*` folder holds."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("*.wandb")
        self.id = ""
        self.config: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.saved: list[str] = []  # names of files to upload; they lie under `files`
        self.files = folder / "files"
        for record in records(path):
            if record.HasField("run"):
                self.id = record.run.run_id
                self.config |= _values(record.run.config.update)
            if record.HasField("history"):
                self.rows.append(_values(record.history.item))
            if record.HasField("summary"):
                self.summary |= _values(record.summary.update)
            if record.HasField("files"):
                self.saved += [file.path for file in record.files.files]


def _values(items: Any) -> dict[str, Any]:
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Of ``folder``/wandb, in the order of their starts."""
    paths = list(folder.glob("wandb/offline-run-*"))
    return [OfflineRun(path) for path in sorted(paths, key=lambda path: path.stat().st_ctime_ns)]
