"""Whisper's encoder and log-mel spectrogram, against those of transformers on random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from multimodal.data.decoding.decode import Signal
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.sound.whisper import WhisperTransform
from multimodal.inference.importing import import_weights
from multimodal.models.encoders.whisper import WhisperEncoder, segment_means, sinusoids
from multimodal.models.layers.transformer import Transformer
from multimodal.models.pretrained.keys import WeightsError

CONFIG = transformers.WhisperConfig(
    d_model=128, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=512,
    decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=64, num_mel_bins=80,
    max_source_positions=50, max_target_positions=8, vocab_size=99, pad_token_id=0,
    bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, attn_implementation="eager",
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> transformers.WhisperModel:
    torch.manual_seed(0)
    model = transformers.WhisperModel(CONFIG).eval()
    for parameter in model.encoder.parameters():  # biases and norms away from 0 and 1 too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def openai_layout(state: dict[str, Tensor]) -> dict:
    """The encoder as OpenAI's files hold it, in half precision, beside a decoder."""
    names = {
        "layers.": "blocks.", "self_attn_layer_norm": "attn_ln", "final_layer_norm": "mlp_ln",
        "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key",
        "self_attn.v_proj": "attn.value", "self_attn.out_proj": "attn.out", "fc1": "mlp.0",
        "fc2": "mlp.2", "embed_positions.weight": "positional_embedding",
        "encoder.layer_norm": "encoder.ln_post",
    }  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return {"dims": {"n_mels": 80}, "model_state_dict": renamed}


def short(model: transformers.WhisperModel, log_mel: Tensor) -> Tensor:
    """What their encoder gives for an input that ends early, as if its context ended there."""
    length = log_mel.shape[-1] // 2
    settings = {**CONFIG.to_dict(), "max_source_positions": length}
    encoder = transformers.WhisperModel(transformers.WhisperConfig(**settings)).encoder
    state = model.encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:length]
    encoder.load_state_dict(state)
    with torch.no_grad():
        return encoder.eval()(log_mel).last_hidden_state


