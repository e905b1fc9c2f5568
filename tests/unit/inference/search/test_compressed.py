"""Indices of codes, rescored; embeddings cut to their first numbers, in tables and in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from search_helpers import WORDS, make_embedder, write_things

from multimodal.inference.search.builder import build_table
from multimodal.inference.search.compressed import RESCORED, build, packed
from multimodal.inference.search.index import Index, open_index
from multimodal.inference.search.items import FolderItems
from multimodal.inference.search.table import TableError, about_of

DIM = 44  # not of whole bytes


def clusters(count: int, dim: int = DIM) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, dim))
    rows = centres[rng.integers(20, size=count)] + 0.6 * rng.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_codes_are_a_quarter_and_a_32nd():
    rows = clusters(300, 64)
    sizes = {q: build(rows, "exact", q).bytes_per_row for q in (None, "int8", "binary")}
    assert sizes == {None: 256, "int8": 64, "binary": 8}
    graph = {q: build(rows, "approximate", q).bytes_per_row for q in (None, "int8", "binary")}
    assert graph == sizes


@pytest.mark.parametrize("kind", ["exact", "approximate"])
@pytest.mark.parametrize("quantize", ["int8", "binary"])
def test_what_codes_find_is_ranked_by_the_vectors(kind, quantize):
    rows = clusters(1500)
    index, found = build(rows, kind, quantize), 0
    for number in range(40):
        query = rows[number] + 0.05 * clusters(40)[-number - 1]
        query /= np.linalg.norm(query)
        scores, places = index.search(query, 5)
        cosines = rows @ query
        np.testing.assert_allclose(scores, cosines[places], rtol=1e-5)  # not those of the codes
        assert (np.diff(scores) <= 0).all()
        found += len(set(places.tolist()) & set(np.argsort(-cosines)[:5].tolist()))
    assert found >= 0.9 * 200


def test_binary_looks_at_the_nearest_by_sign():
    rows = clusters(400)
    asked = rows[7]
    differing = (np.sign(rows) != np.sign(asked)).sum(1)
    wanted = 3 * RESCORED["binary"]
    _, places = build(rows, "exact", "binary").search(asked, 3)
    assert set(places.tolist()) <= set(np.flatnonzero(differing <= np.sort(differing)[wanted - 1]))
    assert packed(rows).shape == (400, 6)


def test_another_code_is_refused():
    with pytest.raises(ValueError, match="quantize=int4: did you mean 'int8'"):
        Index(clusters(3), ["image"] * 3, quantize="int4")


def test_an_embedding_is_cut_at_the_norm_that_it_had(tmp_path):
    embedder = make_embedder(tmp_path)
    whole = embedder.embed(text=WORDS)
    cut = embedder.embed(dim=3, text=WORDS)
    expected = whole[:, :3] / whole[:, :3].norm(dim=1, keepdim=True)
    torch.testing.assert_close(cut, expected)
    torch.testing.assert_close(embedder.at(3).values("text", WORDS), expected)
    torch.testing.assert_close(embedder.similarity(dim=3, text=WORDS), expected @ expected.T)
    shares = embedder.zero_shot(WORDS, dim=3, text=WORDS[:2])
    torch.testing.assert_close(shares, (expected[:2] @ expected.T / 0.07).softmax(1))
    scaled = make_embedder(tmp_path, kind="scaled", scale=20.0)
    norms = scaled.embed(dim=3, text=WORDS).norm(dim=1)
    torch.testing.assert_close(norms, scaled.embed(text=WORDS).norm(dim=1))
    raw = make_embedder(tmp_path, kind="raw")
    assert torch.equal(raw.embed(dim=3, text=WORDS), raw.embed(text=WORDS)[:, :3])
    for dim in (0, embedder.model.embed_dim + 1):
        with pytest.raises(ValueError, match=f"dim={dim}: expected 1 to embed_dim="):
            embedder.embed(dim=dim, text=WORDS)


def table(embedder, folder: Path, name: str) -> str:
    path = folder / name
    about = about_of("a.ckpt", "0", embedder, "things")
    build_table(embedder, FolderItems(folder / "things"), path, about, False)
    return str(path)


def test_tables_are_cut_when_they_are_made_or_when_they_are_searched(tmp_path):
    write_things(tmp_path / "things")
    embedder = make_embedder(tmp_path)
    whole = table(embedder, tmp_path, "whole.parquet")
    short = table(embedder.at(4), tmp_path, "short.parquet")
    read, index, same = open_index(whole, embedder.at(4), False)
    stored, cut, inferred = open_index(short, embedder, False)  # its width, without being told
    assert (read.vectors.shape[1], index.vectors.shape[1], same.dim) == (12, 4, 4)
    assert (stored.about["dim"], stored.about["embed_dim"], inferred.dim) == (4, 4, 4)
    np.testing.assert_allclose(index.vectors, cut.vectors, atol=1e-6)
    query = inferred.values("text", [WORDS[1]])[0].numpy()
    assert stored.rows[cut.search(query, 1)["text"][0].row].name == WORDS[1]
    with pytest.raises(TableError, match=r"of 4 dimensions.* makes 12, cut to 5"):
        open_index(short, embedder.at(5), False)
