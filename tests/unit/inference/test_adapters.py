"""Adapters apart from their tower, put onto it again, and merged into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import vlm_cases
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from multimodal.inference.adapters import backbone, export, load_adapters, rewrite, save_adapters
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.encoders.text import TextTransformer
from multimodal.models.heads import LinearHead
from multimodal.models.layers.transformer import Transformer
from multimodal.models.pretrained import plan as p
from multimodal.models.pretrained.keys import WeightsError
from multimodal.models.towers import EmbeddingModel, Tower
from multimodal.models.tuning import LoRA, has_adapters, load_plain

ROOT = Path(__file__).parents[3]
HEAD = partial(LinearHead, embed_dim=6)
TEXTS = torch.randint(1, 29, (4, 7), generator=torch.Generator().manual_seed(1))
LATER = TEXTS.clone()
LATER[:, 5] = (LATER[:, 5] % 28) + 1  # another token there


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ours(**choices) -> Tower:
    return Tower(TextTransformer(30, 7, Transformer(16, 3, 2, causal=True)), HEAD, **choices)


def theirs(**choices) -> Tower:
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 30,
              "num_attention_heads": 2, "intermediate_size": 32}  # fmt: skip
    return Tower(HuggingFaceEncoder(config=config), HEAD, **choices)


def vision_language(**choices) -> Tower:
    return Tower(vlm_cases.encoder(), HEAD, **choices)


@torch.no_grad()
def disturb(tower: Tower) -> None:
    """As training would: adapters and head are no longer what they began as."""
    for name, parameter in tower.named_parameters():
        if parameter.requires_grad:
            shift = 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter + shift if "magnitude" in name else shift)


@torch.no_grad()
def embedded(tower: Tower, inputs: Tensor = TEXTS) -> Tensor:
    embeddings: Tensor = tower.eval()(inputs)
    return embeddings


@pytest.mark.parametrize("make", [ours, theirs])
@pytest.mark.parametrize("tuning", [LoRA(4), LoRA(2, dora=True), LoRA(2, alpha=3, head=False)])
def test_adapters_saved_apart_and_put_onto_the_base_embed_bit_exactly(make, tuning, tmp_path):
    base, tuned = make(), make(tuning=tuning)
    load_plain(tuned, base.state_dict())
    disturb(tuned)
    count = save_adapters(tuned, tuning, tmp_path)
    assert count == sum("lora_" in name for name in tuned.state_dict())
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 4 * sum(t.numel() for t in base.state_dict().values())  # not the weights again
    before = embedded(base)
    block = load_adapters(base, tmp_path)
    assert (embedded(base) - before).abs().max() > 1e-2
    assert torch.equal(embedded(base), embedded(tuned))
    assert (block["rank"], block["alpha"], block["dora"], block["head"]) == (
        tuning.rank, tuning.alpha, tuning.dora, tuning.head,
    )  # fmt: skip
    base.load_state_dict(tuned.state_dict())  # the same names, so the tuning made the same maps


@pytest.mark.parametrize("make", [ours, theirs, vision_language])
@pytest.mark.parametrize("dora", [False, True])
def test_peft_itself_reads_the_files(make, dora, tmp_path):
    peft = pytest.importorskip("peft")
    tuning = LoRA(4, dora=dora)
    base, tuned = make(), make(tuning=tuning)
    load_plain(tuned, base.state_dict())
    disturb(tuned)
    save_adapters(tuned, tuning, tmp_path)
    read = peft.PeftModel.from_pretrained(backbone(base), str(tmp_path)).eval()
    with torch.no_grad():
        if make is ours:
            found, expected = read(TEXTS).features, backbone(tuned).eval()(TEXTS).features
        else:
            found, expected = read(TEXTS)[0], backbone(tuned).eval()(TEXTS)[0]
    assert torch.equal(found, expected)


def test_misfits_are_rejected_by_name(tmp_path):
    tuning = LoRA(4, targets=["qkv", "out"])
    tuned = ours(tuning=tuning)
    save_adapters(tuned, tuning, tmp_path)
    with pytest.raises(WeightsError, match="has adapters already"):
        load_adapters(tuned, tmp_path)
    with pytest.raises(WeightsError, match=r"holds no adapter_config\.json"):
        load_adapters(ours(), tmp_path / "nowhere")
    longer = Tower(TextTransformer(30, 7, Transformer(16, 4, 2, causal=True)), HEAD)
    with pytest.raises(
        WeightsError, match=r"only in the tower: .*trunk\.blocks\.3\.attention\.out\.lora_A"
    ):
        load_adapters(longer, tmp_path)
    wider = Tower(TextTransformer(30, 7, Transformer(32, 3, 2, causal=True)), HEAD)
    with pytest.raises(WeightsError, match=r"the folder has \[4, 16\], the tower \[4, 32\]"):
        load_adapters(wider, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    save_file({**state, "base_model.model.more.lora_A.weight": torch.zeros(1)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(WeightsError, match=r"only in the folder: base_model\.model\.more\.lora_A"):
        load_adapters(ours(), tmp_path)
    given = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**given, "use_rslora": True}))
    with pytest.raises(WeightsError, match="use_rslora=True is not built here"):
        load_adapters(ours(), tmp_path)


# Of checkpoints, by the script


def checkpoint(path: Path, tuning: LoRA | None) -> EmbeddingModel:
    """A run's checkpoint with a causal text tower and an image tower."""
    trunk = p.transformer(16, 2, 2, causal=True)
    text = p.tower(p.text(30, 7, trunk), p.linear_head(6))
    stem = p.patch_stem(4)
    image = p.tower(p.vision(8, stem, p.transformer(16, 2, 2)), p.linear_head(6))
    if tuning is not None:
        text["tuning"] = {
            "_target_": "multimodal.models.LoRA", "rank": tuning.rank, "alpha": tuning.alpha,
            "dropout": tuning.dropout, "targets": None, "dora": tuning.dora, "head": tuning.head,
        }  # fmt: skip
    model = {"_target_": "multimodal.models.EmbeddingModel",
             "towers": {"image": image, "text": text}}  # fmt: skip
    config = OmegaConf.create({"model": model, "data": {"transforms": {}}, "embed_dim": 6})
    torch.manual_seed(3)
    built = instantiate(config.model)
    if tuning is not None:
        disturb(built.tower("text"))
    state = {f"model.{name}": tensor for name, tensor in built.state_dict().items()}
    state["objective.pairs.image_text.logit_scale"] = torch.tensor(2.0)
    content = {"state_dict": state, "config": OmegaConf.to_yaml(config), "global_step": 7}
    checkpoint_file.write_atomically(content, path)
    return built