@pytest.mark.parametrize("layout", ["openai", "transformers", "transformers_whole"])
def test_both_layouts_give_the_tokens_of_transformers(theirs, layout):
    state = theirs.state_dict()
    if layout == "openai":
        state = openai_layout(state)["model_state_dict"]
    if layout == "transformers_whole":  # as of WhisperForConditionalGeneration
        state = {f"model.{name}": tensor for name, tensor in state.items()}
    made = import_weights(state)
    log_mel = torch.randn(3, 80, 100)
    with torch.no_grad():
        wanted = theirs.encoder(log_mel).last_hidden_state
        output = made.model.tower("audio").encode(log_mel)
    torch.testing.assert_close(output.tokens, wanted, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(output.features, wanted.mean(1), atol=2e-5, rtol=1e-4)
    assert made.transforms["audio"]["num_mel_bins"] == 80


def test_short_sounds_need_no_padding_and_padding_changes_nothing(theirs):
    tower = import_weights(theirs.state_dict()).model.tower("audio")
    sounds = [torch.randn(80, frames) for frames in (60, 32, 14)]
    batch, mask = WhisperTransform().collate(sounds)
    with torch.no_grad():
        together = tower.encode(batch, mask)
    for row, sound in enumerate(sounds):
        wanted = short(theirs, sound[None])[0]
        length = len(wanted)
        assert together.mask[row].sum() == length
        torch.testing.assert_close(together.tokens[row, :length], wanted, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(together.features[row], wanted.mean(0), atol=2e-5, rtol=1e-4)


def test_an_odd_number_of_frames_has_a_token_for_its_last_one(theirs):
    tower = import_weights(theirs.state_dict()).model.tower("audio")
    sound, longer = torch.randn(80, 13), torch.randn(80, 20)
    with torch.no_grad():
        alone = tower.encode(sound[None])
        batch, mask = WhisperTransform().collate([longer, sound])
        together = tower.encode(batch, mask)
    assert alone.tokens.shape[1] == 7 == together.mask[1].sum()
    torch.testing.assert_close(together.features[1], alone.features[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [20_000, 1_000, 480_000])
def test_the_log_mel_spectrogram_is_whispers(bins, samples):
    wave = 0.1 * np.random.default_rng(samples).standard_normal(samples).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    wanted = extractor(
        wave, sampling_rate=16_000, padding="do_not_pad", return_tensors="pt"
    )["input_features"][0]  # fmt: skip
    made = WhisperTransform(num_mel_bins=bins)(Signal(wave[None], 16_000.0), None)
    assert made.shape == wanted.shape == (bins, samples // 160)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=0)


def test_sounds_of_any_rate_and_length_are_taken_and_long_ones_cut():
    transform = WhisperTransform(seconds=2.0)
    long = Signal(np.random.default_rng(0).standard_normal((2, 48_000 * 5)).astype("f4"), 48_000.0)
    tiny = Signal(np.ones((1, 3), "f4"), 8_000.0)
    assert transform(long, None).shape == (80, 200)
    assert transform(tiny, None).shape == (80, 1)
    drawn = {float(transform(long, SampleRNG(0, 0, "s", index, 0)).sum()) for index in range(3)}
    assert len(drawn) == 3
    with pytest.raises(DecodeError, match="expected a sound"):
        transform(np.zeros(3), None)


def test_masks_and_speeds_change_what_training_sees():
    wave = Signal(np.random.default_rng(0).standard_normal((1, 16_000)).astype("f4"), 16_000.0)
    rng = SampleRNG(0, 0, "s", 1, 0)
    plain = WhisperTransform()(wave, None)
    masked = WhisperTransform(frequency_mask=30, time_mask=30)(wave, rng)
    assert masked.shape == plain.shape
    assert not torch.equal(masked, plain)
    assert WhisperTransform(speeds=[2.0])(wave, rng).shape == (80, 50)
    with pytest.raises(ValueError, match="time_shift"):
        WhisperTransform(time_shift=0.1)


def test_positions_are_whispers_sinusoids():
    with torch.no_grad():
        table = transformers.WhisperModel(CONFIG).encoder.embed_positions.weight
    torch.testing.assert_close(sinusoids(50, 128), table, atol=1e-5, rtol=0)


def test_other_weights_and_inputs_are_refused(theirs):
    state = dict(theirs.state_dict())
    del state["encoder.layers.1.fc1.bias"]
    with pytest.raises(WeightsError, match=r"encoder\.layers\.1\.fc1\.bias"):
        import_weights(state)
    tower = import_weights(theirs.state_dict()).model.tower("audio")
    with pytest.raises(ValueError, match=r"frames <= 100\], got \[1, 80, 102\]"):
        tower.encode(torch.zeros(1, 80, 102))


def test_segments_are_the_means_of_equal_parts_and_padding_changes_nothing():
    tokens = torch.arange(12.0).reshape(1, 12, 1)
    wanted = [[1.0], [4.0], [7.0], [10.0]]
    assert segment_means(tokens, None, 4)[0].tolist() == wanted
    padded = torch.cat([tokens, torch.full((1, 5, 1), 99.0)], dim=1)
    mask = torch.arange(17)[None] < 12
    assert segment_means(padded, mask, 4)[0].tolist() == wanted
    short = segment_means(tokens[:, :2], None, 4)  # fewer tokens than parts
    assert short[0, :, 0].tolist() == [0.0, 0.5, 1.0, 0.5]


def test_an_encoder_of_segments_is_wider_and_has_one_token():
    encoder = WhisperEncoder(80, 50, Transformer(16, 1, 2), segments=3).eval()
    sounds, mask = WhisperTransform().collate([torch.randn(80, 60), torch.randn(80, 9)])
    output = encoder(sounds, mask)
    assert output.features.shape == (2, encoder.width) == (2, 64)
    assert output.tokens.shape == (2, 1, 64)
    whole = WhisperEncoder(80, 50, Transformer(16, 1, 2)).eval()
    whole.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(output.features[:, 48:], whole(sounds, mask).features)
