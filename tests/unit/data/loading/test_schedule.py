from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal.data.loading.schedule import BatchSchedule, SourceSize


def size(shards: list[int], batch_size: int, **options) -> SourceSize:
    return SourceSize(np.array(shards, np.int64), batch_size, **options)


@st.composite
def one_source(draw, **options):
    shards = draw(st.lists(st.integers(1, 20), min_size=1, max_size=8))
    batch_size = draw(st.integers(1, min(sum(shards), 12)))
    repeat = draw(st.sampled_from([0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 2.7]))
    if repeat * sum(shards) < batch_size:
        repeat = 1.0
    return size(shards, batch_size, repeat=repeat, **options)


schedules = st.builds(
    BatchSchedule,
    seed=st.integers(0, 5),
    sources=st.dictionaries(st.sampled_from("abc"), one_source(), min_size=1, max_size=3),
    block_shards=st.integers(1, 4),
    drop_last=st.booleans(),
)


def epoch_of(schedule: BatchSchedule, epoch: int) -> list:
    length = schedule.steps_per_epoch
    return [schedule(step) for step in range(epoch * length, (epoch + 1) * length)]


def equal(a, b) -> bool:
    return (
        (a.step, a.epoch, a.source) == (b.step, b.epoch, b.source)
        and np.array_equal(a.indices, b.indices)
        and np.array_equal(a.repeats, b.repeats)
    )


@settings(deadline=None)
@given(schedules, st.integers(0, 3))
def test_an_epoch_draws_each_sample_floor_or_ceil_times(schedule, epoch):
    batches = epoch_of(schedule, epoch)
    for name, source in schedule.sources.items():
        own = [batch for batch in batches if batch.source == name]
        assert all(len(batch.indices) == source.batch_size for batch in own)
        indices = np.concatenate([batch.indices for batch in own])
        repeats = np.concatenate([batch.repeats for batch in own])
        mean = len(indices) / source.num_samples
        counts = np.bincount(indices, minlength=source.num_samples)
        assert set(counts) <= {np.floor(mean), np.ceil(mean)}
        # The repeats of a sample number its uses.
        for index in range(source.num_samples):
            assert sorted(repeats[indices == index]) == list(range(counts[index]))


@settings(deadline=None)
@given(schedules)
def test_the_length_of_an_epoch_follows_from_sizes_and_repeats(schedule):
    for name, source in schedule.sources.items():
        drawn = schedule.batches[name] * source.batch_size
        wanted = source.repeat * source.num_samples
        assert abs(drawn - wanted) < source.batch_size
        whole = abs(wanted / source.batch_size - round(wanted / source.batch_size)) < 1e-9
        if whole:
            assert drawn == round(wanted)
    lengths = {len(epoch_of(schedule, epoch)) for epoch in range(3)}
    assert lengths == {sum(schedule.batches.values())}


@pytest.mark.parametrize("repeat", [0.5, 1.0, 1.25, 3.0])
def test_where_batches_divide_the_draws_each_sample_has_floor_or_ceil_of_repeat(repeat):
    schedule = BatchSchedule(1, {"a": size([16, 8, 8], 4, repeat=repeat)})
    for epoch in range(3):
        indices = np.concatenate([batch.indices for batch in epoch_of(schedule, epoch)])
        counts = np.bincount(indices, minlength=32)
        assert set(counts) <= {int(np.floor(repeat)), int(np.ceil(repeat))}
        assert counts.sum() == 32 * repeat


def test_dropping_and_filling_the_last_batch():
    dropped = BatchSchedule(0, {"a": size([10], 4)}, drop_last=True)
    filled = BatchSchedule(0, {"a": size([10], 4)}, drop_last=False)
    assert (dropped.steps_per_epoch, filled.steps_per_epoch) == (2, 3)
    drawn = np.concatenate([batch.indices for batch in epoch_of(filled, 0)])
    assert sorted(set(drawn)) == list(range(10))


def test_a_part_of_a_source_moves_on_until_all_is_seen():
    schedule = BatchSchedule(3, {"a": size([30, 10], 5, repeat=0.25)})
    for turn in range(3):
        epochs = [epoch_of(schedule, 4 * turn + epoch) for epoch in range(4)]
        indices = np.concatenate([batch.indices for batches in epochs for batch in batches])
        assert sorted(indices) == list(range(40))


@settings(deadline=None)
@given(schedules, st.data())
def test_jumping_gives_what_iterating_gives(schedule, data):
    steps = 3 * schedule.steps_per_epoch
    iterated = [schedule(step) for step in range(steps)]
    # A schedule that has been elsewhere, and one that travelled to another process.
    fresh = BatchSchedule(schedule.seed, schedule.sources, schedule.block_shards)
    fresh.batches, fresh.steps_per_epoch = schedule.batches, schedule.steps_per_epoch
    for jumper in (fresh, pickle.loads(pickle.dumps(schedule))):
        for step in data.draw(st.lists(st.integers(0, steps - 1), max_size=8)):
            assert equal(jumper(step), iterated[step])


@settings(deadline=None)
@given(
    st.lists(st.floats(0.2, 5), min_size=2, max_size=4),
    st.integers(40, 90),
    st.integers(0, 3),
)
def test_weights_are_met_within_a_batch(weights, steps, seed):
    sources = {
        f"s{i}": size([7, 30 * (i + 1)], 4 + i, weight=weight) for i, weight in enumerate(weights)
    }
    schedule = BatchSchedule(seed, sources, epoch_steps=steps)
    names = [batch.source for batch in epoch_of(schedule, 1)]
    assert len(names) == steps
    for name, source in sources.items():
        assert abs(names.count(name) - steps * source.weight / sum(weights)) < 1
        indices = np.concatenate([b.indices for b in epoch_of(schedule, 1) if b.source == name])
        counts = np.bincount(indices, minlength=source.num_samples)
        assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(schedules, st.integers(0, 2))
