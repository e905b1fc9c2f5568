"""The choice of what computes a whole matrix."""

import sys
from types import SimpleNamespace

import pytest
import torch
from experiment_helpers import composed

from multimodal.config import ConfigError, check
from multimodal.objectives.kernels import tiles
from multimodal.objectives.kernels.tiles import TORCH, choose_tiles
from multimodal.training.build import build_objective

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHORT = ("+experiment=clip_scratch", "~evaluation")


class Half:
    """In place of Triton's, where it is not installed."""

    def __init__(self, half):
        self.half = half


def test_torch_needs_nothing():
    assert all(choose_tiles("torch", device) is TORCH for device in (CPU, GPU, None))


@pytest.mark.parametrize(("kernels", "half"), [("triton", False), ("triton_bf16", True)])
def test_triton_runs_on_a_gpu_or_by_its_interpreter(monkeypatch, kernels, half):
    there = SimpleNamespace(INTERPRETED=False, TritonTiles=Half)
    monkeypatch.setattr(tiles, "_triton_tiles", lambda: there)
    assert choose_tiles(kernels, GPU).half is half
    with pytest.raises(ConfigError, match=f"{kernels} runs on a GPU, and the run is on a cpu"):
        choose_tiles(kernels, CPU)
    there.INTERPRETED = True
    assert choose_tiles(kernels, CPU).half is half


def test_without_triton_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "multimodal.objectives.kernels.triton_tiles", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match=r"needs Triton.*install multimodal\[triton\]"):
        choose_tiles("triton", GPU)


def test_no_other_choice_is_taken():
    with pytest.raises(ConfigError, match=r"one of torch, triton,.*given 'cuda'"):
        choose_tiles("cuda")
    with composed(*SHORT, "kernels=trition") as cfg, pytest.raises(ConfigError, match="triton"):
        check(cfg)


def test_a_run_on_a_cpu_is_refused_before_its_data(monkeypatch):
    there = SimpleNamespace(INTERPRETED=False, TritonTiles=Half)
    monkeypatch.setattr(tiles, "_triton_tiles", lambda: there)
    with composed(*SHORT, "kernels=triton") as cfg, pytest.raises(ConfigError) as caught:
        build_objective(cfg)
    assert [problem.where for problem in caught.value.problems] == ["kernels"]
