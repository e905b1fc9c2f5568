"""Search by late interaction, over a table of embeddings of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from multimodal.core.similarity.similarities import Similarity
from multimodal.inference.embedder import Embedder
from multimodal.inference.search.compressed import Compressed, Kind, Quantize, build
from multimodal.inference.search.index import Found
from multimodal.inference.search.query import QueryTerm
from multimodal.inference.search.table import Table, TableError, Vectors, fitting, read_table

NEAREST = 16  # tokens that each of a query's finds, for each row that is wanted
ROWS = 256  # compared at a time


class TokenTerm(NamedTuple):
    """Tokens ``[T, D]`` of one input of a query, its modality, and its weight in the score."""

    modality: str
    tokens: Tensor
    weight: float = 1.0


class TokenIndex:
    """The rows of a table of tokens, searchable by the similarity of their model.

    Args:
        tokens: ``[S, D]`` of unit norm, those of one row after the other.
        offsets: ``[N + 1]``, where the tokens of each of the N rows begin, and the end.
        modalities: of the N rows.
        similarity: of the model.
        kind: ``exact`` compares with every row. ``approximate`` lets each token of the query find
            the nearest of all tokens in a graph (HNSW), and compares exactly with the rows that
            have them (ColBERT, Khattab & Zaharia 2020, Section 3.5).

    Raises:
        ValueError: if a row has no token, or a number is not finite.
    """

    def __init__(
        self,
        tokens: Vectors,
        offsets: NDArray[np.int64],
        modalities: list[str],
        similarity: Similarity,
        kind: Kind = "exact",
    ) -> None:
        if not np.isfinite(tokens).all() or (np.diff(offsets) < 1).any():
            raise ValueError("a row has no token, or a number that is not finite")
        self.tokens = functional.normalize(torch.from_numpy(tokens), dim=1)
        self.offsets = offsets
        self.similarity = similarity
        named = np.asarray(modalities)
        self._rows: dict[str, NDArray[np.int64]] = {
            str(name): np.flatnonzero(named == name) for name in dict.fromkeys(modalities)
        }
        self._owners = np.repeat(np.arange(len(modalities)), np.diff(offsets))
        self._graphs: dict[str, tuple[Compressed, NDArray[np.int64]]] = {}
        if kind == "approximate":
            for name, rows in self._rows.items():
                places = np.flatnonzero(np.isin(self._owners, rows))
                graph = build(self.tokens[places].numpy(), kind)
                self._graphs[name] = graph, self._owners[places]

    def search(self, terms: Sequence[TokenTerm], k: int) -> Mapping[str, list[Found]]:
        """The ``k`` nearest rows of every modality, the nearest first.

        Args:
            terms: of the query; a row's score is the weighted sum of its similarities with them.
            k: at least 1.

        Raises:
            ValueError: if there are no terms, or of another width.
        """
        width = self.tokens.shape[1]
        if not terms or any(term.tokens.shape[1:] != (width,) for term in terms):
            given = [list(term.tokens.shape) for term in terms]
            raise ValueError(f"expected terms of tokens [T, {width}], got {given}")
        hits = {}
        for name, rows in self._rows.items():
            near = self._near(terms, name, k) if self._graphs else rows
            scores = self._scores(terms, name, near)
            best = np.argsort(-scores, kind="stable")[:k]
            hits[name] = [Found(int(near[at]), float(scores[at])) for at in best]
        return hits

    def _near(self, terms: Sequence[TokenTerm], name: str, k: int) -> NDArray[np.int64]:
        """Rows that have a token near to one of the query's, ascending."""
        graph, owners = self._graphs[name]
        rows = [
            owners[graph.search(token, k * NEAREST)[1]]
            for term in terms
            if term.weight > 0
            for token in term.tokens.numpy()
        ]
        return np.unique(np.concatenate(rows)) if rows else self._rows[name]

    def _scores(
        self, terms: Sequence[TokenTerm], name: str, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        total = np.zeros(len(rows), np.float32)
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            own = [self.tokens[self.offsets[row] : self.offsets[row + 1]] for row in rows[part]]
            documents = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
            for term in terms:
                compare = self.similarity.between(term.modality, name)
                scores = compare.matrix(term.tokens[None], documents)[0]
                total[part] += term.weight * scores.numpy()
        return total


def token_terms(embedder: Embedder, terms: Sequence[QueryTerm]) -> list[TokenTerm]:
    """The terms of a query, embedded.

    Raises:
        ValueError: if given a modality that the model does not take.
        DecodeError: if given a value that its transform does not take.
    """
    made = []
    for term in terms:
        (tokens,) = embedder.values(term.modality, [term.value]).float()
        made.append(TokenTerm(term.modality, functional.normalize(tokens, dim=1), term.weight))
    return made


def open_token_index(
    path: str, embedder: Embedder, approximate: bool, quantize: Quantize | None = None
) -> tuple[Table, TokenIndex, Embedder]:
    """As `open_index`, of a table of tokens.

    Raises:
        TableError: if it is of another model, or is to be quantised.
    """
    if quantize is not None:
        raise TableError.mistake(
            f"quantize={quantize}: embeddings of tokens are compared whole; set it to null"
        )
    table = read_table(Path(path), tokens=True)
    embedder = fitting(embedder, table)
    assert table.offsets is not None
    vectors = np.ascontiguousarray(table.vectors[:, : embedder.embed_dim])
    modalities = [row.modality for row in table.rows]
    kind: Kind = "approximate" if approximate else "exact"
    similarity = embedder.model.similarity
    return table, TokenIndex(vectors, table.offsets, modalities, similarity, kind), embedder
