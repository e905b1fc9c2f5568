"""Quantised ONNX files: the stored weights by brute force, their size, what is refused."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from multimodal.inference.export.graphs import ExportError
from multimodal.inference.export.onnx_file import run, session
from multimodal.inference.export.quantizing import quantize

RNG = np.random.default_rng(0)
SHAPES = {"table": (64, 32), "kernel": (16, 8, 3, 3), "matrix": (144, 256), "gemm": (128, 256)}
# Channels of very different sizes, as trained weights have: one scale for all would lose some.
SPREAD = {"table": (64, 1), "kernel": (16, 1, 1, 1), "matrix": (1, 256), "gemm": (128, 1)}
WEIGHTS = {
    name: (RNG.normal(size=shape) * 10.0 ** RNG.uniform(-2, 0, SPREAD[name])).astype(np.float32)
    for name, shape in SHAPES.items()
}
IDS = RNG.integers(0, 64, (5, 8))
PICTURES = RNG.normal(size=(5, 8, 5, 5)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    """A table of embeddings, a convolution, a product and a Gemm, as towers have them."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["summed"], keepdims=0),
        helper.make_node("Conv", ["pictures", "kernel"], ["maps"]),
        helper.make_node("Flatten", ["maps"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["wide"]),
        helper.make_node("Gemm", ["wide", "gemm"], ["narrow"], transB=1),
    ]
    f, i = TensorProto.FLOAT, TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info("ids", i, ["B", 8]),
        helper.make_tensor_value_info("pictures", f, ["B", 8, 5, 5]),
    ]
    outputs = [
        helper.make_tensor_value_info("summed", f, ["B", 32]),
        helper.make_tensor_value_info("maps", f, ["B", 16, 3, 3]),
        helper.make_tensor_value_info("narrow", f, ["B", 128]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    axis = numpy_helper.from_array(np.array([1]), "axis")
    graph = helper.make_graph(nodes, "small", inputs, outputs, [*weights, axis])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def eight_bits(values, axis):
    """Each channel rounded to 127 steps of its largest value."""
    rounded = np.empty_like(values)
    for channel in range(values.shape[axis]):
        at = tuple([slice(None)] * axis + [channel])
        step = np.abs(values[at]).max() / 127
        rounded[at] = np.round(values[at] / step) * step
    return rounded


def outputs(table, kernel, matrix, gemm):
    maps = np.zeros((5, 16, 3, 3))
    for y in range(3):
        for x in range(3):
            maps[:, :, y, x] = np.einsum(
                "bcij,ocij->bo", PICTURES[:, :, y : y + 3, x : x + 3], kernel.astype(np.float64)
            )
    return [table[IDS].sum(1), maps, maps.reshape(5, -1) @ matrix @ gemm.T]


def apart(got, expected):
    norm = np.linalg.norm
    return max(norm(a - b) / norm(b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("kind", ["int8_weights", "fp16", "bf16"])
def test_weights_are_stored_in_fewer_bits_and_computed_in_float32(path, kind):
    before = path.stat().st_size
    quantize(path, kind)
    stored = {
        "int8_weights": lambda name, w: eight_bits(w, int(name == "matrix")),
        "fp16": lambda name, w: w.astype(np.float16).astype(np.float32),
        "bf16": lambda name, w: w.astype(ml_dtypes.bfloat16).astype(np.float32),
    }[kind]  # fmt: skip
    expected = outputs(**{name: stored(name, weight) for name, weight in WEIGHTS.items()})
    got = run(session(path), {"ids": IDS, "pictures": PICTURES})
    assert apart(got, expected) < 1e-5
    assert path.stat().st_size < (0.3 if kind == "int8_weights" else 0.52) * before


def test_int8_multiplies_in_int8_and_stays_near(path):
    before = path.stat().st_size
    quantize(path, "int8")
    graph = onnx.load(path).graph
    assert sum(node.op_type == "MatMulInteger" for node in graph.node) == 2  # and the Gemm
    assert "ConvInteger" not in {node.op_type for node in graph.node}
    got = run(session(path), {"ids": IDS, "pictures": PICTURES})
    assert apart(got, outputs(**WEIGHTS)) < 0.06  # with one scale for a whole matrix 0.08
    assert path.stat().st_size < 0.3 * before
    assert [each.name for each in path.parent.iterdir()] == ["small.onnx"]


def test_another_kind_or_a_file_that_is_none_is_one_line(path):
    with pytest.raises(ExportError, match="quantize=int9: did you mean 'int8'"):
        quantize(path, "int9")
    path.write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"quantize=int8: small\.onnx: "):
        quantize(path, "int8")
