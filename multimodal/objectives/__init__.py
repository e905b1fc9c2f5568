"""What is minimised: losses, their negatives and candidates, pair by pair."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.core.similarity.similarities import Cosine, MaxSim, Similarity
    from multimodal.objectives.candidates import AllRanks, Candidates, Local, Queue, Ring
    from multimodal.objectives.interfaces import (
        Context,
        Loss,
        Negatives,
        SimilarityBlock,
        TwoWayLoss,
        compatible,
    )
    from multimodal.objectives.losses.affinity import KLAffinity, SquaredAffinity
    from multimodal.objectives.losses.margin import Hinge, Triplet
    from multimodal.objectives.losses.matryoshka import Matryoshka
    from multimodal.objectives.losses.sigmoid import SigLIP
    from multimodal.objectives.losses.softmax import DCL, InfoNCE, SoftTarget, SupCon
    from multimodal.objectives.losses.target import CosineTarget, SquaredTarget
    from multimodal.objectives.negatives.reweighting import Debiased, Reweighted
    from multimodal.objectives.negatives.selection import (
        DistanceWeighted,
        Filtered,
        Hard,
        InBatch,
        Random,
        SemiHard,
    )
    from multimodal.objectives.objective import (
        ContrastiveObjective,
        ObjectiveOutput,
        make_objective,
    )
    from multimodal.objectives.pair import LogitScale, Pair
    from multimodal.objectives.self_distillation.prototypes import PrototypeHead
    from multimodal.objectives.self_distillation.settings import SelfDistillation
    from multimodal.objectives.self_distillation.views import HiddenPatches, LocalCrops
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "DCL",
    "AllRanks",
    "Candidates",
    "Context",
    "ContrastiveObjective",
    "Cosine",
    "CosineTarget",
    "Debiased",
    "DistanceWeighted",
    "Filtered",
    "Hard",
    "HiddenPatches",
    "Hinge",
    "InBatch",
    "InfoNCE",
    "KLAffinity",
    "Local",
    "LocalCrops",
    "LogitScale",
    "Loss",
    "Matryoshka",
    "MaxSim",
    "Negatives",
    "ObjectiveOutput",
    "Pair",
    "PrototypeHead",
    "Queue",
    "Random",
    "Reweighted",
    "Ring",
    "SelfDistillation",
    "SemiHard",
    "SigLIP",
    "Similarity",
    "SimilarityBlock",
    "SoftTarget",
    "SquaredAffinity",
    "SquaredTarget",
    "SupCon",
    "Triplet",
    "TwoWayLoss",
    "compatible",
    "make_objective",
]
