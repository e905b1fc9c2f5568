"""Models of transformers are fed what their own files say they were trained on."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from experiment_helpers import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check
from multimodal.core.hf_files import input_settings
from multimodal.data.decoding.decode import Signal
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.sound.huggingface import HuggingFaceSound
from multimodal.models.encoders.huggingface import HuggingFaceEncoder

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
ENCODER = "encoder@model.towers.image.encoder=huggingface"
NAME = "model.towers.image.encoder.name="


def folder_of(path, model_type: str = "vit", **content) -> str:
    path.mkdir(exist_ok=True)
    (path / "preprocessor_config.json").write_text(json.dumps(content))
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(path)


def pictures(path, model_type: str = "vit") -> str:
    return folder_of(path, model_type, image_mean=MEAN, image_std=STD,
                     size={"height": 32, "width": 32})  # fmt: skip


def problems(*words: str) -> str:
    with composed("+experiment=clip_scratch", *words) as cfg:
        try:
            check(cfg)
        except ConfigError as error:
            return str(error)
    return ""


def test_pictures_of_another_size_or_normalisation_are_rejected_with_the_numbers(tmp_path):
    reported = problems(ENCODER, NAME + pictures(tmp_path / "vit"))
    assert "given [0.84, 0.8, 0.73], but" in reported
    assert f"was trained with {MEAN}" in reported
    assert "data.transforms.image.size" in reported
    assert "given 64, but" in reported
    assert "was trained with 32" in reported
    assert "data/transform@data.transforms.image=picture_huggingface" in reported
    right = (f"data.transforms.image.mean={MEAN}", f"data.transforms.image.std={STD}")
    assert "was trained with" not in problems(
        ENCODER, NAME + pictures(tmp_path / "vit"), *right, "data.transforms.image.size=32"
    )
    # These take any size, but not any normalisation.
    reported = problems(ENCODER, NAME + pictures(tmp_path / "dino", "dinov2"))
    assert "data.transforms.image.std" in reported
    assert "data.transforms.image.size" not in reported
    assert problems(ENCODER, NAME + pictures(tmp_path / "dino", "dinov2"), *right) == ""


def test_the_settings_of_a_models_folder_are_taken_over(tmp_path):
    words = (ENCODER, NAME + pictures(tmp_path / "vit"),
             "data/transform@data.transforms.image=picture_huggingface")  # fmt: skip
    with composed("+experiment=clip_scratch", *words) as cfg:
        check(cfg)
        transform = instantiate(cfg.data.transforms.image, _convert_="all")
        resolved = OmegaConf.to_container(cfg.data.transforms.image, resolve=True)
    assert (resolved["size"], resolved["mean"], resolved["std"]) == (32, MEAN, STD)
    made = transform(np.full((40, 40, 3), 255, np.uint8), None)
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(made.mean((1, 2)), white, atol=1e-4, rtol=0)
    assert made.shape == (3, 32, 32)


def test_pixels_of_a_vision_language_model_are_not_the_side_of_a_picture(tmp_path):
    content = {"image_mean": MEAN, "image_std": STD, "patch_size": 14, "merge_size": 2,
               "size": {"shortest_edge": 3136, "longest_edge": 12845056}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert input_settings(str(tmp_path)) == {"mean": MEAN, "std": STD}
    del content["merge_size"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert input_settings(str(tmp_path))["size"] == 3136


def test_without_a_folder_that_tells_it_is_said(tmp_path):
    group = "data/transform@data.transforms.image=picture_huggingface"
    (tmp_path / "empty").mkdir()
    reported = problems(ENCODER, f"{NAME}{tmp_path}/empty", group)
    assert "has no preprocessor_config.json that states the mean" in reported
    assert "the encoder has no name" in problems(ENCODER, f"{NAME}null", group)


def test_words_are_cut_by_the_models_own_tokenizer(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n")
    words = ("encoder@model.towers.text.encoder=huggingface",
             f"model.towers.text.encoder.name={tmp_path}/bert")  # fmt: skip
    assert "has its own tokenizer" in problems(*words)
    right = ("tokenizer=huggingface", f"data.transforms.text.tokenizer.name={tmp_path}/bert")
    assert problems(*words, *right) == ""
    assert "has its own tokenizer" in problems(*words, *right[:1], right[1] + "2")


def test_a_vision_language_model_has_its_tokenizer_and_normalisation_checked(tmp_path):
    folder = pictures(tmp_path / "vlm", "qwen2_vl")
    (tmp_path / "vlm" / "vocab.json").write_text("{}")
    words = ("tower@model.towers.text=vlm", "model.towers.image=text",
             f"model.towers.text.encoder.name={folder}",
             "data/transform@data.transforms.image=image_patches")  # fmt: skip
    reported = problems(*words)
    assert f"was trained with {MEAN}" in reported
    assert "data.transforms.text.tokenizer" in reported
    assert "has its own tokenizer" in reported


def sounds(path, kind: str) -> str:
    made = {
        "whisper": transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        "wav2vec2": transformers.Wav2Vec2FeatureExtractor(),
        "ast": transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=64),
        "clap": transformers.ClapFeatureExtractor(
            feature_size=64, max_length_s=1, truncation="rand_trunc", padding="repeatpad"
        ),
    }[kind]
    made.save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": kind}))
    return str(path)


AUDIO = ("+experiment=imagebind_scratch", "encoder@model.towers.audio.encoder=huggingface")


def audio_problems(*words: str) -> str:
    with composed(*AUDIO, *words) as cfg:
        try:
            check(cfg)
        except ConfigError as error:
            return str(error)
    return ""


def test_sounds_of_another_rate_or_kind_are_rejected_with_the_numbers(tmp_path):
    ast = f"model.towers.audio.encoder.name={sounds(tmp_path / 'ast', 'ast')}"
    reported = audio_problems(ast)
    assert "data.transforms.audio.num_mel_bins" in reported
    assert "given 64, but" in reported
    assert "was trained with 16" in reported
    settings = input_settings(str(tmp_path / "ast"))
    assert settings == {"mean": pytest.approx(-4.2677393), "std": pytest.approx(2 * 4.5689974),
                        "sample_rate": 16000, "num_mel_bins": 16}  # fmt: skip
    right = [f"data.transforms.audio.{key}={value}" for key, value in settings.items()]
    assert audio_problems(ast, *right) == ""
    whisper = f"model.towers.audio.encoder.name={sounds(tmp_path / 'whisper', 'whisper')}"
    reported = audio_problems(whisper)
    assert "makes Kaldi filter banks, but" in reported
    group = "data/transform@data.transforms.audio=sound_huggingface"
    assert group in reported
    assert audio_problems(whisper, group) == ""
    assert "data.transforms.audio.name" in audio_problems(
        whisper, group, "data.transforms.audio.name=elsewhere"
    )


MODELS = {
    "whisper": ({"model_type": "whisper", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
                 "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
                 "decoder_ffn_dim": 32, "num_mel_bins": 8, "max_source_positions": 50,
                 "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                 "decoder_start_token_id": 1}, "encoder", (8, 100)),
    "wav2vec2": ({"model_type": "wav2vec2", "hidden_size": 16, "num_hidden_layers": 1,
                  "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8, 8],
                  "conv_stride": [40, 20], "conv_kernel": [40, 20], "num_feat_extract_layers": 2,
                  "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}, "whole",
                 (16000,)),
    "ast": ({"model_type": "audio-spectrogram-transformer", "hidden_size": 16,
             "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "patch_size": 8, "num_mel_bins": 16, "max_length": 64, "frequency_stride": 8,
             "time_stride": 8}, "whole", (64, 16)),
    "clap": ({"model_type": "clap", "text_config": {"hidden_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30},
              "audio_config": {"hidden_size": 16, "num_mel_bins": 64, "spec_size": 128,
              "window_size": 2, "depths": [1, 1], "num_attention_heads": [2, 2],
              "patch_embeds_hidden_size": 8}}, "audio", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_hears_what_its_own_extractor_makes(kind, tmp_path):
    transform = HuggingFaceSound(sounds(tmp_path, kind), seconds=1.0)
    random = np.random.default_rng(0)
    rate = transform.sample_rate
    wave = random.uniform(-0.5, 0.5, (1, 2 * rate)).astype(np.float32)
    made = transform(Signal(wave, rate), None)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    middle = wave[0, rate // 2 : rate // 2 + rate]
    (theirs,) = [
        value for key, value in extractor(middle, sampling_rate=rate, return_tensors="pt").items()
        if key in ("input_features", "input_values")
    ]  # fmt: skip
    torch.testing.assert_close(made, theirs[0].float())
    config, part, shape = MODELS[kind]
    assert shape is None or made.shape == shape
    drawn = [transform(Signal(wave, rate), SampleRNG(0, 0, "s", i, 0)) for i in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    short = transform(Signal(np.stack([wave[0, :999]] * 2), rate / 2), None)  # stereo, resampled
    assert short.shape == made.shape
    batch, mask = transform.collate([made, *drawn, short])
    assert mask is None
    encoder = HuggingFaceEncoder(config=config, part=part, pooling="mean").eval()
    with torch.no_grad():
        features = encoder(batch).features
    assert features.shape == (5, 16)
    assert features.isfinite().all()
    with pytest.raises(DecodeError, match="expected a sound"):
        transform("no sound", None)
