"""Foreign state dicts and inputs by the recipe of the reference vectors in tests/vectors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

VECTORS = Path(__file__).parents[1] / "vectors"


def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and expected outputs of a case."""
    expected = np.load(VECTORS / f"{name}.npz")
    numbers = {key: torch.from_numpy(np.array(expected[key])) for key in expected}
    return json.loads((VECTORS / f"{name}.json").read_text()), numbers


def initial(name: str, shape: list[int], sigmoid: bool) -> Tensor | None:
    """Masks, logit scales and biases keep the value that their model starts with."""
    if name.endswith("text.mask"):
        return torch.full(shape, -math.inf).triu(1)
    if name == "logit_scale":
        return torch.tensor(math.log(10 if sigmoid else 1 / 0.07))
    if name == "logit_bias":
        return torch.tensor(-10.0)
    if name.endswith("log_logit_scale"):
        modality = name.split(".")[1]
        scales = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
        return torch.tensor(math.log(scales[modality]))
    return None


def foreign_state(shapes: dict[str, list[int]], seed: int, std: float) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        value = initial(name, shapes[name], "logit_bias" in shapes)
        if value is None:
            drawn = np.asarray(random.standard_normal(shapes[name]) * std)
            value = torch.from_numpy(drawn.astype(np.float32))
            if value.ndim == 1 and name.endswith("weight"):
                value += 1
        state[name] = value
    return state


def cut_texts(ids: np.ndarray, lengths: tuple[int, ...], start: int, end: int) -> Tensor:
    for row, length in zip(ids, lengths, strict=True):
        row[0], row[length - 1], row[length:] = start, end, 0
    return torch.from_numpy(ids)


def clip_inputs(described: dict[str, Any], cut: bool) -> dict[str, Tensor]:
    random = np.random.default_rng(described["seed"] + 1000)
    size, context, vocab = (described[key] for key in ("image_size", "context", "vocab"))
    image = torch.from_numpy(random.standard_normal((4, 3, size, size)).astype(np.float32))
    ids = random.integers(1, vocab - 3, (4, context))
    lengths = (4, 9, context // 2, context)
    text = cut_texts(ids, lengths, vocab - 2, vocab - 1) if cut else torch.from_numpy(ids)
    return {"image": image, "text": text}


def imagebind_inputs(described: dict[str, Any]) -> dict[str, tuple[str, Tensor]]:
    """Name of the expected output -> modality and input."""
    random = np.random.default_rng(described["seed"] + 1000)
    ids = random.integers(1, 49405, (3, 77))
    shapes = {
        "vision": (3, 3, 224, 224),
        "audio": (3, 1, 128, 204),
        "depth": (3, 1, 224, 224),
        "thermal": (3, 1, 224, 224),
        "imu": (3, 6, 2000),
        "audio_clips": (2, 3, 1, 128, 204),
        "video_clips": (2, 2, 3, 2, 224, 224),
    }
    inputs = {"text": ("text", cut_texts(ids, (5, 20, 77), 49406, 49407))}
    modalities = {"vision": "image", "audio_clips": "audio", "video_clips": "video"}
    for name, shape in shapes.items():
        drawn = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        inputs[name] = (modalities.get(name, name), drawn)
    return inputs
