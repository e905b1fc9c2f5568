"""The full-size experiments: published parameter counts, and two steps of each at reduced width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, image_bytes, npy_bytes, video_bytes, write_source
from experiment_helpers import chdir, composed, losses
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from multimodal.cli.train import train
from multimodal.config import ConfigError, check
from multimodal.config.portable import portable_yaml
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import store
from multimodal.inference.checkpoint.load import load_model
from multimodal.inference.imported import count
from multimodal.models.pretrained import imagebind
from multimodal.models.towers import EmbeddingModel
from multimodal.training.anchor import AnchorError

# Parameters with scale (and bias). CLIP and SigLIP: OpenCLIP's table of models; ImageBind: 1.2
# billion in the paper, of which its key map's 1,311 tensors make up exactly this number.
PUBLISHED = {
    "clip_vit_b32": 151_277_313 - 1,
    "clip_vit_l14": 427_616_513 - 1,
    "siglip_vit_b16": 203_155_970 - 2,
    "imagebind_huge": 1_200_781_056,
}
# Of omni_qwen: Qwen3-Embedding 0.6B, SigLIP 2's and Whisper large-v3's encoders.
FROZEN = {"text": 595_776_512, "image": 92_884_224, "audio": 637_009_920}
QUICK = ["siglip_vit_b16", "imagebind_huge", "omni_qwen"]
SLOW = [
    "clip_vit_b32", "clip_vit_l14", "languagebind", "audioclip", "radiology", "dinov2_lit",
    "imagebind_finetune",
]  # fmt: skip
EXPERIMENTS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
SMALL_QWEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48,
              "vocab_size": 20_000}  # fmt: skip
DINOV2 = {"model_type": "dinov2", "hidden_size": 768, "num_hidden_layers": 12,
          "num_attention_heads": 12, "patch_size": 14, "image_size": 518}  # fmt: skip


def on_meta(cfg: DictConfig) -> EmbeddingModel:
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert isinstance(model, EmbeddingModel)
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    with composed(f"+experiment={name}") as cfg:
        assert count(on_meta(cfg)) == PUBLISHED[name]


def test_a_frozen_qwen_with_connectors_trains_little():
    with composed("+experiment=omni_qwen") as cfg:
        cfg.data.transforms.text.tokenizer = TOKENIZER
        model = on_meta(cfg)
    frozen = {
        name: sum(p.numel() for p in tower.parameters() if not p.requires_grad)
        for name, tower in model.towers.items()
    }
    assert frozen == FROZEN
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0.013 < trained / count(model) < 0.014  # as the experiment's first lines say
    learns = {n.split(".")[3] for n, p in model.named_parameters() if p.requires_grad}
    assert learns == {"connector"}


@pytest.mark.heavy
def test_imagebinds_config_is_what_its_importer_builds():
    plan = imagebind.describe(imagebind.huge(), {})
    with composed("+experiment=imagebind_huge") as cfg:
        model = on_meta(cfg)
    for name, tower in plan.own_towers().items():
        with torch.device("meta"):
            theirs = instantiate(tower.config)
        shapes = {key: value.shape for key, value in theirs.state_dict().items()}
        own = {key: value.shape for key, value in model.towers[name].state_dict().items()}
        own.pop("scale", None)
        shapes.pop("scale", None)
        assert own == shapes, name


def test_dinov2_has_its_published_size():
    with composed("+experiment=dinov2_lit", "model.towers.image.encoder.name=null") as cfg:
        cfg.model.towers.image.encoder.config = DINOV2
        image = on_meta(cfg).towers["image"]
    assert count(image) == 86_580_480


def test_words_beside_a_frozen_dinov2_cannot_be_frozen_too():
    words = ("+experiment=dinov2_lit", "model.towers.text.frozen=true")
    with composed(*words) as cfg:  # noqa: SIM117
        with pytest.raises(ConfigError, match=r"no text tower.*text.frozen=false"):
            check(cfg)


def test_words_learn_to_meet_a_frozen_dinov2_on_the_sample_data(tmp_path):
    words = ("+experiment=dinov2_lit", "data=clip_sample", "evaluation=clip_sample", "trainer=cpu",
             "embed_dim=32", "encoder@model.towers.text.encoder=text_small", "data.batch_size=16",
             "model.towers.image.encoder.name=null", "data.num_workers=0", "trainer.max_steps=3",
             "data.val_sources=null", "callbacks.progress=null", f"logger.csv.folder={tmp_path}",
             "trainer.log_every_n_steps=1", "evaluation.sets.emoji_strict=null",
             "evaluation.sets.emoji_unseen=null")  # fmt: skip
    with composed(*words) as cfg, chdir(tmp_path):
        OmegaConf.set_struct(cfg, False)
        cfg.model.towers.image.encoder.config = {
            "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "patch_size": 16, "image_size": 64,
        }  # fmt: skip
        torch.manual_seed(cfg.seed)
        start = instantiate(cfg.model).state_dict()  # as the seed makes it
        results = train(cfg)
        kept = load_model(tmp_path / "checkpoints" / "step=00000003.ckpt")[0].state_dict()
        cfg.model.towers.text.frozen = True
        with pytest.raises(ConfigError, match=r"no text tower.*text.frozen=false"):
            train(cfg)
    assert list(cfg.data.transforms.image.mean) == [0.485, 0.456, 0.406]
    assert len(losses(tmp_path)) == 3
    moved = {name.split(".")[1] for name in start if not torch.equal(start[name], kept[name])}
    assert moved == {"text"}
    assert results is not None
    recalls = {n: v for n, v in results.flat().items() if n.endswith("/r@1")}
    assert set(recalls) == {"emoji_val/image_to_text/r@1", "emoji_val/text_to_image/r@1"}
    assert all(0 <= value <= 1 for value in recalls.values())
    assert (tmp_path / "metrics.json").exists()
    assert (tmp_path / "report.html").exists()


def test_a_full_size_imagebind_without_its_anchor_says_what_to_give(tmp_path):
    words = ("+experiment=imagebind_huge", "trainer=cpu")
    with composed(*words) as cfg, chdir(tmp_path):  # noqa: SIM117
        with pytest.raises(AnchorError, match=r"anchor\.checkpoint is not given: image, text"):
            train(cfg)


TOKENIZER = {"_target_": "multimodal.data.BPETokenizer", "path": "samples://tokenizer.json"}

# Two steps of each source, with the real transforms, schedule and losses.


def reduce(cfg: DictConfig) -> None:
    """Every tower 32 wide with two layers; the anchor and the stems as they are."""
    cfg.embed_dim = 32
    for tower in cfg.model.towers.values():
        if isinstance(tower, str):
            continue
        encoder = tower.encoder
        if "connector" in encoder:
            encoder.connector.hidden = 32
            encoder, tower.pretrained = encoder.encoder, None
        if "model_type" in (encoder.get("config") or {}):  # a language model
            encoder.config = {**encoder.config, **SMALL_QWEN}
            encoder.update(pooling="last", part="whole", swap_audio_axes=False)
            tower.pretrained = None
        elif "trunk" in encoder:
            encoder.trunk.width, encoder.trunk.num_layers, encoder.trunk.num_heads = 32, 2, 2
        else:
            encoder.name = None
            encoder.config = {**DINOV2, "hidden_size": 32, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "image_size": 224}  # fmt: skip
        if "vocab_size" in encoder:
            encoder.vocab_size = 20_000
        if tower.tuning is not None and "num_layers" in tower.tuning:
            tower.tuning.num_layers = 1


def members(random: np.random.Generator, number: int) -> dict[str, bytes]:
    picture = random.integers(0, 255, (48, 64, 3), np.uint8)
    depth = random.integers(500, 5000, (48, 64)).astype(np.uint16)
    sound = random.uniform(-0.5, 0.5, (1, 40_000))
    motion = random.standard_normal((6, 2000)).astype(np.float32)
    return {
        "jpg": image_bytes(picture, "JPEG"),
        "png": image_bytes(picture),
        "depth.png": image_bytes(depth),
        "thermal.png": image_bytes(picture[..., 0]),
        "flac": audio_bytes(sound, 16_000, "FLAC"),
        "mp4": video_bytes(30),
        "imu.npy": npy_bytes(motion),
        "txt": f"a picture of thing number {number}".encode(),
        "json": b'{"rate_hz": 400, "focal_px": 520, "study": "s%d"}' % number,
    }


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    samples = [(f"s{number}", members(random, number)) for number in range(4)]
    folder = tmp_path_factory.mktemp("full_size")
    return write_source(folder, {"train": [samples]}, name="everything")


def anchor_of(cfg: DictConfig, path: Path) -> None:
    """A checkpoint of the run's own towers, reduced, to be its anchor; without adapters."""
    plain = OmegaConf.masked_copy(cfg, list(cfg.keys()))
    for tower in plain.model.towers.values():
        if not isinstance(tower, str):
            tower.tuning = None
    plain.anchor, plain.logger = None, None
    torch.manual_seed(5)
    model = instantiate(plain.model)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"state_dict": state, "config": portable_yaml(plain), "global_step": 0}
    checkpoint_file.write_atomically(content, path)
    cfg.anchor.checkpoint = str(path)


