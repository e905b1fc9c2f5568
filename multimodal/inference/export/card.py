"""A model card from a run: what it is, what it saw, what it cost, how good it is, its limits.

Everything in it is read from the run's folder and its checkpoint; missing figures are reported as
missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from multimodal.core import strict_json
from multimodal.data.shards.manifest import load_manifest
from multimodal.models.towers import EmbeddingModel

FIGURES = ("r@1", "top@1", "accuracy", "mean_per_class", "mae", "map")  # first that there is


@dataclass(frozen=True)
class Run:
    """What a card is made of.

    Attributes:
        cfg: the configuration in the checkpoint.
        model: its towers.
        step: optimizer steps that it was trained for.
        checkpoint: name of the file.
        metrics: content of ``metrics.json``; empty: not evaluated.
        starts: content of ``run.json``, one object for each start; empty: not known.
        seconds: from the first start to the checkpoint; None: not known.
        measured: lines of a table of sizes and speeds, in Markdown.
    """

    cfg: DictConfig
    model: EmbeddingModel
    step: int
    checkpoint: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    measured: list[str] = field(default_factory=list)


def run_of(cfg: DictConfig, model: EmbeddingModel, step: int, checkpoint: Path) -> Run:
    """The run around a checkpoint: ``metrics.json`` and ``run.json`` in its folder, or above it."""
    above = checkpoint.absolute().parent
    folder = above.parent if above.name == "checkpoints" else above
    metrics, starts = (_json(folder / name) for name in ("metrics.json", "run.json"))
    starts = starts if isinstance(starts, list) else []
    return Run(
        cfg,
        model,
        step,
        checkpoint.name,
        metrics if isinstance(metrics, dict) else {},
        starts,
        _seconds(starts, checkpoint),
    )


def _json(path: Path) -> Any:
    try:
        return strict_json.read(path)
    except (OSError, ValueError):
        return None


def _seconds(starts: list[dict[str, Any]], checkpoint: Path) -> float | None:
    """Wall time of a run of one start; what lies between several is not known."""
    from datetime import datetime

    if len(starts) != 1 or not checkpoint.exists():
        return None
    try:
        began = datetime.fromisoformat(str(starts[0]["started"])).timestamp()
    except (KeyError, ValueError):
        return None
    return max(0.0, checkpoint.stat().st_mtime - began)


def card(run: Run) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    name = str(run.cfg.get("name") or "model")
    parts = [
        [
            "---",
            "library_name: multimodal",
            "tags: [multimodal, embeddings]",
            "---",
            "",
            f"# {name}",
        ],
        _model(run),
        ["## Data", "", *_data(run)],
        ["## Training", "", *_training(run)],
        ["## Evaluation", "", *_evaluation(run)],
        ["## Size and speed", "", *(run.measured or ["Not measured."])],
        ["## Limits", "", *_limits(run)],
        _configuration(run),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _model(run: Run) -> list[str]:
    model = run.model
    rows: list[str] = []
    seen: dict[int, str] = {}
    for name in model.towers:
        tower = model.tower(name)
        if id(tower) in seen:
            rows.append(f"| {name} | that of {seen[id(tower)]} | | |")
            continue
        seen[id(tower)] = name
        count = sum(parameter.numel() for parameter in tower.parameters())
        frozen = "whole" if tower.frozen else "encoder" if tower.encoder_frozen else ""
        begun = f"{type(tower.encoder).__name__}, from {tower.pretrained}"
        kind = begun if tower.pretrained else type(tower.encoder).__name__
        rows.append(f"| {name} | {kind} | {count:,} | {frozen} |")
    total = sum(parameter.numel() for parameter in model.parameters())
    space = f" in one space of {model.embed_dim} dimensions" if model.embed_dim else ""
    return [
        f"Embeds {', '.join(model.towers)}{space}; {total:,} parameters. Checkpoint "
        f"`{run.checkpoint}`.",
        "",
        "| tower | encoder | parameters | frozen in training |",
        "|---|---|---:|---|",
        *rows,
    ]


def _data(run: Run) -> list[str]:
    sources = OmegaConf.select(run.cfg, "data.sources") or {}
    lines: list[str] = []
    for name, block in sources.items():
        if block is None:
            continue
        paths = block.get("manifest")
        for path in [paths] if isinstance(paths, str) else list(paths or []):
            lines += _source(str(name), path, block.get("split"))
    return lines or ["The configuration names no sources."]


def _source(name: str, path: str, split: Any) -> list[str]:
    try:
        manifest = load_manifest(path)
        splits = [split] if isinstance(split, str) else list(split or [])
        count = len(manifest.split(*splits))
    except (OSError, ValueError):
        return [f"- **{name}** (`{Path(path).name}`): its manifest cannot be read here."]
    said = f": {manifest.description.strip()}" if manifest.description else ""
    lines = [f"- **{name}** (`{Path(path).name}`), {count:,} samples of {', '.join(splits)}{said}"]
    for entry in manifest.licences:
        origin = f" ({entry['url']})" if entry.get("url") else ""
        credit = f"; {entry['attribution']}" if entry.get("attribution") else ""
        what, licence = entry.get("what", "all"), entry.get("licence", "licence not said")
        lines.append(f"    - {what}: {licence}{credit}{origin}")
    if not manifest.licences:
        lines.append("    - the manifest names no licence")
    return lines


def _training(run: Run) -> list[str]:
    per_device = int(OmegaConf.select(run.cfg, "data.batch_size") or 0)
    devices = OmegaConf.select(run.cfg, "trainer.devices")
    nodes = int(OmegaConf.select(run.cfg, "trainer.num_nodes") or 1)
    count = devices * nodes if isinstance(devices, int) and devices > 0 else None
    lines = [f"- steps: {run.step:,}"]
    if per_device and count:
        samples = run.step * per_device * count
        lines.append(f"- batch: {per_device} x {count} devices; about {samples:,} samples seen")
    elif per_device:
        lines.append(f"- batch per device: {per_device}; devices: {devices}")
    kind = OmegaConf.select(run.cfg, "trainer.accelerator") or "not said"
    precision = OmegaConf.select(run.cfg, "trainer.precision") or "not said"
    lines.append(f"- accelerator: {kind}; precision: {precision}")
    if run.seconds is not None:
        lines.append(f"- wall time to this checkpoint: {run.seconds / 60:,.1f} min")
    elif run.starts:
        lines.append(f"- wall time: not known, of {len(run.starts)} starts")
    for start in run.starts[-1:]:
        code, packages = start.get("code") or {}, start.get("packages") or {}
        commit = f", commit {str(code['commit'])[:12]}" if code.get("commit") else ""
        lines.append(
            f"- code: multimodal {code.get('version', 'unknown')}{commit}; torch "
            f"{packages.get('torch', 'unknown')}; Python {start.get('python', 'unknown')}"
        )
    return lines


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Set, question, the first of `FIGURES` that it has, and all of its figures."""
    for set_name, tasks in metrics.items():
        for task, row in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(row, dict):
                for figure in FIGURES:
                    if isinstance(row.get(figure), int | float):
                        yield set_name, task, figure, row
                        break


