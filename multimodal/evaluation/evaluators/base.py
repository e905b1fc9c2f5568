"""What an evaluator is: a question about an embedded set, and the outcome that answers it.

A new evaluation is one file: a dataclass with `evaluate`, whose fields are its YAML, and an
`Outcome` that knows its row in ``metrics.json``, its lines in the terminal and its part of the
report. A set asks it by name, beside the evaluators with their own keys::

    evaluators:
      hubness: {_target_: my_package.Hubness, modality: image}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor
from typing_extensions import Self

from multimodal.core.similarity.similarities import COSINE, Similarity

if TYPE_CHECKING:
    from multimodal.data.source import Source
    from multimodal.evaluation.report.sections import Section

TRAINED, EMERGENT = "Trained together", "Never trained together"
CURVES = ("r@1", "r@5", "r@10", "map", "top@1", "top@5", "mean_per_class")


class Line(NamedTuple):
    """A line of the terminal's table; the figures are ready to be shown.

    ``interval`` is that of ``top_1``; ``marked`` if it reaches chance or a shortcut's score.
    """

    name: str
    top_1: str = ""
    top_5: str = ""
    top_10: str = ""
    chance: str = ""
    among: str = ""
    interval: str = ""
    marked: bool = False


class Outcome(ABC):
    """The answer of one evaluator on one set."""

    set: str
    """Name of the evaluation set."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Its name among the set's outcomes, such as ``image_to_text``."""

    @property
    def group(self) -> str:
        """Heading of its lines in the terminal's table."""
        return ""

    def row(self) -> dict[str, Any] | None:
        """Plain values for ``metrics.json``; None for rows that are only shown."""
        return None

    def lines(self) -> list[Line]:
        """Its lines in the terminal's table."""
        return []

    def curves(self) -> dict[str, float]:
        """Metric -> value, of those that a curve over the training is drawn of."""
        row = self.row() or {}
        return {k: float(row[k]) for k in CURVES if k in row} if "chance" in row else {}

    @classmethod
    def section(cls, outcomes: Sequence[Self]) -> Section | None:
        """The report's part on all outcomes of this kind; None where the page shows them itself."""
        return None


@dataclass(frozen=True, slots=True)
class Missing:
    """A set, or a part of one, that could not be evaluated, and why."""

    set: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """One evaluation set, embedded.

    Attributes:
        name: the set's.
        embeddings: modality -> ``[N, D]``, of unit norm; or of tokens ``[N, T, D]``, with zeros as
            padding.
        items: modality -> ``[N]`` int64, equal for samples whose inputs are equal.
        keys: ``[N]`` int64, equal for samples that are right answers of each other.
        indices: ``[N]`` int64, the samples' places in their source, and its length times the number
            of the caption added where all captions are kept.
    """

    name: str
    embeddings: Mapping[str, Tensor]
    items: Mapping[str, Tensor]
    keys: Tensor
    indices: Tensor


class EmbedsMore(Protocol):
    """Embeds what a set does not hold: prompts, and samples to learn from."""

    def missing(self, modalities: Collection[str]) -> list[str]:
        """The ``modalities`` without a tower."""
        ...

    def values(self, modality: str, values: Sequence[Any]) -> Tensor:
        """Decoded values of one modality: ``[N, D]`` on the CPU."""
        ...

    def source(self, source: Source, modalities: Collection[str]) -> Any:
        """A whole source, with ``embeddings`` by modality and ``metadata``."""
        ...


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluator may know of its set.

    Under a process group every rank runs every evaluator, on the same embeddings.

    Attributes:
        samples: the set, a row for each sample that could be read.
        captioned: the set, a row for each caption where all of them are kept.
        metadata: the samples' JSON objects.
        source: of the samples.
        embedder: for what else has to be embedded.
        is_trained: whether two modalities were trained together on such samples.
        temperatures: of the pairs that were trained.
        similarity: of the model.
    """

    samples: Embedded
    captioned: Embedded
    metadata: Sequence[Mapping[str, Any]]
    source: Source
    embedder: EmbedsMore
    is_trained: Callable[[str, str], bool]
    temperatures: Mapping[frozenset[str], float]
    similarity: Similarity = COSINE

    def has(self, *modalities: str) -> bool:
        """Whether the set is embedded in all of these."""
        return set(modalities) <= self.samples.embeddings.keys()

    def missing(self, what: str, reason: str) -> Missing:
        """Says that something of this set could not be evaluated."""
        return Missing(self.samples.name, what, reason)


class Evaluator(Protocol):
    """One question about a set.

    One that can also answer it of embeddings of tokens has ``reads_tokens = True``.
    """

    def evaluate(self, context: EvaluationContext) -> Iterator[Outcome | Missing]:
        """The answers.

        Raises:
            ValueError: if the set lacks a modality or key that is asked for.
        """
        ...


def percent(value: float) -> str:
    """``0.123`` as ``12.3``."""
    return f"{100 * value:.1f}"


def labels_of(metadata: Mapping[str, Any], key: str) -> list[str]:
    """The labels of a sample: a text under ``key`` of its JSON, or a list of texts.

    Raises:
        ValueError: if there is neither.
    """
    value = metadata.get(key)
    labels = [value] if isinstance(value, str) else value
    if not isinstance(labels, list) or not labels or not all(isinstance(x, str) for x in labels):
        raise ValueError(
            f"classification needs a text, or a list of texts, under '{key}' in every sample's "
            f"JSON; got {value!r} among {sorted(metadata)}"
        )
    return labels


def label_of(metadata: Mapping[str, Any], key: str) -> str:
    """The one label of a sample.

    Raises:
        ValueError: if there is none, or more than one.
    """
    labels = labels_of(metadata, key)
    if len(labels) > 1:
        raise ValueError(f"expected one label under '{key}' in a sample's JSON, got {labels}")
    return labels[0]


def evenly_spaced(total: int, count: int) -> list[int]:
    """Up to ``count`` indices, evenly spaced in ``[0, total)``."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def name_of(metadata: Mapping[str, Any]) -> str | None:
    """What a sample is called, from its JSON."""
    names = (metadata.get(key) for key in ("name", "label"))
    return next((name for name in names if isinstance(name, str)), None)
