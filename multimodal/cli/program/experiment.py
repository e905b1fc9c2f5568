"""The text of a drafted experiment: one YAML of under 40 lines that a person can read and edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multimodal.cli.program import drafting
from multimodal.cli.program.drafting import Found

LINES = 39
# Blocks whose entries share a line where the file would be longer than that, in this order.
PACKED = ("val_sources", "sets", "pairs", "transforms", "towers", "sources")


def command_of(name: str, configs: Path) -> str:
    """The command that trains the experiment."""
    return (
        f"multimodal train --config-dir {configs} +experiment={name} hydra.run.dir=outputs/{name}"
    )


def draft(
    name: str, drafts: Sequence[Found], anchor: str | None, configs: Path, scratch: bool = True
) -> str:
    """The experiment as YAML, under 40 lines.

    Args:
        name: of the experiment.
        found: what the manifests hold.
        anchor: the modality that others are related to; None: `drafting.ANCHORS` decide.
        configs: folder of the user's own configurations.
        scratch: random towers; else those of the catalogue, where it has one.
    """
    for count in range(len(PACKED) + 1):
        text = _text(name, drafts, anchor, configs, scratch, PACKED[:count])
        if text.count("\n") <= LINES:
            break
    return text


def _text(
    name: str, drafts: Sequence[Found], anchor: str | None, configs: Path, scratch: bool,
    packed: Sequence[str],
) -> str:  # fmt: skip
    kinds = {modality: kind for each in drafts for modality, kind in each.kinds.items()}
    pairs = drafting.pairs_of(drafts, anchor)
    used = list(dict.fromkeys(modality for ends in pairs.values() for modality in ends))
    small = drafting.may_cache(drafts)
    more = any(kinds[m] not in drafting.MAIN for m in used)
    chosen = {m: drafting.tower_for(kinds[m], scratch, small, more) for m in used}
    towers, transforms = _told(drafts, chosen)
    fetched = sorted({each.pretrained for each in chosen.values() if each.pretrained})
    cached = bool(fetched) and small
    sizes = drafting.sizes_of(drafts, 256 if cached else 128)
    decay = 1.0 if small and not more else 0.1
    validated = any(each.split(drafting.VALIDATION) for each in drafts)
    return "\n".join(
        [
            "# @package _global_",
            f"# {command_of(name, configs)}",
            "#",
            f"# {', '.join(used)} of {', '.join(each.name for each in drafts)}: "
            f"{sum(each.samples for each in drafts):,} samples to train on.",
            *([f"# Frozen towers of the catalogue: {', '.join(fetched)}."] if fetched else []),
            "defaults: [",
            *(
                f"  {{/tower@model.towers.{m}: {each.tower}}}, "
                f"{{/data/transform@data.transforms.{m}: {each.transform}}},"
                for m, each in chosen.items()
            ),
            "  {override /data: shards}, "
            + ("{override /callbacks: early_stopping}, " if validated else "")
            + "_self_]",
            "",
            f"name: {name}",
            *(
                ["embed_dim: 256", f"optimizer: {{lr: 2.0e-3, weight_decay: {decay}}}"]
                if fetched
                else []
            ),
            *([f"cache_frozen: {{views: {drafting.VIEWS}}}"] if cached else []),
            "model:",
            "  _target_: multimodal.models.EmbeddingModel",
            "  compile: null",
            *_block("towers", towers, packed, 2),
            *_block("pairs", drafting.pair_blocks(pairs, kinds, scratch), packed),
            *_data(drafts, used, transforms, sizes["batch_size"], packed),
            *(["  cache_frozen: true"] if cached else []),
            *_evaluation(drafts, used, packed),
            f"trainer: {{max_steps: {sizes['max_steps']}, val_check_interval: {sizes['every']}}}",
        ]
    ) + "\n"  # fmt: skip


def _told(
    drafts: Sequence[Found], chosen: Mapping[str, drafting.Tower]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of towers and transforms, by modality: its own, and what data decide."""
    towers = {m: {**each.settings} for m, each in chosen.items() if each.settings}
    transforms: dict[str, Any] = {}
    for each in drafts:
        for modality in each.modalities:
            if modality in chosen and modality not in transforms:
                encoder, transform = drafting.settings_of(each, modality, chosen[modality])
                if encoder:
                    towers[modality] = {"encoder": encoder}
                if transform:
                    transforms[modality] = transform
    return towers, transforms


def _source(each: Found, used: Sequence[str], split: str) -> dict[str, Any]:
    modalities = {m: entry for m, entry in each.modalities.items() if m in used}
    return {
        "_target_": "multimodal.data.Source", "manifest": each.path, "split": split,
        "modalities": modalities,
    }  # fmt: skip


def _again(each: Found, used: Sequence[str], split: str) -> dict[str, Any]:
    """The source that is trained on, at another split."""
    same = {key: f"${{data.sources.{each.name}.{key}}}" for key in ("manifest", "modalities")}
    return {**_source(each, used, split), **same}


def _data(
    drafts: Sequence[Found], used: Sequence[str], transforms: dict[str, Any], batch_size: int,
    packed: Sequence[str],
) -> list[str]:  # fmt: skip
    validation = {
        each.name: _again(each, used, split)
        for each in drafts
        if (split := each.split(drafting.VALIDATION))
    }
    return [
        "data:",
        f"  batch_size: {batch_size}",
        "  num_workers: 1",
        *_block("sources", {e.name: _source(e, used, e.train) for e in drafts}, packed, 2),
        *_block("val_sources", validation, packed, 2),
        *_block("transforms", transforms, packed, 2),
    ]


def _evaluation(drafts: Sequence[Found], used: Sequence[str], packed: Sequence[str]) -> list[str]:
    sets = {
        each.name: {"source": _again(each, used, split), "retrieval": "all"}
        for each in drafts
        if (split := each.split(drafting.TEST) or each.split(drafting.VALIDATION))
    }
    return ["evaluation:", *_block("sets", sets, packed, 2)] if sets else []


def _block(
    key: str, entries: Mapping[str, Any], packed: Sequence[str], indent: int = 0
) -> list[str]:
    """A key with an entry on each line, or with all on its own."""
    space = " " * indent
    if not entries:
        return []
    if key in packed:
        return [f"{space}{key}: {_flow(dict(entries))}"]
    return [f"{space}{key}:", *(f"{space}  {name}: {_flow(e)}" for name, e in entries.items())]


def _flow(value: Any) -> str:
    """On one line."""
    text: str = yaml.safe_dump(
        value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("...\n").strip()
