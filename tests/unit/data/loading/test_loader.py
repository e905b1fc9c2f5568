from __future__ import annotations

import json
import logging

import pytest
import pytorch_lightning as pl
import torch
from data_helpers import json_bytes, number_samples, write_source
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_helpers import evaluation_loader, scheduled_loader

from multimodal.data.datamodule import MultimodalDataModule
from multimodal.data.decoding.decode import decode
from multimodal.data.errors import TooManyBadSamplesError
from multimodal.data.loading.loader import ScheduledLoader
from multimodal.data.loading.tally import Rejection, SampleCounter
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.image import ImageTransform

X = {"x": {"member": "x.npy"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    first = [number_samples(9), number_samples(7, 9), number_samples(16, 16)]
    write_source(folder, {"train": first, "val": [number_samples(7, 500)]}, "first")
    write_source(folder, {"train": [number_samples(40, 100)]}, "second")
    return folder


def sources(folder, first=None, second=None) -> dict[str, Source]:
    return {
        "first": Source(str(folder / "first.json"), X, **(first or {})),
        "second": Source(str(folder / "second.json"), X, **(second or {})),
    }


def loader(folder, batch_size=8, noise=0.1, first=None, second=None, **options) -> ScheduledLoader:
    return scheduled_loader(
        sources(folder, first, second),
        {"x": ArrayTransform([1], noise=noise)},
        batch_size,
        options.pop("seed", 0),
        **options,
    )


def content(batch) -> tuple:
    return (
        batch.step,
        batch.source,
        tuple(batch.keys),
        tuple(batch.sample_ids.tolist()),
        tuple(batch.positive_keys.tolist()),
        tuple(batch.repeats.tolist()),
        tuple(batch.inputs["x"].flatten().tolist()),  # augmented, so of the draws too
    )


def epochs(loader: ScheduledLoader, count: int) -> list[tuple]:
    return [content(batch) for _ in range(count) for batch in loader]


def test_batches_hold_what_the_schedule_says(folder):
    made = loader(folder, noise=0.0)
    assert len(made) == 4 + 5
    for batch in made:
        spec = made.schedule(batch.step)
        offset = {"first": 0, "second": 100}[batch.source]
        assert batch.source == spec.source
        assert batch.inputs["x"].flatten().tolist() == (spec.indices + offset).tolist()
        assert batch.keys == [f"s{offset + index:05d}" for index in spec.indices]
        assert len(set(batch.sample_ids.tolist())) == len(batch)
        assert batch.metadata == []
        assert batch.masks == {}


def test_epochs_follow_each_other(folder):
    made = loader(folder)
    steps = [batch.step for _ in range(3) for batch in made]
    assert steps == list(range(27))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_share_the_global_batches_of_one_process(folder, world_size):
    whole = epochs(loader(folder, 8), 2)
    ranks = [
        epochs(loader(folder, 8 // world_size, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    for batch, *slices in zip(whole, *ranks, strict=True):
        assert {piece[:2] for piece in slices} == {batch[:2]}
        for place in range(2, 7):
            assert sum((piece[place] for piece in slices), ()) == batch[place]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(folder, num_workers):
    assert epochs(loader(folder, num_workers=num_workers), 2) == epochs(loader(folder), 2)


def test_global_generators_play_no_part(folder):
    torch.manual_seed(0)
    expected = epochs(loader(folder), 1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert epochs(loader(folder), 1) == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_in_this_process_uses_one_thread_and_gives_them_back(folder, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = set()
    transform = ArrayTransform([1])
    original = transform.collate
    monkeypatch.setattr(
        transform, "collate", lambda xs: (seen.add(torch.get_num_threads()), original(xs))[1]
    )
    try:
        next(iter(scheduled_loader(sources(folder), {"x": transform}, 8, 0)))
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


def test_repeats_of_a_sample_are_augmented_differently(folder):
    made = loader(folder, first={"repeat": 3.0})
    seen: dict[int, list] = {}
    for batch in made:
        rows = zip(batch.sample_ids, batch.repeats, batch.inputs["x"], strict=True)
        for sample_id, repeat, value in rows:
            seen.setdefault(int(sample_id), []).append((int(repeat), float(value)))
    thrice = [uses for uses in seen.values() if len(uses) > 1]
    assert len(thrice) == 32
    for uses in thrice:
        assert sorted(repeat for repeat, _ in uses) == [0, 1, 2]
        assert len({value for _, value in uses}) == 3


def test_epochs_augment_a_sample_differently(folder):
    made = loader(folder)
    seen: dict[int, set] = {}
    for _ in range(3):
        for batch in made:
            for sample_id, value in zip(batch.sample_ids, batch.inputs["x"], strict=True):
                seen.setdefault(int(sample_id), set()).add(float(value))
    assert all(len(values) == 3 for values in seen.values())


# Resuming


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 27))
def test_resuming_anywhere_gives_the_batches_that_would_have_come(folder, stop):
    whole = epochs(loader(folder), 3)
    before = loader(folder)
    taken = []
    while len(taken) < stop:
        for batch in before:
            taken.append(content(batch))
            if len(taken) == stop:
                break
    state = json.loads(json.dumps(before.state_dict()))  # plain values only
    after = loader(folder)
    after.load_state_dict(state)
    rest = []
    while len(taken) + len(rest) < 27:
        rest += epochs(after, 1)
    assert taken + rest == whole


@pytest.mark.parametrize("workers", [(2, 2), (0, 2), (2, 0)])
@pytest.mark.parametrize("stop", [4, 9, 12])
def test_resuming_counts_batches_handed_out_not_those_read_ahead(folder, workers, stop):
    whole = epochs(loader(folder), 2)
    before = loader(folder, num_workers=workers[0])
    taken, states = [], []
    for _ in range(2):
        for batch in before:
            taken.append(content(batch))
            states.append(before.state_dict())
            if len(taken) == stop:
                break
        if len(taken) == stop:
            break
    after = loader(folder, num_workers=workers[1])
    after.load_state_dict(states[-1])
    rest = epochs(after, 1)
    assert taken == whole[:stop]
    assert rest == whole[stop : stop + len(rest)]
    assert len(rest) == 9 - stop % 9


def test_the_state_depends_on_neither_rank_nor_world_nor_workers(folder):
    states = []
    for options in (
        {"batch_size": 8},
        {"batch_size": 4, "world_size": 2, "rank": 1},
        {"batch_size": 2, "world_size": 4, "rank": 3, "num_workers": 1},
    ):
        made = loader(folder, **options)
        iterator = iter(made)
        for _ in range(5):
            next(iterator)
        states.append(made.state_dict())
        del iterator
    assert states[0] == states[1] == states[2]
    # ... so that a run continues at another world size.
    rest = []
    for rank in range(2):
        after = loader(folder, 4, rank=rank, world_size=2)
        after.load_state_dict(states[2])
        rest.append(epochs(after, 1))
    whole = epochs(loader(folder), 1)[5:]
    assert [a[2] + b[2] for a, b in zip(*rest, strict=True)] == [batch[2] for batch in whole]


@pytest.mark.parametrize(
    ("saved", "present", "message"),
    [
        ({"seed": 1}, {}, "seed was 1, is 0: set data.seed=1"),
        ({}, {"batch_size": 4, "world_size": 4}, r"was 8, is 16 \(4 on each of 4.*batch_size=2"),
        ({}, {"batch_size": 2, "world_size": 3}, "a number of devices that divides 8"),
        (
            {"first": {"batch_size": 4}},
            {"first": {"batch_size": 2}},
            r"'first' was 4, is 2 .*set data\.sources\.first\.batch_size=4",
        ),
        (
            {},
            {"second": {"repeat": 2.0}},
            "'second' had 5 batches an epoch, has 10: restore",
        ),
        ({"block_shards": 1}, {}, "set data.block_shards=1"),
    ],
)
def test_a_state_of_other_batches_is_rejected_with_what_to_set(folder, saved, present, message):
    state = loader(folder, **saved).state_dict()
    with pytest.raises(ValueError, match=message):
        loader(folder, **present).load_state_dict(state)


def test_a_state_of_other_data_is_rejected(folder, tmp_path):
    state = loader(folder).state_dict()
    write_source(tmp_path, {"train": [number_samples(32)]}, "first")
    write_source(tmp_path, {"train": [number_samples(40, 100)]}, "second")
    with pytest.raises(ValueError, match=r"'first' had other shards \(32 samples, now 32"):
        loader(tmp_path).load_state_dict(state)
    single = scheduled_loader(
        {"third": sources(folder)["first"]}, {"x": ArrayTransform([1])}, batch_size=8, seed=0
    )
    with pytest.raises(ValueError, match="source 'first' is gone") as caught:
        single.load_state_dict(state)
    assert "source 'third' is new" in str(caught.value)


# Bad samples


def broken_source(folder, bad: set[int], count: int = 40, name: str = "broken") -> Source:
    samples = number_samples(count)
    for number in bad:
        samples[number][1]["x.npy"] = b"no array"
    path = write_source(folder, {"train": [samples[: count // 2], samples[count // 2 :]]}, name)
    return Source(str(path), X)


def one(source: Source, **options) -> ScheduledLoader:
    return scheduled_loader({source.name: source}, {"x": ArrayTransform([1])}, 8, 0, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_sample_is_replaced_by_the_next_counted_and_logged(tmp_path, caplog, num_workers):
    made = one(broken_source(tmp_path, {3, 39}), num_workers=num_workers)
    good = {number: number for number in range(40)} | {3: 4, 39: 0}
    with caplog.at_level(logging.WARNING):
        for batch in made:
            expected = [good[index] for index in made.schedule(batch.step).indices]
            assert batch.inputs["x"].flatten().tolist() == expected
            assert batch.keys == [f"s{number:05d}" for number in expected]
    assert (made.counter.delivered, made.counter.bad, made.counter.replaced) == (38, 2, 2)
    assert made.counter.reasons == {"corrupt": 2}
    assert "shard broken-train-000.tar, key 's00003': corrupt" in caplog.text
    assert "shard broken-train-001.tar, key 's00039': corrupt" in caplog.text
    assert "epoch 0: 38 samples delivered, 2 bad (2 corrupt), 2 replaced" in caplog.text


def test_a_bad_shard_is_replaced_by_the_next(tmp_path):
    source = broken_source(tmp_path, set())
    (tmp_path / "broken-train-000.tar").write_bytes(b"<html>")
    made = one(source, max_bad_fraction=1.0)
    values = [value for batch in made for value in batch.inputs["x"].flatten().tolist()]
    assert len(values) == 40
    assert set(values) == set(range(20, 40))
    assert made.counter.reasons == {"shard_size": 20}
    assert (made.counter.delivered, made.counter.replaced) == (20, 20)


def test_too_many_bad_samples_stop_the_run(tmp_path):
    made = one(broken_source(tmp_path, set(range(0, 40, 3))), max_bad_fraction=0.0)
    with pytest.raises(
        TooManyBadSamplesError, match=r"1 of \d+ samples are bad .1 corrupt.*key 's000"
    ):
        list(made)
    made = one(broken_source(tmp_path, set(range(40)), name="all"))
    with pytest.raises(
        TooManyBadSamplesError, match=r"101 consecutive samples of 'all' could not be read.*'s000"
    ):
        list(made)


def test_a_run_of_bad_samples_stops_the_run(tmp_path):
    source = broken_source(tmp_path, set(range(10, 16)))
    loader = evaluation_loader(
        source, {"x": ArrayTransform([1])}, None, 4, max_bad_fraction=1.0, max_bad_run=6
    )
    assert sum(len(batch) for batch in loader) == 34
    stops = evaluation_loader(
        source, {"x": ArrayTransform([1])}, None, 4, max_bad_fraction=1.0, max_bad_run=5
    )
    with pytest.raises(
        TooManyBadSamplesError, match=r"6 samples in a row.*key 's00014'.*key 's00015'"
    ):
        list(stops)


def rejection(key: str = "key") -> Rejection:
    return Rejection("s", "shard", key, "corrupt", "why")


def test_the_limit_is_a_fraction_once_there_are_enough():
    counter = SampleCounter(0.01)
    counter.add([None] * 5000, replaced=True)
    counter.add([rejection()] * 50, replaced=True)
    with pytest.raises(TooManyBadSamplesError, match="51 of 5051"):
        counter.add([rejection("last")], replaced=True)
    early = SampleCounter(0.01)
    early.add([None, *[rejection()] * 10], replaced=True)  # of at least 1,000
    with pytest.raises(TooManyBadSamplesError):
        early.add([rejection()], replaced=True)


def test_a_good_sample_ends_a_run_of_bad_ones():
    counter = SampleCounter(1.0, max_bad_run=3)
    for _ in range(5):
        counter.add([rejection()] * 3 + [None], replaced=True)
    counter.add([rejection()] * 2, replaced=True)
    counter.add([rejection()], replaced=True)
    with pytest.raises(TooManyBadSamplesError, match="4 samples in a row"):
        counter.add([rejection()], replaced=True)


def test_every_epoch_ends_with_its_own_summary(tmp_path, caplog):
    made = one(broken_source(tmp_path, {3}))
    with caplog.at_level(logging.INFO, logger="multimodal.data.loading.tally"):
        for _ in range(2):
            list(made)
        list(one(broken_source(tmp_path, set(), name="whole")))
    ends = [record for record in caplog.records if record.getMessage().startswith("epoch")]
    assert [record.levelname for record in ends] == ["WARNING", "WARNING", "INFO"]
    for number, record in enumerate(ends[:2]):
        text = record.getMessage()
        assert f"epoch {number}: 39 samples delivered, 1 bad (1 corrupt), 1 replaced" in text
        assert f"broken/broken-train-000.tar ({number + 1})" in text
    assert ends[2].getMessage() == "epoch 0: 40 samples delivered, 0 bad"


def test_an_error_of_a_transform_tells_the_sample(tmp_path):
    made = one(broken_source(tmp_path, set()))
    transform = ArrayTransform([1])
    transform.std = "wrong"
    made = scheduled_loader({"broken": broken_source(tmp_path, set())}, {"x": transform}, 8, 0)
    with pytest.raises(RuntimeError, match=r"transform of 'x' fails on broken, shard .*key 's000"):
        list(made)


# Evaluation


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_batches_are_the_whole_source_in_order(folder, num_workers):
    source = Source(str(folder / "first.json"), X, positive_key="label")
    transforms = {"x": ArrayTransform([1], noise=1.0)}
    batches = list(evaluation_loader(source, transforms, ["x"], 10, num_workers))
    assert [len(batch) for batch in batches] == [10, 10, 10, 2]
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    values = torch.cat([batch.inputs["x"] for batch in batches]).flatten().tolist()
    metadata = [entry for batch in batches for entry in batch.metadata]
    assert values == [entry["number"] for entry in metadata] == list(range(32))
    keys = [key for batch in batches for key in batch.positive_keys.tolist()]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3] != keys[1]


def test_ranks_share_an_evaluation(folder):
    source = Source(str(folder / "first.json"), X)
    found = []
    for rank in range(3):
        made = evaluation_loader(
            source, {"x": ArrayTransform([1])}, None, 5, rank=rank, world_size=3
        )
        batches = list(made)
        assert len(batches) == len(made)
        found += [value for batch in batches for value in batch.inputs["x"].flatten().tolist()]
    assert sorted(found) == list(range(32))


def test_no_rank_is_without_a_batch_of_a_small_set(folder):
    source = Source(str(folder / "first.json"), X)
    transforms = {"x": ArrayTransform([1])}
    for rank in range(3):
        batches = list(evaluation_loader(source, transforms, None, 64, rank=rank, world_size=3))
        assert [len(batch) for batch in batches] == [len(range(rank, 32, 3))]
    with pytest.raises(ValueError, match="32 samples for 33 ranks"):
        evaluation_loader(source, transforms, None, 64, rank=0, world_size=33)


def test_evaluation_leaves_bad_samples_out_and_says_so(tmp_path, caplog):
    source = broken_source(tmp_path, {0, 1, 2, 3, 17})
    made = evaluation_loader(source, {"x": ArrayTransform([1])}, None, 4, max_bad_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        values = [value for batch in made for value in batch.inputs["x"].flatten().tolist()]
    assert values == [number for number in range(4, 40) if number != 17]
    assert made.counter.reasons == {"corrupt": 5}
    assert "key 's00017'" in caplog.text


def test_a_modality_the_source_lacks_is_rejected(folder):
    source = Source(str(folder / "first.json"), X)
    with pytest.raises(ValueError, match="no modality 'y'; it has: x"):
        evaluation_loader(source, {}, ["y"], 4)


# The data module


def module(folder, **options) -> MultimodalDataModule:
    return MultimodalDataModule(
        sources=sources(folder),
        transforms={"x": ArrayTransform([1], noise=0.1)},
        batch_size=8,
        num_workers=0,
        seed=0,
        val_sources={"held_out": Source(str(folder / "first.json"), X, split="val")},
        **options,
    )


def test_sources_are_named_by_the_data_module(folder):
    made = module(folder, eval_batch_size=5)
    assert {batch.source for batch in made.train_dataloader()} == {"first", "second"}
    (validation,) = made.val_dataloader()
    batches = list(validation)
    assert [len(batch) for batch in batches] == [5, 2]
    assert {batch.source for batch in batches} == {"held_out"}


def test_a_cache_of_decoded_members_changes_nothing(folder, monkeypatch):
    expected = epochs(module(folder).train_dataloader(), 3)
    decoded = []

    def counting(member, data, limits, *rest):
        if member != "json":
            decoded.append(data)
        return decode(member, data, limits, *rest)

    monkeypatch.setattr("multimodal.data.sample_decoder.decode", counting)
    assert epochs(module(folder, cache_mb=1).train_dataloader(), 3) == expected
    assert len(decoded) == len(set(decoded)) == 72
    decoded.clear()
    assert epochs(module(folder, cache_mb=0).train_dataloader(), 3) == expected
    assert len(decoded) == 3 * 72


def test_a_modality_without_a_transform_is_rejected(folder):
    made = MultimodalDataModule(sources(folder), {"y": ArrayTransform([1])}, 8, 0)
    with pytest.raises(ValueError, match=r"modality 'x', for which data\.transforms has none"):
        made.train_dataloader()


def test_aligned_modalities_need_the_same_geometry(tmp_path):
    samples = [(f"k{i}", {"a.png": b"", "depth.png": b"", "json": json_bytes()}) for i in range(9)]
    path = write_source(tmp_path, {"train": [samples]})
    both = {"image": {"member": "a.png"}, "depth": {"member": "depth.png"}}
    made = MultimodalDataModule(
        {"made": Source(str(path), both)},
        {
            "image": ImageTransform(8, [0.5] * 3, [0.5] * 3, flip=0.5),
            "depth": DepthTransform(8),
        },
        2,
        0,
    )
    with pytest.raises(ValueError, match=r"image and depth are crops of one view.*=0\.5.*=0\.0"):
        made.train_dataloader()


class Crash(Exception):
    pass


class Recorder(pl.LightningModule):
    """Notes what it is given; stops hard after ``stop`` batches, as a crash would."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop = stop
        self.seen: list[tuple] = []

    def training_step(self, batch, batch_idx):
        if self.stop is not None and len(self.seen) == self.stop:
            raise Crash
        self.seen.append(content(batch))
        return self.weight * batch.inputs["x"].sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Saver(pl.Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, *args):
        trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:Total length of `list`")  # a run sets limit_val_batches=0
def test_lightning_trains_without_validation_sources(folder):
    made = module(folder)
    made.val_sources = {}
    recorder = Recorder()
    recorder.validation_step = lambda batch, batch_idx: None
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, made)
    assert len(recorder.seen) == 9


def fit(folder, recorder, path=None, **options):
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Saver(path)] if path else [],
        limit_val_batches=0,
    )
    trainer.fit(recorder, module(folder), **options)
    return recorder.seen


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stop", [5, 9, 13])
def test_lightning_resumes_at_the_next_batch(folder, tmp_path, stop):
    whole = fit(folder, Recorder())
    assert len(whole) == 27
    path = tmp_path / "saved.ckpt"
    with pytest.raises(Crash):
        fit(folder, Recorder(stop), path)
    rest = fit(folder, Recorder(), ckpt_path=path)
    assert rest == whole[stop:]
