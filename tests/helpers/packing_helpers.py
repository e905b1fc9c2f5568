"""Packs by the command line, and reads what was packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from data_helpers import audio_bytes, image_bytes
from PIL import Image

from multimodal.cli import make_shards
from multimodal.data.shards.manifest import load_manifest
from multimodal.data.source import Source


def run(*words: object) -> int:
    return make_shards.main([str(word) for word in words])


def picture(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC))


def jpeg(number: int) -> bytes:
    return image_bytes(picture(number), "JPEG")


def wav(number: int, frames: int = 400) -> bytes:
    return audio_bytes(np.full((1, frames), number / 100), 16000)


def photos(folder: Path, count: int = 6, name: str = "{}.jpg") -> Path:
    """Pictures 0.jpg, 1.jpg and so on."""
    for number in range(count):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return folder


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Split and key -> members, of what was packed into a folder."""
    found = {}
    manifest = next(
        path for path in folder.glob("*.json") if b'"multimodal-manifest/' in path.read_bytes()
    )
    loaded = load_manifest(manifest)
    member, field = next(iter(loaded.fields.items()))
    entry = {"member": member, "optional": True}
    if field.kind == "json":
        entry["key"] = field.keys[0]
    for split in loaded.splits:
        source = Source(str(manifest), {"m": entry}, split)
        for index in range(len(source)):
            raw = source.read(index)
            found[f"{split}:{raw.key}"] = raw.members
    return found


def metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> content of the json member."""
    return {
        key.partition(":")[2]: json.loads(members["json"]) if "json" in members else {}
        for key, members in samples(folder).items()
    }


def refused(folder: Path) -> dict[str, str]:
    """Key -> reason."""
    lines = (folder / "refused.jsonl").read_text().splitlines()
    return {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}
