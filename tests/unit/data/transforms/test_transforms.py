from __future__ import annotations

import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from multimodal.data.decoding.decode import Signal
from multimodal.data.errors import DecodeError
from multimodal.data.loading.workers import one_thread
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.tokenizers.bpe import load_tokenizer, train_bpe
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.geometry import Box, Geometry, crop_and_resize, erase
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.imu import IMUTransform, rotation_matrix
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.data.transforms.thermal import ThermalTransform

pytestmark = pytest.mark.usefixtures("single_thread")

PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def rng(epoch: int = 0, repeat: int = 0) -> SampleRNG:
    return SampleRNG(0, epoch, "made", 0, repeat)


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(["grinning face", "wooden chair", "cat"] * 4, 300).save(str(path))
    return str(path)


def all_transforms(tokenizer_path):
    tone = np.sin(np.arange(20000) / 20)[None].astype(np.float32)
    motion = np.random.default_rng(0).standard_normal((6, 300)).astype(np.float32)
    depth = np.random.default_rng(0).integers(0, 3000, (50, 50)).astype(np.uint16)
    random_crop = {"scale": (0.3, 1.0), "flip": 0.5, "erasing": 0.5}
    return {
        "image": (
            ImageTransform(
                32, **PLAIN, **random_crop, brightness=0.4, contrast=0.4, saturation=0.4
            ),
            picture(),
        ),
        "depth": (DepthTransform(32, **random_crop, distance=0.1, dropout=0.2), depth),
        "thermal": (ThermalTransform(32, maximum=3000, **random_crop), depth),
        "audio": (
            AudioTransform(
                num_frames=98, time_shift=0.2, gain_db=6, speeds=(0.9, 1, 1.1), time_mask=20
            ),
            Signal(tone, 16000),
        ),
        "imu": (
            IMUTransform(50, 128, [0.0] * 6, [1.0] * 6, rotation=10, magnitude=0.1, jitter=0.05),
            Signal(motion, 50),
        ),
        "array": (ArrayTransform([4], noise=0.1), np.arange(4, dtype=np.float16)),
        "text": (TextTransform(tokenizer_path, 16), "wooden chair"),
    }


