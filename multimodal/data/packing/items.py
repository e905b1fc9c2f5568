"""The samples to pack, one item each, from any layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multimodal.data.errors import BadSampleError
from multimodal.data.packing.contents import Content
from multimodal.data.packing.keys import safe_key
from multimodal.data.shards.formats import sniff

DONE = ".make_shards"  # folder of finished work, beside the shards
ANY = "*"  # in place of an extension that the bytes say


class Refusal(NamedTuple):
    """A sample, or a file, that is not packed, and why."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Item:
    """One sample to be packed.

    Attributes:
        name: what it is called where it comes from.
        members: field -> where its bytes are. A field ``photo.*`` gets the extension that its
            bytes have.
        metadata: what goes into its ``json`` member besides what such a member has already.
        split: that it belongs to where it comes from; None if nothing says so.
        texts: keys of the metadata that must hold texts.
        key: made of the name.
    """

    name: str
    members: Mapping[str, Content]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    texts: tuple[str, ...] = ()
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", safe_key(self.name))

    @property
    def size(self) -> int:
        """Bytes of all members together, about."""
        return sum(content.size for content in self.members.values())

    def read(self, most: int) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Bytes of the members other than ``json``, and the metadata.

        Args:
            most: bytes of a member.

        Raises:
            OSError: if a file cannot be read.
            BadSampleError: if something else cannot, or if ``json`` is not an object.
        """
        contents = {}
        for name, content in self.members.items():
            data = content.read(most)
            contents[_named(name, data)] = data
        text = contents.pop("json", None)
        return contents, (dict(self.metadata) if text is None else self._joined(text))

    def own_metadata(self, most: int) -> dict[str, Any]:
        """The metadata alone; see `read`."""
        if "json" not in self.members:
            return dict(self.metadata)
        return self._joined(self.members["json"].read(most))

    def _joined(self, text: bytes) -> dict[str, Any]:
        try:
            metadata = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadSampleError("corrupt", f"'json' is not JSON: {error}") from error
        if not isinstance(metadata, dict):
            raise BadSampleError(
                "metadata", f"expected a JSON object, got {type(metadata).__name__}"
            )
        return metadata | dict(self.metadata)


def _named(field_name: str, data: bytes) -> str:
    stem, _, extension = field_name.rpartition(".")
    if extension != ANY:
        return field_name
    sniffed = sniff(data)
    if sniffed is None:
        raise BadSampleError(
            "unsupported", f"{stem!r} has no name, and begins like no known file: {data[:8]!r}"
        )
    return f"{stem}.{sniffed}" if stem else sniffed


Say = Callable[[str], None]
Samples = Iterator[Item | Refusal]
