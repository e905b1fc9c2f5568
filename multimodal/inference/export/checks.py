"""Whether a graph computes what the model does, at several sizes of batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from multimodal.inference.export.graphs import ExportError, Graph
from multimodal.inference.export.onnx_file import run, session

TOLERANCE = 1e-4
BATCHES = (1, 7)


@dataclass(frozen=True)
class Agreement:
    """Of one graph.

    Attributes:
        name: of it.
        program: largest difference of the traced program from the model, over all outputs.
        onnx: that of the ONNX file through ONNX Runtime; None: not written.
        megabytes: of the ONNX file.
        cosine: the lowest of a row of the quantised file with the model's; None: not quantised.
        full_megabytes: of the file before it was quantised.
    """

    name: str
    program: float
    onnx: float | None
    megabytes: float | None
    cosine: float | None = None
    full_megabytes: float | None = None


def compared(
    name: str,
    graph: Graph,
    program: torch.export.ExportedProgram,
    onnx: Path | None,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Compares a graph in all its forms with the module that it was traced from.

    Raises:
        ExportError: if they differ by more than ``tolerance``.
    """
    traced = program.module()
    ready = None if onnx is None else session(onnx)
    by_program, by_onnx = 0.0, 0.0
    for batch in BATCHES:
        tensors = resized(graph, batch)
        with torch.no_grad():
            expected = _listed(graph.module(*tensors))
            by_program = max(by_program, _apart(expected, _listed(traced(*tensors))))
        if ready is not None:
            got = run(ready, dict(zip(graph.inputs, tensors, strict=True)))
            by_onnx = max(by_onnx, _apart(expected, [torch.from_numpy(each) for each in got]))
    for form, apart in (("torch.export", by_program), ("ONNX Runtime", by_onnx)):
        if not apart <= tolerance:
            raise ExportError(
                f"{name}: through {form} it differs from the model by {apart:.2g}, more than "
                f"tolerance={tolerance:g}"
            )
    megabytes = None if onnx is None else _megabytes(onnx)
    return Agreement(name, by_program, None if onnx is None else by_onnx, megabytes)


def with_cosine(
    agreement: Agreement, graph: Graph, onnx: Path, kind: str, least: float
) -> Agreement:
    """Compares a quantised file with the module, row by row.

    Raises:
        ExportError: if a row's cosine with the model's is below ``least``.
    """
    ready, lowest = session(onnx), 1.0
    for batch in BATCHES:
        tensors = resized(graph, batch)
        with torch.no_grad():
            expected = _listed(graph.module(*tensors))
        got = run(ready, dict(zip(graph.inputs, tensors, strict=True)))
        for ours, theirs in zip(expected, got, strict=True):
            rows = ours.flatten(1), torch.from_numpy(theirs).flatten(1)
            cosine = functional.cosine_similarity(*rows).min().item()
            lowest = min(lowest, float(np.nan_to_num(cosine, nan=-1.0)))
    if lowest < least:
        raise ExportError(
            f"{agreement.name}: quantize={kind} turns a row away from the model's, to a cosine of "
            f"{lowest:.3f}, below least_cosine={least:g}: take quantize=int8_weights or fp16"
        )
    full = agreement.megabytes
    return replace(agreement, cosine=lowest, megabytes=_megabytes(onnx), full_megabytes=full)


def _megabytes(onnx: Path) -> float:
    return sum(each.stat().st_size for each in _parts(onnx)) / 1e6


def _parts(onnx: Path) -> list[Path]:
    return [path for path in (onnx, onnx.with_name(f"{onnx.name}.data")) if path.is_file()]


def resized(graph: Graph, batch: int) -> list[Tensor]:
    """Inputs of the graph for ``batch`` samples: its example's, with noise on what is real."""
    generator = torch.Generator().manual_seed(batch)
    tensors = []
    for tensor, dynamic in zip(graph.example, graph.dynamic, strict=True):
        if 0 in dynamic and "batch" in str(dynamic[0]):
            places = torch.arange(batch) % len(tensor)
            tensor = tensor[places]
        if tensor.is_floating_point():
            tensor = tensor + torch.rand(tensor.shape, generator=generator)
        tensors.append(tensor)
    return tensors


def _listed(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference; infinite if one is not finite where the other is."""
    apart = [
        float(np.nan_to_num((a - b).abs().max().item(), nan=np.inf))
        for a, b in zip(one, other, strict=True)
    ]
    return max(apart)
