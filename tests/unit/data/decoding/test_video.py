from __future__ import annotations

import numpy as np
import pytest
import torch
from data_helpers import image_bytes, video_bytes, write_source
from loader_helpers import evaluation_loader

from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.decoding.video import Video
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.rand_augment import rand_augment
from multimodal.data.transforms.video import VideoTransform

pytest.importorskip("av")
PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}


def levels(frames: np.ndarray) -> list[int]:
    """Which frames these are, by the grey level of the right half."""
    right = frames[:, :, frames.shape[2] * 3 // 4 :].astype(float)
    return [round(level / 8) for level in right.mean((1, 2, 3))]


@pytest.mark.parametrize("container", ["mp4", "avi", "matroska"])
def test_frames_are_those_shown_at_the_times_asked_for(container):
    extension = "mkv" if container == "matroska" else container
    video = decode(f"clip.{extension}", video_bytes(20, container=container), Limits())
    assert isinstance(video, Video)
    assert (video.height, video.width) == (32, 32)
    assert abs(video.seconds - 2.0) < 0.15
    assert levels(video.frames([0.05, 0.55, 1.05, 1.95])) == [0, 5, 10, 19]
    assert levels(video.frames([1.25, 1.25])) == [12, 12]
    assert levels(video.frames([1.85, 5.0, 9.0])) == [18, 19, 19]


def test_a_video_of_one_frame_stands_still():
    video = decode("mp4", video_bytes(1), Limits())
    clip = VideoTransform(16, 4, 2.0, **PLAIN)(video, SampleRNG(0, 0, "s", 0, 0))
    assert clip.shape == (3, 4, 16, 16)
    assert torch.equal(clip[:, 0], clip[:, 3])


def test_clips_are_spread_or_drawn():
    video = decode("mp4", video_bytes(20), Limits())
    transform = VideoTransform(32, 2, 0.4, **PLAIN, clips=3)
    whole = (transform(video, None) * 255).permute(0, 2, 3, 4, 1).numpy()
    assert whole.shape == (3, 2, 32, 32, 3)
    assert [levels(clip) for clip in whole] == [[3, 5], [9, 11], [14, 16]]
    assert transform(video, SampleRNG(0, 0, "s", 0, 0)).shape == (3, 2, 32, 32)
    single = VideoTransform(32, 2, 0.4, **PLAIN)
    drawn = {
        tuple(levels((single(video, SampleRNG(0, e, "s", 0, 0)) * 255).permute(1, 2, 3, 0).numpy()))
        for e in range(12)
    }
    assert len(drawn) > 3
    assert all(second - first == 2 for first, second in drawn)
    assert torch.equal(
        single(video, SampleRNG(0, 1, "s", 0, 0)), single(video, SampleRNG(0, 1, "s", 0, 0))
    )


class Still(Video):
    """A frame a second, decoded already."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(b"", "mp4", *pixels.shape[1:3], float(len(pixels)), 1.0)
        object.__setattr__(self, "pixels", pixels)

    def frames(self, times):
        return self.pixels[[int(time) for time in times]]


def test_crops_go_from_one_end_of_the_longer_side_to_the_other():
    frames = np.zeros((4, 32, 80, 3), np.uint8)
    frames[...] = np.arange(80)[:, None] * 3
    frames += np.arange(4, dtype=np.uint8)[:, None, None, None]  # and each is a little lighter
    for seen in (frames, frames.transpose(0, 2, 1, 3)):
        video = Still(seen)
        views = VideoTransform(32, 2, 2.0, **PLAIN, clips=2, crops=3)(video, None)
        assert views.shape == (6, 3, 2, 32, 32)
        middle = VideoTransform(32, 2, 2.0, **PLAIN, clips=2)(video, None)
        assert torch.equal(views[1::3], middle)
        for number, start in enumerate((0, 24, 48)):
            for clip, places in enumerate(([1, 2], [2, 3])):
                part = frames[places, :, start : start + 32]
                part = part if seen is frames else part.transpose(0, 2, 1, 3)
                expected = torch.from_numpy(part.transpose(3, 0, 1, 2)) / 255
                torch.testing.assert_close(views[3 * clip + number], expected)
        assert VideoTransform(32, 2, 2.0, **PLAIN, crops=3)(video, None).shape == (3, 3, 2, 32, 32)
        drawn = VideoTransform(32, 2, 2.0, **PLAIN, crops=3)(video, SampleRNG(0, 0, "s", 0, 0))
        assert drawn.shape == (3, 2, 32, 32)
    with pytest.raises(ValueError, match="crops=0 must be at least 1"):
        VideoTransform(32, 2, 2.0, **PLAIN, crops=0)


def test_all_frames_and_the_picture_beside_them_have_one_crop_and_mirroring():
    video = decode("mp4", video_bytes(4, size=64), Limits())
    crop = {"scale": [0.3, 0.8], "flip": 0.5}
    clips = VideoTransform(16, 2, None, **PLAIN, **crop)
    pictures = ImageTransform(16, [0.0] * 3, [1.0] * 3, **crop)
    assert clips.geometry == pictures.geometry
    frame = video.frames([0.15])[0]  # as the first of two in 0.4 s
    for index in range(8):
        rng = SampleRNG(0, 0, "s", index, 0)
        clip, picture = clips(video, rng), pictures(frame, rng)
        assert (clip[:, 0] - picture).abs().max() < 0.03


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>", "corrupt"),
        (video_bytes(5)[:200], None),  # either of two, by FFmpeg's version
        (video_bytes(0), None),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "corrupt"),
    ],
)
def test_bad_videos_are_bad_samples(tmp_path, data, reason):
    samples = [(f"k{n}", {"mp4": video_bytes(3) if n != 1 else data}) for n in range(3)]
    path = write_source(tmp_path, {"train": [samples]}, fields={"mp4": {"kind": "video"}})
    source = Source(str(path), {"video": {"member": "mp4"}})
    transforms = {"video": VideoTransform(8, 2, None, **PLAIN)}
    loader = evaluation_loader(source, transforms, None, 3, max_bad_fraction=1.0)
    (batch,) = loader
    assert batch.keys == ["k0", "k2"]
    assert batch.inputs["video"].shape == (2, 3, 2, 8, 8)
    (found,) = loader.counter.reasons
    assert found == reason or (reason is None and found in ("empty", "corrupt"))


def test_videos_have_limits_from_their_headers():
    data = video_bytes(20)
    for limits, name in (
        (Limits(max_pixels=1000), "max_pixels"),
        (Limits(max_video_seconds=1), "max_video_seconds"),
    ):
        with pytest.raises(DecodeError, match=name) as caught:
            decode("mp4", data, limits)
        assert caught.value.reason == "too_large"


# RandAugment


def test_rand_augment_changes_pictures_by_its_draw_alone():
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    transform = ImageTransform(24, [0.0] * 3, [1.0] * 3, augment_operations=2)
    draws = [SampleRNG(0, epoch, "s", 0, 0) for epoch in range(20)]
    results = [transform(picture, rng) for rng in draws]
    assert len({tuple(result.flatten().tolist()) for result in results}) > 15
    assert all(torch.equal(transform(picture, d), r) for d, r in zip(draws, results, strict=True))
    assert all(0 <= result.min() <= result.max() <= 1 for result in results)
    plain = ImageTransform(24, [0.0] * 3, [1.0] * 3)
    assert torch.equal(transform(picture, None), plain(picture, None))


def test_without_spatial_changes_nothing_moves():
    picture = np.zeros((24, 24, 3), np.uint8)
    picture[4:9, 13:20] = 255
    for seed in range(60):
        random = np.random.default_rng(seed)
        changed = rand_augment(picture, 1, 10, spatial=False, random=random).astype(int)
        inside, outside = changed[5:8, 14:19], changed[12:, :10]
        assert np.ptp(inside) == np.ptp(outside) == 0
    with pytest.raises(ValueError, match="augment_magnitude in"):
        ImageTransform(8, [0.0] * 3, [1.0] * 3, augment_magnitude=11)


def test_a_reduced_jpeg_is_nearly_the_same_picture():
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    photo = Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)
    data = image_bytes(np.asarray(photo), "JPEG", quality=95)
    transform = ImageTransform(64, [0.0] * 3, [1.0] * 3, scale=[0.5, 1.0], reduced=True)
    sides = set()
    for epoch in range(12):
        rng = SampleRNG(0, epoch, "s", 0, 0)
        small = decode("jpg", data, Limits(), lambda h, w, d=rng: transform.min_size(d, h, w))
        sides.add(small.shape[0])
        whole = transform(decode("jpg", data, Limits()), rng)
        assert ((transform(small, rng) - whole) ** 2).mean() < 1e-3
    assert 128 in sides <= {128, 256}
