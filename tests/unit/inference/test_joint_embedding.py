"""Several modalities as one embedding: given by hand, in tables, in queries and in the service."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path

import pytest
import torch
from data_helpers import image_bytes, json_bytes, write_source
from search_helpers import DIM, WORDS, make_embedder, write_things
from starlette.testclient import TestClient
from torch.nn import functional as F

from multimodal.data.source import Source
from multimodal.inference.embedder import Embedder
from multimodal.inference.export.graphs import ExportError
from multimodal.inference.search import query
from multimodal.inference.search.builder import build_table
from multimodal.inference.search.index import Index
from multimodal.inference.search.items import SourceItems
from multimodal.inference.search.server import LIMITS, make_app
from multimodal.inference.search.table import read_table
from multimodal.inference.service.api import Service
from multimodal.inference.service.batching import Batching
from multimodal.inference.service.engine import OnnxEmbedder
from multimodal.models.fusion.pooled import ConcatFusion
from multimodal.models.joint.fused import FusedJoint
from multimodal.models.towers import EmbeddingModel

BOTH = "image&text"


@pytest.fixture
def embedder(tmp_path: Path) -> Embedder:
    plain = make_embedder(tmp_path)
    joint = partial(FusedJoint, modalities=["image", "text"], fusion=partial(ConcatFusion, width=8))
    towers = {name: plain.model.tower(name) for name in plain.model.towers}
    model = EmbeddingModel(towers, joint={"both": joint}).eval()
    torch.nn.init.normal_(model.joint.of(BOTH).project.weight)
    return Embedder(model, plain.data)


def expected(embedder: Embedder, images: list[Path], texts: list[str]) -> torch.Tensor:
    parts = {"image": embedder.embed(image=images), "text": embedder.embed(text=texts)}
    made = embedder.model.joint.of(BOTH).from_embeddings(parts, {})
    return F.normalize(made.detach(), dim=-1)


def test_embed_gives_a_row_for_one_of_each(embedder, tmp_path):
    things = write_things(tmp_path / "things")
    images = [things / f"{number}.png" for number in range(5)]  # of a batch of 4, and one more
    rows = embedder.embed(joint=True, image=images, text=WORDS)
    torch.testing.assert_close(rows, expected(embedder, images, WORDS))
    assert embedder.embed(image=images, text=WORDS).shape == (10, DIM)
    short = embedder.embed(dim=4, joint=True, image=images[0], text=WORDS[0])
    torch.testing.assert_close(short, F.normalize(rows[:1, :4], dim=-1))
    with pytest.raises(ValueError, match="no joint embedding 'audio&text': the model has image&"):
        embedder.embed(joint=True, audio=[], text=[])
    with pytest.raises(ValueError, match="as many of each modality, got 1 of image, 2 of text"):
        embedder.embed(joint=True, image=images[0], text=WORDS[:2])


def shards(folder: Path) -> Source:
    samples = [
        (f"k{i}", {"image.png": image_bytes((torch.rand(8, 8, 3) * 255).byte().numpy()),
                   "json": json_bytes(name=text)})
        for i, text in enumerate(WORDS)
    ]  # fmt: skip
    manifest = write_source(folder, {"test": [samples]}, name="toy")
    modalities = {"image": {"member": "image.png"}, "text": {"member": "json", "key": "name"}}
    return Source(str(manifest), modalities, split="test")


def test_a_source_and_a_table_have_it_as_a_modality_more(embedder, tmp_path):
    source = shards(tmp_path / "data")
    made = embedder.source(source, ["image", "text", BOTH])
    parts = {name: made.embeddings[name] for name in ("image", "text")}
    joint = F.normalize(embedder.model.joint.of(BOTH).from_embeddings(parts, {}), dim=-1)
    torch.testing.assert_close(made.embeddings[BOTH], joint.detach())
    assert len(set(made.items[BOTH].tolist())) == len(WORDS)
    path = tmp_path / "table.parquet"
    build_table(embedder, SourceItems(source, ["image", "text"]), path, {}, previews=True)
    table = read_table(path)
    rows = [i for i, row in enumerate(table.rows) if row.modality == BOTH]
    torch.testing.assert_close(torch.from_numpy(table.vectors[rows]), made.embeddings[BOTH])
    assert all(table.rows[row].preview for row in rows)


def test_a_query_is_one_input_of_each_or_a_sum(embedder, tmp_path):
    image = write_things(tmp_path / "things") / "1.png"
    terms = query.parse([str(image), "+a red chair"])
    found = query.embed(embedder, terms, joint=True)
    torch.testing.assert_close(
        torch.from_numpy(found), expected(embedder, [image], ["a red chair"])[0]
    )
    assert not torch.allclose(torch.from_numpy(query.embed(embedder, terms)), torch.tensor(found))
    for wrong in ([str(image), "-a red chair"], ["a lamp", "a red chair"]):
        with pytest.raises(ValueError, match="joint: expected one input of each modality"):
            query.embed(embedder, query.parse(wrong), joint=True)


def test_the_service_takes_one_of_each(embedder, tmp_path):
    things, source = write_things(tmp_path / "things"), shards(tmp_path / "data")
    path = tmp_path / "table.parquet"
    build_table(embedder, SourceItems(source, ["image", "text"]), path, {}, previews=False)
    table = read_table(path)
    index = Index(table.vectors, [row.modality for row in table.rows])
    service = Service(embedder, table, index, "Both", LIMITS, Batching())
    app = make_app(embedder, table, index, "Both", hosts=["testserver"], more=service.routes())
    client = TestClient(app)
    images = [things / f"{number}.png" for number in range(2)]
    files = [{"name": p.name, "base64": base64.b64encode(p.read_bytes()).decode()} for p in images]
    inputs = [{"image": f, "text": text} for f, text in zip(files, WORDS, strict=False)]
    answer = client.post("/api/embed", json={"modality": BOTH, "inputs": inputs})
    assert answer.status_code == 200, answer.text
    rows = torch.tensor(answer.json()["embeddings"])
    torch.testing.assert_close(rows, expected(embedder, images, WORDS[:2]))
    assert client.get("/health").json()["takes"] == ["image", "audio", "text", BOTH]
    found = client.post("/api/search", json={"modality": BOTH, "inputs": inputs, "k": 1})
    assert BOTH in found.json()["results"][0]
    bad = client.post("/api/embed", json={"modality": BOTH, "inputs": [{"image": files[0]}]})
    assert (bad.status_code, bad.json()["error"]) == (
        400, "inputs: expected objects {image: ..., text: ...}",
    )  # fmt: skip
    service.batcher.close()


def test_graphs_of_single_towers_refuse_it(embedder):
    onnx = object.__new__(OnnxEmbedder)
    assert onnx.joined() == []
    with pytest.raises(ExportError, match="image&text: joint embeddings are not in the ONNX"):
        onnx.joint(BOTH, {}, {})
