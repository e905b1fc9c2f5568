"""Packs data into WebDataset shards with a manifest, indexes tars, verifies them.

multimodal shards INPUT OUTPUT [options]     pack anything: folders, tables, other shards
multimodal shards merge OUTPUT               complete a packing in shares
multimodal shards index FOLDER [options]     write a manifest for tars that are there
multimodal shards verify FOLDER [options]    check hashes, counts, and that all can be trained on
multimodal shards curate MANIFEST OUTPUT     leave samples out of a manifest
multimodal shards lengths MANIFEST           record sizes and lengths, for data.max_tokens
multimodal shards benchmark NAME INPUT OUTPUT   pack a benchmark from its original layout
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal.cli.packing.options import (
    pack_parser,
    pairs,
    plan_of,
    reading_of,
    runner_of,
    workers_option,
)
from multimodal.cli.packing.show import progress_bar, say, show_packed, show_problems
from multimodal.core.files import write_text
from multimodal.core.process.exits import refused, report

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.data.packing.items import Item, Refusal
    from multimodal.data.packing.pack import Packed
    from multimodal.data.packing.plan import Plan


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where something is wrong with the data."""
    words = sys.argv[1:] if words is None else list(words)
    commands = {
        "index": _index, "verify": _verify, "merge": _merge, "curate": _curate,
        "benchmark": _benchmark, "lengths": _lengths,
    }  # fmt: skip
    command = commands.get(words[0]) if words else None
    try:
        with refused("shards", exit_status=1):
            return command(words[1:]) if command else _pack(words)
    except Exception as error:
        return report(error)


def _parser(usage: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        usage=usage, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _pack(words: Sequence[str]) -> int:
    parser = pack_parser(_parser("multimodal shards INPUT OUTPUT [options]"))
    args = parser.parse_args(words)
    _check_judged(args)
    from multimodal.data.packing.layouts.find import items_of
    from multimodal.data.packing.output import output_at
    from multimodal.data.packing.pack import Share, pack, pack_share

    output = output_at(args.output)
    if args.input.resolve() == Path(args.output).resolve():
        raise ValueError("the output folder must not be the input")
    plan = plan_of(args, output.name)
    items = items_of(args.input, reading_of(args), say)
    run = runner_of(args)
    if args.share is not None:
        share = Share.parse(args.share)
        with progress_bar("packing") as progress:
            shards = pack_share(items, output, plan, share, run, progress)
        say(f"share {args.share}: {shards} shards; when all are there: merge {args.output}")
        return 0
    if args.checkpoint is None:
        with progress_bar("packing") as progress:
            packed = pack(items, output, plan, run, progress)
    else:
        packed = _pack_judged(items, plan, args)
    show_packed(packed)
    return 0


def _check_judged(args: argparse.Namespace) -> None:
    if (args.checkpoint is None) != (args.pair is None):
        raise ValueError("--checkpoint and --pair go together")
    if args.min_similarity is not None and args.checkpoint is None:
        raise ValueError("--min-similarity needs --checkpoint and --pair")
    if args.checkpoint is not None and (args.share is not None or "://" in args.output):
        raise ValueError("--checkpoint is for a packing in one piece, into a local folder")


def _pack_judged(items: Iterator[Item | Refusal], plan: Plan, args: argparse.Namespace) -> Packed:
    """Packs twice: all, to be embedded, then those whose pairs match."""
    import json

    from multimodal.data.packing.items import Item, Refusal
    from multimodal.data.packing.layouts.find import items_of
    from multimodal.data.packing.pack import pack
    from multimodal.inference.checkpoint.load import load_model
    from multimodal.inference.similarity import histogram, pair_similarities

    run = runner_of(args)
    everything = Path(args.output) / ".all"
    with progress_bar("packing") as progress:
        manifest, _ = pack(items, everything, plan, run, progress)
    packages, addresses = args.allowed_packages, args.allowed_addresses
    model, cfg = load_model(args.checkpoint, packages, addresses=addresses)
    entries = {}
    for modality, member in pairs(args.pair, "--pair").items():
        name, _, key = member.partition(":")
        entries[modality] = {"member": name, **({"key": key} if key else {})}
    with progress_bar("comparing") as progress:
        similarities = pair_similarities(model, cfg, Path(manifest), entries, progress)
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

    with progress_bar("packing the kept samples") as progress:
        packed = pack(kept(), args.output, plan, run, progress)
    packed.report["pair_similarity"] = histogram(similarities.values())
    text = json.dumps(packed.report, ensure_ascii=False, indent=2, default=str)
    write_text(Path(args.output) / "report.json", text + "\n")
    shutil.rmtree(everything)
    return packed


def _merge(words: Sequence[str]) -> int:
    parser = _parser("multimodal shards merge OUTPUT")
    parser.add_argument("output", help="folder or URL that the shares were packed to")
    args = parser.parse_args(words)
    from multimodal.data.packing.pack import merge

    show_packed(merge(args.output))
    return 0


def _index(words: Sequence[str]) -> int:
    parser = _parser("multimodal shards index FOLDER [options]")
    workers_option(parser)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", help="of the source (default: the folder's)")
    parser.add_argument("--split", help="of all tars (default: from their names, else train)")
    parser.add_argument(
        "--kind", nargs="+", default=[], help="MEMBER=KIND where names do not imply it"
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave broken tars out")
    args = parser.parse_args(words)
    from multimodal.data.packing.index import index, partial_keys
    from multimodal.data.packing.tables.splits import split_in_name
    from multimodal.data.shards.manifest import load_manifest

    split = (lambda name: args.split) if args.split else split_in_name
    name = args.name or args.folder.resolve().name.replace(".", "-")
    kinds = pairs(args.kind, "--kind")
    with progress_bar("indexing") as progress:
        path, problems = index(
            args.folder, name, kinds, split, args.skip_broken, args.workers, progress
        )
    show_problems(problems)
    for line in partial_keys(load_manifest(path)):
        say(f"{line}: bad samples for a modality that reads it, unless it is optional")
    print(path)
    return 0


def _lengths(words: Sequence[str]) -> int:
    parser = _parser("multimodal shards lengths MANIFEST [options]")
    workers_option(parser)
    parser.add_argument("manifest", type=Path)
    args = parser.parse_args(words)
    from multimodal.cli.packing.lengths import record_lengths

    with progress_bar("reading lengths") as progress:
        print(record_lengths(args.manifest, args.workers, progress))
    return 0


def _verify(words: Sequence[str]) -> int:
    parser = _parser("multimodal shards verify FOLDER [options]")
    workers_option(parser)
    parser.add_argument("folder", help="of the shards, or one manifest; either may be a URL")
    args = parser.parse_args(words)
    from multimodal.data.packing.index import verify
    from multimodal.data.shards.manifest import manifests_in

    paths = manifests_in(args.folder)
    if not paths:
        raise FileNotFoundError(f"no manifest in {args.folder}: `index` writes one")
    wrong = False
    for path in paths:
        name = path.rpartition("/")[2]
        with progress_bar(f"verifying {name}") as progress:
            good, problems = verify(path, None, args.workers, progress)
        show_problems(problems)
        print(f"{name}: {good} samples in order, {len(problems)} problems")
        wrong |= bool(problems)
    return int(wrong)


def _curate(words: Sequence[str]) -> int:
    from multimodal.cli.curate import main as curate

    return curate(words)


def _benchmark(words: Sequence[str]) -> int:
    from multimodal.cli.packing.benchmark import main as benchmark

    return benchmark(words)


def command() -> None:
    """`multimodal shards` and `python scripts/make_shards.py`."""
    sys.exit(main())
