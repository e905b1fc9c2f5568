"""Three lines of Python: load, embed, compare."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from experiment_helpers import composed
from omegaconf import OmegaConf
from PIL import Image
from pretrained_helpers import case, foreign_state
from safetensors.torch import save_file
from search_helpers import WORDS, make_embedder

import multimodal
from multimodal.data.tokenizers.clip import NUM_MERGES
from multimodal.inference.checkpoint.file import CheckpointError, write_atomically

RUN = Path(__file__).parents[2] / "vectors" / "release_0_1" / "contrastive"
CHECKPOINT = RUN / "checkpoints" / "step=00000004.ckpt"


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8))


def test_a_run_and_its_checkpoint_are_the_same_model(tmp_path, monkeypatch):
    shutil.copytree(RUN, tmp_path / "outputs" / "mine")
    monkeypatch.chdir(tmp_path)
    run, checkpoint = multimodal.load("outputs/mine"), multimodal.load(CHECKPOINT)
    images = pictures(3)
    embedded = run.embed(image=images)
    assert embedded.shape == (3, run.model.embed_dim)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert torch.equal(embedded, checkpoint.embed(image=images))
    assert run.temperatures[frozenset(("image", "sensor"))] == pytest.approx(0.0711, abs=1e-4)


LEAN = """
import sys
import numpy
import multimodal
model = multimodal.load(sys.argv[1])
print(model.embed(image=[numpy.zeros((16, 16, 3), numpy.uint8)]).shape[0])
print(sorted({"pytorch_lightning", "lightning_fabric"} & set(sys.modules)))
"""


def test_whoever_uses_a_checkpoint_does_not_import_lightning(tmp_path):
    """Whatever stands by default around a training of today, and all other loggers."""
    state = torch.load(CHECKPOINT, weights_only=True)
    stored = yaml.safe_load(state["config"])
    words = ("+experiment=clip_scratch", "logger=[csv,wandb,tensorboard,mlflow]",
             "callbacks=early_stopping", "scheduler=warmup_stable_decay")  # fmt: skip
    with composed(*words) as config:
        keys = ["callbacks", "logger", "scheduler"]
        text = OmegaConf.to_yaml(OmegaConf.masked_copy(config, keys))
    around = yaml.safe_load(re.sub(r"\$\{[^}]*\}", "1", text))  # stored ones are resolved
    assert {"summary", "early_stopping"} <= set(around["callbacks"])
    assert len(around["logger"]) == 4
    state["config"] = yaml.safe_dump({**stored, **around})
    write_atomically(state, tmp_path / "step=00000004.ckpt")
    command = [sys.executable, "-c", LEAN, str(tmp_path / "step=00000004.ckpt")]
    used = subprocess.run(command, capture_output=True, text=True, check=False)
    assert used.stdout.splitlines() == ["1", "[]"], used.stderr


def write_hub_folder(folder: Path, tokenizer: bool = True) -> Path:
    """A CLIP with random weights as OpenCLIP puts it on the hub, with a vocabulary of pairs."""
    described, _ = case("openclip_a")
    folder.mkdir()
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": described["cfg"]}))
    if tokenizer:
        letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
        pairs = [f"{a} {b}" for a in letters for b in letters]
        pairs += [f"{a} {b}</w>" for a in letters for b in letters]
        lines = ["#version: 0.2", *pairs[:NUM_MERGES]]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_of_a_hub_is_a_model_with_its_own_tokenizer(tmp_path):
    model = multimodal.load(write_hub_folder(tmp_path / "ViT-tiny"))
    assert model.embed(image=pictures(2), text=["a dog", "a cat", "a bird"]).shape == (5, 24)
    probabilities = model.zero_shot(["dog", "cat"], "a photo of a {}", image=pictures(4))
    assert probabilities.shape == (4, 2)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))


def test_a_hub_folder_without_its_tokenizer_says_where_to_get_one(tmp_path):
    with pytest.raises(multimodal.config.ConfigError, match="CLIP's vocabulary comes from"):
        multimodal.load(write_hub_folder(tmp_path / "ViT-tiny", tokenizer=False))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*gone"):
        multimodal.load(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"expected a run's folder .*model\.safetensors"):
        multimodal.load(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of images, audio and text, in batches of four."""
    return make_embedder(tmp_path_factory.mktemp("model"))


def test_all_modalities_at_once_are_rows_in_their_order(model, tmp_path):
    images = pictures(6)
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    both = model.embed(
        image=[tmp_path / "0.png", Image.fromarray(images[1]), *images[2:]], text=WORDS
    )
    assert both.shape == (6 + len(WORDS), 12)
    assert torch.equal(both[:6], model.values("image", images))
    assert torch.equal(both[6:], model.embed(text=WORDS))
    torch.testing.assert_close(model.embed(text=WORDS[0]), both[6:7])
    assert model.embed(image=[]).shape == (0, 12)


def test_similarities_are_cosines(model):
    images, texts = model.embed(image=pictures(5)), model.embed(text=WORDS)
    cosines = model.similarity(image=pictures(5), text=WORDS)
    torch.testing.assert_close(cosines, images @ texts.T)
    torch.testing.assert_close(model.similarity(images * 7, texts), cosines)
    torch.testing.assert_close(model.similarity(text=WORDS).diagonal(), torch.ones(len(WORDS)))
    with pytest.raises(ValueError, match="expected one or two modalities, got 3"):
        model.similarity(images, texts, image=pictures(1))
    with pytest.raises(ValueError, match="got 0"):
        model.similarity()


def test_zero_shot_is_a_softmax_by_the_trained_temperature(model):
    images, names = pictures(5), ["dog", "red chair"]
    embedded, expected = model.embed(image=images), []
    for name in names:
        texts = model.embed(text=[f"a {name}", f"{name}!"])
        expected.append(torch.nn.functional.normalize(texts.mean(dim=0), dim=0))
    cosines = embedded @ torch.stack(expected).T
    for trained, temperature in (
        ({}, 0.07), ({frozenset(("image", "text")): 0.5}, 0.5),
        ({frozenset(("image", "audio")): 0.2, frozenset(("audio", "text")): 0.1}, 0.2),
    ):  # fmt: skip
        model.temperatures = trained
        found = model.zero_shot(names, ["a {}", "{}!"], image=images)
        torch.testing.assert_close(found, (cosines / temperature).softmax(dim=1))
    assert torch.equal(
        model.zero_shot(names, image=images), model.zero_shot(names, "{}", image=images)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.embed(), r"at least one modality: image=\[\.\.\.\], audio="),
        (lambda model: model.embed(picture=["a.jpg"]), "does not take 'picture'; it takes audio"),
        (lambda model: model.zero_shot([], image=["a.jpg"]), "a list of names of classes, got []"),
        (lambda model: model.zero_shot("dog", image=["a.jpg"]), "names of classes, got 'dog'"),
        (lambda model: model.zero_shot(["dog"]), "inputs of one modality, got []"),
        (lambda model: model.zero_shot(["dog"], "a photo", image=["a.jpg"]), "got ['a photo']"),
        (lambda model: model.zero_shot(["dog"], [], image=["a.jpg"]), "prompts with {}"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(model, call, message):
    pattern = message if "\\" in message else re.escape(message)
    with pytest.raises(ValueError, match=pattern):
        call(model)
