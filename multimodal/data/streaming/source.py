"""A source that is read as a stream."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from multimodal.core.extras import module_of
from multimodal.data.sample_decoder import SampleDecoder
from multimodal.data.shards.manifest import Field, Manifest, kind_of
from multimodal.data.shards.paths import SAMPLES_PREFIX, resolve
from multimodal.data.source import SourceContext


class StreamSource:
    """Samples of a list of shards, in no predictable order.

    Args:
        urls: of the shards: paths, ``samples://NAME``, or URLs that fsspec opens; ``{000..123}``
            stands for all of these numbers. ``pipe:COMMAND`` is refused unless allowed.
        modalities: as ``multimodal.data.Source`` takes them.
        kinds: kinds of members whose names do not imply them (``{gyro.npy: imu}``).
        positive_key: JSON key whose equal values make samples positives of each other.
        batch_size: per device; None for ``data.batch_size``.
        weight: share of the batches; None for 1.
        allow: schemes that are refused otherwise: ``[pipe]`` runs each URL's command in a shell.

    Raises:
        ValueError: if given an empty list, and for a ``pipe:`` that is not allowed.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        modalities: dict[str, dict[str, Any]],
        kinds: Mapping[str, str] | None = None,
        positive_key: str | None = None,
        batch_size: int | None = None,
        weight: float | None = None,
        allow: Sequence[str] = (),
    ) -> None:
        self.urls = _expanded([urls] if isinstance(urls, str) else urls)
        for url in self.urls:
            if url.startswith("pipe:") and "pipe" not in allow:
                raise ValueError(
                    f"{url!r} would run a command: add `allow: [pipe]` to the source if you trust "
                    "its shard list"
                )
        if not self.urls:
            raise ValueError("a stream needs at least one shard: urls is empty")
        members: dict[str, None] = {}
        for entry in modalities.values():
            listed = entry.get("member") or ()
            members |= dict.fromkeys([listed] if isinstance(listed, str) else listed)
        fields = {name: Field(kind_of(name, kinds or {})) for name in (*members, "json")}
        about = Manifest(Path("stream"), "stream", "", fields, {})
        self.decoder = SampleDecoder(about, ["train"], modalities, positive_key)
        self.batch_size = batch_size
        self.weight = 1.0 if weight is None else weight

    def within(self, context: SourceContext, name: str) -> StreamSource:
        """The same samples, read as a run reads them."""
        source = copy.copy(self)
        source.decoder = self.decoder.within(name, context.limits, context.cache)
        return source


def _expanded(urls: Iterable[str]) -> list[str]:
    # Heavy, and only for streams.
    expand_urls = module_of("stream", "webdataset.shardlists", "data=stream").expand_urls

    parts = [part for url in urls for part in expand_urls(url)]
    return [str(resolve(url)) if url.startswith(SAMPLES_PREFIX) else url for url in parts]
