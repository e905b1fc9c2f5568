"""The data configurations on the sample corpus as it is committed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from loader_helpers import scheduled_loader

from multimodal.config import config_dir

SHAPES = {"image": (3, 64, 64), "depth": (1, 64, 64), "audio": (1, 64, 144), "imu": (6, 200)}


@pytest.fixture(scope="module", params=["clip_sample", "imagebind_sample"])
def data(request):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(overrides=[f"+data={request.param}", "+seed=0", "data.batch_size=32"])
    return instantiate(cfg.data)


def check(batch, source):
    assert set(batch.inputs) == set(source.modalities)
    for name, values in batch.inputs.items():
        assert len(values) == len(batch)
        if name == "text":
            assert batch.masks["text"].shape == values.shape
            assert values.shape[1] <= 32
        else:
            assert values.shape[1:] == SHAPES[name]
            assert values.dtype == torch.float32
            assert values.isfinite().all()


def test_every_source_trains_on_standardised_inputs(data):
    loaders = {
        name: scheduled_loader({name: source}, data.transforms, 32, seed=0)
        for name, source in data.sources.items()
    }
    values: dict[str, list] = {}
    for name, loader in loaders.items():
        for batch in itertools.islice(loader, 2):
            assert batch.source == name
            check(batch, data.sources[name])
            for modality, inputs in batch.inputs.items():
                values.setdefault(modality, []).append(inputs.float().flatten())
        assert not loader.counter.reasons
    for modality in values.keys() - {"text"}:
        everything = torch.cat(values[modality])
        assert abs(float(everything.mean())) < 1, modality
        assert 0.3 < float(everything.std()) < 2, modality


def test_all_sources_train_together(data):
    loader = data.train_dataloader()
    assert set(loader.schedule.batches) == set(data.sources)
    for batch in itertools.islice(loader, 3):
        check(batch, data.sources[batch.source])


def test_validation_reads_every_sample_once(data):
    for name, loader in zip(data.val_sources, data.val_dataloader(), strict=True):
        ids = []
        for batch in loader:
            check(batch, data.val_sources[name])
            assert len(batch.metadata) == len(batch)
            ids += batch.sample_ids.tolist()
        assert len(set(ids)) == len(ids) == len(data.val_sources[name])
        assert not loader.counter.reasons


def transform(choice, *words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(overrides=[f"+data/transform@made={choice}", *words])
    return cfg.made, instantiate(cfg.made)


@pytest.mark.parametrize("choice", ["depth_64", "thermal_64", "video_64"])
def test_what_is_aligned_with_a_picture_is_cropped_as_it_is(choice):
    """A page names them; no experiment does."""
    image, made = transform("image_64")[0], transform(choice)[0]
    for key in ("size", "scale", "ratio", "flip"):
        assert made[key] == image[key], key


def test_an_infrared_picture_of_16_bits():
    made = transform("thermal_64")[1]
    values = made(np.full((96, 80), 65535, np.uint16), None)
    assert values.shape == (1, 64, 64)
    torch.testing.assert_close(values, torch.full_like(values, 2.0))  # (1 - mean) / std


def test_a_list_of_labels():
    made = transform("label_set", "made.classes=[red,green,blue]")[1]
    assert made(["blue", "red"], None).tolist() == [1, 0, 1]
