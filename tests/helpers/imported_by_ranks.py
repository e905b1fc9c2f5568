"""What the server of `gloo` imports, for all ranks that it forks.

Nothing that starts a thread or computes: only what was imported is there in a fork.
"""

import gc

import pytest  # noqa: F401
import torch.distributed  # noqa: F401
from torch.testing import _comparison

from multimodal.core.process.lean_imports import import_lightning

import_lightning()

import multimodal.evaluation  # noqa: E402
import multimodal.training  # noqa: E402, F401

_comparison._HAS_DTENSOR = False  # as in conftest.py
gc.set_threshold(50_000, 20, 50)  # as in conftest.py
