"""The device that a model is used on."""

from __future__ import annotations

import torch

from multimodal.core.errors import ConfigError, ConfigProblem


def device_of(name: str | None, place: int = 0) -> torch.device:
    """The device called ``name``; None: the GPU at ``place`` if there is one, else the CPU.

    Raises:
        ConfigError: if there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None:
        return torch.device(f"cuda:{place}" if gpus else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).tolist()  # not of "meta"
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        there = ["cpu", "cuda" if gpus else "", *(f"cuda:{number}" for number in range(gpus))]
        expected = ", ".join(filter(None, there))
        problem = f"given {name!r}, expected one that is here ({expected}), or null"
        raise ConfigError([ConfigProblem("device", problem)]) from error
    return device
