"""What a side of a pair is called: a modality, or several of one sample as one."""

from __future__ import annotations

from collections.abc import Sequence

TOGETHER = "&"  # not the "+" of a composed query, which is a sum of embeddings
TEACHER = "teacher_"  # before a modality: its embeddings by the teacher of a distillation


def teacher_of(side: str) -> str:
    """The name of a side's embeddings by a teacher; a teacher's is its own."""
    return side if side.startswith(TEACHER) else TEACHER + side


def joint_name(modalities: Sequence[str]) -> str:
    """The name of several modalities of a sample as one, in any order: ``image&text``."""
    return TOGETHER.join(sorted(modalities))


def side_name(side: str | Sequence[str]) -> str:
    """The name of a side of a pair, which is a modality or a list of them."""
    return side if isinstance(side, str) else joint_name(side)


def parts_of(side: str | Sequence[str]) -> tuple[str, ...]:
    """The modalities that a side of a pair, or its name, is made of."""
    return tuple(side.split(TOGETHER)) if isinstance(side, str) else tuple(sorted(side))
