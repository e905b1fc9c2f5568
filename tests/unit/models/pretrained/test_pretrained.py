"""Key maps against outputs of the reference models; see tests/vectors and pretrained_helpers."""

from __future__ import annotations

import copy

import pytest
import torch
from hydra.utils import instantiate
from pretrained_helpers import case, clip_inputs, foreign_state, imagebind_inputs
from torch import Tensor
from torch.nn import functional as F

from multimodal.inference.importing import Imported, import_weights, recognise
from multimodal.models.encoders.vision import VideoTransformer
from multimodal.models.layers.transformer import Attention
from multimodal.models.pretrained import imagebind, open_clip
from multimodal.models.pretrained.keys import WeightsError

CLIP_CASES = {"openclip_a": "open_clip", "openai_quickgelu_a": "openai", "siglip_a": "siglip"}


def imported(name: str, **changes) -> tuple[Imported, dict, dict[str, Tensor]]:
    described, expected = case(name)
    described["cfg"] |= changes
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    return import_weights(state, described["cfg"]), described, expected


@torch.no_grad()
def clip_error(model, described, expected, modality: str) -> float:
    inputs = clip_inputs(described, cut="logit_bias" not in described["shapes"])[modality]
    return float((model.embed(modality, inputs) - expected[modality]).abs().max())


@pytest.mark.parametrize("name", CLIP_CASES)
def test_clip_models_give_the_reference_outputs(name):
    made, described, expected = imported(name)
    for modality in ("image", "text"):
        assert clip_error(made.model, described, expected, modality) < 1e-5
    assert made.logit_scale == pytest.approx(float(expected["logit_scale"]))
    assert made.logit_bias == (-10.0 if name == "siglip_a" else None)
    assert made.pair == ("image", "text")
    assert not made.diff


@torch.no_grad()
def imagebind_errors(model, described, expected) -> dict[str, float]:
    return {
        name: float((model.embed(m, x, kind="scaled") - expected[f"out.{name}"]).abs().max())
        for name, (m, x) in imagebind_inputs(described).items()
    }


def test_imagebind_gives_the_reference_outputs_scaled_and_averaged_over_clips():
    made, described, expected = imported("imagebind_a")
    errors = imagebind_errors(made.model, described, expected)
    assert len(errors) == 8
    assert max(errors.values()) < 1e-5
    model, (_, audio) = made.model, imagebind_inputs(described)["audio"]
    with torch.no_grad():
        assert model.embed("audio", audio, kind="scaled").norm(dim=1).tolist() == pytest.approx(
            [20.0] * 3
        )
        raw = model.embed("audio", audio, kind="raw")
        torch.testing.assert_close(model.embed("audio", audio), F.normalize(raw, dim=-1))
    assert model.towers["video"] is model.towers["image"]


# Each of these would train and embed without a word, and be wrong.


@pytest.mark.parametrize(
    ("name", "modality", "change"),
    [
        ("openclip_a", "image", {"vision_cfg": {"head_width": 32}}),
        ("openclip_a", "text", {"text_cfg": {"heads": 2}}),
        ("openclip_a", "text", {"text_cfg": {"no_causal_mask": True}}),
        ("openclip_a", "image", {"quick_gelu": True}),
        ("openclip_a", "text", {"quick_gelu": True}),
        ("openai_quickgelu_a", "image", {"quick_gelu": False}),
        ("openai_quickgelu_a", "text", {"quick_gelu": False}),
        ("siglip_a", "image", {"heads": 2}),
        ("siglip_a", "text", {"text_cfg": {"heads": 2}}),
        ("siglip_a", "text", {"text_cfg": {"no_causal_mask": False}}),
    ],
)
def test_a_wrong_part_does_not_give_the_reference_outputs(name, modality, change):
    described, expected = case(name)
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    cfg = copy.deepcopy(described["cfg"])
    for key, value in change.items():
        cfg[key] = {**cfg[key], **value} if isinstance(value, dict) else value
    made = import_weights(state, cfg, CLIP_CASES[name])
    assert clip_error(made.model, described, expected, modality) > 1e-3


@pytest.mark.parametrize("modality", ["audio", "depth", "thermal", "imu"])
def test_imagebind_without_its_learned_key_and_value_is_another_model(modality):
    made, described, expected = imported("imagebind_a")
    for module in made.model.towers[modality].modules():
        if isinstance(module, Attention):
            module.bias_k = module.bias_v = None
    errors = imagebind_errors(made.model, described, expected)
    assert {name for name, error in errors.items() if error > 1e-3} >= {modality}


