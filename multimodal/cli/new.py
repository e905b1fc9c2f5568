"""An experiment of your own: multimodal new NAME --data shards/photos/photos.json ...

Looks at the manifests, asks nothing, and writes configs/experiment/NAME.yaml, which trains at once
and is meant to be edited.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal.core.errors import UserError
from multimodal.core.files import write_text
from multimodal.core.process.exits import errors_end_the_program

if TYPE_CHECKING:  # torch comes after the arguments
    from multimodal.cli.program.drafting import Found


def main(words: Sequence[str] | None = None) -> None:
    """Writes the experiment and says how to train it."""
    parser = argparse.ArgumentParser(
        "multimodal new", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the experiment")
    parser.add_argument("--data", nargs="+", required=True, metavar="MANIFEST")
    parser.add_argument("--anchor", help="modality that the others are related to (image)")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="your own folder")
    parser.add_argument("--force", action="store_true", help="replace an experiment of that name")
    args = parser.parse_args(words)
    if not re.fullmatch(r"[A-Za-z]\w*", args.name):
        raise UserError.mistake(
            f"new: {args.name!r}: expected a name of letters, digits and underscores"
        )
    file = args.configs / "experiment" / f"{args.name}.yaml"
    if file.exists() and not args.force:
        raise UserError.mistake(
            f"new: {file} exists; choose another name, or replace it by --force"
        )
    from multimodal.cli.program.drafting import look_at

    found = [look_at(given) for given in args.data]
    text = draft(args.name, found, args.anchor, args.configs)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    for each in found:
        for member in each.left_out:
            kind = each.manifest.fields[member].kind
            print(
                f"left out: {member} ({kind}) of {each.path}: add a tower for it", file=sys.stderr
            )
        if each.split(VALIDATION_AND_TEST) is None:
            print(
                f"{each.path} has no split to validate on: pack it with --split train=0.9 val=0.1 "
                "for early stopping and a held-out evaluation",
                file=sys.stderr,
            )
    print(f"written: {file}\n\ntrain it:\n\n  {command_of(args.name, args.configs)}")


VALIDATION_AND_TEST = ("val", "validation", "valid", "dev", "test", "testing")


def command_of(name: str, configs: Path) -> str:
    """The next command."""
    return (
        f"multimodal train --config-dir {configs} +experiment={name} hydra.run.dir=outputs/{name}"
    )


def draft(name: str, found: Sequence[Found], anchor: str | None, configs: Path) -> str:
    """The experiment as YAML, under 40 lines for a handful of manifests."""
    from multimodal.cli.program import drafting

    kinds = {modality: kind for each in found for modality, kind in each.kinds.items()}
    pairs = drafting.pairs_of(found, anchor)
    used = list(dict.fromkeys(modality for ends in pairs.values() for modality in ends))
    chosen = [(modality, *drafting.TOWERS[kinds[modality]]) for modality in used]
    validated = any(each.split(drafting.VALIDATION) for each in found)
    defaults = [f"/tower@model.towers.{modality}: {tower}" for modality, tower, _ in chosen]
    defaults += [f"/data/transform@data.transforms.{modality}: {t}" for modality, _, t in chosen]
    defaults += ["override /data: shards"]
    defaults += ["override /callbacks: early_stopping"] if validated else []
    towers, transforms = _told(found, used)
    sizes = drafting.sizes_of(found)
    lines = [
        "# @package _global_",
        f"# {command_of(name, configs)}",
        "#",
        f"# {', '.join(used)} of {', '.join(each.name for each in found)}: "
        f"{sum(each.samples for each in found):,} samples to train on.",
        "defaults:",
        *(f"  - {line}" for line in (*defaults, "_self_")),
        "",
        f"name: {name}",
        "model:",
        "  _target_: multimodal.models.EmbeddingModel",
        *([f"  towers: {_flow(towers)}"] if towers else []),
        "pairs:",
        *(f"  {pair}: {{anchor: {a}, other: {b}}}" for pair, (a, b) in pairs.items()),
        *_data_lines(found, used, transforms, sizes["batch_size"]),
        "trainer:",
        f"  max_steps: {sizes['max_steps']}",
        f"  val_check_interval: {sizes['every']}",
    ]
    return "\n".join(lines) + "\n"


def _told(found: Sequence[Found], used: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of encoders and transforms that the data decide, by modality."""
    from multimodal.cli.program import drafting

    towers: dict[str, Any] = {}
    transforms: dict[str, Any] = {}
    for each in found:
        for modality in each.modalities:
            if modality in used and modality not in towers:
                encoder, transform = drafting.settings_of(each, modality)
                if encoder:
                    towers[modality], transforms[modality] = {"encoder": encoder}, transform
    return towers, transforms


def _data_lines(
    found: Sequence[Found], used: Sequence[str], transforms: dict[str, Any], batch_size: int
) -> list[str]:
    """The blocks `data` and `evaluation`: sources to train, to validate and to evaluate on."""
    from multimodal.cli.program import drafting

    sources, val_sources, sets = [], [], []
    for each in found:
        own = {
            "_target_": "multimodal.data.Source", "manifest": each.path, "split": each.train,
            "modalities": {m: entry for m, entry in each.modalities.items() if m in used},
        }  # fmt: skip
        sources.append(f"    {each.name}: {_flow(own)}")
        same = {key: f"${{data.sources.{each.name}.{key}}}" for key in ("manifest", "modalities")}
        validation = each.split(drafting.VALIDATION)
        if validation:
            val_sources.append(f"    {each.name}: {_flow({**own, **same, 'split': validation})}")
        if held := each.split(drafting.TEST) or validation:
            entry = {"source": {**own, **same, "split": held}, "retrieval": "all"}
            sets.append(f"    {each.name}: {_flow(entry)}")
    blocks = {"sources": sources, "val_sources": val_sources, "transforms": []}
    blocks["transforms"] = [f"    {m}: {_flow(entry)}" for m, entry in transforms.items()]
    lines = ["data:", f"  batch_size: {batch_size}", "  num_workers: 1"]
    for block, entries in blocks.items():
        lines += [f"  {block}:", *entries] if entries else []
    return lines + (["evaluation:", "  sets:", *sets] if sets else [])


def _flow(value: Any) -> str:
    """On one line."""
    import yaml

    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()


def command() -> None:
    """`multimodal new`."""
    with errors_end_the_program():
        main()
