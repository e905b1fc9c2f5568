# python scripts/benchmark/service.py
"""A service under many clients, beside one client that asks one thing after the other.

A process serves an image tower and a text tower with random weights (or `--checkpoint`) over a
table of their embeddings; another process asks for embeddings of texts and small pictures by HTTP,
on connections that stay open. Rounds are interleaved: one client; all clients without batching
(`max_batch=1`); all clients with it. Printed: answers per second, p50 and p95 in milliseconds,
answers by status, and the largest difference from the answer that one client got.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.table import Table

from multimodal.config import build
from multimodal.inference.embedder import Embedder
from multimodal.inference.load import embedder_of, load_embedder
from multimodal.inference.search.index import Index
from multimodal.inference.search.server import LIMITS, make_app
from multimodal.inference.search.serving import Server, listen
from multimodal.inference.search.table import Row
from multimodal.inference.search.table import Table as Rows
from multimodal.inference.service.api import Service
from multimodal.inference.service.batching import Batching

SIZE = 64  # side of a picture
MODES = {"one client": (1, 32), "all, max_batch=1": (0, 1), "all, batched": (0, 32)}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="a run, a checkpoint or an exported folder")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each mode, in all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ports, processes = {}, []
    for batch in {batch for _, batch in MODES.values()}:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(
            target=serve, args=(theirs, given.checkpoint, batch), daemon=True
        )
        process.start()
        processes.append(process)
        ports[batch] = ours.recv()
    bodies = requests()
    expected = [post(ports[32], body)[1] for body in bodies]
    found: dict[str, list[tuple[float, int, int, float]]] = {name: [] for name in MODES}
    spent = dict.fromkeys(MODES, 0.0)
    for _ in range(given.rounds):
        for name, (clients, batch) in MODES.items():
            seconds = given.seconds / given.rounds
            start = time.perf_counter()
            found[name] += ask(ports[batch], bodies, expected, clients or given.clients, seconds)
            spent[name] += time.perf_counter() - start
    Console().print(shown(found, spent, given.clients))
    for process in processes:
        process.terminate()


def serve(pipe: Any, checkpoint: str | None, max_batch: int) -> None:
    """One service, in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = model(Path(folder)) if checkpoint is None else load_embedder(checkpoint, "cpu")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1000, made.embed_dim)).astype(np.float32)
    rows = Rows(vectors, [Row(str(i), "image", str(i)) for i in range(1000)], {})
    index = Index(vectors, ["image"] * 1000)
    service = Service(made, rows, index, "benchmark", LIMITS, Batching(max_batch=max_batch))
    listening = listen("127.0.0.1", 0)
    pipe.send(listening.getsockname()[1])
    Server(make_app(made, rows, index, "benchmark", more=service.routes())).run([listening])


def model(folder: Path) -> Embedder:
    """A ViT of 6 layers and a text transformer, with random weights."""
    trunk = {"_target_": "multimodal.models.Transformer", "width": 256, "num_layers": 6,
             "num_heads": 4}  # fmt: skip
    head = {"_target_": "multimodal.models.LinearHead", "_partial_": True, "embed_dim": 256}
    stem = {"_target_": "multimodal.models.PatchStem", "_partial_": True, "patch_size": 16}
    image = {"_target_": "multimodal.models.VisionTransformer", "image_size": SIZE,
             "in_channels": 3, "stem": stem, "trunk": trunk}  # fmt: skip
    text = {"_target_": "multimodal.models.TextTransformer", "vocab_size": 8192,
            "context_length": 24, "trunk": {**trunk, "causal": True}}  # fmt: skip
    towers = {
        name: {"_target_": "multimodal.models.Tower", "encoder": encoder, "head": head}
        for name, encoder in {"image": image, "text": text}.items()
    }
    picture = {"_target_": "multimodal.data.ImageTransform", "size": SIZE, "mean": [0.5] * 3,
               "std": [0.25] * 3}  # fmt: skip
    words = {"_target_": "multimodal.data.TextTransform", "context_length": 24,
             "tokenizer": "samples://tokenizer.json"}  # fmt: skip
    cfg = OmegaConf.create(
        {
            "model": {"_target_": "multimodal.models.EmbeddingModel", "towers": towers},
            "data": {"transforms": {"image": picture, "text": words}},
            "allowed_packages": [],
        }
    )
    torch.manual_seed(0)
    return embedder_of(build(cfg, "model"), cfg, "cpu")


def requests() -> list[bytes]:
    """16 texts and 16 pictures, as bodies."""
    bodies = []
    rng = np.random.default_rng(0)
    for number in range(16):
        text = {"modality": "text", "inputs": [f"a red chair, number {number}"]}
        file = io.BytesIO()
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(file, "jpeg")
        data = base64.b64encode(file.getvalue()).decode()
        picture = {"modality": "image", "inputs": [{"name": "a.jpg", "base64": data}]}
        bodies += [json.dumps(each).encode() for each in (text, picture)]
    return bodies


def post(
    port: int, body: bytes, connection: http.client.HTTPConnection | None = None
) -> tuple[int, np.ndarray[Any, Any]]:
    """Status, and the embedding; empty where there is none."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/api/embed", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    return answer.status, np.array(content.get("embeddings", [[]])[0])


def ask(
    port: int, bodies: list[bytes], expected: list[Any], clients: int, seconds: float
) -> list[tuple[float, int, int, float]]:
    """(seconds, status, body, difference) of every answer of so many clients in that time."""
    found: list[tuple[float, int, int, float]] = []
    end = time.perf_counter() + seconds

    def client(place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (start := time.perf_counter()) < end:
            status, row = post(port, bodies[place % len(bodies)], connection)
            apart = float(np.abs(row - expected[place % len(bodies)]).max()) if row.size else 0.0
            found.append((time.perf_counter() - start, status, place, apart))
            place += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def shown(
    found: dict[str, list[tuple[float, int, int, float]]], spent: dict[str, float], clients: int
) -> Table:
    """A row for each mode."""
    table = Table("mode", "answers/s", "p50, ms", "p95, ms", "status", "differs by",
                  title=f"{clients} clients")  # fmt: skip
    for name, answers in found.items():
        times = np.array([each[0] for each in answers if each[1] == 200]) * 1000
        statuses = Counter(each[1] for each in answers)
        table.add_row(
            name, f"{len(times) / spent[name]:.0f}", f"{np.percentile(times, 50):.1f}",
            f"{np.percentile(times, 95):.1f}",
            ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())),
            f"{max(each[3] for each in answers):.1e}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
