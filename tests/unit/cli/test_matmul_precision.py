"""The precision of products of float32 matrices is the configuration's, in every run."""

import pytest
import torch
from experiment_helpers import chdir, composed

from multimodal.cli import train as command
from multimodal.config import ConfigError, check

SHORT = ("+experiment=clip_scratch", "~evaluation")


class Reached(Exception):
    """The run has come to its model."""


@pytest.fixture(autouse=True)
def _restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("words", "expected"), [(["matmul_precision=high"], "high"), ([], "highest")]
)
def test_a_run_sets_it_whatever_the_one_before_did(words, expected, tmp_path, monkeypatch):
    def stop(cfg):
        raise Reached

    monkeypatch.setattr(command, "build_module", stop)
    torch.set_float32_matmul_precision("medium")
    with composed(*SHORT, *words) as cfg, chdir(tmp_path), pytest.raises(Reached):
        command.train(cfg)
    assert torch.get_float32_matmul_precision() == expected


def test_a_misspelt_one_is_answered_with_the_right_one():
    with composed(*SHORT, "matmul_precision=hihg") as cfg, pytest.raises(ConfigError) as caught:
        check(cfg)
    (problem,) = caught.value.problems
    assert problem.where == "matmul_precision"
    assert "did you mean 'high'" in problem.message
