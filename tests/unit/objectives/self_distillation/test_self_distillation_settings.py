"""The block's own rules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from multimodal.objectives.self_distillation.prototypes import PrototypeHead
from multimodal.objectives.self_distillation.settings import SelfDistillation
from multimodal.objectives.self_distillation.views import LocalCrops


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modalities": []}, "modalities=.*at least one"),
        ({"modalities": ["image", "image"]}, "each once"),
        ({"local": None}, "nothing to predict"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"centre_momentum": -0.1}, "centre_momentum=-0.1"),
        ({"student_temperature": 0.0}, "student_temperature=0.0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    right: dict[str, Any] = {"modalities": ["image"], "head": partial(PrototypeHead),
                             "local": LocalCrops()}  # fmt: skip
    SelfDistillation(**right)
    with pytest.raises(ValueError, match=message):
        SelfDistillation(**{**right, **given})
