"""The choices of self-distillation: a block beside the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multimodal.objectives.self_distillation.prototypes import PrototypeHead
from multimodal.objectives.self_distillation.views import HiddenPatches, LocalCrops


@dataclass(frozen=True)
class SelfDistillation:
    """Towers also learn from a moving average of themselves, the teacher, which sees all of a view.

    The student sees ``local`` crops (Naeem et al. 2023, "SILC", arXiv:2310.13355) or the view with
    patches ``hidden`` (Maninis et al. 2024, "TIPS", arXiv:2410.16512), and gives the teacher's
    distribution over prototypes. It is computed on the encoders' features, before the heads of the
    shared space. The momentum is fixed: one that goes to 1 stops the teacher from learning what the
    pairs teach (SILC, section 3).

    Args:
        modalities: whose towers; their inputs are ``[B, C, H, W]``.
        head: a partial of ``PrototypeHead``.
        local: small crops; None for none.
        hidden: hidden patches, of a ViT of ours; None for none.
        momentum: of the teacher, in [0, 1).
        student_temperature: above 0.
        teacher_temperature: above 0.
        centre_momentum: of the running mean of the teacher's logits, in [0, 1).

    Raises:
        ValueError: if neither crops nor hidden patches are given, no or a repeated modality, or a
            value out of its range.
    """

    modalities: Sequence[str]
    head: Callable[..., PrototypeHead]
    local: LocalCrops | None = None
    hidden: HiddenPatches | None = None
    momentum: float = 0.996
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9

    def __post_init__(self) -> None:
        names = list(self.modalities)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"modalities={names}: expected at least one, each once")
        if self.local is None and self.hidden is None:
            raise ValueError("nothing to predict: give local, hidden, or both")
        for name in ("momentum", "centre_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number in [0, 1)")
        for name in ("student_temperature", "teacher_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
