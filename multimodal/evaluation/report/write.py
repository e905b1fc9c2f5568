"""Writes the outputs of an evaluation: ``metrics.json`` and ``report.html``."""

from __future__ import annotations

import csv
import datetime
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf

from multimodal.core.files import write_text
from multimodal.core.process.secrets import redacted, secrets_of
from multimodal.data.preview import drawable, sample_html
from multimodal.data.source import Decoded, Source
from multimodal.evaluation.evaluators.base import name_of
from multimodal.evaluation.evaluators.retrieval import RetrievalResult
from multimodal.evaluation.report.charts import curves
from multimodal.evaluation.report.page import Gallery, Page, make_gallery, render
from multimodal.evaluation.report.sections import Section, sections_of
from multimodal.evaluation.results import Results
from multimodal.evaluation.sets import EvaluationSet
from multimodal.models.towers import EmbeddingModel


def write(
    results: Results,
    sets: Mapping[str, EvaluationSet],
    folder: Path,
    cfg: DictConfig,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section] = (),
) -> Path:
    """Leaves ``metrics.json`` and ``report.html`` in ``folder``.

    Args:
        results: the figures.
        sets: by name, to draw samples from.
        folder: the run's; made if it is not there.
        cfg: the run's configuration; its keys and passwords are left out of the report.
        facts: (label, value) shown at the top of the report.
        sections: more of the report, after those that the results give.

    Returns:
        The report's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "metrics.csv"
    rows = list(csv.DictReader(log.open(newline=""))) if log.exists() else []
    secrets = [secret for _, secret in secrets_of(cfg)]
    page = Page(
        name=str(cfg.name),
        command=command(),
        created=f"{datetime.datetime.now():%d %B %Y, %H:%M}",
        facts=list(facts),
        results=results,
        curves=curves(rows),
        galleries=galleries(results, sets),
        sections=[*sections_of(results), *sections],
        config=redacted(OmegaConf.to_yaml(cfg, resolve=True), secrets),
    )
    report = folder / "report.html"
    write_text(report, render(page))
    # Last, and atomically: its presence marks a finished run.
    write_text(folder / "metrics.json", json.dumps(results.metrics(), indent=2) + "\n")
    return report


def facts(model: EmbeddingModel, results: Results) -> list[tuple[str, str]]:
    """What the report says at its top."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    samples = sum(info.samples for info in results.sets.values())
    return [
        ("modalities", ", ".join(model.towers)),
        ("parameters", f"{parameters / 1e6:.1f} M"),
        ("embedding", f"{model.embed_dim} dimensions"),
        ("held-out samples", f"{samples:,}"),
    ]


def command() -> str:
    """The command line of this process, for reuse."""
    program = Path(sys.argv[0])
    words = [program.name, *sys.argv[1:]]
    if program.suffix == ".py":
        words[:1] = ["python", os.path.relpath(program)]
    return shlex.join(words)


def galleries(results: Results, sets: Mapping[str, EvaluationSet]) -> list[Gallery]:
    """The examples of every retrieval, drawn from the sets' decoded samples."""
    drawn = []
    for result in results.of(RetrievalResult):
        source = sets[result.set].source
        if result.examples and source is not None:

            @functools.cache
            def decode(index: int, source: Source = source) -> Decoded:
                caption, place = divmod(index, len(source))
                return source.decode(place, None, caption=caption)

            def show(modality: str, index: int, decode: Any = decode) -> Markup:
                values = decode(index).values
                # Of several modalities the parts are named: "image + text", "image&text".
                parts = [word for word in re.split(r"[\s&]", modality) if word in values]
                return Markup("").join(_sample_html(name, values[name]) for name in parts)

            def caption(index: int, decode: Any = decode) -> str:
                sample: Decoded = decode(index)
                return name_of(sample.metadata) or sample.key

            drawn.append(make_gallery(result, show, caption))
    return drawn


def _sample_html(modality: str, value: Any) -> Markup:
    shown, rate = drawable(modality, value)
    return sample_html(modality, shown, rate)
