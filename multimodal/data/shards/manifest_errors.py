"""What is wrong with a manifest: every field is checked before anything is built from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

from multimodal.core.strict_json import excerpt, is_text
from multimodal.data.shards.formats import KINDS
from multimodal.data.shards.remote import is_remote, unknown_scheme
from multimodal.data.shards.table import MAX_BYTES, MAX_NAME, MAX_SAMPLES, is_inside, unpacked

FORMAT = "multimodal-manifest/1"
_SHOWN = 10  # faults in one message
_CONTROL = re.compile(r"[\0-\x1f\x7f]")


def check_manifest(content: Any, label: str) -> None:
    """Refuses documents that are not manifests.

    Args:
        content: as parsed from JSON.
        label: names the manifest in the message.

    Raises:
        ValueError: if it is not valid; the message lists every error.
    """
    problems = list(islice(_problems(content), 1000))
    if problems:
        more = len(problems) - _SHOWN
        last = [f"and {more}{' or' if len(problems) == 1000 else ''} more"] if more > 0 else []
        raise ValueError("\n  - ".join([f"{label} is invalid:", *problems[:_SHOWN], *last]))


def _problems(content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"expected a JSON object, got {_kind(content)}"
        return
    if content.get("format") != FORMAT:
        yield f"'format' must be {FORMAT!r}, got {excerpt(content.get('format'))}"
        return
    yield from _name_faults(content.get("name"))
    if not is_text(content.get("description", "")):
        yield f"'description' must be a text, got {excerpt(content['description'])}"
    yield from _base_faults(content.get("base"))
    yield from _licence_faults(content.get("licences", []))
    fields = content.get("fields")
    if not isinstance(fields, dict) or not fields:
        yield "'fields' must be an object with an entry for each member"
    else:
        for name, field in fields.items():
            yield from _field_faults(name, field)
    yield from _shards_faults(content.get("shards"))


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, list | str | None) else excerpt(value)


def _name_faults(name: Any) -> Iterator[str]:
    if not is_text(name) or not name:
        yield f"'name' must be a text, got {excerpt(name)}"
    elif len(name.encode()) > 255 or "/" in name or _CONTROL.search(name):
        yield f"'name' must be at most 255 bytes without '/' and line breaks, got {excerpt(name)}"


def _base_faults(base: Any) -> Iterator[str]:
    """Where the shards are is a plain folder or one URL, never a chain of file systems."""
    if base is None:
        return
    if not is_text(base) or not base or len(base) > 4096 or _CONTROL.search(base):
        yield f"'base' must be a folder or a URL, got {excerpt(base)}"
    elif "://" not in base and "::" not in base:
        return
    elif not is_remote(base) or "::" in base:
        yield f"'base' must be a folder or a URL like s3://bucket/folder, got {excerpt(base)}"
    elif scheme := unknown_scheme(base):
        yield f"'base': nothing opens {excerpt(scheme)}:// URLs, got {excerpt(base)}"


def _licence_faults(licences: Any) -> Iterator[str]:
    if not isinstance(licences, list):
        yield f"'licences' must be a list, got {excerpt(licences)}"
        return
    for place, licence in enumerate(licences):
        if not isinstance(licence, dict) or not all(map(_is_plain, licence.values())):
            yield f"licence {place}: expected an object of texts, got {excerpt(licence)}"


def _is_plain(value: Any) -> bool:
    return is_text(value) or _is_texts(value) or value is None or isinstance(value, bool | int)


def _field_faults(name: str, field: Any) -> Iterator[str]:
    label = f"field {excerpt(name)}"
    if not name or not is_text(name) or len(name) > MAX_NAME or _CONTROL.search(name):
        yield f"{label}: expected the name of a member (jpg, depth.png)"
    if not isinstance(field, dict) or field.get("kind") not in KINDS:
        got = excerpt(field.get("kind") if isinstance(field, dict) else field)
        yield f"{label}: 'kind' must be one of {', '.join(KINDS)}, got {got}"
        return
    for key in ("splits", "keys"):
        if key in field and not _is_texts(field[key]):
            yield f"{label}: {key!r} must be a list of texts, got {excerpt(field[key])}"
    partial = field.get("partial", {})
    if not isinstance(partial, dict) or not all(map(_is_count, partial.values())):
        yield f"{label}: 'partial' must be an object of whole numbers, got {excerpt(partial)}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _shards_faults(shards: Any) -> Iterator[str]:
    if isinstance(shards, dict) and shards:
        for split, columns in shards.items():
            if not split or not is_text(split) or not is_inside(split) or len(split) > 255:
                yield f"'shards': a split must have a plain name, got {excerpt(split)}"
            elif not isinstance(columns, dict):
                yield f"'shards' of split {excerpt(split)} must name the files of its columns"
        return
    if not isinstance(shards, list) or not shards:
        yield "'shards' must be a list with at least one shard"
        return
    for place, shard in enumerate(shards):
        yield from _shard_faults(place, shard)
    named = (s.get("name") for s in shards if isinstance(s, dict))
    for name, count in Counter(name for name in named if isinstance(name, str)).items():
        if count > 1:
            yield f"the shard {excerpt(name)} is listed twice"


def _shard_faults(place: int, shard: Any) -> Iterator[str]:
    if not isinstance(shard, dict):
        yield f"shard {place}: expected an object, got {excerpt(shard)}"
        return
    name = shard.get("name")
    label = f"shard {place} ({excerpt(name)})"
    if not is_text(name) or not name:
        yield f"{label}: 'name' must be a file name"
    elif not is_inside(name):
        yield f"{label}: 'name' must be a path within the manifest's folder"
    elif len(name.encode()) > MAX_NAME:
        yield f"{label}: 'name' has {len(name.encode()):,} bytes, at most {MAX_NAME:,} are possible"
    if not is_text(shard.get("split")) or not shard["split"]:
        yield f"{label}: 'split' must be a text"
    for key, most in (("samples", MAX_SAMPLES), ("bytes", MAX_BYTES)):
        value = shard.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            yield (
                f"{label}: {key!r} must be a whole number above 0 and at most {most:,}, "
                f"got {excerpt(value)}"
            )
    digest = shard.get("sha256")
    if not isinstance(digest, str) or not _is_sha256(digest):
        yield f"{label}: 'sha256' must be 64 hexadecimal digits, got {excerpt(digest)}"
    if "kept" in shard and not _is_keep_list(shard["kept"], shard.get("samples")):
        yield f"{label}: 'kept' must be Base64 of a bit per sample, got {excerpt(shard['kept'])}"


def _is_keep_list(text: Any, samples: Any) -> bool:
    if not isinstance(text, str) or not isinstance(samples, int) or not 0 < samples <= MAX_SAMPLES:
        return False
    try:
        unpacked(text, samples)
    except ValueError:
        return False
    return True


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
