"""Towers filled from the catalogue, on small random weights in the layout of the real ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pretrained_helpers import case, foreign_state
from safetensors.torch import save_file
from small_weights import SMALL_LITE, lite_state

from multimodal.config import ConfigError, build, check, config_dir
from multimodal.config.composing.catalogue import Entry, Use, entries, entry, names
from multimodal.inference.pretrained import towers
from multimodal.inference.pretrained.towers import fill_towers, pretrained_names
from multimodal.models.towers import EmbeddingModel, Tower


def model_of(cfg: DictConfig) -> EmbeddingModel:
    model = build(cfg, "model")
    assert isinstance(model, EmbeddingModel)
    return model


def config(modality: str, tower: str, *words: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        made = compose(
            "train",
            [f"+tower@model.towers.{modality}={tower}", "embed_dim=8", *words],
        )
    OmegaConf.set_struct(made, False)
    made.model["_target_"] = "multimodal.models.EmbeddingModel"
    return made


def use(monkeypatch, name: str, path: Path, importer: str, **changes) -> None:
    """The entry of that name lies at ``path``."""
    mine = Entry(
        name=name, purpose="", licence="", origin="", verified=True, importer=importer,
        where=str(path), use=Use(entry(name).use.towers, **changes),
    )  # fmt: skip
    monkeypatch.setattr(towers, "entry", lambda wanted: mine if wanted == name else entry(wanted))


@pytest.fixture
def lite(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    state = lite_state()
    torch.save(state, tmp_path / "weights.pth")
    (tmp_path / "config.json").write_text(str(SMALL_LITE).replace("'", '"'))
    use(monkeypatch, "efficientnet_lite0", tmp_path / "weights.pth", importer="efficientnet")
    return state


def lite_words(modality: str) -> list[str]:
    return [f"model.towers.{modality}.encoder.{key}={value}" for key, value in SMALL_LITE.items()]


def test_an_encoder_is_filled_and_its_new_head_is_said(lite):
    cfg = config("image", "efficientnet_lite0", *lite_words("image"))
    model = model_of(cfg)
    before = model.tower("image").head.projection.weight.clone()
    notes = fill_towers(model, cfg)
    tower = model.tower("image")
    assert torch.equal(tower.encoder.stem[0].weight, lite["_conv_stem.weight"])
    assert torch.equal(tower.encoder.top[1].running_var, lite["_bn1.running_var"])
    assert torch.equal(tower.head.projection.weight, before)
    assert notes == ["image: its head is new, the encoder is pretrained"]
    assert pretrained_names(cfg) == {"image": "efficientnet_lite0"}


@torch.no_grad()
def test_depth_begins_from_the_image_tower_and_sees_a_map_as_a_grey_picture(lite):
    image, depth = (
        config(m, "efficientnet_lite0", *lite_words(m), *more)
        for m, more in (("image", []), ("depth", ["model.towers.depth.encoder.in_channels=1"]))
    )
    models = [model_of(cfg) for cfg in (image, depth)]
    notes = [fill_towers(model, cfg) for model, cfg in zip(models, (image, depth), strict=True)]
    assert any("summed over the colours" in note for note in notes[1])
    maps = torch.randn(2, 1, 16, 16)
    grey = models[0].tower("image").encode(maps.expand(-1, 3, -1, -1)).features
    torch.testing.assert_close(models[1].tower("depth").encode(maps).features, grey)


def test_an_encoder_of_another_size_is_refused_with_what_fits(lite):
    words = lite_words("image")
    words[2] = "model.towers.image.encoder.blocks=[1,1]"  # less than the file has
    cfg = config("image", "efficientnet_lite0", *words)
    with pytest.raises(ConfigError, match="unexpected keys") as caught:
        fill_towers(model_of(cfg), cfg)
    assert "model.towers.image.pretrained" in str(caught.value)
    cfg = config("image", "efficientnet_lite0", *lite_words("image")[:-1])  # wider
    with pytest.raises(ConfigError, match="mismatched shapes"):
        fill_towers(model_of(cfg), cfg)
    cfg = config("image", "efficientnet_lite0", *lite_words("image"))
    cfg.model.towers.image.frozen = True
    with pytest.raises(ConfigError, match="would keep a random one; set frozen=encoder"):
        fill_towers(model_of(cfg), cfg)
    cfg.anchor = {"towers": ["image"]}  # whose run has the head too
    assert fill_towers(model_of(cfg), cfg) == []


def test_a_student_inherits_the_first_blocks_and_an_anchor_brings_its_own(lite):
    words = [*lite_words("image"), "model.towers.image.encoder.first_blocks=2"]
    cfg = config("image", "efficientnet_lite0", *words)
    whole = config("image", "efficientnet_lite0", *lite_words("image"))
    student, teacher = model_of(cfg), model_of(whole)
    fill_towers(student, cfg), fill_towers(teacher, whole)
    own, theirs = (m.tower("image").encoder.state_dict() for m in (student, teacher))
    assert own
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
    assert {name.split(".")[1] for name in own if name.startswith("blocks.")} == {"0", "1"}
    cfg.anchor = {"towers": ["image"]}
    assert pretrained_names(cfg) == {}


BERT = {
    "model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 12,
}  # fmt: skip


def bert_words(**changes) -> list[str]:
    settings = {**BERT, **changes}
    return ["~model.towers.text.encoder.config"] + [
        f"+model.towers.text.encoder.config.{key}={value}" for key, value in settings.items()
    ]


@torch.no_grad()
def test_a_model_of_transformers_is_filled_and_its_checkpoint_needs_no_folder(
    tmp_path, monkeypatch
):
    torch.manual_seed(0)
    theirs = transformers.BertModel(
        transformers.BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"})
    ).eval()
    theirs.save_pretrained(tmp_path)
    use(monkeypatch, "minilm", tmp_path, importer="transformers", encoder={"pooling": "mean"})
    cfg = config("text", "pretrained", *bert_words())
    model = model_of(cfg)
    fill_towers(model, cfg)
    ids = torch.randint(1, 50, (3, 7))
    features = model.tower("text").eval().encode(ids).features
    torch.testing.assert_close(features, theirs(ids).last_hidden_state.mean(1))
    assert cfg.model.towers.text.encoder.name is None
    # The number of heads does not show in any shape.
    other = config("text", "pretrained", *bert_words(num_attention_heads=4))
    with pytest.raises(ConfigError, match="num_attention_heads: 2 there, 4 here"):
        fill_towers(model_of(other), other)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
@torch.no_grad()
def test_a_tower_with_adapters_is_filled_under_them(tuning, tmp_path, monkeypatch):
    """By weights of transformers, and by those of a key map; adapters begin as the identity."""
    torch.manual_seed(0)
    settings = {k: v for k, v in BERT.items() if k != "model_type"}
    theirs = transformers.BertModel(transformers.BertConfig(**settings)).eval()
    theirs.save_pretrained(tmp_path / "bert")
    tuned = [f"+tuning@model.towers.text.tuning={tuning}", "model.towers.text.frozen=false"]
    pooling = {"pooling": "mean"}
    use(monkeypatch, "minilm", tmp_path / "bert", importer="transformers", encoder=pooling)
    cfg = config("text", "pretrained", *bert_words(), *tuned)
    model = model_of(cfg)
    fill_towers(model, cfg)
    ids = torch.randint(1, 50, (3, 7))
    features = model.tower("text").eval().encode(ids).features
    torch.testing.assert_close(features, theirs(ids).last_hidden_state.mean(1))

    described, _ = case("openclip_a")
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    (tmp_path / "clip").mkdir()
    save_file(state, tmp_path / "clip" / "open_clip_model.safetensors")
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(described["cfg"]))
    use(monkeypatch, "clip_b32", tmp_path / "clip", importer="open_clip")
    plan, _, _, _ = towers.plan_of(state, described["cfg"], "open_clip")
    block = {**plan.own_towers()["text"].config, "frozen": False, "pretrained": "clip_b32"}
    made = []
    for adapters in (None, OmegaConf.to_container(cfg.model.towers.text.tuning)):
        tower = {**block, "tuning": adapters}
        target = "multimodal.models.EmbeddingModel"
        cfg = OmegaConf.create({"model": {"_target_": target, "towers": {"text": tower}}})
        made.append(model_of(cfg))
        fill_towers(made[-1], cfg)
    ids = torch.randint(1, 50, (2, described["context"]))
    plain, with_adapters = (each.tower("text").eval().encode(ids).features for each in made)
    torch.testing.assert_close(with_adapters, plain)
    assert any("lora_A" in name for name in made[1].state_dict())


def test_settings_that_show_in_no_shape_are_compared(tmp_path, monkeypatch):
    described, _ = case("openclip_a")
    state = foreign_state(described["shapes"], described["seed"], described["std"])
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described["cfg"]))
    use(monkeypatch, "clip_b32", tmp_path, importer="open_clip")
    plan, _, _, _ = towers.plan_of(state, described["cfg"], "open_clip")
    block = plan.own_towers()["text"].config
    tower = {**block, "frozen": False, "pretrained": "clip_b32"}
    cfg = OmegaConf.create(
        {"model": {"_target_": "multimodal.models.EmbeddingModel", "towers": {"text": tower}}}
    )
    model = model_of(cfg)
    assert fill_towers(model, cfg) == []  # its head fits, and is filled
    own = model.tower("text").head.projection.weight
    assert torch.equal(own, state["text_projection"].T)
    cfg.model.towers.text.encoder.context_length = 2 * described["context"]
    longer = model_of(cfg)
    notes = fill_towers(longer, cfg)
    assert any("positions resized" in note for note in notes)
    cfg.model.towers.text.encoder.trunk.causal = False
    with pytest.raises(ConfigError, match=r"trunk\.causal: True there, False here"):
        fill_towers(model_of(cfg), cfg)


def smaller(settings: dict) -> dict:
    """A configuration of the same kind that is quickly built."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "num_frames": 2,
        "tubelet_size": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16, "max_length": 32,
        "num_mel_bins": 16, "vocab_size": 60, "max_position_embeddings": 32, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    }  # fmt: skip
    if settings["model_type"] == "clap":
        sound = {
            "hidden_size": 32, "num_mel_bins": 8, "spec_size": 32, "window_size": 2,
            "depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16,
        }  # fmt: skip
        words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "intermediate_size": 16, "vocab_size": 60, "pad_token_id": 0}  # fmt: skip
        return {"model_type": "clap", "audio_config": sound, "text_config": words}
    known = transformers.AutoConfig.for_model(settings["model_type"]).to_dict()
    return {**settings, **{key: value for key, value in sizes.items() if key in known}}