def test_imagebind_with_wrong_heads_or_norms_is_another_model():
    made, described, expected = imported("imagebind_a", audio_num_heads=2, depth_num_heads=4)
    errors = imagebind_errors(made.model, described, expected)
    assert errors["audio"] > 1e-3
    assert errors["depth"] > 1e-3
    assert errors["thermal"] < 1e-5


# Every tensor is accounted for.


def openclip() -> tuple[dict[str, Tensor], dict]:
    described, _ = case("openclip_a")
    return foreign_state(described["shapes"], 1, 0.1), described["cfg"]


def test_a_missing_tensor_is_named_on_both_sides():
    state, cfg = openclip()
    del state["visual.transformer.resblocks.1.mlp.c_fc.weight"]
    message = (
        r"1 missing keys:\n  towers\.image\.encoder\.trunk\.blocks\.1\.mlp\.fc1\.weight"
        r" <- visual\.transformer\.resblocks\.1\.mlp\.c_fc\.weight"
    )
    with pytest.raises(WeightsError, match=message):
        import_weights(state, cfg)


def test_an_unexpected_tensor_is_an_error_unless_allowed():
    state, cfg = openclip()
    state["visual.extra.weight"] = torch.zeros(2, 3)
    with pytest.raises(WeightsError, match=r"unexpected keys:\n  visual\.extra\.weight"):
        import_weights(state, cfg)
    made = import_weights(state, cfg, allow=["visual.extra.*"])
    assert made.diff.allowed == ["visual.extra.weight [2, 3]"]


def test_a_tensor_of_another_shape_is_reported_with_both_shapes():
    state, cfg = openclip()
    state["ln_final.bias"] = torch.zeros(3)
    message = r"mismatched shapes:\n  towers\.text\.encoder\.trunk\.norm\.bias \[32\] <- ln_final"
    with pytest.raises(WeightsError, match=message):
        import_weights(state, cfg)


def test_one_layer_too_few_or_too_many_is_an_error():
    state, cfg = openclip()
    for layers, given_or_message in ((1, "unexpected keys"), (3, "missing keys")):
        with pytest.raises(WeightsError, match=given_or_message):
            import_weights(state, {**cfg, "text_cfg": {**cfg["text_cfg"], "layers": layers}})


def test_a_setting_that_nobody_reads_is_an_error():
    state, cfg = openclip()
    for key, value in (("no_ln_prre", True), ("attentional_pool", True), ("pool_type", "avg")):
        with pytest.raises(WeightsError, match=key):
            import_weights(state, {**cfg, "vision_cfg": {**cfg["vision_cfg"], key: value}})


def test_the_source_is_inferred_from_the_names():
    for name, source in CLIP_CASES.items():
        described, _ = case(name)
        state = dict.fromkeys(described["shapes"], torch.zeros(()))
        cfg = None if source == "openai" else described["cfg"]
        assert recognise(state, cfg) == source
    assert recognise({"modality_trunks.audio.blocks.0.norm_1.bias": torch.zeros(1)}, None) == (
        "imagebind"
    )
    with pytest.raises(WeightsError, match=r"their names are layer1\.weight and so on"):
        recognise({"layer1.weight": torch.zeros(1)}, None)


