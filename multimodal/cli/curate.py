"""Writes a manifest that keeps only some samples; the tars stay as they are.

multimodal shards curate MANIFEST OUTPUT.json [options]

Embeddings are tables of `multimodal embed input=MANIFEST`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multimodal.inference.search.table import Table


def parser() -> argparse.ArgumentParser:
    """Of the command's words."""
    made = argparse.ArgumentParser(
        prog="multimodal shards curate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("manifest", help="a file or a URL")
    made.add_argument("output", help="the new manifest, a file")
    made.add_argument("--embeddings", type=Path, help="table of this manifest's samples")
    made.add_argument("--modality", help="of the embeddings, where the tables hold several")
    made.add_argument(
        "--near-duplicates", type=float, metavar="SIMILARITY",
        help="of samples this near (cosine, 0.95 say) keep the first",
    )  # fmt: skip
    made.add_argument("--overlap", type=Path, help="table of an evaluation set")
    made.add_argument(
        "--overlap-similarity", type=float, default=0.95, help="this near is the same (0.95)"
    )
    made.add_argument(
        "--min", nargs="+", default=[], metavar="KEY=NUMBER", help="smallest values in the JSON"
    )
    return made


def main(words: Sequence[str]) -> int:
    """Curates as the words say; the exit status.

    Raises:
        ValueError: if they contradict each other, or as `curate`.
    """
    args = parser().parse_args(words)
    from multimodal.data.shards.curation import curate, near_duplicates, overlapping

    wants = args.near_duplicates is not None or args.overlap is not None
    if wants != (args.embeddings is not None):
        raise ValueError("--embeddings goes with --near-duplicates or --overlap, and they with it")
    unwanted: dict[str, set[str]] = {}
    if args.embeddings is not None:
        table, rows = _rows(args.embeddings, args.modality)
        vectors, keys = table.vectors[rows], [table.rows[row].key for row in rows]
        if args.near_duplicates is not None:
            near = near_duplicates(vectors, args.near_duplicates)
            unwanted["near-duplicate"] = {k for k, bad in zip(keys, near, strict=True) if bad}
        if args.overlap is not None:
            other, theirs = _rows(args.overlap, args.modality)
            near = overlapping(vectors, other.vectors[theirs], args.overlap_similarity)
            unwanted["overlap"] = {k for k, bad in zip(keys, near, strict=True) if bad}
    if "://" in args.output:
        raise ValueError(f"{args.output}: the new manifest is a local file; its shards may be far")
    result = curate(args.manifest, Path(args.output), unwanted, _numbers(args.min))
    print(f"{args.output}: {result.kept} of {result.samples} samples are kept")
    for reason, count in result.left_out.items():
        print(f"  {count} left out: {reason}")
    return 0


def _rows(path: Path, modality: str | None) -> tuple[Table, list[int]]:
    from multimodal.inference.search.table import read_table

    table = read_table(path)
    held = sorted({row.modality for row in table.rows})
    if modality is None and len(held) > 1:
        raise ValueError(f"{path} holds {', '.join(held)}: name one (--modality)")
    if modality is not None and modality not in held:
        raise ValueError(f"{path} holds {', '.join(held)}, no {modality}")
    wanted = modality or held[0]
    return table, [number for number, row in enumerate(table.rows) if row.modality == wanted]


def _numbers(words: Sequence[str]) -> dict[str, float]:
    numbers = {}
    for word in words:
        key, _, number = word.partition("=")
        try:
            numbers[key] = float(number)
        except ValueError as error:
            raise ValueError(f"--min takes KEY=NUMBER, given {word}") from error
    return numbers
