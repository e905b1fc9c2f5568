"""The words of `make_shards.py`: what is read, what is made of it, where the work is done."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.data.packing.parallel import Runner
    from multimodal.data.packing.plan import Plan
    from multimodal.data.packing.tables.reading import Reading


def pack_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the options of packing."""
    parser.add_argument("input", type=Path, help="folder or file, of any layout")
    parser.add_argument("output", help="folder, or a URL that fsspec can write to")
    _reading_options(parser.add_argument_group("what the input is (found out where not given)"))
    _plan_options(parser.add_argument_group("what is made of it"))
    _where_options(parser.add_argument_group("where the work is done"))
    judged = parser.add_argument_group("leaving out pairs that do not match")
    judged.add_argument("--checkpoint", type=Path, help="model that judges how well pairs match")
    judged.add_argument("--pair", nargs=2, help="image=photo.jpg text=json:caption")
    judged.add_argument(
        "--allowed-packages", nargs="+", default=[], help="yours, that the model builds from"
    )
    judged.add_argument(
        "--allowed-addresses", nargs="+", default=[], help="that the checkpoint may open"
    )
    judged.add_argument("--min-similarity", type=float, help="cosine of pairs that stay")
    return parser


def _reading_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--layout", help="pairs, classes, metadata, table, rows, saved, tars")
    group.add_argument("--members", nargs="+", default=[], help="of a folder: left.png right.png")
    group.add_argument(
        "--files", nargs="+", default=[], help="a table's columns of paths, URLs or files"
    )
    group.add_argument(
        "--texts", nargs="+", default=[], help="a table's columns for the metadata, all with a text"
    )
    group.add_argument(
        "--optional", nargs="+", default=[], help="columns or keys that may be without a text"
    )
    group.add_argument("--arrays", nargs="+", default=[], help="a table's columns of numbers")
    group.add_argument("--key", help="a table's column that names the samples")
    group.add_argument("--root", type=Path, help="folder that a table's paths are relative to")
    group.add_argument("--columns", nargs="+", default=[], help="of a table without a header")
    group.add_argument("--delimiter", help="between a table's cells")
    group.add_argument("--quote", help="around a table's cells: \", ' or none")
    group.add_argument("--encoding", help="of tables and texts: cp1252, utf-16, ...")
    group.add_argument(
        "--skip-broken", action="store_true", help="leave broken rows out, and list them"
    )


def _plan_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--name", help="of the source (default: the output folder's)")
    group.add_argument("--max-samples", type=int, default=10_000, help="of a shard")
    group.add_argument("--max-bytes", type=int, default=1 << 30, help="of a shard")
    group.add_argument(
        "--split", nargs="+", help="train=0.9 val=0.1 (default: the data's own, else train)"
    )
    group.add_argument("--group-by", help="metadata key whose equal values share a split")
    group.add_argument(
        "--require", nargs="+", default=[], help="members, or kinds, that all samples must have"
    )
    group.add_argument(
        "--kind", nargs="+", default=[], help="MEMBER=KIND where names do not imply it"
    )
    group.add_argument(
        "--dicom-header", nargs="+", default=[], metavar="KEYWORD",
        help="DICOM keywords whose values go into the metadata (BodyPartExamined); no others do",
    )  # fmt: skip
    group.add_argument("--label", help="metadata key whose balance is reported")
    group.add_argument("--description", default="")
    group.add_argument("--origin", default="")
    group.add_argument("--licence", default="")
    group.add_argument("--seed", type=int, default=0, help="of the samples' order")


def _where_options(group: argparse._ArgumentGroup) -> None:
    workers_option(group)
    group.add_argument("--share", help="3/16: the third of 16 shares; `merge` completes them")
    group.add_argument("--dask", help="tcp://HOST:PORT of a Dask scheduler")


def workers_option(parser: argparse._ActionsContainer) -> None:
    """Adds the number of processes."""
    parser.add_argument("--workers", type=_positive, default=1, help="processes (default 1)")


def _positive(text: str) -> int:
    """A whole number from 1; argparse refuses any other."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"given {text}, expected a whole number from 1")
    return int(text)


def reading_of(args: argparse.Namespace) -> Reading:
    """How the input is read."""
    from multimodal.data.packing.tables.reading import Reading, TextFormat

    return Reading(
        layout=args.layout,
        files=tuple(args.files),
        texts=tuple(args.texts),
        optional=tuple(args.optional),
        arrays=tuple(args.arrays),
        key=args.key,
        text=TextFormat(
            columns=tuple(args.columns),
            delimiter={"\\t": "\t", "tab": "\t"}.get(args.delimiter, args.delimiter),
            quote=args.quote,
            encoding=args.encoding,
        ),
        root=args.root,
        members=tuple(args.members),
        expected=tuple(_lower(args.require)),
        skip_broken=args.skip_broken,
    )


def plan_of(args: argparse.Namespace, output_name: str) -> Plan:
    """What is made of the input.

    Raises:
        ValueError: if a value is out of its range.
    """
    from multimodal.data.packing.plan import Plan

    shares = None
    if args.split is not None:
        given = pairs(args.split, "--split")
        if wrong := [f"{name}={share}" for name, share in given.items() if not _is_number(share)]:
            raise ValueError(f"--split takes NAME=SHARE, a number from 0 to 1, given {wrong[0]}")
        shares = {name: float(share) for name, share in given.items()}
    return Plan(
        name=args.name or output_name.replace(".", "-"),
        splits=shares,
        group=args.group_by,
        max_samples=args.max_samples,
        max_bytes=args.max_bytes,
        required=tuple(_lower(args.require)),
        optional=tuple(args.optional),
        kinds=pairs(args.kind, "--kind"),
        label=args.label,
        seed=args.seed,
        description=args.description,
        origin=args.origin,
        licence=args.licence,
        header=tuple(args.dicom_header),
    )


def runner_of(args: argparse.Namespace) -> Runner:
    """Where the work is done.

    Raises:
        ValueError: if there are no workers, or a cluster and workers.
    """
    from multimodal.data.packing.parallel import in_cluster, in_processes

    if args.dask is None:
        return in_processes(args.workers)
    if args.workers != 1:
        raise ValueError("--dask and --workers: the cluster has its own workers")
    return in_cluster(args.dask)


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE words as a mapping.

    Raises:
        ValueError: if one is none.
    """
    mapping = dict(word.partition("=")[::2] for word in words)
    if not all(mapping.values()):
        raise ValueError(f"{option} takes NAME=VALUE, given {' '.join(words)}")
    return mapping


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower() for word in words]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