def _evaluation(run: Run) -> list[str]:
    lines = []
    for set_name, task, figure, row in _rows(run.metrics):
        interval = (row.get("interval") or {}).get(figure)
        chance = (row.get("chance") or {}).get(figure)
        between = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        kind = "" if "trained" not in row else "trained" if row["trained"] else "emergent"
        lines.append(
            f"| {set_name} | {task} | {figure} | {row[figure]:.3f} | {between} | "
            f"{'' if chance is None else f'{chance:.3f}'} | {kind} |"
        )
    if not lines:
        return ["Not evaluated: the run's folder has no `metrics.json`."]
    return [
        "Held-out sets; 95 % intervals over the samples (bootstrap).",
        "",
        "| set | question | figure | value | interval | chance | pair |",
        "|---|---|---|---:|---|---:|---|",
        *lines,
    ]


def _limits(run: Run) -> list[str]:
    lines = []
    near = [f"{s} {t} ({f})" for s, t, f, row in _rows(run.metrics) if row.get("not_above")]
    if near:
        lines.append(f"- Not distinguishable from chance or a trivial answer: {'; '.join(near)}.")
    asked = [(s, t) for s, t, _, _ in _rows(run.metrics)]
    silent = [name for name in run.model.towers if not any(name in task for _, task in asked)]
    if silent:
        lines.append(f"- Never evaluated: {', '.join(silent)}.")
    gaps = [
        f"{name} {what} ({reason})"
        for name, tasks in run.metrics.items() if isinstance(tasks, dict)
        for what, reason in (tasks.get("missing") or {}).items()
    ]  # fmt: skip
    if gaps:
        lines.append(f"- Not scored: {'; '.join(gaps)}.")
    lines.append(
        "- Trained and evaluated on the data above only: on other cameras, microphones, sensors or "
        "languages nothing is measured. Biases of the data, and of pretrained towers, remain."
    )
    return lines


def _configuration(run: Run) -> list[str]:
    keys = ("model", "fusion", "tasks", "pairs", "loss", "optimizer", "scheduler")
    kept = {key: run.cfg[key] for key in keys if run.cfg.get(key) is not None}
    text = OmegaConf.to_yaml(OmegaConf.create(kept), resolve=False)
    return ["## Configuration", "", "```yaml", text.rstrip(), "```"]


def measured_table(rows: list[Mapping[str, Any]]) -> list[str]:
    """A table of ``rows`` of equal keys, in Markdown."""
    if not rows:
        return []
    keys = list(rows[0])
    lines = [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    return lines + [f"| {' | '.join(_cell(row[key]) for key in keys)} |" for row in rows]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