@pytest.mark.heavy
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps_of_every_source(name, shards, tmp_path):
    words = (f"+experiment={name}", "trainer=cpu", "callbacks.progress=null", "data.num_workers=0",
             f"logger.csv.folder={tmp_path}", "trainer.log_every_n_steps=1",
             "callbacks.checkpoint.every_n_train_steps=null")  # fmt: skip
    with composed(*words) as cfg, chdir(tmp_path):
        OmegaConf.set_struct(cfg, False)
        reduce(cfg)
        cfg.data.batch_size = 2
        for source in cfg.data.sources.values():
            source.manifest, source.batch_size, source.repeat = str(shards), 2, 1.0
        if "text" in cfg.data.transforms:
            connects = any(
                "connector" in t.encoder for t in cfg.model.towers.values() if "encoder" in t
            )
            cfg.data.transforms.text.tokenizer = TOKENIZER if connects else TOKENIZER["path"]
        steps = 2 * len(cfg.data.sources)
        cfg.trainer.max_steps = steps
        if cfg.anchor is not None:
            anchor_of(cfg, tmp_path / "anchor.ckpt")
        check(cfg)
        train(cfg)
    seen = losses(tmp_path)
    assert sorted(seen) == list(range(1, steps + 1))
    assert all(np.isfinite(float(loss)) for loss in seen.values())
    kept = store.read(tmp_path / "checkpoints" / f"step={steps:08d}.ckpt")["state_dict"]
    _moved_what_learns(cfg, kept, tmp_path / "anchor.ckpt")


def _moved_what_learns(cfg: DictConfig, kept: dict, anchor: Path) -> None:
    if not anchor.exists():
        return
    before = store.read(anchor)["state_dict"]
    for name, tower in cfg.model.towers.items():
        if isinstance(tower, str):
            continue
        own = {key: value for key, value in before.items() if f".towers.{name}." in key}
        there = {key.replace(".base_layer", ""): value for key, value in kept.items()}
        same = [torch.equal(value, there[key]) for key, value in own.items()]
        if tower.frozen:
            assert all(same), name
        elif name in cfg.anchor.towers:  # under adapters only the head moves
            moved = [key for key, equal in zip(own, same, strict=True) if not equal]
            assert moved == [f"model.towers.{name}.head.projection.weight"]
