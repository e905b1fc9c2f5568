"""The benchmarks of production: a tower in all its forms, and a service under clients."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_cases import embedder

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


def script(name: str):
    path = ROOT / "scripts" / "benchmark" / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def test_a_tower_in_its_forms(tmp_path):
    production = script("production")
    model, _ = embedder(tmp_path)
    forms, sizes, left_out = production.made(model, "image", tmp_path, 1)
    assert {"fp32 eager", "bf16", "ONNX fp32", "ONNX int8", "token merging, 8 a block"} <= set(
        forms
    )
    assert set(forms) | set(left_out) == {*forms, *left_out}
    assert set(left_out) <= {"fp32 compiled"}
    inputs = torch.randn(40, 3, 32, 32)
    rows = {label: production.embedded(form, inputs) for label, form in forms.items()}
    near = {"token merging, 8 a block": 0.85, "bf16": 0.99}  # merging halves 16 patches of noise
    for label, found in rows.items():
        cosines = (found * rows["fp32 eager"]).sum(1)
        assert cosines.mean() > near.get(label, 0.995), label
    assert sizes["ONNX int8"] < sizes["ONNX fp32"]
    times = production.timed(forms, dict.fromkeys(forms, inputs), 2)
    assert all(one > 0 and many > 0 for one, many in times.values())
    whole = rows["fp32 eager"]
    question = production.Question(inputs, whole, torch.arange(40))
    assert production.recall(whole, question).startswith("100.0 (")
    assert production.by_index(whole, question, "int8").startswith("100.0 (")
    other = production.Question(inputs, whole.flip(0), torch.arange(40))
    assert float(production.recall(whole, other).split()[0]) < 20


def test_a_service_under_clients():
    words = ["--seconds", "2", "--rounds", "1", "--clients", "8"]
    done = subprocess.run(
        [sys.executable, "scripts/benchmark/service.py", *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for mode in ("one client", "all, max_batch=1", "all, batched"):
        row = next(line for line in done.stdout.splitlines() if mode in line)
        assert re.search(r"\d+ x 200", row)
