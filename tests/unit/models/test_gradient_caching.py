"""Encoding in pieces changes memory, not gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from gloo import run_ranks
from objective_cases import one_pair_objective
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from multimodal.core.distributed import all_reduce_sum, world_size
from multimodal.models import gradient_caching
from multimodal.models.gradient_caching import encode_microbatched
from multimodal.objectives.losses.sigmoid import SigLIP
from multimodal.objectives.losses.softmax import InfoNCE
from multimodal.objectives.negatives.selection import InBatch

SIZE = 7
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


class Model(nn.Module):
    """Towers with dropout, one with a mask, that encode in pieces under an objective."""

    def __init__(self, loss: object, dropout: float, piece: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(6, 6), nn.GELU(), nn.Dropout(dropout), nn.Linear(6, 6)
                )
                for name in ("image", "text")
            }
        ).double()
        self.objective = one_pair_objective(loss, InBatch())
        self.piece = piece

    def encode(self, name: str, inputs: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.towers[name](inputs)
        if mask is not None:
            tokens = tokens.masked_fill(~mask[:, :, None], 0)
        return F.normalize(tokens.sum(dim=1), dim=1)

    def forward(self, images: Tensor, texts: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        embeddings = {
            "image": encode_microbatched(
                lambda inputs, mask: self.encode("image", inputs, mask), images, None, self.piece
            ),
            "text": encode_microbatched(
                lambda inputs, mask: self.encode("text", inputs, mask), texts, mask, self.piece
            ),
        }
        return self.objective(embeddings, ids, ids, 0, 0, "s").loss


def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    images, texts = (
        torch.randn(SIZE, 3, 6, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    mask = torch.rand(SIZE, 3, generator=generator) < 0.7
    mask[:, 0] = True
    return images, texts, mask, torch.arange(SIZE)


def loss_and_gradients(model: nn.Module, args: tuple[Tensor, ...]) -> list[Tensor]:
    torch.manual_seed(3)
    loss = model(*args)
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    for parameter in model.parameters():
        parameter.grad = None
    return [loss.detach(), *grads]


@pytest.mark.parametrize("loss", [InfoNCE(), SigLIP()], ids=str)
@pytest.mark.parametrize("piece", [1, 3, SIZE])
def test_equals_the_whole_batch(loss, piece):
    whole = loss_and_gradients(Model(loss, 0.0, None), inputs())
    pieces = loss_and_gradients(Model(loss, 0.0, piece), inputs())
    torch.testing.assert_close(pieces, whole, **TIGHT)


@pytest.mark.parametrize("piece", [1, 3, SIZE])
def test_dropout_is_replayed(piece, monkeypatch):
    model = Model(InfoNCE(), 0.5, piece)
    checkpointed = loss_and_gradients(model, inputs())
    monkeypatch.setattr(
        "multimodal.models.gradient_caching.checkpoint", lambda encode, *args, **_: encode(*args)
    )
    torch.testing.assert_close(checkpointed, loss_and_gradients(model, inputs()), **TIGHT)


GROWTH = """
import os, re, torch
from pathlib import Path
from multimodal.models.gradient_caching import encode_microbatched

torch.set_num_threads(1)
layers = [torch.nn.Linear(512, 512) for _ in range(24)]
tower = torch.nn.Sequential(*layers, torch.nn.Linear(512, 8))

def peak(batch_size, piece):
    inputs = torch.randn(batch_size, 512)
    encode_microbatched(lambda x, _: tower(x), inputs, None, piece).square().sum().backward()
    # Not ru_maxrss, in which a process begins with the peak of the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def grown(piece):
    small = max(peak(256, piece) for _ in range(3))
    return peak(2048, piece) - small

for piece in (None, 128):  # each in a process of its own
    if os.fork() == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is this process's memory
        print(grown(piece), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.heavy
def test_memory_is_flat_in_the_batch_size():
    """8 times the batch; its activations are 88 MB more, its inputs 4."""
    command = [sys.executable, "-c", GROWTH]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole, pieces = map(int, done.stdout.split())
    assert whole > 60
    assert pieces < whole / 2


def test_no_rows_and_no_gradient():
    calls = []

    def encode(inputs: Tensor, mask: Tensor | None) -> Tensor:
        calls.append(len(inputs))
        return inputs

    assert encode_microbatched(encode, torch.zeros(0, 2), None, 3).shape == (0, 2)
    with torch.no_grad():
        rows = torch.arange(10).view(5, 2)
        assert torch.equal(encode_microbatched(encode, rows, None, 2), rows)
    assert calls == [0, 2, 2, 1]
    with pytest.raises(ValueError, match="micro_batch_size must be at least 1"):
        encode_microbatched(encode, torch.zeros(2, 2), None, 0)


def half(rank: int) -> tuple[Tensor, ...]:
    return tuple(value[slice(0, 4) if rank == 0 else slice(4, SIZE)] for value in inputs())


def two_ranks(rank: int, expected: list[Tensor]) -> None:
    for find_unused in (False, True):
        for piece in (1, 3, 4, None):
            model = DistributedDataParallel(
                Model(InfoNCE(), 0.0, piece), find_unused_parameters=find_unused
            )
            loss, *grads = loss_and_gradients(model, half(rank))
            found = [all_reduce_sum(loss) / world_size(), *grads]
            torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.heavy
def test_two_ranks(tmp_path):
    expected = loss_and_gradients(Model(InfoNCE(), 0.0, None), inputs())
    run_ranks(two_ranks, 2, tmp_path, expected)


def two_ranks_with_dropout(rank: int) -> None:
    checkpointed = gradient_caching.checkpoint
    for find_unused in (False, True):
        for piece in (1, 3, 4):
            model = DistributedDataParallel(
                Model(InfoNCE(), 0.5, piece), find_unused_parameters=find_unused
            )
            found = {}
            for name, way in (
                ("checkpointed", checkpointed),
                ("plain", lambda encode, *args, **_: encode(*args)),
            ):
                gradient_caching.checkpoint = way
                found[name] = loss_and_gradients(model, half(rank))
            gradient_caching.checkpoint = checkpointed
            torch.testing.assert_close(*found.values(), **TIGHT)


@pytest.mark.slow
def test_dropout_is_replayed_on_two_ranks(tmp_path):
    run_ranks(two_ranks_with_dropout, 2, tmp_path)