UNCHANGED = [one.name for one in entries() if one.importer == "transformers"]


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_folder_of_every_model_that_runs_unchanged_fills_its_tower(name, tmp_path, monkeypatch):
    one = entry(name)
    settings = smaller(dict(one.use.encoder["config"]))
    kind = settings.pop("model_type")
    torch.manual_seed(0)
    theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings))
    theirs.save_pretrained(tmp_path)
    use(monkeypatch, name, tmp_path, importer="transformers", encoder=one.use.encoder)
    (modality,) = one.use.towers
    cfg = config(modality, "pretrained", f"model.towers.{modality}.pretrained={name}")
    assert check_config(cfg, modality)["model_type"] == kind
    cfg.model.towers[modality].encoder.config = {"model_type": kind, **settings}
    model = model_of(cfg)
    fill_towers(model, cfg)
    encoder = model.tower(modality).encoder
    digests = [
        {hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in module.state_dict().values()}
        for module in (encoder.model, theirs)
    ]
    assert digests[0] <= digests[1]
    assert len(encoder.state_dict()) > 5


def check_config(cfg: DictConfig, modality: str) -> dict:
    resolved = OmegaConf.to_container(cfg.model.towers[modality].encoder, resolve=True)
    return resolved["config"]


LARGE = {"clip_l14", "imagebind_huge", "openclip_h14", "qwen3_embedding", "videomae_b"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in names()],
)
def test_an_entry_names_towers_and_transforms_that_are_there_and_build(name):
    one = entry(name)
    groups = config_dir()
    for modality, tower in one.use.towers.items():
        assert (groups / "tower" / f"{tower}.yaml").is_file()
        words = [word for word in one.use.overrides if f".{modality}." in word]
        words += [f"model.towers.{modality}.pretrained={name}", "embed_dim=768"]
        cfg = config(modality, tower, *words)
        with torch.device("meta"):
            made = model_of(cfg).tower(modality)
        assert isinstance(made, Tower)
    for transform in one.use.transforms.values():
        assert (groups / "data" / "transform" / f"{transform}.yaml").is_file()
    assert one.licence
    assert one.origin.startswith("https://")


def experiment(*words: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["+experiment=clip_scratch", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.towers.image.pretrained=minilmm"], "did you mean 'minilm'"),
        (
            ["tower@model.towers.image=efficientnet_lite0"],
            "data/transform@data.transforms.image=image_lite0",
        ),
    ],
)
def test_an_unknown_entry_and_inputs_of_another_kind_are_problems_of_the_config(words, message):
    with pytest.raises(ConfigError, match=message):
        check(experiment(*words))
