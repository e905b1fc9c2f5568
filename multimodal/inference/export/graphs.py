"""A tower, or a fusion with its tasks, as a graph of tensors: traced once, for any batch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multimodal.core.batch import EncoderOutput
from multimodal.core.errors import UserError
from multimodal.data.decoding.decode import Signal
from multimodal.data.transforms.base import Transform
from multimodal.data.transforms.sound.huggingface import HuggingFaceSound
from multimodal.data.transforms.sound.whisper import WhisperTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.models.fusion_model import FusionModel
from multimodal.models.tasks.matching import Matching
from multimodal.models.tasks.targets import TargetTask
from multimodal.models.towers import Tower

LARGEST_BATCH = 65_536


class ExportError(UserError, ValueError):
    """A model, a file or a choice that cannot be exported; the message says why."""

    exit_status = 2


@dataclass(frozen=True)
class Inputs:
    """What one modality brings into a graph.

    Attributes:
        names: of the tensors: the inputs, and a mask where lengths vary.
        example: as many tensors, a batch of two.
        dynamic: for each its dimensions that vary -> a `Dim`.
    """

    names: list[str]
    example: list[Tensor]
    dynamic: list[dict[int, Any]]


@dataclass(frozen=True)
class Graph:
    """What is traced.

    Attributes:
        module: called with tensors, in the order of ``inputs``.
        inputs: their names.
        outputs: names of what it returns.
        example: a batch of two.
        dynamic: for each input its dimensions that vary.
        about: what ``model.json`` says of it besides.
    """

    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    example: list[Tensor]
    dynamic: list[dict[int, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    def program(self) -> torch.export.ExportedProgram:
        """The traced graph, for a batch of any size and, where they vary, any lengths.

        Raises:
            ExportError: if it cannot be traced: it computes what depends on values.
        """
        varied = "tensors" in inspect.signature(self.module.forward).parameters
        shapes = {"tensors": tuple(self.dynamic)} if varied else tuple(self.dynamic)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's own code
                program = torch.export.export(
                    self.module.eval(), tuple(self.example), dynamic_shapes=shapes
                )
        except Exception as error:  # torch raises many kinds
            reason = str(error).strip().splitlines()
            raise ExportError(
                f"{type(self.module).__name__} of {', '.join(self.inputs)} cannot be traced by "
                f"torch.export: {type(error).__name__}: {reason[0] if reason else ''}"
            ) from error
        for node in program.graph.nodes:  # else it names folders of the machine that exports
            node.meta.pop("stack_trace", None)
        return program


class TowerGraph(nn.Module):
    """``(inputs, mask)`` to embeddings ``[B, D]`` of norm 1."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, *tensors: Tensor) -> Tensor:
        """Embed a batch."""
        embeddings: Tensor = self.tower(*tensors)
        return embeddings