MODALITIES = ["image", "depth", "thermal", "audio", "imu", "array", "text"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_draw_decides_everything_and_global_generators_nothing(tokenizer_path, modality):
    transform, value = all_transforms(tokenizer_path)[modality]
    copy = pickle.loads(pickle.dumps(transform))
    for chosen in (None, rng(), rng(epoch=1)):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - the generator that must not matter
        first = transform(value, chosen)
        torch.manual_seed(2)
        np.random.seed(2)  # noqa: NPY002
        assert torch.equal(copy(value, chosen), first)
        assert first.is_contiguous()
    if modality != "text":
        results = [transform(value, rng(epoch, repeat)) for epoch in (0, 1) for repeat in (0, 1)]
        assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize("modality", MODALITIES)
def test_values_are_left_as_they_were(tokenizer_path, modality):
    transform, value = all_transforms(tokenizer_path)[modality]
    array = value.samples if isinstance(value, Signal) else value
    before = array if isinstance(array, str) else array.copy()
    if isinstance(array, np.ndarray):
        array.flags.writeable = modality != "array"
    result = transform(value, None)
    transform(value, rng())
    result.zero_()
    assert np.array_equal(array, before)


@pytest.mark.parametrize("modality", MODALITIES)
def test_values_of_another_kind_are_bad_samples(tokenizer_path, modality):
    transforms = all_transforms(tokenizer_path)
    transform = transforms[modality][0]
    for other in {"image": "text", "text": "image"}.get(modality, "text"), "audio":
        if other != modality:
            with pytest.raises(DecodeError, match="expected"):
                transform(transforms[other][1], None)


# Geometry


def test_crops_keep_to_area_ratio_and_picture():
    geometry = Geometry((0.2, 0.6), (0.5, 2.0), 0.5)
    boxes = [geometry.box(rng(epoch), 200, 300) for epoch in range(300)]
    areas = np.array([box.height * box.width / 60_000 for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.19
    assert areas.max() < 0.61
    assert areas.std() > 0.08
    assert ratios.min() > 0.49
    assert ratios.max() < 2.05
    assert np.abs(np.log(ratios)).mean() > 0.2
    for box in boxes:
        assert 0 <= box.top <= 200 - box.height
        assert 0 <= box.left <= 300 - box.width
    assert {box.top for box in boxes} & set(range(60, 140))
    assert 100 < sum(box.flip for box in boxes) < 200


def test_the_same_draw_gives_the_same_part_at_any_resolution():
    geometry = Geometry((0.2, 1.0), (0.75, 1.3333), 0.5)
    for epoch in range(50):
        small, large = geometry.box(rng(epoch), 60, 80), geometry.box(rng(epoch), 480, 640)
        assert small.flip == large.flip
        for a, b in zip(small.__class__.__slots__[:4], large.__class__.__slots__[:4], strict=True):
            assert abs(8 * getattr(small, a) - getattr(large, b)) <= 8


def test_a_share_above_one_shows_the_whole_picture_on_a_border():
    picture = torch.full((3, 20, 20), 7, dtype=torch.uint8)
    geometry = Geometry((2.0, 4.0), (1.0, 1.0), 0.0)
    for epoch in range(50):
        box = geometry.box(rng(epoch), 20, 20)
        assert 28 <= box.height == box.width <= 40
        assert -(box.height - 20) <= box.top <= 0
        assert -(box.width - 20) <= box.left <= 0
        found = crop_and_resize(picture, box, box.height, "bicubic", border=200)
        assert int((found == 7).sum()) == 3 * 20 * 20
        assert int((found == 200).sum()) == 3 * (box.height**2 - 20**2)
        assert found[0, -box.top, -box.left] == 7
    places = {geometry.box(rng(epoch), 20, 20).top for epoch in range(50)}
    assert len(places) > 8


def test_without_a_draw_the_central_square_is_kept():
    geometry = Geometry((0.2, 0.5), (0.75, 1.3333), 1.0)
    assert geometry.box(None, 40, 60) == Box(0, 10, 40, 40)
    assert geometry.box(None, 61, 40) == Box(10, 0, 40, 40)


def test_a_picture_too_long_for_any_crop_gives_its_central_square():
    box = Geometry((0.9, 1.0), (1.0, 1.0), 0.0).box(rng(), 10, 1000)
    assert box == Box(0, 495, 10, 10)


@pytest.mark.parametrize(
    "other", [{"scale": (0, 1)}, {"scale": (0.5, 17)}, {"ratio": (2, 1)}, {"flip": 2}]
)
def test_impossible_geometry_is_rejected(other):
    options = {"scale": (0.5, 1), "ratio": (1, 2), "flip": 0.5} | other
    with pytest.raises(ValueError, match=next(iter(other))):
        Geometry(**options)


@pytest.mark.parametrize("seed", range(8))
def test_image_depth_and_thermal_are_cut_alike(seed):
    # The picture's red channel and the maps show the same ramp: after any crop and flip they must
    # still agree pixel by pixel.
    rows, columns = np.meshgrid(np.arange(96), np.arange(96), indexing="ij")
    ramp = (20 + rows + columns).astype(np.float64)
    image = np.repeat(ramp.astype(np.uint8)[..., None], 3, 2)
    options = {"scale": (0.2, 0.8), "ratio": (0.75, 1.3333), "flip": 0.5}
    cut = ImageTransform(48, **PLAIN, **options, interpolation="bilinear")(image, rng(seed))
    depth = DepthTransform(48, output="depth", max_depth_m=0.3, min_depth_m=0.001, **options)(
        ramp.astype(np.uint16), rng(seed)
    )
    thermal = ThermalTransform(48, maximum=300, **options)(ramp.astype(np.uint16), rng(seed))
    assert (cut[0] * 255 - depth[0] * 300).abs().max() < 1.5
    assert (cut[0] * 255 - thermal[0] * 300).abs().max() < 1.5
    straight = ImageTransform(48, **PLAIN)(image, None)
    assert (cut - straight).abs().max() > 0.02


@pytest.mark.parametrize("make", [DepthTransform, ThermalTransform])
def test_flips_mirror(make):
    depth = np.arange(1, 65, dtype=np.uint16).reshape(8, 8) * 100
    straight, mirrored = make(8)(depth, rng()), make(8, flip=1.0)(depth, rng())
    assert torch.equal(mirrored, straight.flip(-1))
    pixels = picture(32, 32)
    straight = ImageTransform(32, **PLAIN)(pixels, rng())
    assert torch.equal(ImageTransform(32, **PLAIN, flip=1.0)(pixels, rng()), straight.flip(-1))


def test_the_photometric_choice_of_one_does_not_move_the_crop_of_the_other():
    options = {"scale": (0.3, 0.9), "flip": 0.5}
    quiet = DepthTransform(32, **options)
    noisy = DepthTransform(32, **options, distance=0.2)
    depth = np.zeros((64, 64), np.uint16)
    depth[20:40, 10:50] = 1000
    for epoch in range(10):
        shapes = [transform(depth, rng(epoch)) > 0 for transform in (quiet, noisy)]
        assert torch.equal(*shapes)


def test_resizing_is_pillows():
    pixels = picture(90, 90)
    box = Box(11, 7, 60, 52)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for mode, filter_ in (
        ("bicubic", Image.Resampling.BICUBIC),
        ("bilinear", Image.Resampling.BILINEAR),
    ):
        found = crop_and_resize(tensor, box, 32, mode).permute(1, 2, 0).numpy()
        expected = np.array(Image.fromarray(pixels).crop((7, 11, 59, 71)).resize((32, 32), filter_))
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_erasing_sets_a_rectangle_of_the_right_size():
    areas = []
    for seed in range(200):
        ones = torch.ones(2, 50, 50)
        erase(ones, 0.5, np.random.default_rng(seed))
        gone = ones[0] == 0
        assert torch.equal(ones[0], ones[1])
        if gone.any():
            rows, columns = gone.any(1).sum(), gone.any(0).sum()
            assert gone.sum() == rows * columns
            areas.append(float(gone.float().mean()))
    assert 60 < len(areas) < 140
    assert min(areas) > 0.015
    assert max(areas) < 0.36


# Images


def test_an_image_is_standardised():
    pixels = picture(32, 32)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    found = ImageTransform(32, mean, std)(pixels, None)
    expected = (pixels / 255 - mean) / std
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.float32
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_sixteen_bits_are_scaled_not_cut_off():
    gray = np.array([[0, 257 * 128], [65535, 256]], np.uint16)
    found = ImageTransform(2, **PLAIN)(gray, None) * 255
    assert torch.equal(found[0].round(), torch.tensor([[0.0, 128.0], [255.0, 0.0]]))
    assert torch.equal(found[0], found[2])


def test_colour_jitter_is_brightness_then_contrast_then_saturation():
    pixels = picture(32, 32) // 2 + 60  # away from the limits, so that nothing is cut off
    luma = np.array([0.299, 0.587, 0.114])
    transform = ImageTransform(32, **PLAIN, brightness=0.3, contrast=0.3, saturation=0.3)
    for epoch in range(10):
        bright, contrast, colour = 1 + 0.3 * (2 * rng(epoch).stream("image").random(3) - 1)
        expected = pixels * bright
        middle = (expected @ luma).mean()
        expected = middle + contrast * (expected - middle)
        gray = (expected @ luma)[..., None]
        expected = gray + colour * (expected - gray)
        found = transform(pixels, rng(epoch)).permute(1, 2, 0).numpy() * 255
        assert np.abs(found - expected).max() < 1e-3
        image = Image.fromarray(pixels)  # Pillow's own rounds down three times
        image = ImageEnhance.Brightness(image).enhance(bright)
        image = ImageEnhance.Contrast(image).enhance(contrast)
        image = ImageEnhance.Color(image).enhance(colour)
        assert np.abs(found - np.array(image)).max() < 4.5


def test_some_pictures_lose_their_colour():
    transform = ImageTransform(16, **PLAIN, grayscale=0.3)
    gray = 0
    for epoch in range(100):
        result = transform(picture(), rng(epoch))
        gray += bool((result[0] - result[1]).abs().max() < 1e-5)
    assert 15 < gray < 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "nearest"}, "bicubic or bilinear"),
        ({"mean": [0.5]}, "one number per channel"),
        ({"mean": [0.5], "std": [0.5]}, "need 3 numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "std above 0"),
        ({"erasing": 1.5}, "erasing must be between 0 and 1"),
    ],
)
def test_impossible_image_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        ImageTransform(32, **(PLAIN | options))


