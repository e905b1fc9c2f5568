"""Bytes that are standardised on the device: the same inputs, a quarter of what crosses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_helpers import image_bytes, video_bytes, write_source

from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.decoding.decode import Limits, decode
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import LoaderSettings
from multimodal.data.source import Source
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.patches import PatchTransform
from multimodal.data.transforms.video import VideoTransform

MOMENTS = {"mean": [0.48, 0.45, 0.4], "std": [0.26, 0.27, 0.28]}
IMAGE = ImageTransform(20, **MOMENTS, scale=[0.3, 1.0], flip=0.5)
AUGMENTED = ImageTransform(20, **MOMENTS, augment_operations=2)
PATCHES = PatchTransform(4, 12, **MOMENTS, flip=0.5)
CLIP = VideoTransform(16, 2, None, **MOMENTS)
CLIPS = VideoTransform(16, 2, 0.3, **MOMENTS, clips=2, crops=3)


def picture(number: int) -> np.ndarray:
    shape = (30 + 7 * number, 40, 3)
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def values(transform) -> list:
    if isinstance(transform, VideoTransform):
        pytest.importorskip("av")
        return [decode("a.mp4", video_bytes(10 + n, size=24), Limits()) for n in range(3)]
    return [picture(number) for number in range(3)]


def draws(random: bool) -> list[SampleRNG | None]:
    return [SampleRNG(0, 0, "made", n, 0) if random else None for n in range(3)]


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("transform", [IMAGE, AUGMENTED, PATCHES, CLIP, CLIPS])
def test_finished_batches_are_those_of_collate_bit_by_bit(transform, random):
    given = list(zip(values(transform), draws(random), strict=True))
    prepared = [transform.prepare(value, rng) for value, rng in given]
    expected, mask = transform.collate([transform(value, rng) for value, rng in given])
    inputs, its_mask = transform.collate_bytes(prepared)
    assert inputs.dtype == torch.uint8
    assert torch.equal(transform.finish(inputs, its_mask), expected)
    assert torch.equal(transform.collate(prepared)[0], expected)
    if mask is None:
        assert its_mask is None
        assert inputs.nbytes * 4 == expected.nbytes
    else:  # a place is two numbers in both
        assert torch.equal(its_mask, mask)
        assert inputs.nbytes == expected.nbytes / 4 + inputs[..., 0].numel() * 6


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(20, **MOMENTS, brightness=0.5),
        ImageTransform(20, **MOMENTS, erasing=0.5),
        PatchTransform(4, 12, **MOMENTS, saturation=0.5),
    ],
)
def test_what_ends_in_something_else_crosses_as_numbers(transform):
    (rng, *_) = draws(random=True)
    assert transform.collate_bytes([transform.prepare(picture(0), rng)]) is None
    assert transform.collate_bytes([transform.prepare(picture(0), None)]) is not None


def module(folder, choice: bool | None, num_workers: int = 0) -> MultimodalDataModule:
    samples = [(f"k{n}", {"jpg": image_bytes(picture(n), "JPEG")}) for n in range(6)]
    samples = [(key, {**m, **({"b.png": m["jpg"]} if key < "k4" else {})}) for key, m in samples]
    manifest = write_source(folder, {"train": [samples]})
    modalities = {"image": {"member": "jpg"}, "other": {"member": "b.png", "optional": True}}
    loading = LoaderSettings(num_workers, uint8_to_device=choice)
    sources = {"made": Source(str(manifest), modalities)}
    transforms = {"image": PATCHES, "other": IMAGE}
    return MultimodalDataModule(sources, transforms, 6, 0, sources, 6, loading=loading)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_gets_the_same_inputs(tmp_path, num_workers):
    as_numbers, as_bytes = (module(tmp_path, choice, num_workers) for choice in (False, True))
    loaders = [
        [each.train_dataloader(), each.val_dataloader()[0]] for each in (as_numbers, as_bytes)
    ]
    for theirs, ours in zip(*loaders, strict=True):
        for expected, raw in zip(theirs, ours, strict=True):
            batch = as_bytes.transfer_batch_to_device(raw, torch.device("cpu"), 0)
            assert raw.inputs["other"].nbytes * 4 == expected.inputs["other"].nbytes
            assert not batch.presence["other"].all()
            for name in ("image", "other"):
                assert raw.inputs[name].dtype == torch.uint8
                assert torch.equal(batch.inputs[name], expected.inputs[name])
            assert torch.equal(batch.masks["image"], expected.masks["image"])
    states = [train.state_dict() for train, _ in loaders]
    assert states[0] == states[1]
    for train, _ in loaders:
        train.close()


def test_without_a_gpu_numbers_are_the_choice(tmp_path, monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        (validation,) = module(tmp_path, None).val_dataloader()
        assert bool(validation._batches.dataset.as_bytes) is there
