"""Nearest rows of a table: by faiss, exactly or approximately, for each modality."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.inference.embedder import Embedder
from multimodal.inference.search.table import Table, Vectors, check_fit, read_table

Kind = Literal["exact", "approximate"]
HNSW_M = 32  # of a node of the graph (Malkov and Yashunin 2018, M)
EF_CONSTRUCTION = 80  # candidates looked at when a node is linked
EF_SEARCH = 96  # candidates looked at in a search


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

    Raises:
        ValueError: if a vector is zero or not finite: it has no direction.
    """

    def __init__(self, vectors: Vectors, modalities: list[str], kind: Kind = "exact") -> None:
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
        self._indices = {name: build(self.vectors[rows], kind) for name, rows in self._rows.items()}

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
        asked = np.ascontiguousarray(query[None] / norm, np.float32)
        hits = {}
        for name, rows in self._rows.items():
            scores, places = self._indices[name].search(asked, min(k, len(rows)))
            hits[name] = [
                Found(int(rows[place]), float(score))
                for score, place in zip(scores[0], places[0], strict=True)
                if place >= 0
            ]
        return hits


def build(vectors: Vectors, kind: Kind) -> Any:
    """A faiss index by inner product.

    Args:
        vectors: ``[N, D]`` float32.
        kind: ``exact`` (IndexFlatIP) or ``approximate`` (IndexHNSWFlat).

    Raises:
        MissingExtraError: if faiss is not installed; the message names the extra.
    """
    # It logs which of its builds it loads, and every missing one as a failure.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    faiss = module_of("search", "faiss", "searching a table")
    dim = vectors.shape[1]
    index: Any
    if kind == "exact":
        index = faiss.IndexFlatIP(dim)
    elif kind == "approximate":
        index = faiss.IndexHNSWFlat(dim, HNSW_M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.hnsw.efSearch = EF_SEARCH
    else:
        raise ValueError(f"kind={kind!r}: expected 'exact' or 'approximate'")
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def open_index(path: str, embedder: Embedder, approximate: bool) -> tuple[Table, Index]:
    """A table, checked to be of the embedder's model, and an index over it.

    Raises:
        ValueError: if it is of another model, or contains zero vectors.
        FileNotFoundError: if it is not there.
    """
    table = read_table(Path(path))
    check_fit(embedder, table)
    kind: Kind = "approximate" if approximate else "exact"
    return table, Index(table.vectors, [row.modality for row in table.rows], kind)
