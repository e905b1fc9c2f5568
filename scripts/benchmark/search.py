# python scripts/benchmark/search.py
"""100,000 embeddings: indexed, searched, and scored against each other.

The approximate index beside the exact one (recall at 10, queries per second, one at a time as the
search page asks them), and retrieval of all by all: its peak memory beyond its inputs, its time,
and whether a few of its queries have the ranks that a loop gives them. Embeddings lie in
clusters, as a trained model's do; each question is a noisy copy of an answer. One thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from multimodal.evaluation.metrics.retrieval import retrieval
from multimodal.inference.search.index import Index

CLUSTERS, SPREAD, NOISE = 2000, 0.8, 2.0  # of noise whose norm is 1 times these


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, questions = clusters(arguments.rows, arguments.dim)
    console = Console()
    console.print(indices(rows, questions[: arguments.queries]))
    console.print(all_by_all(questions, rows))


def clusters(count: int, dim: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Unit embeddings ``[count, dim]`` around centres, and a noisy copy of each."""
    rng = np.random.default_rng(0)

    def noise(rows: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal((rows, dim), np.float32) / np.float32(dim**0.5)

    centres = noise(CLUSTERS)
    rows = centres[rng.integers(CLUSTERS, size=count)] + SPREAD * noise(count)
    questions = rows + NOISE * noise(count)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, questions))


def indices(rows: np.ndarray[Any, Any], questions: np.ndarray[Any, Any]) -> Table:
    """Both kinds of index."""
    table = Table("index", "built in, s", "queries/s", "recall at 10", title=f"{len(rows):,} rows")
    exact: list[set[int]] = []
    for kind in ("exact", "approximate"):
        start = time.perf_counter()
        index = Index(rows, ["image"] * len(rows), kind)  # type: ignore[arg-type]
        built = time.perf_counter() - start
        start = time.perf_counter()
        hits = [{item.row for item in index.search(q, 10)["image"]} for q in questions]
        rate = len(questions) / (time.perf_counter() - start)
        exact = exact or hits
        shared = sum(len(a & b) for a, b in zip(exact, hits, strict=True))
        recall = shared / sum(map(len, exact))
        table.add_row(kind, f"{built:.1f}", f"{rate:,.0f}", f"{recall:.4f}")
    return table


def all_by_all(questions: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> Table:
    """Retrieval of every question among all rows."""
    queries, gallery = torch.from_numpy(questions), torch.from_numpy(rows)
    keys = torch.arange(len(rows))
    retrieval(queries[:100], gallery[:100], keys[:100], keys[:100])  # loads what it needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = megabytes("VmRSS"), time.perf_counter()
    scores = retrieval(queries, gallery, keys, keys)
    seconds, peak = time.perf_counter() - start, megabytes("VmHWM") - before
    few = keys[:: max(1, len(keys) // 50)].clone()
    ranks = []
    for i in few:
        similarities = gallery.double() @ queries[i].double()
        ranks.append(1 + int((similarities > similarities[i]).sum()))
    part = retrieval(queries[few], gallery, few, keys)
    table = Table("figure", "value", title=f"{len(queries):,} x {len(gallery):,} retrieval")
    table.add_row("seconds", f"{seconds:.0f}")
    table.add_row("peak memory beyond the inputs, MB", f"{peak:,.0f}")
    table.add_row("R@1, median rank", f"{scores.recall[1]:.4f}, {scores.median_rank:.1f}")
    table.add_row(f"R@1 of {len(few)}, and by a loop",
                  f"{part.recall[1]:.4f}, {np.mean([r <= 1 for r in ranks]):.4f}")  # fmt: skip
    table.add_row("their median rank, and by a loop", f"{part.median_rank}, {np.median(ranks)}")
    return table


def megabytes(field: str) -> float:
    """A field of this process's memory status."""
    lines = Path("/proc/self/status").read_text()
    return int(lines.split(f"{field}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