# Depth and thermal


def test_depth_becomes_disparity_or_a_share_of_the_farthest():
    millimetres = np.array([[0, 500], [2000, 20000]], np.uint16)
    disparity = DepthTransform(2, min_depth_m=0.4, max_depth_m=10)(millimetres, None)
    assert torch.allclose(disparity, torch.tensor([[[0, 0.8], [0.2, 0.04]]]))
    depth = DepthTransform(2, min_depth_m=0.4, max_depth_m=10, output="depth")(millimetres, None)
    assert torch.allclose(depth, torch.tensor([[[0, 0.05], [0.2, 1.0]]]))
    scaled = DepthTransform(2, min_depth_m=0.4, max_depth_m=10, mean=0.5, std=0.1)(
        millimetres, None
    )
    assert torch.allclose(scaled, torch.tensor([[[0, 3.0], [-3.0, -4.6]]]), atol=1e-5)


def test_relative_depth_runs_from_the_nearest_to_the_farthest_point():
    millimetres = np.array([[0, 4000], [4100, 4400]], np.uint16)
    transform = DepthTransform(2, output="relative", std=0.5)
    expected = torch.tensor([[[0, 2.0], [1.6, 0.4]]])
    assert torch.allclose(transform(millimetres, None), expected)
    flat = transform(np.full((2, 2), 700, np.uint16), None)
    assert torch.equal(flat, torch.full((1, 2, 2), 2.0))
    assert torch.equal(transform(np.zeros((2, 2), np.uint16), None), torch.zeros(1, 2, 2))


