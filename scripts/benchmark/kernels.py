# python scripts/benchmark/kernels.py --sizes 1024 4096 --dim 256
"""InfoNCE and SigLIP of large batches: PyTorch's tiles beside Triton's kernels.

One forward and backward of the objective from float32 embeddings. On a GPU by its own clock, all
kernels in turns; on a CPU PyTorch's alone, by processor time. Memory is what the objective takes
beyond the embeddings and their gradients (a GPU's only).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from multimodal.core.files import write_bytes
from multimodal.objectives import AllRanks, InBatch, InfoNCE, SigLIP, make_objective
from multimodal.objectives.kernels.tiles import choose_tiles

KERNELS = ("torch", "triton", "triton_bf16")
LOSSES = {"info_nce": (InfoNCE(), 4), "siglip": (SigLIP(), 3)}  # and products of two matrices


def main() -> None:
    """Measures the selected cases, and prints each line when done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32768, 65536, 131072])
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tf32", action="store_true", help="products in TF32, of triton and torch")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    kernels = arguments.kernels or (KERNELS if device.type == "cuda" else KERNELS[:1])
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    torch.set_num_threads(1)
    print(f"{name}, torch {torch.__version__}, D = {arguments.dim}")
    lines = []
    for loss in arguments.losses:
        for size in arguments.sizes:
            lines += compare(loss, size, arguments.dim, kernels, arguments.rounds, device)
    write_bytes(arguments.output / "kernels.json", (json.dumps(lines, indent=1) + "\n").encode())


def compare(
    loss: str, size: int, dim: int, kernels: tuple[str, ...], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """A line per kernel: median and quartiles of the time, memory, and the loss itself."""
    torch.manual_seed(0)
    sides = [F.normalize(torch.randn(size, dim), dim=1).to(device) for _ in range(2)]
    seconds: dict[str, list[float]] = {kernel: [] for kernel in kernels}
    memory, values = dict[str, float | None](), dict[str, float]()
    for number in range(-2, rounds):  # the first two compile and warm up
        for kernel in kernels[:: -1 if number % 2 else 1]:
            measured, values[kernel], memory[kernel] = once(loss, sides, kernel, device)
            if number >= 0:
                seconds[kernel].append(measured)
    lines = []
    for kernel in kernels:
        low, middle, high = statistics.quantiles(seconds[kernel], n=4)
        operations = LOSSES[loss][1] * 2 * size**2 * dim
        line = {
            "loss": loss, "size": size, "dim": dim, "kernel": kernel, "ms": 1e3 * middle,
            "quartiles": [1e3 * low, 1e3 * high], "teraflops": operations / middle / 1e12,
            "megabytes": memory[kernel], "value": values[kernel],
        }  # fmt: skip
        lines.append(line)
        print(
            f"{loss:9} B={size:<7} {kernel:12} {line['ms']:9.2f} ms "
            f"({1e3 * low:.2f}-{1e3 * high:.2f})  {line['teraflops']:7.1f} TFLOP/s  "
            f"{'' if memory[kernel] is None else f'{memory[kernel]:7,.0f} MB  '}"
            f"loss {line['value']:.6f}",
            flush=True,
        )
    return lines


def once(
    loss: str, sides: list[torch.Tensor], kernel: str, device: torch.device
) -> tuple[float, float, float | None]:
    """Seconds of a forward and backward, the loss, and the megabytes that it took."""
    objective = make_objective(
        {"p": {"anchor": "a", "other": "b"}}, LOSSES[loss][0], InBatch(), AllRanks(),
        tiles=choose_tiles(kernel, device),
    ).to(device)  # fmt: skip
    a, b = (side.clone().requires_grad_() for side in sides)
    ids = torch.arange(len(a), device=device)
    if device.type == "cpu":
        start = time.process_time()
        value = objective({"a": a, "b": b}, ids, ids, step=0, seed=0, source="s").loss
        value.backward()
        return time.process_time() - start, float(value.detach()), None
    prepared = objective.prepare(["a", "b"], "s", ids, ids)  # as a training does, ahead of time
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    value = objective(
        {"a": a, "b": b}, ids, ids, step=0, seed=0, source="s", prepared=prepared
    ).loss
    value.backward()
    end_event.record()
    torch.cuda.synchronize()
    gradients = sum(side.nbytes for side in sides)
    peak = torch.cuda.max_memory_allocated() - before - gradients
    return start_event.elapsed_time(end_event) / 1e3, float(value.detach()), peak / 2**20


if __name__ == "__main__":
    main()