def test_sources_are_spread_evenly(schedule, epoch):
    names = [batch.source for batch in epoch_of(schedule, epoch)]
    for name, count in schedule.batches.items():
        for place in range(len(names)):
            expected = count * (place + 1) / len(names)
            assert abs(names[: place + 1].count(name) - expected) <= len(schedule.sources)


def test_epochs_seeds_and_sources_are_shuffled_differently():
    sources = {name: size([50, 50], 10) for name in "abc"}
    schedule = BatchSchedule(0, sources)
    other = BatchSchedule(1, sources)

    def drawn(schedule, epoch, name):
        batches = epoch_of(schedule, epoch)
        return tuple(np.concatenate([b.indices for b in batches if b.source == name]))

    orders = {
        drawn(s, epoch, name) for s in (schedule, other) for epoch in (0, 1) for name in "abc"
    }
    assert len(orders) == 12
    sequences = {tuple(b.source for b in epoch_of(schedule, epoch)) for epoch in range(8)}
    assert len(sequences) > 1


def test_two_passes_of_an_epoch_are_shuffled_differently():
    schedule = BatchSchedule(0, {"a": size([50], 10, repeat=2.0)})
    passes = [np.concatenate([schedule(i).indices for i in range(k, k + 5)]) for k in (0, 5)]
    assert np.array_equal(*map(np.sort, passes))
    assert not np.array_equal(*passes)


def test_only_a_block_of_shards_is_in_use_at_a_time():
    schedule = BatchSchedule(0, {"a": size([10] * 12, 10)}, block_shards=3)
    for block in range(4):
        batches = [schedule(step).indices for step in range(3 * block, 3 * block + 3)]
        shards = np.concatenate(batches) // 10
        assert len(set(shards)) == 3
        # ... and shuffled inside it: no batch is one shard in order.
        assert all(len(set(batch // 10)) > 1 for batch in batches)
    first = {schedule(epoch * 12).indices[0] // 10 for epoch in range(12)}
    assert len(first) > 3  # the shards are permuted


def test_the_order_of_the_sources_does_not_count():
    a, b = size([20], 4), size([30], 5)
    first, second = BatchSchedule(0, {"a": a, "b": b}), BatchSchedule(0, {"b": b, "a": a})
    assert all(equal(first(step), second(step)) for step in range(first.steps_per_epoch))


def test_a_vast_source_is_scheduled_at_once():
    # 10^9 samples: nothing of that size may be made.
    schedule = BatchSchedule(0, {"a": size([100_000] * 10_000, 1024)}, block_shards=2)
    last = schedule(schedule.steps_per_epoch - 1)
    assert len(np.unique(last.indices)) == 1024
    assert last.indices.max() < 10**9


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ({}, {}, "no sources"),
        (
            {"emoji": size([10], 32)},
            {},
            "'emoji' has 10 samples, fewer than its global batch of 32: lower data.batch_size",
        ),
        (
            {"a": size([30], 20, repeat=0.5)},
            {},
            "draws 15 samples an epoch .repeat=0.5., fewer than its global batch of 20",
        ),
        (
            {"a": size([30], 2, weight=1.0), "b": size([30], 2)},
            {},
            "'a' has a weight and 'b' has none",
        ),
        (
            {"a": size([30], 2, weight=1.0, repeat=2.0)},
            {},
            "weight=1.0 and repeat=2.0: sources are mixed by weights or by size x repeat, never",
        ),
        ({"a": size([30], 2, weight=0.0)}, {}, "weight must be above 0"),
        ({"a": size([30], 2, repeat=-1.0)}, {}, "repeat must be above 0"),
        ({"a": size([30], 2)}, {"epoch_steps": 5}, "epoch_steps goes with weights"),
        (
            {"a": size([30], 2, weight=1.0), "b": size([30], 2, weight=1e-6)},
            {"epoch_steps": 5},
            "'b' gets no batch in an epoch of 5",
        ),
        ({"a": size([30], 2)}, {"block_shards": 0}, "block_shards must be at least 1"),
    ],
)
def test_invalid_settings_are_rejected(sources, options, message):
    with pytest.raises(ValueError, match=message):
        BatchSchedule(0, sources, **options)


def test_negative_steps_are_rejected():
    with pytest.raises(ValueError, match="steps begin at 0"):
        BatchSchedule(0, {"a": size([4], 2)})(-1)


@pytest.mark.parametrize("counts", [(1,), (3, 50), (7, 1, 23), (40, 40, 40, 1)])
def test_an_epoch_worked_out_in_parts_is_the_epoch_as_a_whole(monkeypatch, counts):
    sources = {f"s{n}": size([10 * count], 10) for n, count in enumerate(counts)}
    monkeypatch.setattr("multimodal.data.loading.schedule._WINDOW", 1 << 40)
    steps = range(2 * sum(counts))
    schedule = BatchSchedule(5, sources)
    whole = [(spec.source, spec.indices.tolist()) for spec in map(schedule, steps)]
    for window in (1, 4, 9):
        monkeypatch.setattr("multimodal.data.loading.schedule._WINDOW", window)
        parts = BatchSchedule(5, sources)
        assert [(spec.source, spec.indices.tolist()) for spec in map(parts, steps)] == whole
