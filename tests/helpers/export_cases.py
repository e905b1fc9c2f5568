"""A small model of seven modalities with random weights, and real samples, for the exports."""

from __future__ import annotations

import string
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from small_weights import SMALL_BERT, SMALL_LITE, tokenizer_json

from multimodal.config import build
from multimodal.data.decoding.decode import Signal
from multimodal.data.source import Source
from multimodal.inference.embedder import Embedder
from multimodal.inference.load import embedder_of

MODALITIES = ("image", "caption", "text", "audio", "speech", "depth", "imu")
HEAD = {"_target_": "multimodal.models.LinearHead", "_partial_": True, "embed_dim": 16}
TRUNK = {"_target_": "multimodal.models.Transformer", "width": 32, "num_layers": 2, "num_heads": 2}
PATCHES = {"_target_": "multimodal.models.PatchStem", "_partial_": True}


def _tower(target: str, **encoder: Any) -> dict[str, Any]:
    block = {"_target_": f"multimodal.models.{target}", **encoder}
    return {"_target_": "multimodal.models.Tower", "encoder": block, "head": HEAD}


def config(folder: Path) -> Any:
    """Of ViTs, a BERT, a causal text transformer, Whisper, EfficientNet and an IMU transformer."""
    (folder / "bert.json").write_bytes(tokenizer_json())
    lite = {**SMALL_LITE, "in_channels": 1}
    towers = {
        "image": _tower(
            "VisionTransformer",
            image_size=32, in_channels=3, stem={**PATCHES, "patch_size": 8}, trunk=TRUNK,
        ),
        "caption": _tower(
            "HuggingFaceEncoder", config={"model_type": "bert", **SMALL_BERT}, pooling="mean"
        ),
        "text": _tower(
            "TextTransformer",
            vocab_size=8192, context_length=24, trunk={**TRUNK, "causal": True},
        ),
        "audio": _tower(
            "AudioTransformer",
            num_mel_bins=32, num_frames=64, stem={**PATCHES, "patch_size": 16}, trunk=TRUNK,
        ),
        "speech": _tower(
            "WhisperEncoder", num_mel_bins=80, context_length=150, trunk=TRUNK, segments=2
        ),
        "depth": _tower("EfficientNetLite", **lite),
        "imu": _tower(
            "IMUTransformer",
            in_channels=6, length=100, stem={**PATCHES, "patch_size": 10}, trunk=TRUNK,
        ),
    }  # fmt: skip
    standard = {"mean": [0.5] * 3, "std": [0.25] * 3}
    transforms = {
        "image": {"_target_": "multimodal.data.ImageTransform", "size": 32, **standard},
        "caption": {
            "_target_": "multimodal.data.TextTransform", "context_length": 16,
            "instruction": "see {} now",
            "tokenizer": {
                "_target_": "multimodal.data.HuggingFaceTokenizer",
                "name": str(folder / "bert.json"), "canonical": True,
            },
        },
        "text": {
            "_target_": "multimodal.data.TextTransform", "context_length": 24,
            "tokenizer": "samples://tokenizer.json",
        },
        "audio": {
            "_target_": "multimodal.data.AudioTransform", "num_frames": 60, "padded_frames": 64,
            "num_mel_bins": 32, "mean": -6.0, "std": 4.0, "num_clips": 3,
        },
        "speech": {"_target_": "multimodal.data.WhisperTransform", "seconds": 2.0},
        "depth": {
            "_target_": "multimodal.data.DepthTransform", "size": 32, "mean": 0.3, "std": 0.2,
        },
        "imu": {
            "_target_": "multimodal.data.IMUTransform", "rate_hz": 25.0, "length": 100,
            "mean": [0.1] * 6, "std": [2.0] * 6,
        },
    }  # fmt: skip
    return OmegaConf.create(
        {
            "name": "small", "embed_dim": 16, "pairs": {}, "allowed_packages": [],
            "model": {"_target_": "multimodal.models.EmbeddingModel", "towers": towers},
            "data": {"transforms": transforms},
        }
    )  # fmt: skip


def embedder(folder: Path) -> tuple[Embedder, Any]:
    """The model, and its configuration."""
    cfg = config(folder)
    torch.manual_seed(0)
    model = build(cfg, "model")
    for name, parameter in model.named_parameters():  # norms and biases away from 1 and 0
        if parameter.ndim == 1:
            torch.manual_seed(len(name))
            parameter.data += 0.1 * torch.randn_like(parameter)
    temperatures = {frozenset(("image", "text")): 0.05}
    return embedder_of(model, cfg, "cpu", temperatures=temperatures), cfg


def _decoded(manifest: str, member: str, count: int) -> list[Any]:
    source = Source(f"samples://{manifest}.json", {"it": {"member": member}})
    return [source.decode(index, None, ["it"]).values["it"] for index in range(count)]


def real_samples(count: int) -> dict[str, list[Any]]:
    """``count`` of each modality, as a source decodes them, from the sample corpus."""
    sentences = [
        "A photo of 3 dogs, isn't it?", "a red chair  by the WINDOW", "rain",
        "Ünïcode — naïve_café", " ".join(string.ascii_lowercase),
        "<|endoftext|> is a word here", "two\tlines\nof text",
    ]  # fmt: skip
    texts = [f"{sentences[i % len(sentences)]} {i}" for i in range(count)]
    sounds = _decoded("speech", "v1.ogg", count)
    return {
        "image": _decoded("emoji", "noto.webp", count),
        "caption": texts,
        "text": texts,
        "audio": sounds,
        "speech": sounds,
        "depth": [
            getattr(value, "values", value) for value in _decoded("furniture", "depth.png", count)
        ],
        "imu": _decoded("exercise", "imu.npy", count),
    }


def write_files(samples: dict[str, list[Any]], folder: Path) -> dict[str, list[Any]]:
    """The samples as files that the runner reads; texts stay texts."""
    import soundfile

    writers = {
        "image": (".png", lambda path, value: Image.fromarray(value).save(path)),
        "depth": (".png", lambda path, value: Image.fromarray(value).save(path)),
        "imu": (".npy", lambda path, value: np.save(path, value.samples)),
    }
    sound = (".wav", partial(_write_sound, soundfile.write))
    written: dict[str, list[Any]] = {}
    for modality, values in samples.items():
        if modality in ("text", "caption"):
            written[modality] = values
            continue
        ending, write = writers.get(modality, sound)
        paths = [folder / f"{modality}{number}{ending}" for number in range(len(values))]
        for path, value in zip(paths, values, strict=True):
            write(path, value)
        written[modality] = [str(path) for path in paths]
    return written


def _write_sound(write: Any, path: Path, value: Signal) -> None:
    write(path, value.samples.T, round(value.rate), subtype="FLOAT")
