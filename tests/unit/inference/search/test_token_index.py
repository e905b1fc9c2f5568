"""Tables of tokens, and search over them by late interaction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from search_helpers import WORDS, make_embedder, write_things
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import UserError
from multimodal.core.similarity.similarities import MaxSim
from multimodal.inference.search import tokens
from multimodal.inference.search.builder import build_table
from multimodal.inference.search.index import open_index
from multimodal.inference.search.items import FolderItems
from multimodal.inference.search.query import QueryTerm
from multimodal.inference.search.table import TableError, read_table
from multimodal.inference.search.tokens import TokenTerm, open_token_index, token_terms


class Several(nn.Module):
    """One to four tokens of each input, as many as its values say."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.width = inner.width

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        features = self.inner(inputs, mask).features
        made = torch.stack([features.roll(shift, dims=1) for shift in range(4)], dim=1)
        count = 1 + (features[:, 0].abs() * 1000).long() % 4
        return EncoderOutput(features, made, torch.arange(4) < count[:, None])


def late(folder: Path, query: str | None = None, reduction: str = "mean"):
    embedder = make_embedder(folder)
    for name in embedder.model.towers:
        tower = embedder.model.tower(name)
        tower.encoder = Several(tower.encoder)
    embedder.model.compare_by(MaxSim(query, reduction))
    return embedder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, its embedder and its table."""
    folder = tmp_path_factory.mktemp("tokens")
    embedder, things = late(folder), write_things(folder / "things")
    rows, left_out = build_table(
        embedder, FolderItems(things), folder / "t.parquet", {"kind": "normalized"}, False
    )
    assert (rows, left_out) == (15, 0)
    return folder, embedder, folder / "t.parquet"


def test_a_row_has_the_tokens_of_its_input(made):
    _, embedder, path = made
    table = read_table(path, tokens=True)
    assert table.offsets is not None
    lengths = np.diff(table.offsets)
    assert lengths.min() >= 1
    assert len(set(lengths)) > 1
    assert len(table.vectors) == lengths.sum()
    for place, row in enumerate(table.rows):
        if row.modality == "text":
            (expected,) = embedder.values("text", [WORDS[int(row.key[-5])]])
            own = table.vectors[table.offsets[place] : table.offsets[place + 1]]
            real = expected[expected.any(dim=1)]
            torch.testing.assert_close(torch.from_numpy(own), real)


def test_an_interrupted_table_goes_on(made, tmp_path):
    folder, embedder, path = made

    class Stop(Exception):
        pass

    def stop(_: int) -> None:
        raise Stop

    given = (
        embedder,
        FolderItems(folder / "things"),
        tmp_path / "t.parquet",
        {"kind": "normalized"},
    )
    with pytest.raises(Stop):
        build_table(*given, False, stop)
    build_table(*given, False)
    again, whole = read_table(tmp_path / "t.parquet", tokens=True), read_table(path, tokens=True)
    assert np.array_equal(again.vectors, whole.vectors)
    assert np.array_equal(again.offsets, whole.offsets)
    assert again.rows == whole.rows


def score(queries: np.ndarray, documents: np.ndarray) -> float:
    return float(np.mean([max(query @ document for document in documents) for query in queries]))


@pytest.mark.parametrize("asks", [None, "image"])
def test_exact_search_equals_loops(made, asks):
    _, embedder, path = made
    embedder.model.compare_by(MaxSim(asks))
    table, index, _ = open_token_index(str(path), embedder, approximate=False)
    terms = token_terms(
        embedder, [QueryTerm("text", "a red lamp"), QueryTerm("text", "rain", -0.5)]
    )
    found = index.search(terms, 15)
    assert set(found) == {"image", "audio", "text"}
    for name, hits in found.items():
        expected = {}
        for place, row in enumerate(table.rows):
            if row.modality == name:
                own = table.vectors[table.offsets[place] : table.offsets[place + 1]]
                expected[place] = 0.0
                for term in terms:
                    asked = term.tokens[term.tokens.any(dim=1)].numpy()
                    sides = (own, asked) if name == asks else (asked, own)
                    expected[place] += term.weight * score(*sides)
        assert {hit.row: pytest.approx(hit.score, abs=1e-5) for hit in hits} == expected
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
    embedder.model.compare_by(MaxSim())


def test_a_graph_of_tokens_finds_candidates_that_are_scored_exactly(made, monkeypatch):
    _, embedder, path = made
    _, exact, _ = open_token_index(str(path), embedder, approximate=False)
    _, graph, _ = open_token_index(str(path), embedder, approximate=True)
    terms = token_terms(embedder, [QueryTerm("text", WORDS[2])])
    assert graph.search(terms, 5) == exact.search(terms, 5)
    monkeypatch.setattr(tokens, "NEAREST", 1)
    seen = []
    scored = graph._scores
    monkeypatch.setattr(graph, "_scores", lambda *a: (seen.append(len(a[2])), scored(*a))[1])
    best = graph.search(terms, 1)
    assert best["text"] == exact.search(terms, 1)["text"]
    assert max(seen) <= 4  # no more rows than tokens asked
    assert exact.search([*terms, TokenTerm("text", terms[0].tokens, -1.0)], 1)["text"][0].score == 0


def test_what_does_not_fit_is_refused(made, tmp_path):
    folder, embedder, path = made
    items = FolderItems(folder / "things")
    with pytest.raises(ValueError, match=r"ends in \.parquet"):
        build_table(embedder, items, tmp_path / "t.npy", {}, False)
    with pytest.raises(TableError, match="quantize=int8"):
        open_token_index(str(path), embedder, False, "int8")
    with pytest.raises(UserError, match="this index takes one embedding of each input"):
        open_index(str(path), embedder, False)
    pooled = make_embedder(tmp_path)
    with pytest.raises(TableError, match="holds embeddings of tokens"):
        open_index(str(path), pooled, False)
    build_table(pooled, items, tmp_path / "pooled.parquet", {}, False)
    with pytest.raises(TableError, match="holds one embedding of each input, expected"):
        open_token_index(str(tmp_path / "pooled.parquet"), embedder, False)
    _, index, _ = open_token_index(str(path), embedder, False)
    with pytest.raises(ValueError, match=r"expected terms of tokens \[T, 12\]"):
        index.search([], 3)
