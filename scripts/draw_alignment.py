# python scripts/draw_alignment.py RUN
"""Draws held-out queries of a trained sample ImageBind with what they find in other modalities."""

from __future__ import annotations

import argparse
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

import multimodal
from multimodal.core.files import write_bytes
from multimodal.data import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from multimodal.inference.embedder import Embedder

SHOWN = 5  # neighbours


@dataclass(frozen=True)
class Row:
    """Queries of one kind: from a held-out set, in one modality, answered in another."""

    title: str
    manifest: str
    split: str
    query: tuple[str, Any]
    answers: tuple[str, Any]
    emergent: bool


ICON, NAME = ("image", "icon.webp"), ("text", {"member": "json", "key": "name"})
PICTURE, DEPTH = ("image", "image.webp"), ("depth", "depth.png")
ROWS = (
    Row("a sound finds words", "speech", "test_seen", ("audio", "v5.ogg"), NAME, True),
    Row("a sound finds pictures", "speech", "test_seen", ("audio", "v5.ogg"), PICTURE, False),
    Row("depth finds words", "furniture", "test_loose", DEPTH, NAME, True),
    Row("words find depth", "furniture", "test_loose", NAME, DEPTH, True),
    Row("depth finds pictures", "furniture", "test_loose", DEPTH, ICON, False),
    Row("a picture finds words", "emoji", "test", ("image", "openmoji.webp"), NAME, False),
    Row("motion finds words", "motion", "test", ("imu", "imu.npy"), NAME, True),
)


def main() -> None:
    """Draws a row for each kind of query; which query is drawn by the seed, not chosen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a run of +experiment=imagebind, or a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/alignment.png"))
    arguments = parser.parse_args()
    model = multimodal.load(arguments.run)
    places = draw(model, ROWS, arguments.seed, arguments.output)
    for row, place in zip(ROWS, places, strict=True):
        print(f"{row.title}: the right one is at place {place}")


def draw(model: Embedder, rows: Sequence[Row], seed: int, path: Path) -> list[int]:
    """A query on the left, its nearest neighbours on the right, right ones framed.

    Returns:
        for each row the place of the first right answer, from 1.
    """
    matplotlib.use("agg")
    from matplotlib import pyplot

    places = []
    figure, grid = pyplot.subplots(
        len(rows), SHOWN + 2, figsize=(12, 1.5 * len(rows)), layout="constrained",
        gridspec_kw={"width_ratios": [1.3, 1.2, *[1] * SHOWN]},
    )  # fmt: skip
    for row, axes in zip(rows, np.atleast_2d(grid), strict=True):
        queries, keys, names = _values(row, row.query)
        answers, answer_keys = _distinct(*_values(row, row.answers)[:2])
        chosen = int(np.random.default_rng(seed).integers(len(queries)))
        found = (
            model.embed(**{row.query[0]: [queries[chosen]]})
            @ model.embed(**{row.answers[0]: answers}).T
        )
        order = found[0].argsort(descending=True).tolist()
        place = next(n for n, i in enumerate(order, 1) if answer_keys[i] == keys[chosen])
        places.append(place)
        said = "never trained together" if row.emergent else "trained together"
        words = f"{row.title}\n{said}\nright one: {place} of {len(answers)}"
        axes[0].text(0, 0.5, words, va="center", fontsize=10, transform=axes[0].transAxes)
        axes[0].axis("off")
        _show(axes[1], row.query[0], queries[chosen])
        if row.query[0] != "text":
            axes[1].set_title(textwrap.shorten(names[chosen], 24, placeholder=" …"), fontsize=9)
        for cell, index in zip(axes[2:], order, strict=False):
            _show(cell, row.answers[0], answers[index])
            _frame(cell, "tab:green" if answer_keys[index] == keys[chosen] else "0.8")
        for cell in axes[2 + len(order) :]:
            cell.axis("off")
        _frame(axes[1], "tab:blue")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=80, metadata={"Software": None})
    pyplot.close(figure)
    write_bytes(path, picture.getvalue())
    return places


def _values(row: Row, part: tuple[str, Any]) -> tuple[list[Any], list[int], list[str]]:
    """What a set holds of a modality, the keys of what is the same thing, and its names."""
    modality, member = part
    source = Source(
        f"samples://{row.manifest}.json",
        {modality: member if isinstance(member, dict) else {"member": member}},
        row.split,
        positive_key="label" if row.manifest == "motion" else "concept",
    )
    decoded = [source.decode(index, None) for index in range(len(source))]
    values = [each.values[modality] for each in decoded]
    names = [str(each.metadata["name"]) for each in decoded]
    return values, [each.positive_key for each in decoded], names


def _distinct(values: list[Any], keys: list[int]) -> tuple[list[Any], list[int]]:
    """Texts once each: several samples may have the same."""
    if not isinstance(values[0], str):
        return values, keys
    first = dict(zip(reversed(values), reversed(keys), strict=True))
    return list(first), list(first.values())


def _show(axes: Axes, modality: str, value: Any) -> None:
    """One input, as a person reads it."""
    axes.set_xticks([])
    axes.set_yticks([])
    if modality == "text":
        words = "\n".join(textwrap.wrap(value, 14)[:4])
        axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=9, transform=axes.transAxes)
    elif modality == "image":
        axes.imshow(value)
    elif modality == "depth":
        axes.imshow(np.where(value > 0, value, np.nan), cmap="viridis")
    else:
        axes.plot(value.samples.T, linewidth=0.5)


def _frame(axes: Axes, color: str) -> None:
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2.5 if color != "0.8" else 0.8)


if __name__ == "__main__":
    main()