def test_missing_depth_stays_missing_and_does_not_bleed():
    depth = np.full((64, 64), 1000, np.uint16)
    depth[:, 32:] = 0
    result = DepthTransform(16, min_depth_m=0.5)(depth, None)
    assert torch.equal(result[0, :, 9:], torch.zeros(16, 7))
    measured = result[result != 0]
    assert len(measured) >= 7 * 16
    assert torch.allclose(measured, torch.tensor(0.5), atol=1e-5)  # no halfway values at the edge


def test_depth_that_is_not_a_map_is_a_bad_sample():
    transform = DepthTransform(8, unit_m=1.0)
    for value in (np.full((8, 8), np.inf), np.full((8, 8), np.nan, np.float32)):
        with pytest.raises(DecodeError, match="not_finite"):
            transform(value, None)
    for value in (picture(), np.zeros((0, 8))):
        with pytest.raises(DecodeError, match="expected a depth map"):
            transform(value, None)


def test_depth_augmentation_scales_and_drops():
    depth = np.full((32, 32), 1000, np.uint16)
    transform = DepthTransform(32, min_depth_m=0.1, distance=0.2, dropout=0.5, ratio=(1, 1))
    results = [transform(depth, rng(epoch)) for epoch in range(50)]
    lost = [float((result == 0).float().mean()) for result in results]
    assert 0.15 < np.mean(lost) < 0.35
    assert max(lost) < 0.6
    values = [float(result.max()) for result in results]
    assert 0.083 < min(values) < 0.09 < 0.11 < max(values) < 0.1251


def test_thermal_counts_become_a_standardised_channel():
    counts = np.array([[1000, 2000], [3000, 9000]], np.uint16)
    transform = ThermalTransform(2, minimum=1000, maximum=3000, mean=0.5, std=0.25)
    assert torch.allclose(transform(counts, None), torch.tensor([[[-2.0, 0.0], [2.0, 2.0]]]))
    gray = np.repeat(np.array([[0, 51]], np.uint8)[..., None], 3, 2).repeat(2, 0)
    found = ThermalTransform(2, maximum=255)(gray, None)
    assert torch.allclose(found, torch.tensor([[[0, 0.2], [0, 0.2]]]))


