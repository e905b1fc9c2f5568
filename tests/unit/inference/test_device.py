"""A device that is not here is an error of its key."""

import pytest
import torch

from multimodal.config import ConfigError
from multimodal.inference.device import device_of


@pytest.mark.parametrize("name", ["banana", "cuda:99", "meta", "cpu:x", ""])
def test_what_is_not_here(name):
    with pytest.raises(ConfigError, match=rf"device\n.*given '{name}', expected one .*\(cpu"):
        device_of(name)


def test_what_is_here():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
