"""Packs data into WebDataset shards with a manifest, indexes tars, verifies them.

multimodal shards INPUT OUTPUT_FOLDER [options]   pack a folder, a table or other shards
multimodal shards index FOLDER [options]          write a manifest for tars that are there
multimodal shards verify FOLDER [options]         check hashes, counts, and that all decodes
multimodal shards curate MANIFEST OUTPUT          leave samples out of a manifest
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from multimodal.core.files import write_text
from multimodal.core.process.exits import refused, report

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.data.packing.index import ShardProblem
    from multimodal.data.packing.items import Item, Refusal
    from multimodal.data.packing.pack import Packed
    from multimodal.data.packing.plan import Plan

CONSOLE = Console(stderr=True)


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where something is wrong with the data."""
    words = sys.argv[1:] if words is None else list(words)
    commands = {"index": _index, "verify": _verify, "curate": _curate}
    command = commands.get(words[0]) if words else None
    try:
        with refused("make_shards"):
            return command(words[1:]) if command else _pack(words)
    except Exception as error:
        return report(error)


def _parser(usage: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=_positive, default=1, help="processes (default 1)")
    return parser


def _positive(text: str) -> int:
    """A whole number from 1; argparse refuses any other."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"given {text}, expected a whole number from 1")
    return int(text)


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    if not all(pairs.values()):
        raise ValueError(f"{option} takes NAME=VALUE, given {' '.join(words)}")
    return pairs


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _pack_parser() -> argparse.ArgumentParser:
    parser = _parser("multimodal shards INPUT OUTPUT_FOLDER [options]")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--name", help="of the source (default: the output folder's)")
    parser.add_argument("--files", nargs="+", default=[], help="a table's columns of paths")
    parser.add_argument("--texts", nargs="+", default=[], help="a table's columns for the metadata")
    parser.add_argument("--key", help="a table's column that names the samples")
    parser.add_argument("--max-samples", type=int, default=10_000, help="of a shard")
    parser.add_argument("--max-bytes", type=int, default=1 << 30, help="of a shard")
    parser.add_argument("--split", nargs="+", default=["train=1"], help="train=0.9 val=0.1")
    parser.add_argument("--group-by", help="metadata key whose equal values share a split")
    parser.add_argument("--require", nargs="+", default=[], help="members all samples must have")
    parser.add_argument(
        "--kind", nargs="+", default=[], help="MEMBER=KIND where names do not imply it"
    )
    parser.add_argument("--label", help="metadata key whose balance is reported")
    parser.add_argument("--description", default="")
    parser.add_argument("--origin", default="")
    parser.add_argument("--licence", default="")
    parser.add_argument("--seed", type=int, default=0, help="of the samples' order")
    parser.add_argument("--checkpoint", type=Path, help="model that judges how well pairs match")
    parser.add_argument("--pair", nargs=2, help="image=photo.jpg text=json:caption")
    parser.add_argument(
        "--allowed-packages", nargs="+", default=[], help="yours, that the model builds from"
    )
    parser.add_argument(
        "--allowed-addresses", nargs="+", default=[], help="that the checkpoint may open"
    )
    parser.add_argument("--min-similarity", type=float, help="cosine of pairs that stay")
    return parser


def _pack(words: Sequence[str]) -> int:
    args = _pack_parser().parse_args(words)
    if (args.checkpoint is None) != (args.pair is None):
        raise ValueError("--checkpoint and --pair go together")
    if args.min_similarity is not None and args.checkpoint is None:
        raise ValueError("--min-similarity needs --checkpoint and --pair")
    if args.input.resolve() == args.output.resolve():
        raise ValueError("the output folder must not be the input")
    from multimodal.data.packing.items import items_of
    from multimodal.data.packing.pack import pack
    from multimodal.data.packing.plan import Plan

    shares = _pairs(args.split, "--split")
    if wrong := [f"{name}={share}" for name, share in shares.items() if not _is_number(share)]:
        raise ValueError(f"--split takes NAME=SHARE, a number from 0 to 1, given {wrong[0]}")
    plan = Plan(
        name=args.name or args.output.name.replace(".", "-"),
        splits={name: float(share) for name, share in shares.items()},
        group=args.group_by,
        max_samples=args.max_samples,
        max_bytes=args.max_bytes,
        required=tuple(args.require),
        kinds=_pairs(args.kind, "--kind"),
        label=args.label,
        seed=args.seed,
        description=args.description,
        origin=args.origin,
        licence=args.licence,
    )
    items = items_of(args.input, args.files, args.texts, args.key)
    if args.checkpoint is None:
        with _bar("packing") as progress:
            packed = pack(items, args.output, plan, args.workers, progress)
    else:
        packed = _pack_judged(items, plan, args)
    _show(packed)
    return 0


def _pack_judged(items: Iterator[Item | Refusal], plan: Plan, args: argparse.Namespace) -> Packed:
    """Packs twice: all, to be embedded, then those whose pairs match."""
    import json

    from multimodal.data.packing.items import Item, Refusal, items_of
    from multimodal.data.packing.pack import pack
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.similarity import histogram, pair_similarities

    everything = args.output / ".all"
    with _bar("packing") as progress:
        manifest, _ = pack(items, everything, plan, args.workers, progress)
    packages, addresses = args.allowed_packages, args.allowed_addresses
    model, cfg = load_model(args.checkpoint, packages, addresses=addresses)
    entries = {}
    for modality, member in _pairs(args.pair, "--pair").items():
        name, _, key = member.partition(":")
        entries[modality] = {"member": name, **({"key": key} if key else {})}
    with _bar("comparing") as progress:
        similarities = pair_similarities(model, cfg, manifest, entries, progress)
    least = args.min_similarity

    def kept() -> Iterator[Item | Refusal]:
        for item in items_of(everything):
            if isinstance(item, Item) and item.key not in similarities:
                yield Refusal(item.key, "no_similarity", "the pair could not be embedded")
            elif isinstance(item, Item) and least is not None and similarities[item.key] < least:
                detail = f"cosine {similarities[item.key]:.3f} is under {least:g}"
                yield Refusal(item.key, "low_similarity", detail)
            else:
                yield item

    with _bar("packing what is kept") as progress:
        packed = pack(kept(), args.output, plan, args.workers, progress)
    packed.report["pair_similarity"] = histogram(similarities.values())
    text = json.dumps(packed.report, ensure_ascii=False, indent=2, default=str)
    write_text(args.output / "report.json", text + "\n")
    shutil.rmtree(everything)
    return packed


def _index(words: Sequence[str]) -> int:
    parser = _parser("multimodal shards index FOLDER [options]")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", help="of the source (default: the folder's)")
    parser.add_argument("--split", help="of all tars (default: from their names, else train)")
    parser.add_argument(
        "--kind", nargs="+", default=[], help="MEMBER=KIND where names do not imply it"
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave broken tars out")
    args = parser.parse_args(words)
    from multimodal.data.packing.index import index, split_in_name

    split = (lambda name: args.split) if args.split else split_in_name
    name = args.name or args.folder.resolve().name.replace(".", "-")
    kinds = _pairs(args.kind, "--kind")
    with _bar("indexing") as progress:
        path, problems = index(
            args.folder, name, kinds, split, args.skip_broken, args.workers, progress
        )
    _show_problems(problems)
    print(path)
    return 0


def _verify(words: Sequence[str]) -> int:
    parser = _parser("multimodal shards verify FOLDER [options]")
    parser.add_argument("folder", type=Path, help="of the shards, or one manifest")
    args = parser.parse_args(words)
    from multimodal.data.packing.index import verify

    paths = [args.folder]
    if args.folder.is_dir():
        paths = [p for p in sorted(args.folder.glob("*.json")) if b'"multimodal-manifest/' in
                 p.read_bytes()[:4096]]  # fmt: skip
    if not paths:
        raise FileNotFoundError(f"no manifest in {args.folder}: `index` writes one")
    wrong = False
    for path in paths:
        with _bar(f"verifying {path.name}") as progress:
            good, problems = verify(path, None, args.workers, progress)
        _show_problems(problems)
        print(f"{path.name}: {good} samples in order, {len(problems)} problems")
        wrong |= bool(problems)
    return int(wrong)


def _curate(words: Sequence[str]) -> int:
    from multimodal.cli.curate import main as curate

    return curate(words)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not CONSOLE.is_terminal
    with Progress(*columns, console=CONSOLE, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(packed: Packed) -> None:
    report: dict[str, Any] = packed.report
    table = Table("split", "shards", "samples", "megabytes")
    for split, counts in report["splits"].items():
        megabytes = f"{counts['bytes'] / 1e6:,.1f}"
        table.add_row(split, str(counts["shards"]), str(counts["samples"]), megabytes)
    CONSOLE.print(table)
    for reason, count in report["refused"].items():
        CONSOLE.print(f"refused: {count} {reason} (each in refused.jsonl)")
    quality = report["quality"]
    texts = quality["texts"]
    CONSOLE.print(
        f"{quality['near_duplicate_pictures']['pairs']} pairs of near-duplicate pictures, "
        f"{quality['exact_copies']} exact copies; {texts['count']} texts, {texts['repeated']} of "
        "them repeated; more in report.json"
    )
    print(packed.manifest)


def _show_problems(problems: Sequence[ShardProblem]) -> None:
    for problem in problems[:50]:
        where = f"{problem.shard}, key {problem.key!r}" if problem.key else problem.shard
        print(f"{where}: {problem.reason}: {problem.detail}", file=sys.stderr)
    if len(problems) > 50:
        print(f"and {len(problems) - 50} more", file=sys.stderr)


def command() -> None:
    """`multimodal shards` and `python scripts/make_shards.py`."""
    sys.exit(main())
