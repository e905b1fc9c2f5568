"""The benchmarks of the choices: what is in them, their data, and their tables."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from multimodal.objectives.interfaces import compatible

ROOT = Path(__file__).parents[3]


def load(name: str):
    path = ROOT / "scripts" / "benchmark" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load("strategies")


@pytest.fixture(scope="module")
def collapse():
    return load("collapse")


def content(concepts: int = 60) -> dict[str, dict[str, torch.Tensor]]:
    """Features of two splits in which texts are told by pictures."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.randn(16, 12, generator=generator)
    splits = {}
    for name, count in (("train", concepts), ("val", 20)):
        base = torch.randn(count, 16, generator=generator)
        noise = 0.1 * torch.randn(2, count, 16, generator=generator)
        splits[name] = {"noto": base + noise[0], "twemoji": base + noise[1], "text": base @ turn}
    return splits


def test_every_loss_and_every_strategy_is_in_it(script):
    choices = {
        group: {
            path.stem: None if path.stem == "filtered" else instantiate(OmegaConf.load(path))
            for path in (ROOT / "configs" / group).glob("*.yaml")
        }
        for group in ("loss", "negatives")
    }
    left_out = {*script.SAME, *script.TARGETS, *script.TAUGHT}
    expected = {(loss, "in_batch") for loss in choices["loss"] if loss not in left_out} | {
        (loss, name)
        for loss in ("info_nce", "triplet")
        for name, strategy in choices["negatives"].items()
        if compatible(choices["loss"][loss], strategy) is None
    }
    assert set(script.GRID) == expected
    assert len(script.GRID) == len(expected)


def test_losses_that_are_left_out_equal_info_nce_with_one_positive_each(script):
    generator = torch.Generator().manual_seed(0)
    embedded = {
        name: torch.nn.functional.normalize(torch.randn(8, 128, generator=generator), dim=1)
        for name in ("image", "text")
    }
    ids = torch.arange(8)
    values = {
        loss: script.objective(script.choice("loss", loss), script.choice("negatives", "in_batch"))(
            embedded, ids, ids, step=0, seed=0, source="s"
        ).loss.item()
        for loss in ("info_nce", *script.SAME)
    }
    assert values == dict.fromkeys(values, pytest.approx(values["info_nce"]))


def test_held_out_concepts_are_not_trained_on(script, monkeypatch):
    monkeypatch.setattr(script, "HELD_OUT", 15)
    monkeypatch.setattr(script, "COMPONENTS", 8)
    train, held_out = script.divide(content())
    assert train.images.shape == (2, 45, 8)
    assert held_out.images.shape == (2, 35, 8)
    assert (len(train.texts), len(held_out.texts)) == (45, 35)
    assert torch.cdist(train.texts, held_out.texts).min() > 1e-3
    assert train.images.std() == pytest.approx(1, abs=1e-3)


def test_noise_hands_round_the_texts_of_a_share(script):
    texts = torch.arange(50.0)[:, None]
    noisy = script.noisy(texts, 0.4, seed=1)
    assert (noisy != texts).sum() == 20
    assert sorted(noisy.flatten().tolist()) == texts.flatten().tolist()
    assert torch.equal(script.noisy(texts, 0.0, seed=1), texts)


@pytest.mark.slow
def test_it_runs_resumes_and_prints_a_table(script, tmp_path, monkeypatch, capsys):
    output, features = tmp_path / "runs.jsonl", tmp_path / "features.pt"
    torch.save(content(), features)
    monkeypatch.setattr(script, "GRID", [("info_nce", "in_batch"), ("triplet", "hard")])
    monkeypatch.setattr(script, "HELD_OUT", 15)
    monkeypatch.setattr(script, "COMPONENTS", 8)
    words = ["x", "--steps", "30", "--seeds", "0", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*words, "--features", str(features)])
    script.main()
    first, _ = (json.loads(line) for line in output.read_text().splitlines())
    assert list(first["scores"]) == [condition.name for condition in script.CONDITIONS]
    assert first["scores"]["warm"][0] > first["scores"]["32"][0] > 3 / 35
    assert first["scores"]["noise 40 %"][0] < first["scores"]["128"][0]
    printed = capsys.readouterr().out
    assert "| `triplet` | `hard` | " in printed
    assert "among 35; chance is 2.86" in printed
    output.write_text(json.dumps(first) + "\n")
    ran = []
    monkeypatch.setattr(script.Bench, "run", lambda bench, *given: ran.append(given) or 0.5)
    script.main()
    assert {given[:2] for given in ran} == {("triplet", "hard")}
    assert "**50.0**" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_of_hard_triplets_draws_random_towers_together(collapse):
    """The page's explanation: measured at the start, whatever the learning rate."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(160, 3, 32, 32, generator=generator) * 2 - 1
    words = list(torch.randint(collapse.WORDS, (160, 5), generator=generator))
    data = collapse.Emoji(images, words)
    found = {
        name: collapse.direction(collapse.Towers(), collapse.objective("triplet", name), data)
        for name in ("hard", "semi_hard")
    }
    assert found["hard"] < -0.1 < found["semi_hard"]
    apart = {
        name: collapse.nearer(collapse.Towers(), collapse.objective("triplet", name), data)
        for name in ("hard", "in_batch", "semi_hard")
    }
    assert apart["semi_hard"] < 0 < apart["hard"]
    assert apart["semi_hard"] < apart["in_batch"] < apart["hard"]
    cells = collapse.measure(data, "triplet", "hard", {"warmup_steps": 4}, 1e-3, 6)
    assert cells[:4] == ["`triplet`", "`hard`", "warmup_steps=4", "0.001"]
    assert len(cells) == 12
