"""A small model of three modalities with random weights, and things to embed with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from data_helpers import audio_bytes, image_bytes

from multimodal.core.batch import EncoderOutput
from multimodal.data.settings import EvaluationData
from multimodal.data.tokenizers.bpe import train_bpe
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.inference.embedder import Embedder
from multimodal.models.towers import EmbeddingModel, Tower

WORDS = ["a red chair", "a small lamp", "rain at night", "two dogs", "<script>alert(1)</script>"]
DIM = 12


class Flat(torch.nn.Module):
    """Features that are a fixed random projection of whatever comes in."""

    width = 32

    def __init__(self, seed: int, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(self.width, size, generator=generator) / size**0.5
        self.weight = torch.nn.Parameter(weight)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> EncoderOutput:
        rows = inputs.flatten(1).float()
        size = self.weight.shape[1]
        rows = torch.nn.functional.pad(rows, (0, max(0, size - rows.shape[1])))[:, :size]
        features = torch.tanh(rows @ self.weight.T)
        return EncoderOutput(features, features[:, None])


class Head(torch.nn.Linear):
    embed_dim = DIM

    def __init__(self, width: int) -> None:
        super().__init__(width, DIM)


def make_embedder(folder: Path, kind: str = "normalized", scale: float | None = None) -> Embedder:
    torch.manual_seed(0)
    train_bpe(WORDS, 300).save(str(folder / "tokenizer.json"))
    towers = {
        name: Tower(Flat(seed, size), Head, scale=scale)
        for seed, (name, size) in enumerate({"image": 192, "audio": 480, "text": 24}.items())
    }
    transforms = {
        "image": ImageTransform(8, [0.5] * 3, [0.5] * 3),
        "audio": AudioTransform(num_frames=30, num_mel_bins=16),
        "text": TextTransform(str(folder / "tokenizer.json"), 24),
    }
    return Embedder(EmbeddingModel(towers).eval(), EvaluationData(transforms, 4), kind)


def write_things(folder: Path) -> Path:
    """Seven pictures, three sounds, five texts."""
    (folder / "words").mkdir(parents=True)
    (folder / "sounds").mkdir()
    random = np.random.default_rng(0)
    for number in range(7):
        pixels = np.kron(random.integers(0, 255, (4, 4, 3)), np.ones((12, 12, 1)))
        (folder / f"{number}.png").write_bytes(image_bytes(pixels.astype(np.uint8)))
    for number in range(3):
        wave = np.sin(np.arange(8000) * 0.03 * (number + 1))[None] * 0.5
        (folder / "sounds" / f"{number}.wav").write_bytes(audio_bytes(wave, 16000))
    for number, text in enumerate(WORDS):
        (folder / "words" / f"{number}.txt").write_text(text)
    return folder
