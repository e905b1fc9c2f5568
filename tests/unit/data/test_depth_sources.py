"""Depth maps as people have them: 8 bits, saved as RGB, with a unit, rotated bits, own cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import image_bytes, json_bytes, npy_bytes, write_source
from loader_helpers import evaluation_loader
from omegaconf import OmegaConf

from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.decoding.values import DepthMap
from multimodal.data.errors import DecodeError
from multimodal.data.packing.index import index, verify
from multimodal.data.source import Source
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.image import ImageTransform

CONFIGS = Path(__file__).parents[3] / "configs"
RAMP = np.tile(np.arange(1, 65, dtype=np.uint8), (64, 1))  # nearest at the left
OUTPUTS = ("disparity", "depth", "log_depth", "relative", "stereo")


def transform(output: str = "relative", size: int = 64, **options) -> DepthTransform:
    optics = {"baseline_m": 0.075, "focal": 0.8} if output == "stereo" else {}
    return DepthTransform(size, output=output, **{**optics, **options})


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("as_rgb", [False, True])
def test_eight_bits_are_relative_depth(output, as_rgb):
    stored = np.repeat(RAMP[..., None], 3, 2) if as_rgb else RAMP
    value = decode("depth.png", image_bytes(stored), Limits())
    assert value.shape == (64, 64)
    seen = transform(output)(value, None)
    assert seen.isfinite().all()
    row = seen[0, 0]
    rises = (row[1:] - row[:-1]).sign()
    assert (rises == (1 if output in ("depth", "log_depth") else -1)).all()
    # Neither scale nor offset of the bytes matters, and 16 bits look the same as relative depth.
    again = transform(output)(RAMP * 3 + 20, None)
    torch.testing.assert_close(again, seen, atol=1e-4, rtol=1e-4)
    if output == "relative":
        torch.testing.assert_close(row[[0, -1]], torch.tensor([1.0, 0.2]))
        sixteen = transform(output)(RAMP.astype(np.uint16) * 100, None)
        torch.testing.assert_close(seen, sixteen, atol=1e-4, rtol=0)
    else:
        assert 0 < row.min() < row.max()


def test_a_unit_makes_eight_bits_metric():
    by_transform = transform("depth", unit_m=0.1)(RAMP, None)
    torch.testing.assert_close(by_transform[0, 0], torch.arange(1, 65) * 0.01)
    by_source = transform("depth")(DepthMap(RAMP, unit_m=0.1), None)
    assert torch.equal(by_source, by_transform)
    wins = transform("depth", unit_m=5.0)(DepthMap(RAMP, unit_m=0.1), None)
    assert torch.equal(wins, by_transform)


def test_inverse_maps_are_brightest_where_it_is_nearest():
    near_right = transform()(DepthMap(RAMP, inverse=True), None)[0, 0]
    torch.testing.assert_close(near_right[[0, -1]], torch.tensor([0.2, 1.0]))
    disparity = transform("disparity", max_depth_m=1000)(DepthMap(RAMP, inverse=True), None)[0, 0]
    steps = disparity[1:] - disparity[:-1]  # as an estimator gives it: even in 1 / z
    torch.testing.assert_close(steps, steps[:1].expand(63), atol=1e-5, rtol=1e-3)
    metric = transform("depth")(DepthMap(RAMP, unit_m=0.5, inverse=True), None)[0, 0]
    torch.testing.assert_close(metric[[0, 9]], torch.tensor([0.2, 0.02]))


@pytest.mark.parametrize("shape", [(1, 64, 64), (64, 64, 1), (64, 64)])
def test_arrays_with_an_axis_of_one_are_maps(shape):
    value = decode("depth.npy", npy_bytes(RAMP.reshape(shape).astype(np.float32)), Limits())
    assert np.array_equal(value, RAMP)


def test_depth_in_colour_is_refused_where_it_is_decoded():
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for data in (image_bytes(colours), image_bytes(colours, "JPEG")):
        with pytest.raises(DecodeError, match="got a picture in colour"):
            decode("depth.png", data, Limits())
    assert decode("png", image_bytes(colours), Limits()).shape == (8, 8, 3)


def test_what_verifies_is_what_trains(tmp_path):
    good = {"depth.png": image_bytes(RAMP)}
    bad = {"depth.png": image_bytes(np.random.default_rng(0).integers(0, 9, (8, 8, 3), np.uint8))}
    write_source(tmp_path, {"train": [[("a", good), ("b", bad), ("c", good)]]})
    path, problems = index(tmp_path, "made")
    assert not problems
    fine, problems = verify(path)
    assert fine == 2
    assert [problem.key for problem in problems] == ["b"]
    source = Source(str(path), {"depth": {"member": "depth.png"}})
    loader = evaluation_loader(source, {"depth": transform()}, None, 3, max_bad_fraction=1.0)
    (batch,) = loader
    assert batch.keys == ["a", "c"]


def sun_rgbd(millimetres: np.ndarray) -> np.ndarray:
    """As the raw files of SUN RGB-D hold them: rotated left by three bits."""
    wide = millimetres.astype(np.uint32)
    return ((wide << 3 | wide >> 13) & 0xFFFF).astype(np.uint16)


def test_raw_sun_rgbd_is_rotated_back_with_each_camera(tmp_path):
    millimetres = np.full((48, 64), 2500, np.uint16)
    millimetres[0, 0] = 9001
    samples = [
        (
            f"s{number}",
            {
                "jpg": image_bytes(np.zeros((48, 64, 3), np.uint8), "JPEG"),
                "depth.png": image_bytes(sun_rgbd(millimetres)),
                "json": json_bytes(focal_px=focal),
            },
        )
        for number, focal in enumerate((52.0, 104.0))
    ]
    path = write_source(tmp_path, {"train": [samples]}, fields={"jpg": {"kind": "image"}})
    entry = OmegaConf.to_container(OmegaConf.load(CONFIGS / "data/source/sun_rgbd.yaml"))
    source = Source(str(path), entry["modalities"])
    value = source.decode(0, None).values["depth"]
    assert isinstance(value, DepthMap)
    assert np.array_equal(value.values, millimetres)
    stereo = DepthTransform(8, output="stereo", baseline_m=0.075, focal=0.5, max_depth_m=50)
    near, far = (stereo(source.decode(n, None).values["depth"], None).mean() for n in (0, 1))
    # baseline x focal / z, with the focal length as a share of the width of 64 pixels
    assert near.item() == pytest.approx(0.075 * 52 / 64 / 2.5, rel=1e-3)
    assert far.item() == pytest.approx(2 * near.item(), rel=1e-3)
    pixels = DepthTransform(8, output="stereo", baseline_m=0.075, focal=520.0, max_depth_m=50)
    assert pixels(source.decode(0, None).values["depth"], None).mean().item() == pytest.approx(
        0.075 * 52 / 2.5, rel=1e-3
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"member": "depth.png", "unit_m": 0}, "unit_m: expected a number above 0"),
        ({"member": "depth.png", "encoding": "sun"}, "encoding: expected plain or sun_rgbd"),
        ({"member": "depth.png", "window": [1, 0]}, "window: expected two rising numbers"),
        ({"member": "depth.png", "window": [0, 1], "unit_m": 1}, "a window is for pictures"),
        ({"member": "json", "key": "n", "window": [0, 1]}, "window is for members of kind"),
        ({"member": "depth.png", "focal": "focus"}, "has no key 'focus'"),
        ({"member": "depth.png", "unitm": 1}, "did you mean 'unit_m'"),
    ],
)
def test_entries_that_contradict_themselves(tmp_path, entry, message):
    samples = [("a", {"depth.png": image_bytes(RAMP), "json": json_bytes(n="x", focal=1)})]
    fields = {"json": {"kind": "json", "keys": ["focal", "n"]}}
    path = write_source(tmp_path, {"train": [samples]}, fields=fields)
    with pytest.raises(ValueError, match=message):
        Source(str(path), {"depth": entry})


def test_a_missing_camera_is_a_bad_sample(tmp_path):
    samples = [("a", {"depth.png": image_bytes(RAMP), "json": json_bytes(focal="far")})]
    path = write_source(tmp_path, {"train": [samples]})
    source = Source(str(path), {"depth": {"member": "depth.png", "focal": "focal"}})
    with pytest.raises(DecodeError, match="'focal' must be a number above 0, is 'far'"):
        source.decode(0, None)


def test_a_window_makes_a_picture_of_any_numbers(tmp_path):
    levels = np.array([[0, 100], [150, 4000]], np.uint16).repeat(8, 0).repeat(8, 1)
    samples = [("a", {"png": image_bytes(levels)})]
    path = write_source(tmp_path, {"train": [samples]}, fields={"png": {"kind": "image"}})
    source = Source(str(path), {"image": {"member": "png", "window": [50, 250]}})
    value = source.decode(0, None).values["image"]
    assert np.abs(value[::8, ::8] / 65535 - [[0, 0.25], [0.5, 1]]).max() < 1e-4
    seen = ImageTransform(16, [0.0] * 3, [1.0] * 3)(value, None)
    assert seen.shape == (3, 16, 16)