# Audio


def tone(seconds: float, rate: int = 16000, channels: int = 1, hz: float = 700.0) -> Signal:
    time = np.arange(round(seconds * rate)) / rate
    return Signal(
        np.repeat(np.sin(2 * np.pi * hz * time)[None], channels, 0).astype(np.float32), rate
    )


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("chosen", [None, rng()])
def test_sounds_of_any_length_give_the_same_shape(seconds, chosen):
    transform = AudioTransform(num_frames=98, num_mel_bins=64, time_shift=0.3, speeds=(0.9, 1.1))
    result = transform(tone(seconds), chosen)
    assert result.shape == (1, 64, 98)
    assert result.isfinite().all()


def test_a_short_sound_is_in_the_middle_and_a_long_one_cut_to_its_middle():
    transform = AudioTransform(num_frames=98, num_mel_bins=64)
    floor = float(np.log(np.finfo(np.float32).eps))
    loud = transform(tone(0.2), None)[0].max(0).values > floor + 1
    frames = loud.nonzero().flatten()
    assert abs(int(frames[0]) + int(frames[-1]) - 97) <= 1
    assert 18 <= len(frames) <= 24
    long = tone(3.0).samples.copy()
    long[:, :16000] = long[:, 32000:] = 0
    assert (transform(Signal(long, 16000), None)[0].max(0).values > floor + 1)[2:-2].all()


def test_stereo_at_another_rate_sounds_like_mono_at_ours():
    transform = AudioTransform(num_frames=98, num_mel_bins=64)
    expected = transform(tone(1.5), None)
    found = transform(tone(1.5, 44100, 2), None)
    strong = expected > expected.max() - 8
    assert (found - expected)[strong].abs().max() < 0.05


def test_time_shift_moves_and_gain_scales():
    shifting = AudioTransform(num_frames=198, num_mel_bins=64, time_shift=0.5)
    floor = float(np.log(np.finfo(np.float32).eps))
    firsts = []
    for epoch in range(40):
        loud = shifting(tone(0.3), rng(epoch))[0].max(0).values > floor + 1
        firsts.append(int(loud.nonzero()[0]))
    middle = (198 - 30) / 2
    assert min(firsts) >= middle - 53
    assert max(firsts) <= middle + 53
    assert max(firsts) - min(firsts) > 70
    louder = AudioTransform(num_frames=98, num_mel_bins=64, gain_db=6)
    peaks = [float(louder(tone(1.0), rng(epoch)).max()) for epoch in range(40)]
    reach = np.log(10 ** (6 / 10))  # of log power
    middle = float(louder(tone(1.0), None).max())
    assert max(abs(peak - middle) for peak in peaks) < reach + 0.01
    assert max(peaks) - min(peaks) > reach


def test_speed_changes_pitch_and_length():
    transform = AudioTransform(num_frames=98, num_mel_bins=80, speeds=(0.8,))
    slow = transform(tone(1.0), rng())[0].mean(1).argmax()
    plain = transform(tone(1.0), None)[0].mean(1).argmax()
    lower = (
        AudioTransform(num_frames=98, num_mel_bins=80)(tone(1.0, hz=560), None)[0].mean(1).argmax()
    )
    assert slow == lower < plain


def test_masks_are_bands_of_the_mean():
    transform = AudioTransform(num_frames=98, num_mel_bins=64, frequency_mask=10, time_mask=20)
    rows, columns = set(), set()
    for epoch in range(60):
        masked = transform(tone(1.0), rng(epoch))[0] == 0
        rows.add(int(masked.all(1).sum()))
        columns.add(int(masked.all(0).sum()))
    assert (min(rows), max(rows)) == (0, 10)
    assert min(columns) <= 2
    assert 17 <= max(columns) <= 20
    assert not (transform(tone(1.0), None) == 0).any()


def test_bad_sounds_are_bad_samples():
    transform = AudioTransform(num_frames=10)
    nan = tone(0.1).samples.copy()
    nan[0, 5] = np.nan
    for value, message in (
        (Signal(nan, 16000), "not_finite"),
        (Signal(tone(0.1).samples, 3), "sampling rate of 3 Hz"),
        (Signal(np.zeros((1, 0), np.float32), 16000), "expected a sound"),
    ):
        with pytest.raises(DecodeError, match=message):
            transform(value, None)


