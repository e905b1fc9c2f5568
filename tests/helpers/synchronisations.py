"""Counts what would make the host wait for a GPU, on a CPU: reads of values on the device."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = str(Path(__file__).parents[2])
aten = torch.ops.aten
# Their result, or its size, is a value that the host has to know.
READS = {
    aten._local_scalar_dense.default,  # item, bool, float, int
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
}
COPIES = {torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist}


class Synchronisations:
    """As a context counts them, by the line of ours that asked.

    Attributes:
        where: ``file:function`` in the package -> how often.
    """

    def __init__(self) -> None:
        self.where: Counter[str] = Counter()
        self._modes: tuple[Any, ...] = ()

    def __enter__(self) -> Synchronisations:
        self._modes = (_Functions(self.where), _Operators(self.where))
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


def _note(where: Counter[str]) -> None:
    frames = (f for f in traceback.extract_stack() if f"{ROOT}/multimodal/" in f.filename)
    ours = [frame for frame in frames if "lean_imports" not in frame.filename]  # a wrapper
    if ours:
        where[f"{Path(ours[-1].filename).stem}:{ours[-1].name}"] += 1
    else:
        where["elsewhere"] += 1


class _Functions(TorchFunctionMode):
    def __init__(self, where: Counter[str]) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in COPIES:
            _note(self.where)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, where: Counter[str]) -> None:
        super().__init__()
        self.where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func is aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if func in READS or masked:
            _note(self.where)
        return func(*args, **(kwargs or {}))
