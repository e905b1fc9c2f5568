"""A checkpoint and the tokenizer that its towers were trained with."""

from __future__ import annotations

import json

import pytest
from data_helpers import image_bytes, write_source
from experiment_helpers import chdir, composed, run_training
from omegaconf import DictConfig, OmegaConf

from multimodal.cli.train import train
from multimodal.config import ConfigError
from multimodal.data.tokenizers.bpe import BPETokenizer, fingerprint, train_bpe
from multimodal.data.tokenizers.clip import CLIPTokenizer
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.load import load_model

CAPTIONS = ["a red chair", "a green chair", "two zebras", "one round table"]
SMALL = ("model.towers.text.encoder.vocab_size=300", "trainer.max_steps=1", "~evaluation",
         "data.batch_size=4", "data.num_workers=0", "callbacks.progress=null",
         "~data.sources.furniture", "data.val_sources=null", "trainer.val_check_interval=null",
         "data.sources.emoji.positive_key=null")  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    import numpy as np

    picture = image_bytes(np.zeros((8, 8, 3), np.uint8))
    samples = [
        (f"s{n}", {"png": picture, "txt": text.encode()}) for n, text in enumerate(CAPTIONS * 2)
    ]
    return write_source(tmp_path_factory.mktemp("captions"), {"train": [samples]})


def words(shards, *more: str) -> list[str]:
    source = f"data.sources.emoji.manifest={shards}"
    members = (
        "data.sources.emoji.modalities={image: {member: png}, text: {member: txt, template: null}}"
    )
    return ["+experiment=clip_scratch", *SMALL, source, members, *more]


def tokenizer_file(path, texts) -> str:
    path.write_text(train_bpe(texts * 4, 300).to_str())
    return str(path)


def run(folder, shards, *more: str) -> DictConfig:
    folder.mkdir(exist_ok=True)
    with composed(*words(shards, f"logger.csv.folder={folder}", *more)) as cfg, chdir(folder):
        OmegaConf.set_struct(cfg, False)
        train(cfg)
    return cfg


def with_file(path) -> str:
    return f"data.transforms.text.tokenizer={path}"


def test_a_fingerprint_tells_other_ids_and_not_other_places(tmp_path):
    first = tokenizer_file(tmp_path / "a.json", CAPTIONS)
    same = fingerprint(BPETokenizer(tokenizer_file(tmp_path / "b.json", CAPTIONS[::-1])))
    assert fingerprint(BPETokenizer(first)) == same
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps(json.loads((tmp_path / "a.json").read_text()), indent=3))
    assert fingerprint(BPETokenizer(str(pretty))) == same
    other = tokenizer_file(tmp_path / "c.json", [*CAPTIONS, "zzz yyy zzz"])
    assert fingerprint(BPETokenizer(other)) != same
    content = json.loads((tmp_path / "a.json").read_text())
    content["normalizer"]["normalizers"] = content["normalizer"]["normalizers"][1:]  # keeps case
    (tmp_path / "d.json").write_text(json.dumps(content))
    assert fingerprint(BPETokenizer(str(tmp_path / "d.json"))) != same


@pytest.mark.heavy
def test_another_tokenizer_is_rejected_wherever_a_checkpoint_is_read(shards, tmp_path):
    file = tmp_path / "tokenizer.json"
    tokenizer_file(file, CAPTIONS)
    run(tmp_path / "run", shards, with_file(file))
    path = tmp_path / "run" / "checkpoints" / "step=00000001.ckpt"
    model, cfg = load_model(path)  # nothing has changed
    known = store.read(path)["origin"]["tokenizers"]
    assert known == {"text": fingerprint(BPETokenizer(str(file)))}
    moved = tokenizer_file(tmp_path / "moved.json", CAPTIONS)
    anchor = f"{{checkpoint: '{path}', experiment: null, towers: [text], folder: kept}}"
    anchored = (f"anchor={anchor}", "model.towers.text.frozen=true")
    run(tmp_path / "beside", shards, with_file(moved), *anchored)  # the same ids, from elsewhere

    tokenizer_file(file, [*CAPTIONS, "zzz yyy zzz"])
    message = r"text\.tokenizer is not the one that .*step=00000001\.ckpt was trained with"
    with pytest.raises(CheckpointError, match=message):
        load_model(path)
    there = OmegaConf.merge(cfg.data.transforms, {"text": {"tokenizer": moved}})
    assert load_model(path, transforms=there)[0].embed_dim == model.embed_dim
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path / "run", shards, with_file(file), "resume=auto", "trainer.max_steps=2")
    with pytest.raises(RuntimeError, match=message):
        run(tmp_path / "third", shards, with_file(file), *anchored)


def test_more_ids_than_the_tower_has_rows_are_rejected_and_not_an_index_error(shards, tmp_path):
    file = tmp_path / "tokenizer.json"
    tokenizer_file(file, CAPTIONS)
    ids = BPETokenizer(str(file)).vocab_size
    few = (with_file(file), f"model.towers.text.encoder.vocab_size={ids - 1}")
    with pytest.raises(
        ConfigError, match=rf"gives {ids} ids, but the tower was built for {ids - 1}"
    ):
        run(tmp_path / "few", shards, *few)
    run(tmp_path / "run", shards, with_file(file), f"model.towers.text.encoder.vocab_size={ids}")
    path = tmp_path / "run" / "checkpoints" / "step=00000001.ckpt"
    content = store.read(path)
    del content["origin"]["tokenizers"]  # as in checkpoints of before
    checkpoint_file.write_atomically(content, path)
    load_model(path)
    tokenizer_file(file, [*CAPTIONS, "zzz yyy zzz"])
    assert BPETokenizer(str(file)).vocab_size > ids
    with pytest.raises(ConfigError, match="restore the tokenizer"):
        load_model(path)


def test_an_absent_tokenizer_does_not_affect_the_weights(shards, tmp_path):
    file = tmp_path / "tokenizer.json"
    tokenizer_file(file, CAPTIONS)
    run(tmp_path / "run", shards, with_file(file))
    file.unlink()
    path = tmp_path / "run" / "checkpoints" / "step=00000001.ckpt"
    model, cfg = load_model(path)
    assert "text" in model.towers
    cfg.data.transforms.text.tokenizer = {"_target_": f"{CLIPTokenizer.__module__}.CLIPTokenizer",
                                          "vocabulary": str(file)}  # fmt: skip
    load_model(path, transforms=cfg.data.transforms)


@pytest.mark.slow
def test_a_tokenizer_of_the_corpus_goes_from_training_to_evaluation(shards, tmp_path):
    folder = tmp_path / "run"
    given = words(shards, "tokenizer=bpe_from_corpus", f"hydra.run.dir={folder}", "resume=auto")
    first = run_training(given)
    assert first.returncode == 0, first.stderr[-3000:]
    tokenizer = BPETokenizer(str(folder / "tokenizer.json"))
    assert len(tokenizer.encode("zebras")) == 1  # of these captions, not the sample corpus's
    path = folder / "checkpoints" / "step=00000001.ckpt"
    assert store.read(path)["origin"]["tokenizers"] == {"text": fingerprint(tokenizer)}
    load_model(path)
    tokenizer_file(folder / "tokenizer.json", ["something else altogether"])
    again = run_training([*given, "trainer.max_steps=2"])
    assert again.returncode == 1
    assert "is not the one that" in again.stderr
    assert "Traceback" not in again.stderr
