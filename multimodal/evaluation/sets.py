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
        label: the metadata key that holds a sample's class, a string.
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
class EvaluationSet:
    """One held-out set.

    Args:
        source: the samples (``multimodal.data.source.Source``); null for a modality that has
            none, which is then listed as missing instead of being forgotten.
        description: what is held out, in a few words, for the tables.
        retrieval: ``all`` ordered pairs of the source's modalities, or a list of
            ``[query, gallery]``; null for none.
        zero_shot: classification tasks.
        duration_baseline: show, beside retrieval by sound, what the sounds' lengths alone score.
        gallery: queries drawn with their neighbours in the report, per retrieval; 0 for none.

    Raises:
        ValueError: On any other ``retrieval``, or a negative ``gallery``.
    """

    source: Any | None
    description: str = ""
    retrieval: str | Sequence[Sequence[str]] | None = "all"
    zero_shot: Sequence[ZeroShotTask] = ()
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

    def pairs(self, modalities: Sequence[str]) -> list[tuple[str, str]]:
        """The ordered (query, gallery) pairs to score, given the source's ``modalities``.

        Raises:
            ValueError: If a listed pair names a modality that the source lacks.
        """
        if self.retrieval == "all":
            return [(a, b) for a in modalities for b in modalities if a != b]
        pairs = [(a, b) for a, b in self.retrieval or ()]
        strays = sorted({name for pair in pairs for name in pair} - set(modalities))
        if strays:
            raise ValueError(f"retrieval names {strays}; the source has {list(modalities)}")
        return pairs
