"""Weights between a tuned tower's and the original's (WiSE-FT)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from multimodal.cli.adapters import adapters
from multimodal.config import ConfigError
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.interpolating import interpolate
from multimodal.models.pretrained.keys import WeightsError, same_bits

HEAD = {"_target_": "multimodal.models.LinearHead", "_partial_": True, "embed_dim": 6}
SHIFT = {"_target_": "multimodal.models.LoRA", "rank": 2}


def text(width: int = 16, **tower) -> dict:
    trunk = {"_target_": "multimodal.models.Transformer", "width": width, "num_layers": 1}
    encoder = {"_target_": "multimodal.models.TextTransformer", "vocab_size": 30,
               "context_length": 7, "trunk": {**trunk, "num_heads": 2}}  # fmt: skip
    return {"_target_": "multimodal.models.Tower", "encoder": encoder, "head": HEAD, **tower}


def checkpoint(path: Path, seed: int, **towers: dict) -> str:
    model = {"_target_": "multimodal.models.EmbeddingModel", "towers": towers}
    cfg = OmegaConf.create({"model": model, "data": {"transforms": {}}, "embed_dim": 6})
    torch.manual_seed(seed)
    state = {f"model.{name}": t for name, t in instantiate(cfg.model).state_dict().items()}
    state["objective.pairs.image_text.logit_scale"] = torch.tensor(float(seed))
    content = {"state_dict": state, "config": OmegaConf.to_yaml(cfg), "global_step": 7}
    checkpoint_file.write_atomically(content, path)
    return str(path)


@pytest.fixture
def two(tmp_path) -> tuple[str, str, str]:
    tuned = checkpoint(tmp_path / "tuned.ckpt", 1, text=text(), other=text())
    base = checkpoint(tmp_path / "base.ckpt", 2, text=text())
    return tuned, base, str(tmp_path / "out.ckpt")


def weights(path: str) -> dict[str, torch.Tensor]:
    return load_model(path)[0].state_dict()


def test_each_weight_lies_between_and_the_rest_is_the_tuned(two):
    tuned, base, output = two
    _, done = interpolate(tuned, base, output, 0.25)
    ours, theirs, made = weights(tuned), weights(base), weights(output)
    assert done == {"text": "0.75 of the base's weights and 0.25 of the tuned"}
    for name, value in made.items():
        if ".text." not in name:
            assert torch.equal(value, ours[name])
            continue
        expected = 0.75 * theirs[name].double() + 0.25 * ours[name].double()
        torch.testing.assert_close(value, expected.float(), rtol=1e-6, atol=1e-8)
    kept = store.read(output)
    assert kept["state_dict"]["objective.pairs.image_text.logit_scale"] == 1
    assert kept["global_step"] == 7


@pytest.mark.parametrize("share", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_ends_are_the_given_weights_bit_by_bit(two, share):
    tuned, base, output = two
    interpolate(tuned, base, output, share)
    of = weights(tuned if share else base)
    assert all(same_bits(weights(output)[name], t) for name, t in of.items() if ".text." in name)


def test_what_cannot_be_blended_is_said_and_nothing_is_written(two, tmp_path):
    tuned, base, output = two
    wide = checkpoint(tmp_path / "wide.ckpt", 3, text=text(32))
    low = checkpoint(tmp_path / "low.ckpt", 3, text=text(tuning=SHIFT))
    none = checkpoint(tmp_path / "none.ckpt", 3, another=text())
    for given, said in [
        ((tuned, base, output, 1.5), "share=1.5: expected 0"),
        ((tuned, base, output, 0.5, ["txt"]), "towers=txt: .*did you mean 'text'"),
        ((tuned, none, output), "no tower in common"),
        (
            (tuned, wide, output),
            r"another network in the base:\n.*tuned \[30, 16\], base \[30, 32\]",
        ),
        ((low, base, output), "text: it has adapters: merge them first"),
    ]:
        with pytest.raises(WeightsError, match=said):
            interpolate(*given)
    assert not Path(output).exists()


def test_the_command_blends(two, tmp_path, capsys):
    tuned, base, output = two
    words = {"checkpoint": tuned, "base": base, "output": output, "share": 0.5, "towers": ["text"],
             "adapters": None, "merge": False, "allowed_packages": []}  # fmt: skip
    adapters(OmegaConf.create(words))
    assert "text: 0.5 of the base's weights and 0.5 of the tuned" in capsys.readouterr().out
    assert Path(output).is_file()
    (run := tmp_path / "run" / "checkpoints").mkdir(parents=True)
    Path(base).rename(run / "step=00000007.ckpt")
    adapters(OmegaConf.create({**words, "base": str(run.parent), "output": output + "2.ckpt"}))
    assert Path(output).read_bytes() == Path(output + "2.ckpt").read_bytes()
    with pytest.raises(ConfigError, match=r"needs output=FILE\.ckpt"):
        adapters(OmegaConf.create({**words, "merge": True}))
