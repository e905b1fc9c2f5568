"""Compiled towers: the same weights by the same names, the same numbers, and no kernel twice."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from experiment_helpers import losses, train_here, weights, write_sensor_shards
from torch import Tensor

from multimodal.core.errors import ConfigError
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.encoders.vision import VisionTransformer
from multimodal.models.gradient_caching import encode_microbatched
from multimodal.models.heads import LinearHead
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.training import compiling
from multimodal.training.compiling import compile_towers

CPU = torch.device("cpu")
SCOPES = ("blocks", "tower")


def model(compile: str | None, packed: bool = False, frozen: bool = False) -> EmbeddingModel:
    torch.manual_seed(0)
    head = partial(LinearHead, embed_dim=8)
    stem = partial(PatchStem, patch_size=4)
    image = VisionTransformer(8, 3, stem, Transformer(16, 2, 2, pre_norm=True, drop_path=0.1))
    text = TextTransformer(20, 12, Transformer(12, 2, 2, causal=True), packed=packed)
    towers = {"image": Tower(image, head, frozen=frozen), "text": Tower(text, head)}
    return EmbeddingModel(towers, compile=compile)


def texts(count: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.arange(count * length).view(count, length) % 19 + 1
    mask = torch.arange(length) < torch.arange(count)[:, None] + length - count + 1
    return ids * mask, mask


def embedded(model: EmbeddingModel, length: int = 7, size: int | None = None) -> list[Tensor]:
    """Embeddings of a batch, and the gradients of all parameters."""
    torch.manual_seed(1)
    pictures = torch.randn(5, 3, 8, 8)
    model.zero_grad()
    model.eval()  # no stochastic depth, whose draws are the compiler's own
    images = encode_microbatched(lambda x, m: model.embed("image", x, m), pictures, None, size)
    words = encode_microbatched(lambda x, m: model.embed("text", x, m), *texts(5, length), size)
    (images * words).sum().backward()
    return [images, words, *(p.grad for p in model.parameters() if p.grad is not None)]


def graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def _anew():
    from torch._dynamo import config
    from torch.fx.experimental import _config as shapes

    torch._dynamo.reset()
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256}
    with config.patch(limits), shapes.patch(use_duck_shape=True):
        yield
    torch._dynamo.reset()


def close(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-6) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("scope", "size", "frozen"),
    [
        ("blocks", None, False),
        pytest.param("tower", 2, True, marks=pytest.mark.slow),
        pytest.param("blocks", 2, True, marks=pytest.mark.slow),
        pytest.param("tower", None, False, marks=pytest.mark.slow),
    ],
)
def test_the_same_names_numbers_and_gradients(scope: str, size: int | None, frozen: bool):
    plain, compiled = model(None, frozen=frozen), model(scope, frozen=frozen)
    before = graphs()
    compile_towers(compiled, CPU, backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.load_state_dict(plain.state_dict())
    close(embedded(compiled, size=size), embedded(plain, size=size))
    assert graphs() - before > 1  # beside the trial


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("packed", "scope"),
    [
        (True, "blocks"),
        pytest.param(True, "tower", marks=pytest.mark.slow),
        pytest.param(False, "tower", marks=pytest.mark.slow),
        pytest.param(False, "blocks", marks=pytest.mark.slow),
    ],
)
def test_other_lengths_and_sizes_are_not_compiled_again(scope: str, packed: bool):
    compiled = model(scope, packed)
    compile_towers(compiled, CPU, backend="eager")
    embedded(compiled, length=7)
    before = graphs()
    for length in (5, 9, 12, 6):
        embedded(compiled, length=length)
    embedded(compiled, length=8, size=3)
    assert graphs() == before


def test_nothing_is_compiled_unless_it_is_asked_for():
    plain = model(None)
    compile_towers(plain, CPU)
    assert all(module._compiled_call_impl is None for module in plain.modules())


def test_copies_run_their_own_weights():
    compiled = model("blocks")
    compile_towers(compiled, CPU, backend="eager")
    before = embedded(compiled)[1]
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(embedded(other)[1], before)
    torch.testing.assert_close(embedded(compiled)[1], before)


def test_a_tower_without_blocks_is_named(capsys):
    mixed = model("blocks")
    mixed.towers["image"] = Tower(FeatureEncoder(4, 8), partial(LinearHead, embed_dim=8))
    compile_towers(mixed, CPU, backend="eager")
    assert "model.compile=blocks: image stay as they are" in capsys.readouterr().err
    mixed.towers["text"] = mixed.towers["image"]
    with pytest.raises(ConfigError, match="no tower has blocks"):
        compile_towers(mixed, CPU, backend="eager")


def test_only_two_scopes_exist():
    with pytest.raises(ValueError, match="blocks, tower or null"):
        model("everything")


@pytest.mark.slow
def test_a_run_says_when_it_compiles_and_resumes_bit_exactly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setenv("SENSOR_SHARDS", str(write_sensor_shards(tmp_path / "shards")))
    torch.set_num_threads(1)
    words = (
        "~evaluation", "callbacks.checkpoint.every_n_train_steps=4", "trainer.max_steps=6",
        "trainer.val_check_interval=99", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    train_here(tmp_path / "plain", *words)
    train_here(tmp_path / "whole", *words, "model.compile=tower")
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "(model.compile)" in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("step 1: compiled ")
    middle = f"resume='{tmp_path}/whole/checkpoints/step=00000004.ckpt'"
    train_here(tmp_path / "cut", *words, "model.compile=tower", middle)
    whole, plain = losses(tmp_path / "whole"), losses(tmp_path / "plain")
    assert losses(tmp_path / "cut") == {step: whole[step] for step in (5, 6)}
    for step, loss in whole.items():
        assert float(loss) == pytest.approx(float(plain[step]), abs=1e-5)
    own, other = weights(tmp_path / "cut", 6), weights(tmp_path / "whole", 6)
    assert all(torch.equal(own[name], other[name]) for name in other)
    train_here(tmp_path / "without", *words, middle)
    for step, loss in losses(tmp_path / "without").items():
        assert float(loss) == pytest.approx(float(whole[step]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_real_kernels_give_the_same_numbers_at_every_length(scope: str):
    plain, compiled = model(None), model(scope)
    compile_towers(compiled, CPU)
    # Other kernels add in another order.
    close(embedded(compiled), embedded(plain), atol=1e-5)
    before = graphs()
    for length in (5, 12):
        close(embedded(compiled, length, 3), embedded(plain, length, 3), atol=1e-5)
    assert graphs() == before


@pytest.mark.slow
def test_without_a_compiler_the_run_is_refused_before_it_begins(tmp_path):
    environment = os.environ | {
        "CXX": str(tmp_path / "none"),
        "PATH": str(tmp_path),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    words = ("+experiment=clip_scratch", "model.compile=tower", f"hydra.run.dir={tmp_path}/run")
    command = [sys.executable, "-m", "multimodal.cli", "train", *words]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    assert "model.compile" in run.stderr
    assert "torch.compile does not work here" in run.stderr
    assert "a C++ compiler (g++)" in run.stderr