def run_script(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "adapters.py"), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("dora", [False, True])
def test_a_checkpoint_is_taken_apart_joined_and_merged(dora, tmp_path):
    tuned = checkpoint(tmp_path / "run.ckpt", LoRA(4, dora=dora))
    expected = embedded(tuned.tower("text"))
    assert export(str(tmp_path / "run.ckpt"), tmp_path / "apart") == {
        "text": 8 * (3 if dora else 2)
    }
    assert [folder.name for folder in (tmp_path / "apart").iterdir()] == ["text"]

    base = checkpoint(tmp_path / "base.ckpt", None)
    start = {name: value.clone() for name, value in base.state_dict().items()}
    assert not torch.equal(embedded(base.tower("text")), expected)
    rewrite(str(tmp_path / "base.ckpt"), str(tmp_path / "both.ckpt"), tmp_path / "apart")
    both, cfg = load_model(tmp_path / "both.ckpt")
    assert torch.equal(embedded(both.tower("text")), expected)
    assert cfg.model.towers.text.tuning.rank == 4
    assert has_adapters(both.state_dict())

    rewrite(str(tmp_path / "run.ckpt"), str(tmp_path / "merged.ckpt"), merge=True)
    merged, cfg = load_model(tmp_path / "merged.ckpt")
    assert (embedded(merged.tower("text")) - expected).abs().max() < 1e-5
    assert merged.state_dict().keys() == start.keys()
    assert cfg.model.towers.text.tuning is None
    image = [name for name in start if ".image." in name]
    assert all(torch.equal(merged.state_dict()[name], start[name]) for name in image)
    kept = store.read(tmp_path / "merged.ckpt")
    assert kept["state_dict"]["objective.pairs.image_text.logit_scale"] == 2
    assert kept["global_step"] == 7

    for model in (tuned, both, merged):  # a later token changes no earlier feature
        with torch.no_grad():
            tower = model.tower("text").eval()
            before, after = tower.encode(TEXTS).tokens, tower.encode(LATER).tokens
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.equal(before[:, 5:], after[:, 5:])

    message = "nothing to do: .*base.ckpt has no adapters"
    with pytest.raises(WeightsError, match=message):
        rewrite(str(tmp_path / "base.ckpt"), str(tmp_path / "x.ckpt"), merge=True)
    with pytest.raises(WeightsError, match="no tower has adapters; it has image, text"):
        export(str(tmp_path / "base.ckpt"), tmp_path / "none")


@pytest.mark.slow
def test_the_script_merges_and_reports_it(tmp_path):
    checkpoint(tmp_path / "run.ckpt", LoRA(4))
    run = run_script(f"checkpoint={tmp_path}/run.ckpt", "merge=true", f"output={tmp_path}/m.ckpt")
    assert run.returncode == 0, run.stderr[-2000:]
    assert "text: 8 adapters merged" in run.stdout
    assert not has_adapters(load_model(tmp_path / "m.ckpt")[0].state_dict())
    apart = run_script(f"checkpoint={tmp_path}/run.ckpt", f"output={tmp_path}/apart")
    assert apart.returncode == 0, apart.stderr[-2000:]
    assert (tmp_path / "apart" / "text" / "adapter_model.safetensors").is_file()
    wrong = run_script(f"checkpoint={tmp_path}/m.ckpt", "merge=true", f"output={tmp_path}/x.ckpt")
    assert wrong.returncode == 2
    assert "nothing to do" in wrong.stderr
    assert "Traceback" not in wrong.stderr
