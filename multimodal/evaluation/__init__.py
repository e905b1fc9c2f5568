"""How good a model is, and what the report says of it."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.evaluation.evaluators.base import EvaluationContext, Evaluator, Line, Outcome
    from multimodal.evaluation.evaluators.choices import CaptionChoice, GroupMatching
    from multimodal.evaluation.evaluators.probe import ProbeTask
    from multimodal.evaluation.evaluators.retrieval import ComposedQuery
    from multimodal.evaluation.evaluators.space import MapTask
    from multimodal.evaluation.evaluators.zero_shot import ZeroShotTask
    from multimodal.evaluation.mteb import MTEBEncoder
    from multimodal.evaluation.results import Results
    from multimodal.evaluation.run import build_sets, evaluate, evaluate_run
    from multimodal.evaluation.sets import EvaluationSet
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "CaptionChoice",
    "ComposedQuery",
    "EvaluationContext",
    "EvaluationSet",
    "Evaluator",
    "GroupMatching",
    "Line",
    "MTEBEncoder",
    "MapTask",
    "Outcome",
    "ProbeTask",
    "Results",
    "ZeroShotTask",
    "build_sets",
    "evaluate",
    "evaluate_run",
]
