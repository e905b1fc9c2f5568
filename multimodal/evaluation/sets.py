"""What to evaluate on: the held-out sets of a configuration, and the questions asked of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from multimodal.core.names.modalities import parts_of, side_name
from multimodal.evaluation.benchmarks import Published
from multimodal.evaluation.evaluators.base import Evaluator
from multimodal.evaluation.evaluators.probe import ProbeTask
from multimodal.evaluation.evaluators.retrieval import ComposedQuery, RetrievalTask
from multimodal.evaluation.evaluators.space import MapTask, SpaceTask
from multimodal.evaluation.evaluators.zero_shot import ZeroShotTask

__all__ = ["ComposedQuery", "EvaluationSet", "MapTask", "ProbeTask", "ZeroShotTask"]


@dataclass
class EvaluationSet:
    """One held-out set.

    Args:
        source: the samples (``multimodal.data.Source``); null for a modality without one, which is
            then listed as missing.
        description: of the held-out samples, in a few words, for the tables.
        retrieval: ``all`` ordered pairs of the source's modalities, or a list of
            ``[query, gallery]``; null for none. A side may be a list of modalities: their joint
            embedding.
        zero_shot: classification tasks.
        composed: retrieval by sums of embeddings.
        probes: classifiers trained on frozen embeddings.
        map: a map of the embeddings in the report; null for none.
        duration_baseline: show, beside retrieval by sound, what the sounds' lengths alone score.
        gallery: queries drawn with their neighbours in the report, per retrieval; 0 for none.
        evaluators: further questions by name, each a block with a `_target_`
            (`multimodal.evaluation.evaluators.base.Evaluator`).
        published: figures to compare with; null where there are none.

    Raises:
        ValueError: if given any other ``retrieval``, or a negative ``gallery``.
    """

    source: Any | None
    description: str = ""
    retrieval: str | Sequence[Sequence[str | Sequence[str]]] | None = "all"
    zero_shot: Sequence[ZeroShotTask] = ()
    composed: Sequence[ComposedQuery] = ()
    probes: Sequence[ProbeTask] = ()
    map: MapTask | None = None
    duration_baseline: bool = False
    gallery: int = 6
    evaluators: Mapping[str, Evaluator] = field(default_factory=dict)
    published: Published | None = None

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
            TypeError: if given a key that no class here has.
            ValueError: as the classes raise it.
        """
        built = dict(entry)
        kinds = {"zero_shot": ZeroShotTask, "composed": ComposedQuery, "probes": ProbeTask}
        for key, kind in kinds.items():
            built[key] = [kind(**block) for block in entry.get(key) or ()]
        built["evaluators"] = dict(entry.get("evaluators") or {})
        built["published"] = Published(**entry["published"]) if entry.get("published") else None
        built["map"] = MapTask(**entry["map"]) if entry.get("map") else None
        return cls(**built)

    def asks_more(self) -> bool:
        """Whether anything is asked of the embeddings, beside a fusion's tasks."""
        asked = self.retrieval, self.zero_shot, self.composed, self.probes, self.map
        return any((*asked, self.evaluators))

    def questions(self, modalities: Sequence[str]) -> list[Evaluator]:
        """The evaluators of the set, given its ``modalities``, joint embeddings among them.

        Raises:
            ValueError: if a listed pair names a modality that the source lacks.
        """
        pairs = self.pairs(modalities)
        return [
            RetrievalTask(pairs, self.duration_baseline, self.gallery),
            *(replace(each, examples=self.gallery) for each in self.composed),
            *self.zero_shot,
            *([self.map] if self.map else ()),
            *self.probes,
            *self.evaluators.values(),
            SpaceTask(),
        ]

    def pairs(self, modalities: Sequence[str]) -> list[tuple[str, str]]:
        """The ordered (query, gallery) pairs to score, given the set's ``modalities``.

        Raises:
            ValueError: if a listed pair names a modality that is none of them.
        """
        if self.retrieval == "all":
            pairs = [
                (a, b)
                for a in modalities
                for b in modalities
                if not set(parts_of(a)) & set(parts_of(b))
            ]
        else:
            pairs = [(side_name(a), side_name(b)) for a, b in self.retrieval or ()]
        composed = {name for each in self.composed for name in (*each.query, each.gallery)}
        unknown = sorted({*composed, *(name for pair in pairs for name in pair)} - set(modalities))
        if unknown:
            raise ValueError(
                f"retrieval names {unknown}; the source and the model have {list(modalities)}"
            )
        return pairs