class FusionGraph(nn.Module):
    """Inputs, masks and ``present [B]`` of each modality to fused features and tasks' logits.

    A modality that a sample lacks has inputs of any value, and ``present`` False.
    """

    def __init__(self, model: FusionModel, inputs: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.model = model
        self.counts = {name: len(names) for name, names in inputs.items()}
        self.tasks = [
            name for name, task in model.tasks.items() if isinstance(task, TargetTask | Matching)
        ]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Fuse a batch: ``[B, W]``, then the logits of each task ``[B, outputs]``."""
        encoded: dict[str, EncoderOutput] = {}
        presence: dict[str, Tensor] = {}
        rest = list(tensors)
        for name, count in self.counts.items():
            own, rest = rest[:count], rest[count:]
            encoded[name] = self.model.tower(name).encode(*own[:-1])
            presence[name] = own[-1]
        fused = self.model.fuse(encoded, presence).features
        logits = [self.model.tasks[name].head(fused) for name in self.tasks]  # type: ignore[operator]
        return (fused.float(), *(each.float() for each in logits))


def tower_graph(tower: Tower, modality: str, transform: Transform) -> Graph:
    """The graph of one modality's tower."""
    inputs = inputs_of(modality, transform)
    names = [name.removeprefix(f"{modality}_") for name in inputs.names]
    return Graph(TowerGraph(tower), names, ["embeddings"], inputs.example, inputs.dynamic)


def fusion_graph(model: FusionModel, transforms: Mapping[str, Transform]) -> Graph:
    """The graph of a fusion and of its tasks on labels, numbers and matching.

    Raises:
        ExportError: if a modality that it reads has no transform.
    """
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    named: dict[str, list[str]] = {}
    example, dynamic = [], []
    for name in model.fused:
        if name not in transforms:
            raise ExportError(f"the fusion reads {name!r}, for which there is no transform")
        inputs = inputs_of(name, transforms[name])
        named[name] = [*inputs.names, f"{name}_present"]
        example += [*inputs.example, torch.ones(2, dtype=torch.bool)]
        dynamic += [*inputs.dynamic, {0: batch}]
    module = FusionGraph(model, named)
    about = {name: _about_task(model.tasks[name]) for name in module.tasks}
    left_out = [name for name in model.tasks if name not in module.tasks]
    return Graph(
        module,
        [name for names in named.values() for name in names],
        ["fused", *module.tasks],
        example,
        dynamic,
        {"modalities": list(model.fused), "tasks": about, "not_exported": left_out},
    )


def _about_task(task: nn.Module) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": type(task).__name__}
    if isinstance(task, Matching):
        about |= {"pair": list(task.pair), "classes": ["no match", "match"]}
    if hasattr(task, "classes"):
        about["classes"] = list(task.classes)  # type: ignore[arg-type]
    if hasattr(task, "thresholds"):
        about["thresholds"] = task.thresholds().tolist()  # type: ignore[operator]
    return about


def inputs_of(modality: str, transform: Transform) -> Inputs:
    """A batch of two as ``transform`` makes it, and which of its dimensions vary.

    Raises:
        ExportError: if the transform does not say what shape it gives.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(transform, TextTransform):
        lengths = (transform.context_length,) * 2 if transform.fill else (9, 6)
        most = transform.tokenizer.vocab_size
        samples = [
            torch.randint(1, most, (min(n, transform.context_length),), generator=generator)
            for n in lengths
        ]
        steps, longest = (0 if transform.fill else 1), transform.context_length
    elif isinstance(transform, WhisperTransform):
        longest = transform.num_samples // transform.hop
        samples = [
            torch.randn(transform.num_mel_bins, n - n % 2, generator=generator)
            for n in (min(80, longest), min(60, longest))
        ]
        steps = 2  # of frames to a token
    elif isinstance(transform, HuggingFaceSound):
        silence = Signal(np.zeros((1, transform.num_samples), np.float32), transform.sample_rate)
        samples, steps, longest = [transform(silence, None)] * 2, 0, 0
    elif (shape := getattr(transform, "shape", None)) is not None:
        clips = getattr(transform, "num_clips", 1)
        shape = (clips, *shape) if clips > 1 else shape
        dtype = getattr(transform, "dtype", torch.float32)
        samples = [torch.randn(shape, generator=generator).abs().to(dtype) for _ in range(2)]
        steps, longest = 0, 0
    else:
        raise ExportError(
            f"{modality}: {type(transform).__name__} has no attribute `shape`: what its tower "
            "takes is not known; give the transform one"
        )
    return _traced(modality, *transform.collate(samples), steps, longest)


def _traced(modality: str, batch: Tensor, mask: Tensor | None, steps: int, longest: int) -> Inputs:
    """The inputs, of which the length that a mask has may vary in ``steps`` up to ``longest``."""
    count = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    if mask is None:
        return Inputs([f"{modality}_inputs"], [batch], [{0: count}])
    inputs, masks = {0: count}, {0: count}
    if steps:
        name = f"{modality}_length"
        length = torch.export.Dim(name, min=1, max=max(1, longest // steps))
        varying = length if steps == 1 else steps * length
        at = [side for side in range(1, batch.ndim) if batch.shape[side] == mask.shape[1]][-1]
        inputs[at] = masks[1] = varying
    return Inputs([f"{modality}_inputs", f"{modality}_mask"], [batch, mask], [inputs, masks])
