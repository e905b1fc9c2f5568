"""Packs a benchmark from the layout in which it is published.

multimodal shards benchmark NAME INPUT OUTPUT [options]

`configs/evaluation/NAME.yaml` reads OUTPUT/NAME.json: shards/NAME is its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from multimodal.cli.packing.options import workers_option
from multimodal.cli.packing.show import progress_bar, say, show_packed


def main(words: Sequence[str]) -> int:
    """Packs as the words say; the exit status.

    Raises:
        ValueError: if there is no such benchmark, or the folder does not hold it.
    """
    parser = argparse.ArgumentParser(
        prog="multimodal shards benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="of the benchmark: imagenet, coco, esc50, ...")
    parser.add_argument("input", type=Path, help="folder of the benchmark, as published")
    parser.add_argument("output", help="folder of the shards, or a URL that fsspec can write to")
    parser.add_argument("--max-samples", type=int, default=10_000, help="of a shard")
    workers_option(parser)
    args = parser.parse_args(words)
    from multimodal.data.benchmarks.catalogue import benchmark
    from multimodal.data.packing.output import output_at
    from multimodal.data.packing.pack import pack
    from multimodal.data.packing.parallel import in_processes
    from multimodal.data.packing.plan import Plan

    known = benchmark(args.name)
    if not args.input.is_dir():
        raise ValueError(f"there is no folder {args.input}")
    plan = Plan(
        args.name, max_samples=args.max_samples, origin=known.origin, licence=known.licence,
        description=f"the benchmark {args.name}",
    )  # fmt: skip
    say(f"{args.name}: {known.origin}; licence: {known.licence}")
    lists = known.lists(args.input)
    run = in_processes(args.workers)
    with progress_bar("packing") as progress:
        packed = pack(known.samples(args.input), args.output, plan, run, progress)
    for name, content in lists.items():
        output_at(args.output).write(name, content)
    show_packed(packed)
    return 0