def test_openai_weights_say_their_sizes_themselves():
    # Two heads of 64 in both towers: OpenAI's are all of that width.
    cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
        "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 128, "heads": 2, "layers": 1},
        "quick_gelu": True,
    }
    width, hidden = 128, 512
    shapes: dict[str, list[int]] = {
        "visual.conv1.weight": [width, 3, 8, 8], "visual.class_embedding": [width],
        "visual.positional_embedding": [17, width], "visual.proj": [width, 24],
        "token_embedding.weight": [50, width], "positional_embedding": [9, width],
        "text_projection": [width, 24], "logit_scale": [],
        "input_resolution": [], "context_length": [], "vocab_size": [],
    }  # fmt: skip
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
    for block in ("visual.transformer.resblocks.0", "visual.transformer.resblocks.1",
                  "transformer.resblocks.0"):  # fmt: skip
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for part, sizes in (("weight", [3 * width, width]), ("bias", [3 * width])):
            shapes[f"{block}.attn.in_proj_{part}"] = sizes
        for name, sizes in (("attn.out_proj", [width, width]), ("mlp.c_fc", [hidden, width]),
                            ("mlp.c_proj", [width, hidden])):  # fmt: skip
            shapes |= {f"{block}.{name}.weight": sizes, f"{block}.{name}.bias": sizes[:1]}
    shapes |= {f"{norm}.{part}": [width] for norm in norms for part in ("weight", "bias")}
    state = foreign_state(shapes, 3, 0.1)
    given_or_message, given = import_weights(state), import_weights(state, cfg, "openai")
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(
            given_or_message.model.embed("image", image), given.model.embed("image", image)
        )
    state["visual.layer1.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="ResNet"):
        import_weights(state)


# Other sizes, and video.


def test_positions_are_resized_for_another_picture_size_and_it_is_said(caplog):
    described, _ = case("openclip_a")
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    with caplog.at_level("INFO", "multimodal.inference.importing"):
        made = import_weights(state, described["cfg"], image_size=48)
    assert "image: positions resized from 4x4 to 6x6 (bicubic)" in caplog.text
    table = made.model.towers["image"].encoder.positions
    old = state["visual.positional_embedding"]
    assert torch.equal(table[0], old[0])
    grid = old[1:].view(1, 4, 4, 64).permute(0, 3, 1, 2)
    by_torch = F.interpolate(grid, (6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(table[1:], by_torch[0].flatten(1).T)
    with torch.no_grad():
        assert made.model.embed("image", torch.zeros(1, 3, 48, 48)).shape == (1, 24)
    assert made.transforms["image"]["size"] == 48


@pytest.mark.parametrize("name", ["openclip_a", "siglip_a"])
def test_an_image_tower_inflates_to_video(name):
    described, expected = case(name)
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    made = import_weights(state, described["cfg"], num_frames=2)
    assert isinstance(made.model.towers["video"].encoder, VideoTransformer)
    assert clip_error(made.model, described, expected, "image") < 1e-5
    image = clip_inputs(described, cut=False)["image"]
    still = image[:, :, None].repeat(1, 1, 2, 1, 1)
    with torch.no_grad():
        error = (made.model.embed("video", still) - expected["image"]).abs().max()
    assert error < 1e-5


def test_the_key_map_of_the_released_imagebind_covers_its_1311_tensors():
    plan = imagebind.describe(imagebind.huge(), {})
    names = set(plan.ignored)
    with torch.device("meta"):
        for tower in plan.own_towers().values():
            own = instantiate(tower.config).state_dict()
            names |= {name for key in own for name in tower.key_map[key].names}
    assert len(names) == 1311


@pytest.mark.parametrize("name", CLIP_CASES)
def test_text_positions_are_stretched_to_a_longer_context_and_cut_to_a_shorter(name):
    described, _ = case(name)
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    context = described["context"]
    table = import_weights(state, described["cfg"]).model.tower("text").encoder.positions
    longer = import_weights(state, described["cfg"], context_length=2 * context)
    encoder = longer.model.tower("text").encoder
    assert encoder.context_length == 2 * context
    wanted = F.interpolate(table.T[None], 2 * context, mode="linear", align_corners=False)[0].T
    torch.testing.assert_close(encoder.positions, wanted)
    assert any(f"text: positions resized from {context} to" in note for note in longer.notes)
    ids = torch.ones(2, 2 * context, dtype=torch.long)
    assert longer.model.embed("text", ids).isfinite().all()
    shorter = import_weights(state, described["cfg"], context_length=context // 2)
    assert torch.equal(shorter.model.tower("text").encoder.positions, table[: context // 2])
    transform = longer.transforms.get("text")
    assert transform is None or transform["context_length"] == 2 * context


def test_an_open_clip_models_own_patch_dropout_is_kept():
    vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
    text = {"layers": 1, "width": 64, "heads": 1, "context_length": 8, "vocab_size": 20}
    for given in ({}, {"patch_dropout": 0.5}):
        cfg = {"embed_dim": 8, "vision_cfg": {**vision, **given}, "text_cfg": text}
        plan = open_clip.describe(cfg, {}, "open_clip")
        encoder = plan.towers["image"].config["encoder"]
        assert encoder.get("patch_dropout", 0.0) == given.get("patch_dropout", 0.0)
