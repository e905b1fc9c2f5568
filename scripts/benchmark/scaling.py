# python scripts/benchmark/scaling.py
"""What a step of CLIP grows with: samples of a batch, tokens of a text.

The step of `scripts/benchmark/step.py`, one setting changed at a time; every setting is a process
of its own and they take turns. Beside the milliseconds of a sample stand the FLOPs of a sample: a
step that costs more than its FLOPs say has parts that do not grow with them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from measuring import Step, in_turns, table
from step import ours


def main() -> None:
    """Prints a row for every setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="*", default=[2, 4, 8, 16])
    parser.add_argument("--tokens", type=int, nargs="*", default=[8, 20, 77])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--experiment", default="clip_vit_b32")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = [(size, 8, 20) for size in args.batches] + [(8, n, n) for n in args.tokens]
    sides: dict[str, Callable[..., Step]] = {}
    sizes: dict[str, int] = {}
    for size, shortest, longest in settings:
        span = str(shortest) if shortest == longest else f"{shortest} to {longest}"
        name = f"{size} samples, texts of {span} tokens"
        batch = {"size": size, "pixels": 224, "shortest": shortest, "longest": longest}
        sides[name], sizes[name] = partial(ours, False, batch=batch), size
    given = {"experiment": args.experiment, "bf16": args.bf16, "device": device}
    measured = in_turns(sides, args.rounds, warm_up=2, **given)
    rows = [["", "ms a step", "ms a sample", "of it the optimizer", "GFLOP a sample"]]
    for name, parts in measured.items():
        step, optimizer = (1e3 * statistics.median(parts[p]) for p in ("step", "optimizer"))
        each = [step, step / sizes[name], optimizer / sizes[name]]
        flops = parts["GFLOP"][0] / sizes[name]
        rows.append([name, *(f"{value:.0f}" for value in each), f"{flops:.1f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
