# python scripts/benchmark/loss.py --sizes 1024 4096
"""Memory and time of the objectives beside the same losses over full matrices.

Every measurement runs in its own process: one thread, one forward and backward from unit
embeddings, processor time, peak memory beyond the embeddings and their gradients. A row and its
rival take turns, and medians are compared. "Out of memory" is a result.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multimodal.core.files import write_bytes

LOSSES = ("info_nce", "siglip", "hardest", "top_16")
METHODS = ("ours", "full")
ROUNDS = {1024: 7, 4096: 5, 16384: 3, 32768: 1}


def main() -> None:
    """Measures the selected cases, prints each line when done, and plots them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(ROUNDS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--rounds", type=int, help="measurements per row (default: by its size)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)  # one measurement
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measure(*arguments.row)))
        return
    lines = []
    for loss in arguments.losses:
        for dtype in arguments.dtypes:
            for size in arguments.sizes:
                lines.append(compare(loss, dtype, size, arguments.rounds or ROUNDS.get(size, 3)))
                print(as_text(lines[-1]), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "loss.json").write_text(json.dumps(lines, indent=1) + "\n")
    plot(lines, arguments.output / "loss.svg")


def compare(loss: str, dtype: str, size: int, rounds: int) -> dict[str, Any]:
    """Both rows, in turns: medians of the seconds, maxima of the megabytes; None: out of memory."""
    line: dict[str, Any] = {"loss": loss, "dtype": dtype, "size": size, "rounds": rounds}
    by_method: dict[str, list[dict[str, float] | None]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method, measured in by_method.items():
            if None not in measured:
                measured.append(in_own_process(loss, method, dtype, str(size)))
    for method, measured in by_method.items():
        rows = [row for row in measured if row is not None]
        fits = len(rows) == rounds
        line[method] = {
            "seconds": statistics.median(row["seconds"] for row in rows) if fits else None,
            "megabytes": max(row["megabytes"] for row in rows) if fits else None,
        }
    return line


def in_own_process(*row: str) -> dict[str, float] | None:
    """What a fresh process measures; None if its memory does not suffice."""
    done = subprocess.run(
        [sys.executable, __file__, "--row", *row],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout))
    if done.returncode == -9 or "allocate memory" in done.stderr:
        return None
    raise RuntimeError(done.stderr)


def measure(loss: str, method: str, dtype: str, size: str) -> dict[str, float]:
    """One forward and backward, after a small one that loads what it needs."""
    # fail on running out of memory, rather than be killed or take others along
    resource.setrlimit(resource.RLIMIT_AS, (available_bytes(), resource.RLIM_INFINITY))
    import torch

    torch.set_num_threads(1)
    step = ours(loss) if method == "ours" else full(loss)

    def unit_embeddings(count: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        sides = (torch.nn.functional.normalize(torch.randn(count, 512)) for _ in range(2))
        return [side.to(getattr(torch, dtype)).requires_grad_() for side in sides]

    step(*unit_embeddings(256)).backward()
    sides = unit_embeddings(int(size))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = megabytes("VmRSS")
    start = time.process_time()
    step(*sides).backward()
    seconds = time.process_time() - start
    gradients = sum(side.grad.nbytes for side in sides) / 2**20
    return {"seconds": seconds, "megabytes": megabytes("VmHWM") - before - gradients}


def available_bytes() -> int:
    """Memory that the machine has left."""
    lines = Path("/proc/meminfo").read_text()
    return 1024 * int(lines.split("MemAvailable:")[1].split()[0])


def megabytes(field: str) -> float:
    """A field of this process's memory status."""
    lines = Path("/proc/self/status").read_text()
    return int(lines.split(f"{field}:")[1].split()[0]) / 1024


def full(loss: str) -> Callable[..., Any]:
    """The loss over the full matrix."""
    import full_matrix

    return getattr(full_matrix, loss)


def ours(loss: str) -> Callable[..., Any]:
    """The objective as training calls it, metrics and all."""
    import torch

    from multimodal.objectives.candidates import AllRanks
    from multimodal.objectives.losses.margin import Hinge
    from multimodal.objectives.losses.sigmoid import SigLIP
    from multimodal.objectives.losses.softmax import InfoNCE
    from multimodal.objectives.negatives.selection import Hard, InBatch
    from multimodal.objectives.objective import make_objective

    choices = {
        "info_nce": (InfoNCE(), InBatch()),
        "siglip": (SigLIP(), InBatch()),
        "hardest": (Hinge(hardest=True), InBatch()),
        "top_16": (InfoNCE(), Hard(k=16)),
    }
    objective = make_objective({"p": {"anchor": "a", "other": "b"}}, *choices[loss], AllRanks())

    def step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ids = torch.arange(len(a))
        return objective({"a": a, "b": b}, ids, ids, step=0, seed=0, source="s").loss

    return step


def as_text(line: dict[str, Any]) -> str:
    """One line of the table."""
    parts = [f"{line['loss']:9} {line['dtype']:9} B={line['size']:<6}"]
    for method in METHODS:
        row = line[method]
        shown = (
            "out of memory"
            if row["seconds"] is None
            else f"{row['seconds']:8.2f} s {row['megabytes']:7,.0f} MB"
        )
        parts.append(f"{method} {shown:>22}")
    if None not in (line["ours"]["seconds"], line["full"]["seconds"]):
        time_share = line["ours"]["seconds"] / line["full"]["seconds"]
        memory_share = line["full"]["megabytes"] / max(1.0, line["ours"]["megabytes"])
        parts.append(f"time x {time_share:.2f}  memory 1/{memory_share:.0f}")
    return "   ".join(parts)


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Memory and time against the batch, both axes logarithmic; a panel per loss."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "loss", "svg.fonttype": "none"})
    from matplotlib import pyplot

    losses = list(dict.fromkeys(line["loss"] for line in lines))
    figure, axes = pyplot.subplots(2, len(losses), figsize=(3.2 * len(losses), 5), squeeze=False)
    for column, loss in enumerate(losses):
        for panel, quantity in zip(axes[:, column], ("megabytes", "seconds"), strict=True):
            for dtype, style in (("float32", "-"), ("bfloat16", "--")):
                rows = [x for x in lines if (x["loss"], x["dtype"]) == (loss, dtype)]
                for method, color in (("ours", "tab:blue"), ("full", "tab:red")):
                    points = [(x["size"], x[method][quantity]) for x in rows]
                    points = [(size, value) for size, value in points if value is not None]
                    if points:
                        name = {"ours": "this project", "full": "full matrix"}[method]
                        label = f"{name}, {dtype}"
                        sizes, values = zip(*points, strict=True)
                        panel.loglog(sizes, values, style, marker="o", color=color, label=label)
            panel.set_xlabel("batch size")
            panel.grid(alpha=0.3)
        axes[0, column].set_title(loss)
    axes[0, 0].set_ylabel("peak memory, MB")
    axes[1, 0].set_ylabel("processor time, s")
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], metadata={"Date": None})
    write_bytes(path, picture.getvalue())


if __name__ == "__main__":
    main()
