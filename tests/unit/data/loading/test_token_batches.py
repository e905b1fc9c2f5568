"""Batches by tokens: every sample once, within the budget, the same on any number of ranks."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, image_bytes, json_bytes, write_source
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_helpers import scheduled_loader

from multimodal.cli.packing.lengths import record_lengths
from multimodal.data.errors import DataMismatchError
from multimodal.data.loading.schedule import BatchSchedule, SourceSize
from multimodal.data.loading.token_batches import TokenBudget, share
from multimodal.data.loading.token_lengths import sample_tokens
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.depth_patches import DepthPatchTransform
from multimodal.data.transforms.patches import PatchTransform, patch_grid
from multimodal.data.transforms.sound.sound_patches import SoundPatchTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.models.encoders.flexible import FlexibleVisionTransformer
from multimodal.models.layers.stems import PatchStem
from multimodal.models.layers.transformer import Transformer

PATCHES = PatchTransform(4, 12, [0.5] * 3, [0.5] * 3)
SIZES = [(4 + 4 * (n % 5), 4 + 4 * (n * 7 % 6)) for n in range(40)]


@st.composite
def schedules(draw, **options):
    shards = np.array(draw(st.lists(st.integers(1, 12), min_size=1, max_size=8)), np.int64)
    number = int(shards.sum())
    tokens = np.array(draw(st.lists(st.integers(1, 9), min_size=number, max_size=number)), np.int64)
    most = draw(st.integers(2 * int(tokens.max()), 60))
    starts = np.concatenate([[0], np.cumsum(shards)])
    budget = TokenBudget(tokens, most, starts)
    source = SourceSize(shards, 1, budget=budget, starts=starts, **options)
    return BatchSchedule(draw(st.integers(0, 5)), {"a": source}, draw(st.integers(1, 4)))


@settings(deadline=None, max_examples=60)
@given(schedules(), st.integers(0, 2))
def test_every_epoch_has_every_sample_once_within_the_budget(schedule, epoch):
    budget, length = schedule.sources["a"].budget, schedule.steps_per_epoch
    batches = [schedule(step) for step in range(epoch * length, (epoch + 1) * length)]
    indices = np.concatenate([batch.indices for batch in batches])
    assert sorted(indices) == list(range(len(budget.tokens)))
    sums = [int(budget.tokens[batch.indices].sum()) for batch in batches]
    assert max(sums) <= budget.most
    assert min(len(batch.indices) for batch in batches) >= budget.fewest
    if length > 1:  # by brute force: the batch of a sample is that in which it begins
        begins = np.cumsum(budget.tokens[indices]) - budget.tokens[indices]
        owners = np.repeat(np.arange(length), [len(batch.indices) for batch in batches])
        assert np.array_equal(owners, begins * length // budget.total)
        assert min(sums) > budget.total / length - budget.longest
    again = pickle.loads(pickle.dumps(schedule))
    for batch in reversed(batches):
        assert np.array_equal(again(batch.step).indices, batch.indices)
        assert not batch.repeats.any()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=4, max_size=40), st.integers(1, 4))
def test_shares_are_a_partition_of_about_equal_numbers_and_tokens(tokens, world_size):
    tokens = np.array(tokens, np.int64)
    shares = [share(tokens, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares)) == list(range(len(tokens)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sums = [int(tokens[each].sum()) for each in shares]
    assert max(sums) - min(sums) <= tokens.max()


@pytest.mark.parametrize("repeat", [0.5, 1.5, 2.0])
def test_repeats_go_through_the_passes(repeat):
    tokens = np.arange(1, 41, dtype=np.int64) % 7 + 1
    starts = np.array([0, 20, 40])
    budget = TokenBudget(tokens, 30, starts)
    source = SourceSize(np.array([20, 20]), 1, repeat=repeat, budget=budget, starts=starts)
    schedule = BatchSchedule(0, {"a": source})
    assert schedule.steps_per_epoch == round(repeat * budget.batches)
    seen = [schedule(step) for step in range(2 * budget.batches)]
    assert np.bincount(np.concatenate([each.indices for each in seen])).tolist() == [2] * 40
    for epoch in range(3):
        steps = range(epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch)
        pairs = [
            p for s in steps for p in zip(schedule(s).indices, schedule(s).repeats, strict=True)
        ]
        assert len(pairs) == len(set(pairs))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    samples = [
        (
            f"k{n}",
            {
                "png": image_bytes(np.full((*size, 3), n, np.uint8)),
                "json": json_bytes(name="abcd" * (n % 4 + 1)),
            },
        )
        for n, size in enumerate(SIZES)
    ]
    manifest = write_source(tmp_path_factory.mktemp("p"), {"train": [samples[:25], samples[25:]]})
    record_lengths(manifest)
    return Source(str(manifest), {"image": {"member": "png"}})


def loader(source, max_tokens, rank=0, world_size=1, **options):
    return scheduled_loader(
        {"made": source},
        {"image": PATCHES},
        8,
        3,
        rank,
        world_size,
        max_tokens=max_tokens,
        **options,
    )


def ids(batch) -> list[int]:
    return sorted(batch.sample_ids.tolist())


def test_two_ranks_share_the_batches_of_one_and_resume_at_any_number(source):
    one = loader(source, 96)
    whole = [list(one) for _ in range(2)]
    assert len(one) > 3
    assert sorted(i for batch in whole[0] for i in ids(batch)) == sorted(
        i for batch in whole[1] for i in ids(batch)
    )
    assert len({i for batch in whole[0] for i in ids(batch)}) == len(SIZES)
    for batch in whole[0]:
        assert int(batch.masks["image"].sum()) <= 96
    ranks = [loader(source, 48, rank, 2) for rank in range(2)]
    halves = [[], []]
    for position, batches in enumerate(zip(*ranks, strict=True)):
        assert sorted(ids(batches[0]) + ids(batches[1])) == ids(whole[0][position])
        for half, batch in zip(halves, batches, strict=True):
            half.append(batch)
        if position == 1:
            state = ranks[0].state_dict()
    resumed = loader(source, 96)
    resumed.load_state_dict(state)
    assert [ids(batch) for batch in resumed] == [ids(batch) for batch in whole[0][2:]]
    assert [ids(batch) for batch in resumed] == [ids(batch) for batch in whole[1]]


def test_another_budget_does_not_resume(source):
    state = loader(source, 96).state_dict()
    with pytest.raises(DataMismatchError, match=r"were 96, are 80 .* set data\.max_tokens=48"):
        loader(source, 40, 0, 2).load_state_dict(state)
    fixed = loader(source, None).state_dict()
    with pytest.raises(DataMismatchError, match=r"were not limited.* set data\.max_tokens=null"):
        loader(source, 96).load_state_dict(fixed)


def test_a_packed_tower_takes_what_the_loader_gives(source):
    stem, trunk = partial(PatchStem, patch_size=4), Transformer(8, 1, 2)
    tower = FlexibleVisionTransformer(4, 3, stem, trunk).eval()
    batch = next(iter(loader(source, 96)))
    out = tower(batch.inputs["image"], batch.masks["image"])
    assert out.features.shape == (len(batch), 8)
    assert torch.isfinite(out.features).all()


def test_tokens_are_those_that_the_transforms_make(source):
    counted = sample_tokens(source, {"image": PATCHES})
    assert counted.tolist() == [np.prod(patch_grid(*size, 4, 12)) for size in SIZES]
    made = [len(PATCHES(source.decode(n, None).values["image"], None)) for n in range(len(SIZES))]
    assert counted.tolist() == made


def test_sounds_and_depth_maps_are_counted_as_they_are_cut(tmp_path):
    random = np.random.default_rng(0)
    samples = [
        (f"k{n}", {
            "wav": audio_bytes(random.uniform(-1, 1, (1, 700 + 900 * n)), 16000),
            "depth.png": image_bytes(random.integers(1, 9000, (8, 4 + 4 * n)).astype(np.uint16)),
        })
        for n in range(9)
    ]  # fmt: skip
    record_lengths(path := write_source(tmp_path, {"train": [samples[:5], samples[5:]]}))
    modalities = {"audio": {"member": "wav"}, "depth": {"member": "depth.png"}}
    source = Source(str(path), modalities)
    transforms = {
        "audio": SoundPatchTransform([8, 10], 40, num_mel_bins=16),
        "depth": DepthPatchTransform(4, 12),
    }
    made = [
        sum(len(transforms[name](value, None)) for name, value in sample.values.items())
        for sample in (source.decode(n, None) for n in range(9))
    ]
    assert len(set(made)) > 4
    assert sample_tokens(source, transforms).tolist() == made
    batches = list(scheduled_loader({"s": source}, transforms, 8, 0, max_tokens=60))
    tokens = [sum(int(mask.sum()) for mask in batch.masks.values()) for batch in batches]
    assert max(tokens) <= 60
    ids = [each for batch in batches for each in batch.sample_ids.tolist()]
    assert len(ids) == len(set(ids))


class Letters:
    start, end, pad = 1, 2, 0

    def encode(self, text):
        return [3] * len(text)


def test_a_text_counts_a_token_for_four_bytes(source):
    modalities = {"image": {"member": "png"}, "text": {"member": "json", "key": "name"}}
    both = Source(str(source.manifest.path), modalities)
    text = TextTransform(Letters(), 5)
    tokens = sample_tokens(both, {"image": PATCHES, "text": text})
    expected = sample_tokens(source, {"image": PATCHES}) + [
        2 + min(n % 4 + 1, 3) for n in range(40)
    ]
    assert tokens.tolist() == expected.tolist()
    template = {"member": "json", "template": ["{name}", "{name}, {name}"]}
    filled = Source(str(source.manifest.path), {"text": template})
    tokens = sample_tokens(filled, {"text": TextTransform(Letters(), 99)})
    assert tokens[0] == 2 + -(-(len("{name}, {name}") + 8) // 4)


def test_what_cannot_be_counted_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"a sample has up to 12: raise it to 24"):
        loader(source, 23)
    with pytest.raises(ValueError, match=r"for 4 devices: raise it to three times .*, 36"):
        loader(source, 13, 0, 4)
    vectors = Source(str(source.manifest.path), {"image": {"member": "png"}})
    with pytest.raises(ValueError, match="no source has a modality whose tokens are counted"):
        scheduled_loader({"v": vectors}, {"image": ArrayTransform([1])}, 8, 0, max_tokens=99)
    bare = write_source(
        tmp_path, {"train": [[("k", {"png": image_bytes(np.zeros((9, 9, 3), "u1"))})]]}
    )
    with pytest.raises(ValueError, match=r"multimodal shards lengths .*made\.json"):
        loader(Source(str(bare), {"image": {"member": "png"}}), 99)
