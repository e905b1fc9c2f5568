"""The parts of the corpus builder that need no packages: drawing, sound, names, splits."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))

from sample_data import audio, concepts, furniture, sounds
from sample_data.images import compact_webp, psnr
from sample_data.render import Mesh, read_obj, view_rotation, z_buffer
from sample_data.triangulate import triangulate
from sample_data.views import View, draw_depth, find_view, surface_points

BOX_OBJ = b"""
v -1 -2 -3
v 1 -2 -3
v 1 2 -3
v -1 2 -3
v -1 -2 3
v 1 -2 3
v 1 2 3
v -1 2 3
f 1/1/1 2/2/1 3/3/1 4/4/1
f 5 6 7 8
f 1 2 6 5
f -5 -6 -2 -1
f 1 4 8 5
f 2 3 7 6
"""


def area(corners: np.ndarray) -> float:
    sides = corners[:, 1:] - corners[:, :1]
    return float(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1).sum() / 2)


def test_an_obj_is_read_with_all_ways_to_name_a_vertex() -> None:
    mesh = read_obj(BOX_OBJ)
    assert mesh.triangles.shape == (12, 3)
    assert area(mesh.vertices[mesh.triangles]) == pytest.approx(2 * (2 * 4 + 2 * 6 + 4 * 6))


@pytest.mark.parametrize("count", [4, 5, 8, 40])
@pytest.mark.parametrize("backwards", [False, True])
def test_triangles_of_a_concave_polygon_have_its_area(count: int, backwards: bool) -> None:
    rng = np.random.default_rng(count)
    angle = np.sort(rng.random(count)) * 2 * np.pi
    radius = rng.random(count) + 0.2
    flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], 1)
    x, y = flat[:, 0], flat[:, 1]
    expected = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    turned = flat @ view_rotation(33.0, 21.0).T
    polygon = np.arange(count)[:: -1 if backwards else 1]
    triangles = triangulate(turned, polygon[None])
    assert triangles.shape == (count - 2, 3)
    assert area(turned[triangles]) == pytest.approx(expected)


def test_z_buffer_equals_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    size = 24
    points = rng.random((30, 3)) * [size + 6, size + 6, 1] - [3, 3, 0]
    triangles = rng.integers(0, 30, (40, 3))
    expected = np.full((size, size), np.inf)
    for corners in points[triangles]:
        system = np.stack([corners[:, 0], corners[:, 1], np.ones(3)])
        if abs(np.linalg.det(system)) < 1e-9:
            continue
        for row, column in np.ndindex(size, size):
            weights = np.linalg.solve(system, [column + 0.5, row + 0.5, 1.0])
            if (weights >= 0).all():
                depth = weights @ corners[:, 2]
                expected[row, column] = min(expected[row, column], depth)
    found = z_buffer(points, triangles, size)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_depth_of_a_wall_is_its_distance() -> None:
    wall = Mesh(
        np.array([[-500.0, -500, 0], [500, -500, 0], [500, 500, 0], [-500, 500, 0]]),
        np.array([[0, 1, 2], [0, 2, 3]]),
    )
    depth = draw_depth(wall, View(0.0, 0.0, 1.0), (8.0, 8.0, 56.0, 56.0))
    assert depth.dtype == np.uint16
    expected = np.zeros((64, 64), np.uint16)
    expected[8:56, 8:56] = round(3 * 500 * 2**0.5)  # three radii of its box
    np.testing.assert_array_equal(depth, expected)


def test_what_is_up_in_the_model_is_up_in_the_picture() -> None:
    tip = Mesh(np.array([[-500.0, -500, 0], [500, -500, 0], [0, 500, 0]]), np.array([[0, 1, 2]]))
    widths = (draw_depth(tip, View(0.0, 0.0, 1.0), (0.0, 0.0, 64.0, 64.0)) > 0).sum(1)
    assert widths[5] < 10
    assert widths[-5] > 50


def test_the_pose_of_a_drawn_model_is_detected() -> None:
    model = read_obj(BOX_OBJ)
    drawn = draw_depth(model_in_mm(model), View(30.0, 40.0, 1.0), (4.0, 4.0, 60.0, 60.0))
    alpha = np.where(drawn > 0, 255, 0).astype(np.uint8)
    view = find_view(model_in_mm(model), np.kron(alpha, np.ones((2, 2), np.uint8)))
    assert (view.yaw, view.pitch) == pytest.approx((30.0, 40.0), abs=5.0)
    assert view.overlap > 0.9


def model_in_mm(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices * 100.0, mesh.triangles)


def test_points_lie_evenly_on_the_surface() -> None:
    points = surface_points(read_obj(BOX_OBJ))
    on_side = np.abs(np.abs(points / [1.0, 2.0, 3.0]) - 1.0).min(1)
    assert on_side.max() < 1e-9
    share = (np.abs(np.abs(points[:, 0]) - 1.0) < 1e-9).mean()
    assert share == pytest.approx(24 / 44, abs=0.02)  # two sides of 4 x 6 of 88 in all


def test_a_picture_keeps_its_colours_where_they_fit() -> None:
    flat = Image.new("RGB", (64, 64), "white")
    flat.paste((10, 200, 30), (10, 10, 40, 50))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    patches = np.random.default_rng(0).integers(0, 256, (13, 13, 3)).astype(np.uint8)
    motley = Image.fromarray(np.kron(patches, np.ones((5, 5, 1), np.uint8))[:64, :64])
    for picture in (flat, motley):
        data = compact_webp(picture)
        assert len(data) <= 1024
        assert psnr(picture, Image.open(io.BytesIO(data)).convert("RGB")) == np.inf
    reduced = np.asarray(Image.open(io.BytesIO(compact_webp(Image.fromarray(noise)))))
    assert len(np.unique(reduced.reshape(-1, 3), axis=0)) == 16  # the fewest, it cannot fit


def test_opus_has_the_same_bytes_every_time_and_decodes() -> None:
    time = np.arange(audio.RATE) / audio.RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    data = audio.opus(tone, 0.9)
    assert audio.opus(tone, 0.9) == data
    assert data[14:18] == bytes(4)  # the serial number, which encoders draw at random
    assert bytes(100) not in data  # no room left for comments
    decoded, rate = soundfile.read(io.BytesIO(data))
    assert rate == audio.RATE
    assert len(decoded) == len(tone)
    assert np.corrcoef(decoded, tone)[0, 1] > 0.95


def test_ogg_checksum_is_that_of_the_library() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(1600), 16_000, format="OGG", subtype="OPUS")
    page = bytearray(buffer.getvalue()[:47])  # the first page: header, one segment of 19 bytes
    stored = int.from_bytes(page[22:26], "little")
    page[22:26] = bytes(4)
    assert audio._ogg_crc(page) == stored


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100])
def test_resampling_keeps_a_tone(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    expected = np.sin(2 * np.pi * 440 * np.arange(audio.RATE) / audio.RATE)
    found = audio.resample(tone, rate)
    assert len(found) == audio.RATE
    middle = slice(1000, -1000)
    np.testing.assert_allclose(found[middle], expected[middle], atol=1e-2)


def test_resampling_does_not_ring_at_the_ends() -> None:
    ramp = np.linspace(1.0, 2.0, 22_050)
    found = audio.resample(ramp, 22_050)
    np.testing.assert_allclose(found, np.linspace(1.0, 2.0, audio.RATE), atol=1e-3)


def test_silence_is_trimmed_and_the_peak_set() -> None:
    sound = np.concatenate([np.zeros(5000), 0.1 * np.ones(3000), np.zeros(5000)])
    trimmed = audio.trim(sound)
    assert len(trimmed) == pytest.approx(3000, abs=2 * audio.MARGIN)
    assert np.abs(trimmed).max() == pytest.approx(audio.PEAK)


@pytest.mark.parametrize(
    ("names", "subgroup"),
    [
        (["man running", "woman running", "person running: facing right"], "person-activity"),
        (["ten o'clock", "ten-thirty"], "time"),
        (["red heart", "blue heart"], "heart"),
        (["dog", "dog face"], "animal-mammal"),
        (["musical note", "musical notes"], "music"),
        (["keycap: 1", "keycap: #"], "keycap"),
    ],
)
def test_near_copies_are_of_one_family(names: list[str], subgroup: str) -> None:
    assert len({concepts.family_key(name, subgroup) for name in names}) == 1


def test_different_things_are_of_different_families() -> None:
    names = ["dog", "cat", "fox", "hedgehog", "hand fan", "man", "orange"]
    assert len({concepts.family_key(name, "x") for name in names}) == len(names)


def test_strict_families_go_whole_and_what_is_drawn_has_no_near_copy() -> None:
    families = [f"family {i}" for i in range(900) for _ in range(1 + i % 6)]
    names = [f"concept {i}" for i in range(len(families))]
    copied = [i % 3 == 0 for i in range(len(families))]
    splits = concepts.assign_splits(names, families, copied, set())
    assert Counter(splits) - Counter(train=len(splits)) == Counter(
        {**concepts.SIZES, "test_strict": concepts.STRICT}
    )
    strict = {f for f, split in zip(families, splits, strict=True) if split == "test_strict"}
    assert {s for f, s in zip(families, splits, strict=True) if f in strict} == {"test_strict"}
    assert all(families.count(f) <= concepts.LARGEST_HELD_OUT_FAMILY for f in strict)
    drawn = [i for i, split in enumerate(splits) if split in concepts.SIZES]
    assert not any(copied[i] for i in drawn)

    pinned = {names[i] for i in drawn} | {names[families.index(f)] for f in strict}
    again = concepts.assign_splits(names, families, copied, pinned)
    assert {again[names.index(name)] for name in pinned} == {"train"}


def test_near_copies_join_families() -> None:
    random = np.random.default_rng(0)
    drawings = {
        style: random.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
        for style in concepts.SEEN_STYLES
    }
    for style in concepts.COLORED_STYLES:  # noise looks alike at 16 pixels: make them differ
        drawings[style] //= 8
        for place in range(4):
            drawings[style][place] += np.uint8(60 * place)
    drawings["fluent_hc"][:] = np.arange(4, dtype=np.uint8)[:, None, None, None] * 60
    assert not concepts.near_copies(drawings).any()
    for style in ("noto", "fluent"):
        drawings[style][2] = drawings[style][0]
    copies = concepts.near_copies(drawings)
    assert np.argwhere(copies).tolist() == [[0, 2], [2, 0]]
    assert concepts.join_families(["a", "b", "c", "b"], copies) == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("oak chair", "chair"),
        ("armchair", "chair"),
        ("lower cabinets", "cabinet"),
        ("double window 3 panes", "window"),
        ("chair with cushion", "chair"),
        ("glasses", "glass"),
        ("scissors", "scissors"),
        ("wall flat tv", "tv"),
    ],
)
def test_head_nouns(name: str, noun: str) -> None:
    assert furniture.head_nouns([name, "chair", "window", "cabinet"])[name] == noun


def test_every_sound_class_of_test_trains_with_another_recording() -> None:
    splits = sounds.assign_splits()
    labels = {
        split: {sounds.TABLE[r][0] for r, where in splits.items() if where == split}
        for split in ("train", "test")
    }
    assert labels["test"] < labels["train"]
    assert len(labels["test"]) >= 15
