from __future__ import annotations

import os

import pytest
import torch

from multimodal.data import workers


@pytest.mark.parametrize(
    ("cores", "devices", "local", "expected"),
    [(1, 0, "1", 0), (8, 0, "1", 7), (8, 2, "1", 3), (8, 0, "4", 1), (2, 4, "4", 0)],
)
def test_workers_are_the_cores_less_those_that_train(monkeypatch, cores, devices, local, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert workers.workers_of_machine() == expected