# Motion


def test_motion_is_standardised_cut_or_filled():
    mean, std = [1.0, 2, 3, 4, 5, 6], [1.0, 2, 1, 2, 1, 2]
    transform = IMUTransform(50, 4, mean, std)
    samples = np.arange(36, dtype=np.float32).reshape(6, 6)
    expected = (samples - np.array(mean)[:, None]) / np.array(std)[:, None]
    found = transform(Signal(samples, 50), None)
    assert np.allclose(found.numpy(), expected[:, 1:5])
    short = transform(Signal(samples[:, :3], 50), None).numpy()
    assert np.allclose(short[:, :3], expected[:, :3])
    assert (short[:, 3] == 0).all()


@pytest.mark.parametrize("rate", [10, 20, 100, 33.3])
def test_motion_of_another_rate_is_interpolated(rate):
    at = np.arange(int(4 * rate)) / rate
    line = np.repeat((3 * at + 1)[None], 6, 0).astype(np.float32)
    found = IMUTransform(50, 100, [0.0] * 6, [1.0] * 6)(Signal(line, rate), None)
    steps = np.diff(found[0].numpy())
    assert np.allclose(steps, 3 / 50, atol=1e-4)


def test_training_crops_of_motion_differ():
    samples = np.repeat(np.arange(100, dtype=np.float32)[None], 6, 0)
    transform = IMUTransform(50, 20, [0.0] * 6, [1.0] * 6)
    starts = {float(transform(Signal(samples, 50), rng(epoch))[0, 0]) for epoch in range(200)}
    assert starts >= {0.0, 80.0}
    assert min(starts) == 0
    assert max(starts) == 80


def test_rotation_turns_both_sensors_alike_and_keeps_lengths():
    samples = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    samples[3:] = samples[:3]
    transform = IMUTransform(50, 50, [0.0] * 6, [1.0] * 6, rotation=30)
    turned = transform(Signal(samples, 50), rng()).numpy()
    assert np.allclose(turned[:3], turned[3:], atol=1e-5)
    assert np.allclose(
        np.linalg.norm(turned[:3], axis=0), np.linalg.norm(samples[:3], axis=0), atol=1e-4
    )
    assert np.abs(turned - samples).max() > 0.01


