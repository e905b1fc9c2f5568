"""The YAML files of towers and models build what they say; on the meta device, so at no cost."""

from __future__ import annotations

import pytest
import torch
import vlm_cases
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from marks import some
from omegaconf import OmegaConf
from torch import nn

from multimodal.config import config_dir
from multimodal.data.tokenizers.bpe import load_tokenizer
from multimodal.models.towers import EmbeddingModel

IMAGE, DEPTH, AUDIO, IMU, TEXT = (
    OmegaConf.load(config_dir() / "data" / "transform" / f"{name}.yaml")
    for name in ("image_64", "depth_64", "audio_speech", "imu", "text")
)
INPUTS = {  # what the sample corpus's transforms give
    "image": (3, IMAGE.size, IMAGE.size),
    "depth": (1, DEPTH.size, DEPTH.size),
    "audio": (1, AUDIO.num_mel_bins, AUDIO.num_frames),
    "imu": (len(IMU.mean), IMU.length),
    "text": (TEXT.context_length,),
}
PICTURE = (3, 224, 224)
FULL_SIZE = {
    **dict.fromkeys(("vit_b32", "vit_b16", "vit_l14", "vit_b16_siglip", "vit_h14_video"), PICTURE),
    "vit_b16_flexible": (196, 2 + 3 * 16**2),
    "vit_l14_video": (3, 8, 224, 224),
    "text_siglip_b": (64,),
    "audio_imagebind": (1, 128, 204),
    "depth_imagebind": (1, 224, 224),
    "thermal_imagebind": (1, 224, 224),
    "imu_imagebind": (6, 2000),
    "efficientnet_lite0": (3, 96, 64),
    "whisper_tiny": (80, 101),
}
ELSEWHERE = (
    "features", "huggingface", "timm", "dinov2_b", "vit_b16_siglip", "text_siglip_b", "pretrained",
    "connected", "vlm",
)  # fmt: skip
SAMPLE_SIZE = 5_000_000  # parameters of a tower that learns on two cores
TOWERS = sorted(path.stem for path in (config_dir() / "tower").glob("*.yaml"))


def build(*words: str) -> nn.Module:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(overrides=[*words, "+embed_dim=32"])
    with torch.device("meta"):
        built: nn.Module = instantiate(next(iter(cfg.values())))
    return built


def inputs_of(shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 1:
        return torch.zeros(2, *shape, dtype=torch.int64, device="meta")
    return torch.zeros(2, *shape, device="meta")


@pytest.mark.parametrize("name", some((name for name in TOWERS if name not in ELSEWHERE), every=3))
@pytest.mark.parametrize("head", ["linear", pytest.param("mlp", marks=pytest.mark.heavy)])
def test_a_tower_embeds_what_its_modality_brings(name: str, head: str):
    tower = build(f"+tower={name}", f"head@tower.head={head}")
    shape = FULL_SIZE.get(name) or INPUTS[name.split("_")[0]]
    assert tower(inputs_of(shape)).shape == (2, 32)
    if tower.pretrained is None:
        assert (sum(p.numel() for p in tower.parameters()) < SAMPLE_SIZE) == name.endswith("small")


def test_the_text_tower_has_a_row_for_every_token_of_the_tokenizer():
    encoder = build("+encoder=text_small")
    assert encoder.vocab_size == load_tokenizer(TEXT.tokenizer).get_vocab_size()
    assert encoder.context_length == TEXT.context_length


def test_features_need_to_know_how_many():
    tower = build("+tower=features", "tower.encoder.in_features=10", "tower.encoder.width=16")
    assert tower(torch.zeros(2, 10, device="meta")).shape == (2, 32)


def test_pictures_and_texts_share_a_vision_language_model():
    words = (
        "+model=clip_sample",
        "tower@model.towers.text=vlm",
        "model.towers.image=text",
    )
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(overrides=[*words, "+embed_dim=32"])
    encoder = cfg.model.towers.text.encoder
    encoder.update(
        config=vlm_cases.config(), template="{}", tokenizer={"_target_": "vlm_cases.Letters"}
    )
    model = instantiate(cfg.model)
    assert model.embed("text", torch.ones(2, 3, dtype=torch.int64)).shape == (2, 32)
    assert model.embed("image", *vlm_cases.pictures((2, 3), (1, 1))).shape == (2, 32)


@pytest.mark.parametrize(
    ("name", "frozen"), [("clip_sample", set()), ("imagebind_sample", {"image", "text"})]
)
def test_a_model_has_the_towers_of_its_experiment(name: str, frozen: set[str]):
    model = build(f"+model={name}")
    assert isinstance(model, EmbeddingModel)
    assert {modality for modality, tower in model.towers.items() if tower.frozen} == frozen
    for modality in model.towers:
        assert model.embed(modality, inputs_of(INPUTS[modality])).shape == (2, 32)


def test_a_tower_can_be_shared_by_config():
    model = build("+model=clip_sample", "+model.towers.video=image")
    assert model.towers["video"] is model.towers["image"]
