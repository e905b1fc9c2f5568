"""The sound of a video comes from the same seconds as its frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, video_bytes, write_source
from loader_helpers import evaluation_loader

from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.errors import DecodeError
from multimodal.data.packing.index import index, verify
from multimodal.data.preview import drawable, preview
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source
from multimodal.data.transforms.sound.audio import AudioTransform, SoundChanges, sound_of
from multimodal.data.transforms.video import VideoTransform

pytest.importorskip("av")
PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}
RATE, SECONDS = 16_000, 3.0
TIME = np.arange(int(RATE * SECONDS)) / RATE
LOUDER = (0.9 * TIME / SECONDS * np.sin(2 * np.pi * 500 * TIME))[None]  # tells its time by its peak


def video(container: str = "matroska", count: int = 30):
    extension = {"matroska": "mkv"}.get(container, container)
    data = video_bytes(count, container=container, sound=(LOUDER, RATE))
    return decode(f"clip.{extension}", data, Limits())


def span(samples: np.ndarray) -> tuple[float, float]:
    """The seconds that a part of ``LOUDER`` is from, by its first and last period."""
    period = RATE // 500
    ends = (np.abs(samples[0, :period]).max(), np.abs(samples[0, -period:]).max())
    return ends[0] / 0.9 * SECONDS, ends[1] / 0.9 * SECONDS


@pytest.mark.parametrize("container", ["mp4", "avi", "matroska"])
@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_a_part_of_the_track_is_where_it_was_asked_for(container, place):
    found = video(container).sound(place, 1.0)
    assert found.rate == RATE
    assert found.samples.shape == (1, RATE)
    start, end = span(found.samples)
    assert abs(start - 2 * place) < 0.15
    assert abs(end - start - 1) < 0.2
    whole = video(container).sound(place, 10.0)
    assert abs(whole.samples.shape[1] / RATE - SECONDS) < 0.2


@pytest.mark.parametrize("seconds", [0.4, 1.5])
def test_sound_and_frames_are_of_the_same_seconds(seconds):
    clip = VideoTransform(32, 4, 0.9, **PLAIN)
    seen, starts = video(), set()
    for epoch in [None, *range(12)]:
        rng = None if epoch is None else SampleRNG(0, epoch, "s", 0, 0)
        times = clip.times(seen.seconds, rng)[0]
        levels = (clip(seen, rng) * 255)[:, :, :, 24:].mean((0, 2, 3)) / 8
        torch.testing.assert_close(levels.round() / 10, torch.from_numpy(times).float(),
                                   atol=0.15, rtol=0)  # fmt: skip
        start, end = span(sound_of(seen, rng, seconds).samples)
        starts.add(round(start, 1))
        first, last = float(times[0]) - 0.9 / 8, float(times[-1]) + 0.9 / 8  # of the clip
        inner, outer = (
            ((start, end), (first, last)) if seconds < 0.9 else ((first, last), (start, end))
        )
        assert outer[0] - 0.1 <= inner[0] < inner[1] <= outer[1] + 0.1
    assert len(starts) > 4


def test_the_transform_hears_that_part():
    seen = video()
    settings = {"num_frames": 48, "num_mel_bins": 32, "sample_rate": RATE}
    transform = AudioTransform(**settings)
    rng = SampleRNG(0, 3, "s", 0, 0)
    seconds = transform.num_samples / RATE
    same = AudioTransform(**settings)(sound_of(seen, rng, seconds), rng)
    torch.testing.assert_close(transform(seen, rng), same)
    middle = transform(sound_of(seen, None, seconds), None)
    torch.testing.assert_close(transform(seen, None), middle)
    clips = AudioTransform(**settings, num_clips=3)(seen, None)
    assert clips.shape == (3, 1, 32, 48)
    torch.testing.assert_close(clips[1], middle, atol=0.05, rtol=0.01)
    loudness = clips.amax((1, 2, 3))
    assert loudness[0] < loudness[1] < loudness[2]
    faster = SoundChanges(speeds=(1.5,))
    assert sound_of(seen, rng, 1.0, faster).samples.shape[1] == RATE * 3 // 2


def test_videos_without_sound_are_bad_or_lack_the_modality(tmp_path):
    silent = video_bytes(30)
    with pytest.raises(DecodeError, match="the video has no sound") as caught:
        decode("mp4", silent, Limits()).sound(0.5, 1.0)
    assert caught.value.reason == "missing"
    talking = video_bytes(30, sound=(LOUDER, RATE))
    samples = [("a", {"mp4": talking}), ("b", {"mp4": silent}), ("c", {"mp4": talking})]
    path = write_source(tmp_path, {"train": [samples]}, fields={"mp4": {"kind": "video"}})
    transforms = {
        "video": VideoTransform(8, 2, 1.0, **PLAIN),
        "audio": AudioTransform(num_frames=48, num_mel_bins=32),
    }
    for optional in (False, True):
        entries = {
            "video": {"member": "mp4"},
            "audio": {"member": "mp4", "optional": optional},
        }
        loader = evaluation_loader(
            Source(str(path), entries), transforms, None, 3, max_bad_fraction=1.0
        )
        (batch,) = loader
        assert batch.keys == (["a", "b", "c"] if optional else ["a", "c"])
        assert batch.inputs["audio"].shape == (len(batch.keys), 1, 32, 48)
        assert loader.counter.reasons == ({} if optional else {"missing": 1})
    assert batch.presence["audio"].tolist() == [True, False, True]


def damaged_video() -> tuple[bytes, bytes]:
    """A video whose content, but not its header, is mostly zeros; and the whole one."""
    data = video_bytes(30, sound=(LOUDER, RATE))
    damaged = bytearray(data)
    start = damaged.index(b"mdat") + 4
    damaged[start : start + len(data) * 2 // 3] = bytes(len(data) * 2 // 3)
    return bytes(damaged), data


def test_limits_and_damage():
    damaged, data = damaged_video()
    seen = decode("mp4", data, Limits(max_audio_values=RATE))
    seen.sound(0.5, 1.0)
    with pytest.raises(DecodeError, match="max_audio_values"):
        seen.sound(0.5, 1.1)
    seen.check()
    decode("mp4", video_bytes(5), Limits()).check()
    with pytest.raises(DecodeError):
        decode("mp4", damaged, Limits()).check()


def test_verify_looks_at_frames_and_sound_too(tmp_path):
    damaged, data = damaged_video()
    write_source(tmp_path, {"train": [[("a", {"mp4": data}), ("b", {"mp4": damaged})]]})
    path, _ = index(tmp_path, "made")
    good, problems = verify(path)
    assert good == 1
    assert [problem.key for problem in problems] == ["b"]


def test_videos_are_shown_by_a_frame_and_their_sound():
    seen = video()
    assert preview("video", *drawable("video", seen))[0] == "image/webp"
    assert preview("audio", *drawable("audio", seen))[0] == "audio/flac"
    signal = decode("wav", audio_bytes(LOUDER, RATE), Limits())
    assert drawable("audio", signal)[1] == RATE