def test_rotation_reaches_its_limit_and_no_farther():
    transform = IMUTransform(50, 50, [0.0] * 6, [1.0] * 6, rotation=30)
    samples = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    largest = []
    for epoch in range(60):
        turned = transform(Signal(samples, 50), rng(epoch)).numpy()
        cosines = (turned[:3] * samples[:3]).sum(0) / (samples[:3] ** 2).sum(0)
        largest.append(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
    assert 27 < max(largest) < 30.01
    assert min(largest) < 5


def test_a_quarter_turn_about_z():
    matrix = rotation_matrix(np.array([0.0, 0.0, 2.0]), np.pi / 2)
    assert np.allclose(matrix @ [1, 0, 0], [0, 1, 0])


def test_bad_motion_is_a_bad_sample():
    transform = IMUTransform(50, 20, [0.0] * 6, [1.0] * 6)
    with pytest.raises(DecodeError, match=r"shape: expected \[6, T\], got \[3, 30\]"):
        transform(Signal(np.zeros((3, 30), np.float32), 50), None)
    nan = np.full((6, 30), np.nan, np.float32)
    with pytest.raises(DecodeError, match="not_finite"):
        transform(Signal(nan, 50), None)


# Arrays


def test_arrays_are_checked_and_standardised():
    transform = ArrayTransform([2, 2], mean=1.0, std=2.0)
    found = transform(np.array([[1, 3], [5, 7]], np.int16), None)
    assert torch.equal(found, torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    with pytest.raises(DecodeError, match=r"expected an array \(2, 2\), got \(4,\)"):
        transform(np.zeros(4), None)
    with pytest.raises(DecodeError, match="not_finite"):
        transform(np.full((2, 2), np.inf), None)


# Texts


def test_texts_are_framed_cut_and_padded(tokenizer_path):
    transform = TextTransform(tokenizer_path, 6)
    tokenizer = transform.tokenizer
    start, end = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    short, long = transform("cat", None), transform("a grinning wooden cat face " * 5, None)
    assert short[0] == long[0] == start
    assert short[-1] == long[-1] == end
    assert len(short) == 3
    assert len(long) == 6
    ids, mask = transform.collate([short, long])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[*short.tolist(), 0, 0, 0], long.tolist()]
    assert mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert load_tokenizer(tokenizer_path).decode(short.tolist()) == "cat"


def test_a_book_in_place_of_a_caption_is_cut(tokenizer_path):
    transform = TextTransform(tokenizer_path, 77)
    words = "an unusual caption, with words 🙂 not seen " * 4000
    began = time.process_time()
    ids = transform(words, None)
    print(f"{len(words)} characters: {time.process_time() - began:.2f} s")
    assert len(ids) == 77
    assert ids[-1] == transform.tokenizer.vocab_size - 1


def test_texts_without_words_are_bad_samples(tokenizer_path):
    with pytest.raises(DecodeError, match="no characters"):
        TextTransform(tokenizer_path, 8)("  \n ", None)
    with pytest.raises(ValueError, match="at least 3"):
        TextTransform(tokenizer_path, 2)


def test_an_instruction_stands_before_every_text(tokenizer_path):
    plain = TextTransform(tokenizer_path, 77)
    told = TextTransform(tokenizer_path, 77, instruction="the picture shows")
    text = plain("a wooden chair", None).tolist()
    before = plain.tokenizer.encode("the picture shows")
    assert told("a wooden chair", None).tolist() == [text[0], *before, *text[1:]]
    short = TextTransform(
        tokenizer_path, len(before) + 3, instruction="the picture shows", drop=0.9
    )
    cut = short("a wooden chair " * 9, SampleRNG(0, 0, "s", 0, 0)).tolist()
    assert cut[1 : 1 + len(before)] == before
    assert len(cut) == len(before) + 3
    with pytest.raises(ValueError, match=r"instruction: its \d+ tokens leave no room"):
        TextTransform(tokenizer_path, len(before) + 2, instruction="the picture shows")


def test_an_instruction_stands_around_its_place(tokenizer_path):
    plain = TextTransform(tokenizer_path, 77)
    start, *text, end = plain("a wooden chair", None).tolist()
    before, after = map(plain.tokenizer.encode, ("the picture", "in a word"))
    told = TextTransform(tokenizer_path, 77, instruction="the picture{}in a word")
    framed = [start, *before, *text, *after, end]
    assert told("a wooden chair", None).tolist() == framed
    assert told.token_counts(np.array([4])).tolist() == [len(framed) - len(text) + 1]
    size = len(framed) - len(text) + 1
    short = TextTransform(tokenizer_path, size, instruction="the picture{}in a word")
    cut = short("a wooden chair", None).tolist()
    assert cut == [start, *before, text[0], *after, end]
    with pytest.raises(ValueError, match=r"expected one \{\} at most"):
        TextTransform(tokenizer_path, 77, instruction="{} and {}")


def test_words_are_dropped_in_training_only_and_never_all(tokenizer_path):
    transform = TextTransform(tokenizer_path, 16, drop=0.5)
    whole = transform("a wooden chair", None).tolist()
    assert whole == TextTransform(tokenizer_path, 16)("a wooden chair", None).tolist()
    lengths = []
    for index in range(300):
        ids = transform("a wooden chair", SampleRNG(0, 0, "s", index, 0)).tolist()
        assert [ids[0], ids[-1]] == [whole[0], whole[-1]]
        assert len(ids) >= 3
        rest = iter(whole)
        assert all(token in rest for token in ids)  # in their order
        lengths.append(len(ids) - 2)
    dropped = 1 - np.mean(lengths) / (len(whole) - 2)
    assert 0.4 < dropped < 0.55
    with pytest.raises(ValueError, match=r"drop must be a probability below 1, got 1\.0"):
        TextTransform(tokenizer_path, 16, drop=1.0)
