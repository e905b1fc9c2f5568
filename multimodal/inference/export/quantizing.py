"""Smaller ONNX files: int8 by ONNX Runtime's quantizer, or weights stored in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.core.suggest import suggest
from multimodal.inference.export.graphs import ExportError
from multimodal.inference.export.onnx_file import quiet

KINDS = ("int8", "int8_weights", "fp16", "bf16")
LEAST_COSINE = 0.95
_SMALLEST = 1024  # numbers of a tensor; below, a scale for each channel costs more than it saves
_PROTOBUF = 2**31 - 2**20  # bytes of one file; beyond, weights lie beside it
# Operator -> which of its inputs is a weight, and that weight's axis of output channels.
_WEIGHTS = {
    "MatMul": (1, -1), "Gemm": (1, -1), "Conv": (1, 0), "ConvTranspose": (1, 1), "Gather": (0, 0),
}  # fmt: skip


class Small(NamedTuple):
    """A weight in fewer bits, and how it becomes float32 again.

    Attributes:
        stored: the tensor, as ONNX has it.
        scale: of each channel, float32; None where the stored values are the numbers.
    """

    stored: Any
    scale: NDArray[np.float32] | None


def quantize(path: Path, kind: str) -> None:
    """Rewrites an ONNX file in place, smaller.

    Args:
        path: of the file, float32.
        kind: ``int8``: matrix products with constant weights in int8, each output channel with a
            scale of its own, activations quantised as they come (dynamic); convolutions and
            tables of embeddings are stored in int8 and computed in float32, because ONNX Runtime's
            dynamic convolutions are slow. ``int8_weights``: all weights stored in int8, computed
            in float32. ``fp16``, ``bf16``: all weights stored so, computed in float32.

    Raises:
        MissingExtraError: if the packages of ONNX are not installed.
        ExportError: if there is no such kind, or the quantizer refuses the file.
    """
    check_kind(kind)
    onnx = module_of("export", "onnx", "a quantised export")
    data = path.with_name(f"{path.name}.data")
    made = path.with_name(f"{path.name}.int8")
    try:
        with quiet():
            if kind == "int8":
                _dynamic(path, made, data.is_file())
            model = onnx.load(str(made if kind == "int8" else path))
            _store_small(onnx, model, "int8" if kind == "int8_weights" else kind)
    except Exception as error:  # onnxruntime and onnx raise many kinds
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"quantize={kind}: {path.name}: {type(error).__name__}: {reason[0] if reason else ''}"
        ) from error
    finally:
        for left in (made, made.with_name(f"{made.name}.data"), data):
            left.unlink(missing_ok=True)
    large = model.ByteSize() > _PROTOBUF
    options = {"save_as_external_data": True, "location": data.name} if large else {}
    onnx.save(model, str(path), **options)


def check_kind(kind: str) -> None:
    """Refuses another kind than those of `quantize`."""
    if kind not in KINDS:
        raise ExportError(f"quantize={kind}: {suggest(kind, KINDS)}")


def _dynamic(path: Path, made: Path, external: bool) -> None:
    quantizer = module_of("export", "onnxruntime.quantization", "quantize=int8")
    quantizer.quantize_dynamic(
        str(path),
        str(made),
        op_types_to_quantize=["MatMul"],  # Gemm becomes one
        per_channel=True,
        reduce_range=True,  # 7 bits: 8 overflow on processors without VNNI
        weight_type=quantizer.QuantType.QInt8,
        use_external_data_format=external,
        extra_options={"MatMulConstBOnly": True},
    )


def _store_small(onnx: Any, model: Any, kind: str) -> None:
    """Replaces the float32 weights that are left by smaller ones, and what restores them."""
    graph = model.graph
    weights = {entry.name: entry for entry in graph.initializer}
    axes: dict[str, int] = {}
    for node in graph.node:
        place, axis = _WEIGHTS.get(node.op_type, (-1, 0))
        if place < 0 or node.input[place] not in weights:
            continue
        transposed = any(each.name == "transB" and each.i for each in node.attribute)
        axes.setdefault(node.input[place], 0 if transposed else axis)
    shrink = _int8(onnx) if kind == "int8" else _half(onnx, kind)
    restored: list[Any] = []
    for name, axis in axes.items():
        entry = weights[name]
        if entry.data_type != onnx.TensorProto.FLOAT or np.prod(entry.dims) < _SMALLEST:
            continue
        values = onnx.numpy_helper.to_array(entry)
        axis %= values.ndim
        small = shrink(values, axis)
        restored += _replace(onnx, graph, entry, small)
    nodes = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _replace(onnx: Any, graph: Any, entry: Any, small: Small) -> Sequence[Any]:
    """Puts ``small`` in the place of an initializer; the nodes that give its name again."""
    name, stored = entry.name, f"{entry.name}.stored"
    small.stored.name = stored
    graph.initializer.append(small.stored)
    graph.initializer.remove(entry)
    node, float32 = onnx.helper.make_node, onnx.TensorProto.FLOAT
    if small.scale is None:
        return [node("Cast", [stored], [name], to=float32)]
    # Not DequantizeLinear: ONNX Runtime joins it with a product, whose activations it then rounds.
    scale, cast = f"{name}.scale", f"{name}.cast"
    graph.initializer.append(onnx.numpy_helper.from_array(small.scale, scale))
    return [node("Cast", [stored], [cast], to=float32), node("Mul", [cast, scale], [name])]


def _int8(onnx: Any) -> Callable[[Any, int], Small]:
    """Symmetric, each channel's largest value at 127; the scales broadcast against the weight."""

    def stored(values: NDArray[np.float32], axis: int) -> Small:
        others = tuple(place for place in range(values.ndim) if place != axis)
        largest = np.abs(values).max(axis=others, keepdims=True)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        rounded = np.rint(values / scale).astype(np.int8)
        return Small(onnx.numpy_helper.from_array(rounded), scale)

    return stored


def _half(onnx: Any, kind: str) -> Callable[[Any, int], Small]:
    """Rounded to half precision; what fp16 cannot hold becomes its largest number."""
    if kind == "fp16":
        largest = float(np.finfo(np.float16).max)
        dtype: Any = np.float16
    else:
        import ml_dtypes  # of onnx itself

        largest, dtype = float(np.finfo(np.float32).max), ml_dtypes.bfloat16

    def stored(values: NDArray[np.float32], axis: int) -> Small:
        small = np.clip(values, -largest, largest).astype(dtype)
        return Small(onnx.numpy_helper.from_array(small), None)

    return stored
