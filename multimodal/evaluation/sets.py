"""What to evaluate on: the held-out sets of a config, and the tasks asked of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class ZeroShotTask:
    """Classification by prompts: the class whose texts embed nearest is the answer.

    Args:
        modality: what is classified.
        label: the metadata key that holds a sample's class, a string, or a list of them.
        prompts: templates with one ``{}`` where the class's name goes; the embeddings of a class's
            prompts are averaged.
        classes: the classes to choose from, or a table from class to its several names; null
            takes the labels that occur in the set.

    Raises:
        ValueError: On no template, or one without exactly one ``{}``.
    """

    modality: str
    label: str
    prompts: Sequence[str] = ("{}",)
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if not self.prompts or any(prompt.count("{}") != 1 for prompt in self.prompts):
            raise ValueError(
                "prompts must be templates with one {} for the class's name; "
                f"got {list(self.prompts)}"
            )

    def names(self, present: Sequence[str]) -> dict[str, list[str]]:
        """Class -> its names, for the labels ``present`` in the set.

        Raises:
            ValueError: If a label is none of the configured classes.
        """
        if self.classes is None:
            return {label: [label] for label in sorted(set(present))}
        if isinstance(self.classes, Mapping):
            table = {name: list(names) for name, names in self.classes.items()}
        else:
            table = {name: [name] for name in self.classes}
        strays = sorted(set(present) - table.keys())
        if strays:
            raise ValueError(
                f"the labels {strays} under '{self.label}' are none of the classes {sorted(table)}"
            )
        return table

    def texts(self, names: Sequence[str]) -> list[str]:
        """The prompts of one class: every template with every name."""
        return [prompt.format(name) for name in names for prompt in self.prompts]


@dataclass
class ProbeTask:
    """A classifier trained on frozen embeddings (`probe.probe`), tested on the set.

    Args:
        modality: what is classified.
        label: the metadata key that holds a sample's class, a string.
        train: samples to learn from (``multimodal.data.source.Source``).
        validation: samples that choose the strength of the L2 penalty; null holds out a fifth of
            the training samples.
        shots: samples of each class in few-shot; an empty list for none.
        draws: how often they are drawn.

    Raises:
        ValueError: On fewer than one shot or draw.
    """

    modality: str
    label: str
    train: Any
    validation: Any | None = None
    shots: Sequence[int] = (1, 2, 4, 8, 16)
    draws: int = 3

    def __post_init__(self) -> None:
        if self.draws < 1 or any(shots < 1 for shots in self.shots):
            raise ValueError(
                f"shots and draws must be at least 1; got {list(self.shots)} and {self.draws}"
            )


@dataclass
class ComposedQuery:
    """Retrieval by a sum: the weighted embeddings of several modalities of a sample.

    Args:
        query: modality -> weight, two or more; a negative weight takes away.
        gallery: the modality to find, none of the query's.

    Raises:
        ValueError: On fewer modalities, a weight of 0, or a gallery that the query holds.
    """

    query: Mapping[str, float]
    gallery: str

    def __post_init__(self) -> None:
        if len(self.query) < 2 or 0 in self.query.values() or self.gallery in self.query:
            raise ValueError(
                "a composed query weighs two or more modalities, none by 0, and looks for another; "
                f"got {dict(self.query)} for {self.gallery}"
            )

    @property
    def name(self) -> str:
        """``image + 0.5 text - audio``."""
        words = []
        for modality, weight in self.query.items():
            sign = "-" if weight < 0 else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight):g} "
            words.append(f"{sign} {size}{modality}")
        return " ".join(words).removeprefix("+ ")


@dataclass
class MapTask:
    """A map of the set's embeddings in two dimensions, for the report.

    Args:
        samples: how many are shown, evenly spaced through the set.
        label: the metadata key to colour them by, beside their modality; null for the modality
            alone.

    Raises:
        ValueError: On fewer than three samples.
    """

    samples: int = 150
    label: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 3:
            raise ValueError(f"a map needs at least 3 samples; got {self.samples}")


@dataclass
class EvaluationSet:
    """One held-out set.

    Args:
        source: the samples (``multimodal.data.source.Source``); null for a modality that has
            none, which is then listed as missing instead of being forgotten.
        description: what is held out, in a few words, for the tables.
        retrieval: ``all`` ordered pairs of the source's modalities, or a list of
            ``[query, gallery]``; null for none.
        zero_shot: classification tasks.
        composed: retrieval by sums of embeddings.
        probes: classifiers trained on frozen embeddings.
        map: a map of the embeddings in the report; null for none.
        duration_baseline: show, beside retrieval by sound, what the sounds' lengths alone score.
        gallery: queries drawn with their neighbours in the report, per retrieval; 0 for none.

    Raises:
        ValueError: On any other ``retrieval``, or a negative ``gallery``.
    """

    source: Any | None
    description: str = ""
    retrieval: str | Sequence[Sequence[str]] | None = "all"
    zero_shot: Sequence[ZeroShotTask] = ()
    composed: Sequence[ComposedQuery] = ()
    probes: Sequence[ProbeTask] = ()
    map: MapTask | None = None
    duration_baseline: bool = False
    gallery: int = 6

    def __post_init__(self) -> None:
        if isinstance(self.retrieval, str):
            wrong = self.retrieval != "all"
        else:
            wrong = any(isinstance(pair, str) or len(pair) != 2 for pair in self.retrieval or ())
        if wrong:
            raise ValueError(
                f"retrieval must be 'all' or a list of [query, gallery]; got {self.retrieval!r}"
            )
        if self.gallery < 0:
            raise ValueError(f"gallery must be 0 or more queries; got {self.gallery}")

    @classmethod
    def from_blocks(cls, entry: Mapping[str, Any]) -> EvaluationSet:
        """From a configuration's blocks, whose sources are built already.

        Raises:
            TypeError: On a key that no class here has.
            ValueError: As the classes raise it.
        """
        built = dict(entry)
        kinds = {"zero_shot": ZeroShotTask, "composed": ComposedQuery, "probes": ProbeTask}
        for key, kind in kinds.items():
            built[key] = [kind(**block) for block in entry.get(key) or ()]
        built["map"] = MapTask(**entry["map"]) if entry.get("map") else None
        return cls(**built)

    def pairs(self, modalities: Sequence[str]) -> list[tuple[str, str]]:
        """The ordered (query, gallery) pairs to score, given the source's ``modalities``.

        Raises:
            ValueError: If a listed pair names a modality that the source lacks.
        """
        if self.retrieval == "all":
            pairs = [(a, b) for a in modalities for b in modalities if a != b]
        else:
            pairs = [(a, b) for a, b in self.retrieval or ()]
        composed = {name for each in self.composed for name in (*each.query, each.gallery)}
        strays = sorted({*composed, *(name for pair in pairs for name in pair)} - set(modalities))
        if strays:
            raise ValueError(f"retrieval names {strays}; the source has {list(modalities)}")
        return pairs
