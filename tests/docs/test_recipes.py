"""ImageBind's preprocessing: what its paper and released model say of sound and depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimodal.data.decoding.decode import Signal
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.sound.audio import AudioTransform

DRAW = SampleRNG(0, 0, "s", 0, 0)


def audio(**choices) -> AudioTransform:
    settings = {"num_frames": 198, "padded_frames": 204, "mean": -4.268, "std": 9.138}
    return AudioTransform(num_mel_bins=128, **settings, **choices)


def sound(seconds: float) -> Signal:
    random = np.random.default_rng(0)
    return Signal(random.uniform(-0.5, 0.5, (1, int(16_000 * seconds))).astype(np.float32), 16_000)


def test_frames_beyond_the_sound_are_zeros_before_they_are_standardised():
    result = audio()(sound(2.0), None)
    assert result.shape == (1, 128, 204)
    torch.testing.assert_close(result[..., 198:], torch.full((1, 128, 6), 4.268 / 9.138))
    plain = AudioTransform(num_frames=198, num_mel_bins=128, mean=-4.268, std=9.138)
    assert torch.equal(result[..., :198], plain(sound(2.0), None))
    with pytest.raises(ValueError, match="padded_frames=100 must be at least num_frames=198"):
        AudioTransform(num_frames=198, padded_frames=100)


def test_clips_are_spread_from_the_beginning_to_the_end():
    transform, whole = audio(num_clips=3), sound(10.0)
    clips = transform(whole, None)
    assert clips.shape == (3, 1, 128, 204)
    length = transform.num_samples
    spare = whole.samples.shape[1] - length
    for clip, start in zip(clips, (0, spare // 2, spare), strict=True):
        part = Signal(whole.samples[:, start : start + length], 16_000)
        torch.testing.assert_close(clip, audio()(part, None))
    assert transform.is_random
    drawn = {float(transform(whole, SampleRNG(0, 0, "s", i, 0)).sum()) for i in range(5)}
    assert len(drawn) == 5
    assert transform(whole, DRAW).shape == (1, 128, 204)


def test_taking_the_mean_off_a_clip_changes_nothing():
    # ImageBind subtracts it; every window's own mean is taken off anyway.
    shifted = Signal(sound(2.0).samples + np.float32(0.1), 16_000)
    torch.testing.assert_close(audio()(shifted, None), audio()(sound(2.0), None), atol=1e-3, rtol=0)


def test_disparity_is_baseline_times_focal_length_over_depth():
    transform = DepthTransform(
        4, min_depth_m=0.01, max_depth_m=50, output="stereo", baseline_m=0.075, focal=520.0
    )
    depth = np.array([[500, 1000], [2000, 60_000]], np.uint16).repeat(2, 0).repeat(2, 1)
    result = transform(depth, None)[0]
    expected = 0.075 * 520 / torch.tensor([[0.5, 1.0], [2.0, 50.0]])  # 60 m are beyond the limit
    torch.testing.assert_close(result[::2, ::2], expected)
    for wrong in ({"output": "stereo"}, {"output": "depth", "baseline_m": 0.1, "focal": 1.0}):
        with pytest.raises(ValueError, match="stereo needs both, and only it does"):
            DepthTransform(4, **wrong)
