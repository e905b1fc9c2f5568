"""Depth maps of any aspect as patches: the values of `DepthTransform`, the places of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from multimodal.data.decoding.values import DepthMap
from multimodal.data.errors import DecodeError
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.depth_patches import DepthPatchTransform
from multimodal.data.transforms.patches import patches

OUTPUT = {"output": "log_depth", "mean": 0.4, "std": 0.2}


def made(height: int, width: int, empty: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(height * 100 + width)
    depth = random.integers(300, 9000, (height, width)).astype(np.uint16)
    depth[random.random(depth.shape) < empty] = 0
    return depth


@pytest.mark.parametrize("output", ["disparity", "depth", "log_depth", "relative"])
def test_a_square_map_has_the_values_of_the_fixed_size(output):
    options = {**OUTPUT, "output": output}
    fixed, ours = DepthTransform(16, **options), DepthPatchTransform(4, 16, **options)
    for value in (made(16, 16), made(32, 32, empty=0.6), DepthMap(made(16, 16), unit_m=0.002)):
        torch.testing.assert_close(ours(value, None), patches(fixed(value, None), 4))


@pytest.mark.parametrize(("height", "width"), [(8, 24), (20, 4), (3, 3), (64, 16)])
def test_the_whole_map_is_there_at_its_own_aspect(height, width):
    transform = DepthPatchTransform(4, 16, **OUTPUT)
    cut = transform(made(height, width), None)
    rows = len(cut[:, 0].unique())
    columns = len(cut[:, 1].unique())
    assert rows * columns == len(cut) <= 16
    assert cut.shape[1] == transform.shape[1] == 18
    if height * width > 16:
        assert rows / columns == pytest.approx(height / width, rel=0.5)
    assert cut[:, 2:].isfinite().all()


def test_tokens_are_counted_by_the_size():
    transform, sizes = DepthPatchTransform(4, 16), [(8, 24), (20, 4), (64, 16), (1, 9)]
    counts = transform.token_counts(np.array([*sizes, (0, 0)]))
    assert counts.tolist() == [*(len(transform(made(*size), None)) for size in sizes), 0]


def test_nothing_measured_is_nothing_and_does_not_bleed():
    depth = made(16, 16, empty=0)
    depth[:8] = 0
    cut = DepthPatchTransform(4, 16, **OUTPUT)(depth, None)
    assert (cut[:8, 2:] == 0).all()
    assert (cut[8:, 2:] != 0).all()


def test_mirroring_is_the_pictures_and_draws_are_the_samples():
    transform = DepthPatchTransform(4, 16, **OUTPUT, flip=0.5, distance=0.2, dropout=0.3)
    assert transform.is_random
    assert not DepthPatchTransform(4, 16).is_random
    depth, plain = made(8, 24), DepthPatchTransform(4, 16, **OUTPUT, flip=1.0)
    mirrored = plain(np.ascontiguousarray(depth[:, ::-1]), SampleRNG(0, 0, "a", 0, 0))
    torch.testing.assert_close(mirrored, DepthPatchTransform(4, 16, **OUTPUT)(depth, None))
    draws = [transform(depth, SampleRNG(0, 0, "a", index, 0)) for index in range(6)]
    again = transform(depth, SampleRNG(0, 0, "a", 3, 0))
    assert torch.equal(draws[3], again)
    assert len({draw.numpy().tobytes() for draw in draws}) == 6
    flips = {next(SampleRNG(0, 0, "a", index, 0).geometry()) < 0.5 for index in range(6)}
    assert flips == {True, False}


def test_a_batch_is_padded_and_masked():
    transform = DepthPatchTransform(4, 16, **OUTPUT)
    inputs = [transform(made(8, 24), None), transform(made(4, 4), None)]
    batch, mask = transform.collate(inputs)
    assert mask.sum(dim=1).tolist() == [12, 1]
    assert torch.equal(batch[0], inputs[0])
    assert (batch[1, 1:] == 0).all()


def test_what_is_no_map_or_no_setting_is_refused():
    with pytest.raises(DecodeError):
        DepthPatchTransform(4, 16)(np.zeros((4, 4, 2), np.uint16), None)
    with pytest.raises(ValueError, match="patch_size and max_tokens must be at least 1"):
        DepthPatchTransform(0, 16)
    with pytest.raises(ValueError, match="stereo needs both"):
        DepthPatchTransform(4, 16, output="stereo")
    with pytest.raises(ValueError, match="flip"):
        DepthPatchTransform(4, 16, flip=2)
