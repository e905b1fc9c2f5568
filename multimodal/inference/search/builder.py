"""Embeds items into a table, part by part."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multimodal.core.similarity.tokens import real_tokens
from multimodal.data.errors import BadSampleError
from multimodal.data.preview import drawable, preview
from multimodal.inference.embedder import Embedder
from multimodal.inference.search.items import Item, Items, by_modality
from multimodal.inference.search.table import PartWriter, Row, Vectors


def build_table(
    embedder: Embedder,
    items: Items,
    output: Path,
    about: dict[str, Any],
    previews: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[int, int]:
    """Embeds ``items`` into the table ``output``, or resumes an interrupted run.

    Unreadable items are reported on stderr and left out.

    Args:
        embedder: of the wanted kind of embeddings; a part is one of its batches.
        items: to embed.
        output: see `PartWriter`.
        about: kept in the table.
        previews: keeps a small picture, sound or text of every item in it.
        advance: called with the number of finished items.

    Returns:
        Number of rows, and of items left out by this call.

    Raises:
        ValueError: as `PartWriter`, if no item can be read, or for ``.npy`` of tokens.
    """
    if embedder.model.similarity.per_token and output.suffix == ".npy":
        raise ValueError(f"output={output}: embeddings of tokens need a name that ends in .parquet")
    size = embedder.data.batch_size
    identity = repr((about, items.identity(), size, previews))
    writer = PartWriter(output, about, identity)
    count, left_out = -(-len(items) // size), 0
    for number in range(count):
        span = range(number * size, min((number + 1) * size, len(items)))
        if not writer.done(number):
            loaded = [item for index in span if (item := _load(items, index)) is not None]
            left_out += len(span) - len(loaded)
            writer.write(number, *_embed(embedder, loaded, previews))
        advance(len(span))
    rows = writer.finish(count)
    if rows == 0:
        output.unlink()
        raise ValueError("none of the items can be read: no table is made")
    return rows, left_out


def _load(items: Items, index: int) -> Item | None:
    try:
        return items.load(index)
    except BadSampleError as error:
        print(f"left out: {items.place(index)}: {error}", file=sys.stderr)
        return None


def _embed(
    embedder: Embedder, items: list[Item], previews: bool
) -> tuple[Vectors, list[Row], NDArray[np.int64] | None]:
    vectors: list[Vectors] = [np.zeros((0, embedder.embed_dim), np.float32)]
    rows: list[Row] = []
    lengths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for modality, places in by_modality(items).items():
        values = [items[place].values[modality] for place in places]
        embedded = embedder.values(modality, values).float()
        if embedded.ndim == 3:
            real = real_tokens(embedded)
            lengths.append(real.sum(dim=1).numpy())
            embedded = embedded[real]
        vectors.append(embedded.numpy())
        for place, value in zip(places, values, strict=True):
            shown = _preview(modality, value) if previews else ("", b"")
            rows.append(Row(items[place].key, modality, items[place].name, *shown))
    for name in embedder.joined():
        parts = embedder.model.joint.parts(name)
        some = [item for item in items if set(parts) <= item.values.keys()]
        if not some:
            continue
        together = {part: [item.values[part] for item in some] for part in parts}
        vectors.append(embedder.joint_values(together).float().numpy())
        for item in some:
            shown = _preview(parts[0], item.values[parts[0]]) if previews else ("", b"")
            rows.append(Row(item.key, name, item.name, *shown))
    per_token = embedder.model.similarity.per_token
    return np.concatenate(vectors), rows, np.concatenate(lengths) if per_token else None


def _preview(modality: str, value: Any) -> tuple[str, bytes]:
    shown, rate = drawable(modality, value)
    return preview(modality, shown, rate)
