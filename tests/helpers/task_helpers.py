"""Batches after a fusion, made by hand, for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.models.fusion.base import FusionOutput
from multimodal.models.tasks.base import FusedBatch, TaskContext

WIDTH, OWN = 6, {"image": 5, "text": 4}


class Encoder(nn.Module):
    """All that a task asks of an encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


def parts(**more: nn.Module) -> TaskContext:
    encoders = {name: Encoder(width) for name, width in OWN.items()} | more
    return TaskContext(WIDTH, encoders, list(OWN))


def fused(
    inputs: Mapping[str, Tensor],
    presence: Mapping[str, Tensor] | None = None,
    count: int = 5,
    absent: tuple[str, ...] = (),
    keys: Tensor | None = None,
    fuse: Callable | None = None,
    key: int = 0,
    embeddings: Mapping[str, Tensor] | None = None,
) -> FusedBatch:
    """A batch in float64; ``absent`` modalities are in no sample."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    encoded = {
        name: EncoderOutput(random(count, width), random(count, 2, width))
        for name, width in OWN.items()
        if name not in absent
    }
    features = random(count, WIDTH)
    output = FusionOutput(
        features, features[:, None], torch.ones(count, 1, dtype=torch.bool), {"image": (0, 1)}
    )
    own = {name: torch.zeros(count) for name in encoded}
    return FusedBatch(
        inputs={**own, **inputs},
        masks={},
        presence=presence or {},
        encoded=encoded,
        fused=output,
        fuse=fuse or (lambda given, there: output),
        sample_ids=torch.arange(count) + 100,
        positive_keys=torch.arange(count) if keys is None else keys,
        embeddings=embeddings or {},
        key=key,
    )
