"""The service: equal to one-by-one, batched, refusing what is hostile and what is too much."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from data_helpers import audio_bytes, image_bytes
from pretrained_helpers import case, foreign_state
from search_helpers import WORDS, make_embedder, write_things

import multimodal
from multimodal.inference.export import manifest
from multimodal.inference.export.graphs import ExportError, tower_graph
from multimodal.inference.export.onnx_file import write_onnx
from multimodal.inference.imported import save
from multimodal.inference.importing import import_weights
from multimodal.inference.search.builder import build_table
from multimodal.inference.search.index import Index
from multimodal.inference.search.items import FolderItems
from multimodal.inference.search.server import LIMITS, make_app
from multimodal.inference.search.serving import Deadlines, Server, listen
from multimodal.inference.search.table import read_table
from multimodal.inference.service.api import Service
from multimodal.inference.service.batching import Batcher, Batching, BusyError
from multimodal.inference.service.engine import OnnxEmbedder
from multimodal.inference.service.metrics import Metrics

ROOT = Path(__file__).parents[4]


@contextmanager
def serving(folder, batching, slow: float = 0.0):
    embedder = make_embedder(folder.parent)
    path = folder.parent / "t.parquet"
    if not path.exists():
        build_table(embedder, FolderItems(folder), path, {}, previews=False)
    table = read_table(path)
    index = Index(table.vectors, [row.modality for row in table.rows])
    service = Service(embedder, table, index, "My things", LIMITS, batching)
    if slow:
        run = service.batcher.run
        service.batcher.run = lambda *given: (time.sleep(slow), run(*given))[1]
    app = make_app(embedder, table, index, "My things", max_body=1 << 20, more=service.routes())
    listening = listen("127.0.0.1", 0)
    server = Server(app, Deadlines())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield listening.getsockname()[1], embedder, table
    server.should_exit = True
    thread.join(60)
    service.batcher.close()


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return write_things(tmp_path_factory.mktemp("service") / "things")


@pytest.fixture(scope="module")
def served(things):
    with serving(things, Batching(max_batch=8, max_wait_ms=20)) as given:
        yield given


def ask(port, path, body=None, headers=None, method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **(headers or {})}
    connection.request(method, path, raw, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    plain = answer.getheader("content-type", "").startswith("application/json")
    return answer.status, json.loads(text) if plain else text, dict(answer.getheaders())


def encoded(name, data):
    return {"name": name, "base64": base64.b64encode(data).decode()}


def test_many_clients_get_what_one_gets_and_share_batches(served, things):
    port, embedder, _ = served
    asked = [("text", text) for text in WORDS] * 6
    asked += [("image", f"{number}.png") for number in range(7)] * 4
    expected = {text: embedder.embed(text=[text])[0] for text in WORDS}
    pictures = [f"{number}.png" for number in range(7)]
    expected |= {name: embedder.embed(image=[str(things / name)])[0] for name in pictures}

    def one(given):
        modality, value = given
        entry = value if modality == "text" else encoded(value, (things / value).read_bytes())
        return ask(port, "/api/embed", {"modality": modality, "inputs": [entry]})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, asked))
    for (_, value), (status, content, _) in zip(asked, answers, strict=True):
        assert status == 200, content
        torch.testing.assert_close(torch.tensor(content["embeddings"][0]), expected[value])
    status, text, _ = ask(port, "/metrics", method="GET")
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(counts["multimodal_batch_size_count"]) < float(counts["multimodal_batch_size_sum"])
    assert float(counts['multimodal_requests_total{endpoint="embed",status="200"}']) >= len(asked)
    assert counts["multimodal_waiting"] == "0"


def test_search_and_zero_shot_are_the_models(served):
    port, embedder, _ = served
    body = {"modality": "text", "inputs": [WORDS[2], WORDS[0]], "k": 1}
    status, content, _ = ask(port, "/api/search", body)
    assert status == 200
    assert [each["text"][0]["name"] for each in content["results"]] == [WORDS[2], WORDS[0]]
    prompts = ["a {}", "{}"]
    body = {"modality": "text", "inputs": WORDS[:3], "classes": WORDS, "prompts": prompts}
    for _ in range(2):  # the second time with the head that is kept
        status, content, _ = ask(port, "/api/zero_shot", body)
        expected = embedder.zero_shot(WORDS, prompts, text=WORDS[:3])
        torch.testing.assert_close(torch.tensor(content["probabilities"]), expected)
    status, content, _ = ask(port, "/api/embed", {"modality": "text", "inputs": WORDS, "dim": 3})
    torch.testing.assert_close(torch.tensor(content["embeddings"]), embedder.embed(3, text=WORDS))
    sound = encoded("a.wav", audio_bytes(torch.zeros(1, 8000).add(0.1).numpy(), 16000))
    assert ask(port, "/api/embed", {"modality": "audio", "inputs": [sound]})[0] == 200


def test_health_page_and_document(served):
    port, *_ = served
    status, content, _ = ask(port, "/health", method="GET")
    assert (status, content["status"], content["takes"]) == (200, "ok", ["image", "audio", "text"])
    status, spec, _ = ask(port, "/openapi.json", method="GET")
    assert spec["openapi"] == "3.1.0"
    status, page, headers = ask(port, "/docs", method="GET")
    assert all(path in page for path in spec["paths"])
    assert "script-src 'self'" in headers["content-security-policy"]
    assert ask(port, "/", method="GET")[0] == 200  # the page is still there


def text(**changes):
    return {"modality": "text", "inputs": ["a"], **changes}


def picture(*files):
    return {"modality": "image", "inputs": list(files)}


PNG = image_bytes(torch.zeros(9, 9, 3).byte().numpy())
HOSTILE = [
    b"", b"{", b"[]", b"5", b"NaN", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000,
    b'{"modality": "text", "modality": "text", "inputs": ["a"]}', text(inputs=[]), text(inputs="a"),
    text(inputs=["a"] * 65), text(inputs=[5]), text(inputs=[None]), text(inputs=[""]),
    text(inputs=["\ud800"]), text(inputs=["x" * 3000]), text(modality="smell"), text(modality=[]),
    text(dim=0), text(dim=10**30), text(dim=True), text(dim="3"), text(extra=1),
    picture("/etc/passwd"), picture({"name": "a.png"}), picture({"name": 1, "base64": ""}),
    picture({"name": "a.png", "base64": "!"}), picture(encoded("../a.png", PNG)),
    picture(encoded("a.png", b"no picture")), picture(encoded("a.txt", b"a")),
    picture(encoded("a.exe", PNG)), picture({**encoded("a.png", PNG), "more": 1}),
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body)[:40])
def test_hostile_bodies_are_refused_in_a_line(served, body):
    status, content, _ = ask(served[0], "/api/embed", body)
    assert status in (400, 415, 422), content
    assert list(content) == ["error"]
    assert 0 < len(content["error"]) < 400
    assert "Traceback" not in content["error"]


def test_other_refusals(served):
    port = served[0]
    assert ask(port, "/api/embed", text(), {"content-type": "text/plain"})[0] == 415
    assert ask(port, "/api/embed", text(), {"origin": "http://elsewhere"})[0] == 403
    assert ask(port, "/api/embed", text(), {"host": "elsewhere"})[0] == 400
    assert ask(port, "/api/embed", b"", {"content-length": str(1 << 21)})[0] == 413
    assert ask(port, "/api/embed", method="GET")[0] == 405
    for changes in ({"classes": []}, {"classes": ["a"] * 513}, {"classes": ["a"], "prompts": ["b"]},
                    {"classes": ["a"] * 300, "prompts": ["{}", "a {}"]}):  # fmt: skip
        assert ask(port, "/api/zero_shot", text(**changes))[0] == 400
    assert ask(port, "/api/search", text(k=51))[0] == 400


def test_more_than_may_wait_is_429_and_the_rest_is_answered(things):
    with serving(things, Batching(max_batch=1, max_wait_ms=0, max_waiting=3), slow=0.05) as given:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: ask(given[0], "/api/embed", text()), range(48)))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        refused = next(each for each in answers if each[0] == 429)
        assert refused[2]["retry-after"] == "1"
        assert refused[1]["error"].startswith("busy")
        assert ask(given[0], "/api/embed", text())[0] == 200


def test_one_bad_input_does_not_spoil_its_batch():
    def run(modality, inputs):
        if any(float(each) < 0 for each in inputs):
            raise ValueError("negative")
        return torch.stack(inputs) * 2

    sizes = []
    batcher = Batcher(
        run, Batching(max_batch=4, max_wait_ms=200), lambda _, size: sizes.append(size)
    )
    good, bad, other = batcher.submit("a", [torch.tensor(v) for v in (1.0, -1.0, 3.0)])
    assert (float(good.result(10)), float(other.result(10))) == (2, 6)
    with pytest.raises(ValueError, match="negative"):
        bad.result(10)
    assert sizes == [3]
    batcher.close()
    with pytest.raises(BusyError):
        batcher.submit("a", [torch.tensor(1.0)])


def test_an_answers_body_does_not_wait_for_its_headers_to_be_acknowledged():
    listening = listen("127.0.0.1", 0)
    server = Server(lambda *_: None, Deadlines())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    with socket.create_connection(listening.getsockname()[:2]):
        while not server.server_state.connections:
            time.sleep(0.01)
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    server.should_exit = True
    thread.join(30)


def test_metrics_are_prometheus_text():
    metrics = Metrics(lambda: 4)
    metrics.request("embed", 200, 0.03)
    metrics.request("embed", 429, 20.0)
    metrics.batch("text", 3)
    text = metrics.text()
    assert 'multimodal_requests_total{endpoint="embed",status="429"} 1' in text
    assert 'multimodal_request_seconds_bucket{le="0.05"} 1' in text
    assert 'multimodal_request_seconds_bucket{le="+Inf"} 2' in text
    assert 'multimodal_batch_size_bucket{le="4"} 1' in text
    assert "multimodal_waiting 4" in text


@pytest.mark.slow
def test_onnx_runtime_gives_what_torch_gives(things, tmp_path):
    model = make_embedder(things.parent)
    towers = {}
    for name, transform in model.transforms.items():
        graph = tower_graph(model.model.tower(name), name, transform)
        write_onnx(graph.program(), graph, tmp_path / f"{name}.onnx")
        towers[name] = {"onnx": f"{name}.onnx"}
    about = {"format": manifest.FORMAT, "version": manifest.VERSION, "towers": towers,
             "embed_dim": model.embed_dim, "files": manifest.hashes(tmp_path)}  # fmt: skip
    (tmp_path / manifest.NAME).write_text(json.dumps(about))
    onnx = OnnxEmbedder(model, tmp_path, threads=1)
    for dim in (None, 3):
        for given in ({"text": WORDS}, {"image": [str(things / "0.png"), str(things / "1.png")]}):
            expected, found = (each.embed(dim, **given) for each in (model, onnx))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(onnx.at(3), OnnxEmbedder)
    for changes, said in [({"embed_dim": 5}, "exported from another"), ({"towers": {}}, "no ONNX")]:
        (tmp_path / manifest.NAME).write_text(json.dumps(about | changes))
        with pytest.raises(ExportError, match=said):
            OnnxEmbedder(model, tmp_path)


@pytest.mark.slow
def test_the_program_serves_and_killed_leaves_nothing(things, tmp_path):
    described, _ = case("siglip_a")
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    save(import_weights(state, described["cfg"]), tmp_path / "a.ckpt", "a")
    model = multimodal.load(tmp_path / "a.ckpt", device="cpu")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        shutil.copy(things / f"{number}.png", pictures)
    table = tmp_path / "t.parquet"
    build_table(model, FolderItems(pictures), table, {}, previews=False)
    before = sorted(tmp_path.rglob("*"))
    words = [f"checkpoint={tmp_path}/a.ckpt", f"index={table}", "port=0", "--api"]
    with subprocess.Popen(
        [sys.executable, "scripts/serve.py", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        said = process.stdout.readline()
        port = int(re.search(r":(\d+)/docs", said)[1])
        entry = encoded("0.png", (pictures / "0.png").read_bytes())
        status, content, _ = ask(port, "/api/embed", {"modality": "image", "inputs": [entry]})
        assert status == 200
        expected = model.embed(image=[str(pictures / "0.png")])
        torch.testing.assert_close(torch.tensor(content["embeddings"]), expected)
        process.kill()
    assert sorted(tmp_path.rglob("*")) == before
