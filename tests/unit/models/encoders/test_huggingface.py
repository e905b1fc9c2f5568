"""Models of transformers: through our encoder unchanged, and into our own towers."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest
import torch

from multimodal.core.hf_files import input_settings
from multimodal.inference.importing import import_weights
from multimodal.models.encoders.huggingface import HuggingFaceEncoder
from multimodal.models.heads import LinearHead
from multimodal.models.pretrained.keys import WeightsError
from multimodal.models.tower_optim import depths
from multimodal.models.towers import Tower
from multimodal.models.tuning import LastLayers, LoRA, merge_adapters

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
PICTURE = {**SMALL, "image_size": 16, "patch_size": 4}
WORDS = {**SMALL, "vocab_size": 50, "max_position_embeddings": 12}
CLIP_WORDS = {**WORDS, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 0}
TWO = {"vision_config": PICTURE, "text_config": CLIP_WORDS, "projection_dim": 24}
# A picture's patches, on a grid of 4 x 4 that other grids are resized from.
NAFLEX = {**SMALL, "patch_size": 4, "num_patches": 16}
CLAP_SOUND = {
    "hidden_size": 32, "num_mel_bins": 8, "spec_size": 32, "window_size": 2, "depths": [1, 1],
    "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "projection_dim": 24,
}  # fmt: skip
WAVE = {
    **SMALL, "conv_dim": [8, 8], "conv_stride": [4, 2], "conv_kernel": [4, 2],
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
}  # fmt: skip
CONFIGS = {
    "clip vision": ({"model_type": "clip", **TWO}, "vision"),
    "clip text": ({"model_type": "clip", **TWO}, "text"),
    "siglip vision": (
        {"model_type": "siglip", "vision_config": PICTURE, "text_config": WORDS},
        "vision",
    ),
    "dinov3": ({"model_type": "dinov3_vit", **PICTURE, "num_register_tokens": 2}, "whole"),
    "siglip2 text": (
        {"model_type": "siglip2", "vision_config": NAFLEX, "text_config": WORDS},
        "text",
    ),
    "clap text": (
        {"model_type": "clap", "audio_config": CLAP_SOUND, "text_config": {**WORDS,
         "pad_token_id": 0, "projection_dim": 24}, "projection_dim": 24},
        "text",
    ),
    "hubert": ({"model_type": "hubert", **WAVE}, "whole"),
    "dinov2": ({"model_type": "dinov2", **PICTURE}, "whole"),
    "vit": ({"model_type": "vit", **PICTURE}, "whole"),
    "bert": ({"model_type": "bert", **WORDS}, "whole"),
    "modernbert": (
        {"model_type": "modernbert", **WORDS, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "whole",
    ),
    "ast": (
        {"model_type": "audio-spectrogram-transformer", **SMALL, "patch_size": 4, "num_mel_bins": 8,
         "max_length": 16, "frequency_stride": 4, "time_stride": 4},
        "whole",
    ),
    "wav2vec2": (
        {"model_type": "wav2vec2", **WAVE},
        "whole",
    ),
    "whisper": (
        {"model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
         "decoder_layers": 1, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
         "decoder_ffn_dim": 64, "num_mel_bins": 8, "max_source_positions": 10, "vocab_size": 60,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        "encoder",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder(name: str, **choices) -> HuggingFaceEncoder:
    config, part = CONFIGS[name]
    made = HuggingFaceEncoder(config=config, part=part, swap_audio_axes=name == "ast", **choices)
    return made.eval()


def inputs_of(name: str) -> torch.Tensor:
    if "text" in name or CONFIGS[name][0]["model_type"] in ("bert", "modernbert"):
        return torch.randint(3, 48, (2, 9))
    shapes = {"ast": (2, 1, 8, 16), "wav2vec2": (2, 160), "hubert": (2, 160), "whisper": (2, 8, 20)}
    return torch.randn(*shapes.get(name, (2, 3, 16, 16)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_goes_through_the_encoder_unchanged(name):
    made, inputs = encoder(name), inputs_of(name)
    theirs = inputs[:, 0].transpose(1, 2) if name == "ast" else inputs
    with torch.no_grad():
        expected = made.model(theirs).last_hidden_state
        output = made(inputs)
    assert torch.equal(output.tokens, expected)
    assert torch.equal(output.features, expected[:, 0])
    assert made.width == 32


def test_siglip2_takes_pictures_of_any_ratio():
    config = {"model_type": "siglip2", "vision_config": NAFLEX, "text_config": WORDS}
    made = HuggingFaceEncoder(config=config, part="vision", pooling="mean").eval()
    pictures = torch.randn(2, 3, 12, 20)
    patches = torch.stack(
        [
            torch.stack([
                picture[:, y : y + 4, x : x + 4].permute(1, 2, 0).flatten()  # as its processor
                for y in range(0, 12, 4) for x in range(0, 20, 4)
            ])
            for picture in pictures
        ]
    )  # fmt: skip
    with torch.no_grad():
        expected = made.model(
            patches, torch.ones(2, 15).long(), torch.tensor([[3, 5], [3, 5]])
        ).last_hidden_state
        output = made(pictures)
    assert torch.equal(output.tokens, expected)
    assert torch.equal(output.features, expected.mean(1))
    with pytest.raises(ValueError, match="12 x 18 are not multiples of the patch, 4"):
        made(torch.zeros(1, 3, 12, 18))


@pytest.mark.parametrize("fused", [False, True])
def test_clap_hears_spectrograms(fused):
    config = {"model_type": "clap", "audio_config": {**CLAP_SOUND, "enable_fusion": fused},
              "text_config": WORDS}  # fmt: skip
    made = HuggingFaceEncoder(config=config, part="audio", pooling="mean", swap_audio_axes=True)
    sounds = torch.randn(2, 4 if fused else 1, 8, 100)  # bins, frames
    made.eval()
    with torch.no_grad():
        theirs = made.model(sounds.transpose(2, 3), is_longer=torch.zeros(2, 1))
        output = made(sounds)
    expected = theirs.last_hidden_state.flatten(2).transpose(1, 2)
    assert torch.equal(output.tokens, expected)
    # Its own pooling is the mean too.
    torch.testing.assert_close(output.features, theirs.pooler_output.flatten(1))


@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
def test_pooling_reads_real_tokens_only(pooling):
    made, ids = encoder("bert", pooling=pooling), inputs_of("bert")
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    with torch.no_grad():
        output = made(ids, mask)
        changed = ids.masked_fill(~mask, 7)
        torch.testing.assert_close(made(changed, mask).features, output.features)
        alone = made(ids[1:, :5]).features
    torch.testing.assert_close(output.features[1:], alone, atol=1e-5, rtol=1e-5)
    if pooling != "attention":
        real = output.tokens[1, :5]
        expected = real.mean(0) if pooling == "mean" else real[-1]
        torch.testing.assert_close(output.features[1], expected)


def test_a_waveforms_mask_follows_the_strides():
    made, waves = encoder("wav2vec2", pooling="mean"), inputs_of("wav2vec2")
    mask = torch.arange(160) < torch.tensor([[160], [80]])
    with torch.no_grad():
        output = made(waves, mask)
    assert output.mask is not None
    assert output.mask.sum(1).tolist() == [20, 10]
    torch.testing.assert_close(output.features[1], output.tokens[1, :10].mean(0))


def test_choices_that_a_model_does_not_have_are_rejected():
    with pytest.raises(ValueError, match=r"several towers: choose part=vision or text"):
        HuggingFaceEncoder(config=CONFIGS["clip text"][0])
    with pytest.raises(ValueError, match="has no part 'audio'"):
        HuggingFaceEncoder(config=CONFIGS["clip text"][0], part="audio")
    with pytest.raises(ValueError, match=r"give name .* or config.model_type"):
        HuggingFaceEncoder()
    with pytest.raises(ValueError, match="no model_type 'dinov9'"):
        HuggingFaceEncoder(config={"model_type": "dinov9"})
    with pytest.raises(ValueError, match="takes no mask"):
        encoder("vit")(torch.zeros(2, 3, 16, 16), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"no model nowhere/none: .*offline=false would ask"):
        HuggingFaceEncoder(name="nowhere/none")


def test_weights_and_input_settings_come_from_a_folder(tmp_path):
    config = dict(CONFIGS["dinov2"][0])
    config.pop("model_type")
    model = transformers.Dinov2Model(transformers.Dinov2Config(**config)).eval()
    model.save_pretrained(tmp_path)
    content = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.2, 0.2, 0.2],
        "crop_size": {"height": 16},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    made, pictures = HuggingFaceEncoder(str(tmp_path)).eval(), inputs_of("dinov2")
    with torch.no_grad():
        assert torch.equal(made(pictures).tokens, model(pictures).last_hidden_state)
    assert made.settings == {"mean": content["image_mean"], "std": content["image_std"], "size": 16}
    assert input_settings("facebook/dinov2-base") == {}


def test_gradient_checkpointing_gives_the_same_gradients():
    plain, saving = encoder("vit"), encoder("vit", gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    pictures = inputs_of("vit")
    for made in (plain.train(), saving.train()):
        made(pictures).features.square().sum().backward()
    assert saving.model.is_gradient_checkpointing
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_layers_are_frozen_adapted_and_ranked_as_in_our_own_towers():
    head = partial(LinearHead, embed_dim=6)
    tower = Tower(encoder("dinov2"), head, tuning=LastLayers(1))
    learning = {n for n, p in tower.named_parameters() if p.requires_grad}
    assert {n for n in learning if ".layer." in n and ".layer.1." not in n} == set()
    assert "encoder.model.layernorm.weight" in learning
    assert not [n for n in learning if "embeddings" in n]
    places = depths(tower)
    assert places["encoder.model.embeddings.cls_token"] == 0
    assert places["encoder.model.encoder.layer.1.norm1.weight"] == 2
    assert places["encoder.model.layernorm.weight"] == places["head.projection.weight"] == 3
    adapted = Tower(encoder("bert"), head, tuning=LoRA(2)).eval()
    ids = inputs_of("bert")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        before = adapted(ids)
        assert merge_adapters(adapted) > 0
        torch.testing.assert_close(adapted(ids), before, atol=1e-5, rtol=0)


# Into our own towers


def witness(kind: str):
    config = {
        "clip": partial(transformers.CLIPConfig, **TWO),
        "siglip": partial(transformers.SiglipConfig, vision_config=PICTURE, text_config=WORDS),
    }[kind]()
    model = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}[kind](
        config
    ).eval()
    with torch.no_grad():  # norms and biases that are not what everything starts with
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model, config.to_dict()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_their_checkpoints_give_equal_embeddings_in_our_towers(kind):
    model, config = witness(kind)
    made = import_weights(model.state_dict(), config)
    pictures = torch.randn(3, 3, 16, 16)
    ids = torch.randint(3, 48, (3, 12))
    if kind == "clip":
        ids[0, 4], ids[0, 5:], ids[1:, -1] = 49, 0, 49
    with torch.no_grad():
        theirs = model(pixel_values=pictures, input_ids=ids)
        for modality, inputs, expected in (
            ("image", pictures, theirs.image_embeds), ("text", ids, theirs.text_embeds),
        ):  # fmt: skip
            ours = made.model.embed(modality, inputs)
            assert (ours - expected).abs().max() < 1e-5
    assert made.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    assert (made.logit_bias is None) == (kind == "clip")
    assert not made.diff


def test_other_models_of_transformers_are_sent_to_the_encoder():
    state = {"vision_model.x": torch.zeros(1)}
    with pytest.raises(WeightsError, match="runs unchanged with encoder=huggingface"):
        import_weights(state, {"model_type": "align"})


@pytest.mark.parametrize(
    "setting",
    [
        {"trust_remote_code": True},
        {"auto_map": {"AutoModel": "theirs--code.Model"}},
        {"attn_implementation": "theirs/kernel"},
        {"_attn_implementation": "theirs/kernel"},
        {"text_config": {"auto_map": {}}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"weights_only": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("named", [True, False])
def test_a_setting_that_would_load_something_else_is_rejected(setting, named, tmp_path):
    name = str(tmp_path) if named else None
    config = setting if named else {"model_type": "vit", **setting}
    with pytest.raises(ValueError, match=r"config\.\w+"):
        HuggingFaceEncoder(name=name, config=config)


def test_code_in_a_models_folder_is_not_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    content = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="custom code"):
        HuggingFaceEncoder(name=str(tmp_path))
    assert not ran.exists()


def test_sentence_embeddings_are_the_mean_of_the_real_tokens_of_transformers(tmp_path):
    config = transformers.BertConfig(**WORDS)
    torch.manual_seed(0)
    theirs = transformers.BertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    encoder = HuggingFaceEncoder(str(tmp_path), pooling="mean").eval()
    ids, lengths = torch.randint(1, 50, (3, 12)), torch.tensor([12, 5, 2])
    mask = torch.arange(12) < lengths[:, None]
    with torch.no_grad():
        output = encoder(ids, mask)
        for row, length in enumerate(lengths.tolist()):  # each text alone, so nothing is padded
            alone = theirs(ids[row : row + 1, :length]).last_hidden_state.mean(1)[0]
            torch.testing.assert_close(output.features[row], alone, atol=1e-5, rtol=1e-4)
