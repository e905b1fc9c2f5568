"""faiss indices of whole vectors, of eight bits a number, or of one, which are then rescored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.core.suggest import suggest

Kind = Literal["exact", "approximate"]
Quantize = Literal["int8", "binary"]
HNSW_M = 32  # of a node of the graph (Malkov and Yashunin 2018, M)
EF_CONSTRUCTION = 80  # candidates looked at when a node is linked
EF_SEARCH = 96  # candidates looked at in a search
# Candidates that the codes find, for each that is wanted; the whole vectors then rank them.
RESCORED = {"int8": 4, "binary": 16}
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Compressed:
    """An index of one modality's rows.

    Attributes:
        index: of faiss.
        vectors: ``[N, D]`` float32 of unit norm, which rank what the codes find.
        quantize: what the index holds of each vector; None: all of it.
    """

    index: Any
    vectors: Vectors
    quantize: Quantize | None = None

    @property
    def bytes_per_row(self) -> int:
        """Of the codes that a search goes through."""
        storage = getattr(self.index, "storage", None) or self.index
        binary = self.quantize == "binary"
        return int(storage.code_size if binary else storage.sa_code_size())

    def search(self, query: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """The ``k`` nearest rows: cosines and places, the nearest first.

        Args:
            query: ``[D]`` of unit norm.
            k: at least 1.
        """
        asked = np.ascontiguousarray(query[None], np.float32)
        k = min(k, len(self.vectors))
        if self.quantize is None:
            scores, places = self.index.search(asked, k)
            return scores[0][places[0] >= 0], places[0][places[0] >= 0]
        wanted = min(k * RESCORED[self.quantize], len(self.vectors))
        codes = packed(asked) if self.quantize == "binary" else asked
        candidates = self.index.search(codes, wanted)[1][0]
        candidates = candidates[candidates >= 0]
        scores = self.vectors[candidates] @ asked[0]
        best = np.argsort(-scores, kind="stable")[:k]
        return scores[best], candidates[best]


def packed(vectors: Vectors) -> NDArray[np.uint8]:
    """The signs of rows ``[N, D]``, eight to a byte ``[N, ceil(D / 8)]``."""
    return np.packbits(vectors > 0, axis=1)


def build(vectors: Vectors, kind: Kind, quantize: Quantize | None = None) -> Compressed:
    """An index by inner product.

    Args:
        vectors: ``[N, D]`` float32 of unit norm.
        kind: ``exact`` compares with every row, ``approximate`` walks a graph (HNSW).
        quantize: None keeps four bytes a number; ``int8`` one, each dimension scaled by its
            range; ``binary`` one bit, its sign, compared by Hamming distance.

    Raises:
        MissingExtraError: if faiss is not installed; the message names the extra.
        ValueError: if there is no such kind.
    """
    # It logs which of its builds it loads, and every missing one as a failure.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    faiss = module_of("search", "faiss", "searching a table")
    if kind not in ("exact", "approximate"):
        raise ValueError(f"kind={kind!r}: expected 'exact' or 'approximate'")
    if quantize not in (None, "int8", "binary"):
        raise ValueError(f"quantize={quantize}: {suggest(str(quantize), ('int8', 'binary'))}")
    rows = np.ascontiguousarray(vectors, np.float32)
    index = _empty(faiss, rows.shape[1], kind, quantize)
    if kind == "approximate":
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.hnsw.efSearch = EF_SEARCH * (4 if quantize == "binary" else 1)
    if quantize == "int8":
        index.train(rows)
    index.add(packed(rows) if quantize == "binary" else rows)
    return Compressed(index, vectors, quantize)


def _empty(faiss: Any, dim: int, kind: Kind, quantize: Quantize | None) -> Any:
    exact, inner = kind == "exact", faiss.METRIC_INNER_PRODUCT
    eight = faiss.ScalarQuantizer.QT_8bit
    if quantize is None:
        return faiss.IndexFlatIP(dim) if exact else faiss.IndexHNSWFlat(dim, HNSW_M, inner)
    if quantize == "int8":
        if exact:
            return faiss.IndexScalarQuantizer(dim, eight, inner)
        return faiss.IndexHNSWSQ(dim, eight, HNSW_M, inner)
    bits = -(-dim // 8) * 8
    return faiss.IndexBinaryFlat(bits) if exact else faiss.IndexBinaryHNSW(bits, HNSW_M)
