"""The tables and the picture of scripts/benchmark/fusion.py, from the lines of its runs."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

from multimodal.core.files import write_bytes

DROPOUT = 0.3  # of modalities, in the runs with it
METHODS = ("mean", "concat", "cross_attention", "bottleneck")
SHARES = (0, 25, 50, 75, 100)  # of test samples that miss a modality, in percent
TITLES = {"digits": "digits, written and spoken", "watch": "smart watch, people unseen"}


def spread(lines: list[dict[str, Any]], score: str) -> tuple[float, float, int] | None:
    """Mean and deviation over seeds, in percent; of folds, each seed's mean is taken first."""
    by_seed: dict[int, list[float]] = {}
    for line in lines:
        if score in line["scores"]:
            by_seed.setdefault(line["run"]["seed"], []).append(100 * line["scores"][score])
    values = [statistics.mean(accuracies) for accuracies in by_seed.values()]
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(values), deviation, len(values)


def chosen(done: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The lines of some runs."""
    return [line for line in done if all(line["run"][k] == v for k, v in wanted.items())]


def cell(summary: tuple[float, float, int] | None) -> str:
    """``12.3 ± 0.4``; of one seed, without a deviation."""
    if summary is None:
        return ""
    return (
        f"{summary[0]:.1f} ± {summary[1]:.1f}" if summary[2] > 1 else f"{summary[0]:.1f} (one seed)"
    )


def tables(done: list[dict[str, Any]]) -> str:
    """The Markdown of the docs."""
    lines = []
    for name in TITLES:
        lines += [f"**{name}**, test accuracy in percent", ""]
        lines += ["| | without modality dropout | with |", "|---|---|---|"]
        here = chosen(done, set=name)
        for method in dict.fromkeys(line["run"]["method"] for line in here):
            label = method.replace("_", "-") if method in METHODS else f"{method} alone"
            label = label.replace("forest alone", "random forest")
            own = chosen(here, method=method)
            cells = [cell(spread(chosen(own, dropout=d), "all")) for d in (0.0, DROPOUT)]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        lines += ["", f"**{name}**, by the share of test samples that miss one modality", ""]
        lines += [f"| | dropout | {' | '.join(f'{s} %' for s in SHARES)} |", "|---" * 7 + "|"]
        for method in METHODS:
            for dropout in (0.0, DROPOUT):
                own = chosen(here, method=method, dropout=dropout)
                cells = [cell(spread(own, f"missing/{s}" if s else "all")) for s in SHARES]
                lines.append(f"| {method.replace('_', '-')} | {dropout} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def picture(done: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against the share of samples that miss a modality."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "fusion"  # equal figures, equal file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(TITLES), figsize=(10, 4), sharey=False, layout="constrained")
    for axis, name in zip(axes, TITLES, strict=True):
        for index, method in enumerate(METHODS):
            for dropout, style in ((DROPOUT, "-"), (0.0, "--")):
                own = chosen(done, set=name, method=method, dropout=dropout)
                summaries = [spread(own, f"missing/{s}" if s else "all") for s in SHARES]
                points = [
                    (s, *f[:2]) for s, f in zip(SHARES, summaries, strict=True) if f is not None
                ]
                if points:
                    xs, ys, deviations = zip(*points, strict=True)
                    axis.errorbar(
                        xs, ys, deviations, ls=style, marker="o", ms=3, lw=1.4, capsize=2,
                        color=f"C{index}", label=method.replace("_", "-") if style == "-" else None,
                    )  # fmt: skip
        axis.set(title=TITLES[name], xlabel="test samples that miss one modality, %", xticks=SHARES)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(title="solid: with modality dropout", fontsize=8, title_fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], metadata={"Date": None})
    write_bytes(path, drawn.getvalue())
