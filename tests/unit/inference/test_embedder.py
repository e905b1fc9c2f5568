"""Embeddings by name, several clips of a sample, and one tower for pictures and video."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, video_bytes, write_source
from torch.nn import functional as F

from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.video import VideoTransform
from multimodal.inference.embedder import Embedder
from multimodal.models.encoders.audio import AudioTransformer
from multimodal.models.encoders.vision import VideoTransformer, VisionTransformer
from multimodal.models.heads import IdentityHead, LinearHead
from multimodal.models.layers.positions import resize_positions
from multimodal.models.layers.stems import PatchStem, inflate
from multimodal.models.layers.transformer import Transformer
from multimodal.models.towers import EmbeddingModel, Tower

HEAD = partial(LinearHead, embed_dim=6)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def audio_tower(scale: float | None = None) -> Tower:
    stem = partial(PatchStem, patch_size=8)
    return Tower(AudioTransformer(8, 16, stem, Transformer(12, 1, 2)), HEAD, scale=scale).eval()


def video_encoder(num_frames: int = 4, patch: int = 2) -> VideoTransformer:
    stem = partial(PatchStem, patch_size=[patch, 8, 8])
    return VideoTransformer(num_frames, 16, 3, stem, Transformer(12, 2, 2)).eval()


def test_the_three_kinds_differ_by_the_norm_and_the_scale():
    tower, inputs = audio_tower(20.0), torch.randn(3, 1, 8, 16)
    raw = tower(inputs, kind="raw")
    torch.testing.assert_close(raw, tower.head(tower.encode(inputs).features))
    normalized = tower(inputs)
    torch.testing.assert_close(normalized, F.normalize(raw, dim=-1))
    torch.testing.assert_close(tower(inputs, kind="scaled"), 20 * normalized)
    model = EmbeddingModel({"audio": tower})
    torch.testing.assert_close(model.embed("audio", inputs, kind="raw"), raw)
    with pytest.raises(ValueError, match="kind='scale': expected one of raw, normalized, scaled"):
        tower(inputs, kind="scale")


def test_a_tower_without_a_scale_has_scale_one_and_keeps_nothing():
    tower, inputs = audio_tower(), torch.randn(3, 1, 8, 16)
    assert torch.equal(tower(inputs, kind="scaled"), tower(inputs))
    assert "scale" not in tower.state_dict()
    assert audio_tower(5.0).state_dict()["scale"] == 5.0
    with pytest.raises(ValueError, match=r"scale=0\.0: expected a number above 0"):
        audio_tower(0.0)


@pytest.mark.parametrize("kind", ["raw", "normalized", "scaled"])
def test_clips_are_embedded_one_by_one_and_averaged(kind):
    tower, clips = audio_tower(20.0), torch.randn(3, 5, 1, 8, 16)
    loop = torch.stack([tower(clips[:, s], kind=kind) for s in range(5)]).mean(0)
    if kind == "normalized":
        loop = F.normalize(loop, dim=-1)
    torch.testing.assert_close(tower(clips, kind=kind), loop)


def test_evaluation_averages_the_clips_of_a_sound_and_the_views_of_a_video(tmp_path):
    pytest.importorskip("av")
    random = np.random.default_rng(0)
    waves = random.uniform(-0.5, 0.5, (5, 1, 8000))
    samples = [
        (f"k{number}", {"wav": audio_bytes(wave, 16_000), "mp4": video_bytes(12 + 2 * number)})
        for number, wave in enumerate(waves)
    ]
    manifest = str(write_source(tmp_path, {"test": [samples]}))
    members = {"audio": {"member": "wav"}, "video": {"member": "mp4"}}
    source = Source(manifest, members, split="test")
    plain = {"mean": [0.5] * 3, "std": [0.2] * 3}
    transforms = {
        "audio": AudioTransform(num_frames=16, num_mel_bins=8, num_clips=3),
        "video": VideoTransform(16, 4, 0.5, **plain, clips=2, crops=3),
    }
    model = EmbeddingModel({"audio": audio_tower(), "video": Tower(video_encoder(), HEAD)}).eval()
    found = Embedder(model, EvaluationData(transforms, 2)).source(source, list(members)).embeddings
    for modality, views in (("audio", 3), ("video", 6)):
        for index, row in enumerate(found[modality]):
            value = source.decode(index, None).values[modality]
            total = torch.zeros(6)
            for view in range(views):
                seen = transforms[modality](value, None)[view]
                total += model.embed(modality, seen[None])[0].detach()
            torch.testing.assert_close(row, F.normalize(total / views, dim=0))
            alone = model.embed(modality, transforms[modality](value, None)[:1])[0]
            assert not torch.allclose(row, alone, atol=1e-4)  # the views differ


def test_a_picture_is_a_clip_that_stands_still():
    encoder, picture = video_encoder(), torch.randn(2, 3, 16, 16)
    clip = picture[:, :, None].repeat(1, 1, 4, 1, 1)
    torch.testing.assert_close(encoder(picture).features, encoder(clip).features)
    clip[:, :, -1] += 1
    assert not torch.allclose(encoder(picture).features, encoder(clip).features)
    with pytest.raises(ValueError, match=r"inputs \[B, 3, 4, 16, 16\], got \[2, 3, 5, 16, 16\]"):
        encoder(torch.zeros(2, 3, 5, 16, 16))


@pytest.mark.parametrize("time_steps", [1, 2])
def test_an_inflated_vit_gives_its_pictures_features(time_steps):
    vit = VisionTransformer(16, 3, partial(PatchStem, patch_size=8), Transformer(12, 2, 2)).eval()
    encoder = video_encoder(num_frames=2 * time_steps)
    state = vit.state_dict()
    state["stem.projection.weight"] = inflate(state["stem.projection.weight"], 2)
    state["positions"] = resize_positions(state["positions"], vit.grid, encoder.grid)
    encoder.load_state_dict(state)
    picture = torch.randn(2, 3, 16, 16)
    if time_steps == 1:  # with more, the same patches come twice: other attention, as it must be
        torch.testing.assert_close(encoder(picture).features, vit(picture).features)
    tokens = encoder.stem(picture[:, :, None].repeat(1, 1, 2 * time_steps, 1, 1))
    for copy in tokens.split(4, dim=1):
        torch.testing.assert_close(copy, vit.stem(picture))


def test_positions_keep_the_class_token_and_a_linear_ramp():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramp = torch.stack([rows, columns], dim=-1).view(64, 2)
    table = torch.cat([torch.tensor([[7.0, -7.0]]), ramp])
    smaller = resize_positions(table, (8, 8), (4, 4))
    assert torch.equal(smaller[0], table[0])
    inner = smaller[1:].view(4, 4, 2)[1:3, 1:3]
    expected = torch.tensor([2.5, 4.5])
    torch.testing.assert_close(inner[:, 0, 0], expected, atol=0.1, rtol=0)
    torch.testing.assert_close(inner[0, :, 1], expected, atol=0.1, rtol=0)
    assert torch.equal(resize_positions(table, (8, 8), (8, 8)), table)
    with pytest.raises(ValueError, match="fewer than the grid"):
        resize_positions(table, (9, 9), (4, 4))
    with pytest.raises(ValueError, match="cannot become"):
        resize_positions(table, (64,), (8, 8))


def test_a_series_of_positions_is_stretched_linearly():
    table = torch.arange(4.0)[:, None]
    longer = resize_positions(table, (4,), (8,))[:, 0]
    torch.testing.assert_close(longer[1:-1], 0.25 + 0.5 * torch.arange(6.0))


def test_positions_in_time_are_repeated_or_interpolated():
    table = torch.randn(5, 3)
    clip = resize_positions(table, (2, 2), (3, 2, 2))
    assert torch.equal(clip[1:].view(3, 4, 3), table[1:].expand(3, 4, 3))
    longer = resize_positions(clip, (3, 2, 2), (6, 2, 2))
    torch.testing.assert_close(longer[1:].view(6, 4, 3), table[1:].expand(6, 4, 3))


def test_an_identity_head_needs_equal_widths():
    features = torch.randn(2, 6)
    assert IdentityHead(6, 6)(features) is features
    with pytest.raises(ValueError, match="set embed_dim=6, or choose head=linear"):
        IdentityHead(6, 8)
