"""Nearest rows of a table: by faiss, exactly or approximately, for each modality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.inference.embedder import Embedder
from multimodal.inference.search.compressed import Kind, Quantize, build
from multimodal.inference.search.table import Table, Vectors, fitting, read_table


class Found(NamedTuple):
    """A row of the table and its cosine with the query."""

    row: int
    score: float


class Index:
    """The rows of a table, searchable by cosine.

    Args:
        vectors: ``[N, D]``; normalised here, so tables of any kind of embedding may be searched.
        modalities: of the N rows.
        kind: ``exact`` compares with every row; ``approximate`` walks a graph (HNSW), which pays
            from some hundred thousand rows on.
        quantize: ``int8`` or ``binary``: the search goes through codes of a quarter or a 32nd of
            the size, and the vectors rank what it finds (`compressed.RESCORED`); None: through the
            vectors.

    Raises:
        ValueError: if a vector is zero or not finite: it has no direction.
    """

    def __init__(
        self,
        vectors: Vectors,
        modalities: list[str],
        kind: Kind = "exact",
        quantize: Quantize | None = None,
    ) -> None:
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        bad = ~(np.isfinite(norms) & (norms > 0))
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} of {len(vectors)} embeddings are zero or not finite "
                f"(the first: row {int(bad.argmax())})"
            )
        self.vectors: Vectors = np.ascontiguousarray(vectors / norms, np.float32)
        self.kind = kind
        named = np.asarray(modalities)
        self._rows: dict[str, NDArray[np.int64]] = {
            str(name): np.flatnonzero(named == name) for name in dict.fromkeys(modalities)
        }
        self._indices = {
            name: build(self.vectors[rows], kind, quantize) for name, rows in self._rows.items()
        }

    @property
    def modalities(self) -> dict[str, int]:
        """Modality -> number of its rows."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def search(self, query: Vectors, k: int) -> Mapping[str, list[Found]]:
        """The ``k`` nearest rows of every modality, the nearest first.

        Args:
            query: ``[D]``, of any norm above 0.
            k: at least 1.

        Raises:
            ValueError: if given another dimension, or a query without a direction.
        """
        norm = float(np.linalg.norm(query))
        if query.shape != self.vectors.shape[1:] or not np.isfinite(norm) or norm == 0:
            raise ValueError(
                f"expected a query of {self.vectors.shape[1]} numbers, not all zero; "
                f"got {list(query.shape)} with norm {norm:g}"
            )
        asked = np.asarray(query / norm, np.float32)
        hits = {}
        for name, rows in self._rows.items():
            scores, places = self._indices[name].search(asked, k)
            hits[name] = [
                Found(int(rows[place]), float(score))
                for score, place in zip(scores, places, strict=True)
            ]
        return hits


def open_index(
    path: str, embedder: Embedder, approximate: bool, quantize: Quantize | None = None
) -> tuple[Table, Index, Embedder]:
    """A table, checked to be of the embedder's model, and an index over it.

    Args:
        path: of the table.
        embedder: whose ``dim`` cuts the table; one without takes that of a table that was cut.
        approximate: see `Index`; so is ``quantize``.
        quantize: see above.

    Returns:
        the table, its index, and what embeds queries for it.

    Raises:
        ValueError: if it is of another model, or contains zero vectors.
        FileNotFoundError: if it is not there.
    """
    embedder.need_pooled("this index")
    table = read_table(Path(path))
    embedder = fitting(embedder, table)
    kind: Kind = "approximate" if approximate else "exact"
    vectors = table.vectors[:, : embedder.embed_dim]
    return table, Index(vectors, [row.modality for row in table.rows], kind, quantize), embedder
