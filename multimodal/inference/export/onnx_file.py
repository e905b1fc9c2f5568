"""ONNX files of traced graphs, and their use through ONNX Runtime; needs the extra ``export``."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multimodal.core.extras import module_of
from multimodal.inference.export.graphs import ExportError, Graph

OPSET = 20  # of 2024; ONNX Runtime 1.17 and later run it
OPSETS = (18, 23)  # that torch's exporter writes


def write_onnx(
    program: torch.export.ExportedProgram, graph: Graph, path: Path, opset: int = OPSET
) -> None:
    """Writes a traced graph as ONNX, with the graph's own names of inputs and outputs.

    Args:
        program: of the graph.
        graph: what was traced.
        path: of the file; weights over 2 GB go to a file beside it, ``NAME.data``.
        opset: version of the operators.

    Raises:
        MissingExtraError: if the packages of ONNX are not installed.
        ExportError: if an operator has no form in ONNX, or the opset is out of range.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ExportError(f"opset={opset}: expected {OPSETS[0]} to {OPSETS[1]}")
    for name in ("onnx", "onnxscript"):
        module_of("export", name, "an export to ONNX")
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=graph.inputs,
                output_names=graph.outputs,
                verbose=False,
            )
            assert made is not None
            _strip(made.model.graph)
            made.save(path)
    except Exception as error:  # torch and onnxscript raise many kinds
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ExportError(
            f"{path.name} cannot be written: {type(error).__name__}: {reason[0] if reason else ''}"
        ) from error


def _strip(graph: Any) -> None:
    """Takes off what the tracer notes of each node: half of a small file, and read by nothing."""
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                value.metadata_props.clear()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, the exporter says nothing: what fails is an error, and the rest is checked."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def session(path: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        path: of the ONNX file.
        threads: to compute with; 0: as many as there are cores.

    Raises:
        MissingExtraError: if ONNX Runtime is not installed.
        ExportError: if it cannot run the file.
    """
    runtime = module_of("export", "onnxruntime", "running an ONNX file")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own kinds are many
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"{path} cannot be run by ONNX Runtime: {reason}") from error


def run(session: Any, tensors: Mapping[str, Any]) -> list[NDArray[np.float32]]:
    """The outputs for tensors by name; those that the graph does not read are left out."""
    wanted = {entry.name for entry in session.get_inputs()}
    fed = {name: np.asarray(value) for name, value in tensors.items() if name in wanted}
    outputs: list[NDArray[np.float32]] = session.run(None, fed)
    return outputs
