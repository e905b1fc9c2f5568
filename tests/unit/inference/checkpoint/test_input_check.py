"""Transforms whose results do not fit a tower or a task are refused before the first batch."""

import re

import pytest
import torch
from experiment_helpers import composed
from marks import some

from multimodal.config import ConfigError, build, check
from multimodal.core.errors import InputMismatchError
from multimodal.inference.checkpoint.input_check import check_inputs
from multimodal.inference.checkpoint.load import build_model
from multimodal.models import CategoryEncoder, EmbeddingModel, LinearHead, Tower

D, T = "data.transforms", "model.towers"
CLIP, BIND, WATCH, DIGITS = "clip_scratch", "imagebind_scratch", "fusion_watch", "fusion"
HF = f"encoder@{T}.text.encoder=huggingface"
BERT = [
    f"++{T}.text.encoder.config.{key}={value}"
    for key, value in {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 4096,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16,
    }.items()
]  # fmt: skip


def built(experiment, *words):
    with composed(f"+experiment={experiment}", "trainer=cpu", *words) as cfg:
        check(cfg)
        with torch.device("meta"):
            model = build_model(cfg)
        return model, build(cfg, "data", "transforms", convert="all")


# Experiment, words of the command line, the key that is to blame, and what is said of it.
CASES = [
    (CLIP, f"{D}.image.size=48", f"{D}.image", r"\[B, 3, 64, 64\], got \[1, 3, 48, 48\]"),
    (CLIP, f"{T}.image.encoder.image_size=32", f"{D}.image", r"\[B, 3, 32, 32\], got \[1, 3, 64"),
    (CLIP, f"{T}.image.encoder.in_channels=1", f"{D}.image", r"\[B, 1, 64, 64\], got \[1, 3, 64"),
    (CLIP, f"{D}.text.context_length=99", f"{D}.text", r"T <= 32\], got torch.int64 \[1, 99\]"),
    (CLIP, f"{T}.text.encoder.context_length=8", f"{D}.text", r"T <= 8\], got .*\[1, 32\]"),
    (CLIP, f"++{T}.text.encoder.attend_padding=true", f"{D}.text", "padded to 32 tokens, got 1"),
    (BIND, f"{D}.imu.length=160", f"{D}.imu", r"\[B, 6, 200\], got \[1, 6, 160\]"),
    (BIND, f"{D}.imu.mean=[0,0,0] {D}.imu.std=[1,1,1]", f"{D}.imu", r"got \[1, 3, 200\]"),
    (BIND, f"{D}.audio.num_mel_bins=80", f"{D}.audio", r"\[B, 1, 64, 144\], got \[1, 1, 80, 144"),
    (BIND, f"{D}.audio.num_frames=100", f"{D}.audio", r"got \[1, 1, 64, 100\]"),
    (BIND, f"{D}.depth.size=32", f"{D}.depth", r"\[B, 1, 64, 64\], got \[1, 1, 32, 32\]"),
    (BIND, f"{T}.depth.encoder.in_channels=3", f"{D}.depth", r"\[B, 3, 64, 64\], got \[1, 1, 64"),
    (WATCH, f"{D}.side.classes=[left,right,none]", f"{D}.side.classes", "has 3 classes, but"),
    (DIGITS, "tasks.digit.classes=[odd,even]", "tasks.digit.classes", "has 2 classes, but its"),
]


@pytest.mark.parametrize(
    ("experiment", "words", "where", "problem"), some(CASES, every=2), ids=lambda v: v[:40]
)
def test_what_does_not_fit_is_an_error_of_its_key(experiment, words, where, problem):
    with pytest.raises(ConfigError) as error:
        check_inputs(*built(experiment, *words.split(" ")))
    problems = {each.where: each.message for each in error.value.problems}
    assert list(problems) == [where]
    assert re.search(problem, problems[where]), problems[where]
    assert re.search(r"set (data\.|model\.)|give both the same", problems[where])


@pytest.mark.parametrize("experiment", some([CLIP, BIND, WATCH, DIGITS, "albef", "coca"], every=2))
def test_experiments_fit(experiment):
    check_inputs(*built(experiment))


def test_a_text_beyond_the_positions_of_a_library_model():
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"BertModel expects at most 16 tokens, got 32"):
        check_inputs(*built(CLIP, HF, *BERT))
    check_inputs(*built(CLIP, HF, *BERT, f"{D}.text.context_length=16"))


def test_pictures_of_another_size_for_a_library_model():
    pytest.importorskip("transformers")
    words = {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "image_size": 32,
        "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8,
    }  # fmt: skip
    vit = [f"++{T}.image.encoder.config.{key}={value}" for key, value in words.items()]
    chosen = [f"encoder@{T}.image.encoder=huggingface", *vit]
    model, transforms = built(CLIP, *chosen, f"{D}.image.size=32")
    modes = [module.training for module in model.modules()]
    check_inputs(model, transforms)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ConfigError, match=r"data.transforms.image\n.*64.*doesn't match model .*32"):
        check_inputs(*built(CLIP, *chosen))


def test_inputs_that_no_transform_states_are_an_error_of_the_first_batch():
    encoder = CategoryEncoder(num_categories=3, width=4)
    model = EmbeddingModel({"place": Tower(encoder, lambda width: LinearHead(width, 4))})
    with pytest.raises(ConfigError, match=r"data.transforms.place\n.*0 to 2 .*, got 3") as error:
        model.embed("place", torch.tensor([0, 3]))
    assert error.value.exit_status == 2
    assert isinstance(error.value.__cause__, InputMismatchError)
