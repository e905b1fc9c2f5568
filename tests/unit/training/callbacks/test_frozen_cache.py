"""`data.cache_frozen`: frozen towers embed each sample once."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from data_helpers import image_bytes, json_bytes, npy_bytes, write_source
from experiment_helpers import (
    composed,
    losses,
    run_training,
    train_here,
    weights,
    write_sensor_shards,
)
from loader_helpers import scheduled_loader

from multimodal.config import ConfigError, check
from multimodal.core.errors import ConfigProblem
from multimodal.data import sample_decoder as members_module
from multimodal.data.errors import DecodeError
from multimodal.data.loading.collate import Sample, load
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.loading.workers import Steps
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.settings import LoaderSettings
from multimodal.data.source import Source
from multimodal.data.transforms.depth import DepthTransform
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.sound.whisper import WhisperTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.models.heads import Standardize
from multimodal.models.pretrained.keys import same_bits
from multimodal.models.towers import EmbeddingModel
from multimodal.training.callbacks.frozen_cache import FrozenCache, embedded_blocks
from multimodal.training.frozen_jobs import Job

PLAIN = [
    f"data.transforms.image.{key}"
    for key in ("scale=[1.0,1.0]", "brightness=0", "contrast=0", "saturation=0", "grayscale=0")
]
FROZEN = ["model.towers.image.frozen=true", "+data.cache_frozen=true"]
SHORT = ["trainer.max_steps=6", "~evaluation", "trainer.limit_val_batches=0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSOR_SHARDS", str(write_sensor_shards(tmp_path / "shards")))
    torch.set_num_threads(1)
    return tmp_path


@pytest.fixture
def work(monkeypatch):
    """Counts pictures that are decoded, and those that are embedded."""
    counts = {"decoded": 0, "embedded": 0}
    decode, embed = members_module.decode, EmbeddingModel.embed

    def decoding(member, *rest):
        counts["decoded"] += member.endswith("png")
        return decode(member, *rest)

    def embedding(self, modality, inputs, *rest):
        counts["embedded"] += len(inputs) if modality == "image" else 0
        return embed(self, modality, inputs, *rest)

    monkeypatch.setattr(members_module, "decode", decoding)
    monkeypatch.setattr(EmbeddingModel, "embed", embedding)
    return counts


def test_training_is_the_same_and_neither_decodes_nor_encodes(here, work):
    words = [*SHORT, *PLAIN, f"cache_frozen.folder={here / 'frozen'}"]
    train_here(here / "plain", *words, FROZEN[0])
    work.update(decoded=0, embedded=0)
    train_here(here / "cached", *words, *FROZEN)
    assert work == {"decoded": 160, "embedded": 160}  # every sample once
    plain, cached = (
        {step: float(loss) for step, loss in losses(here / name).items()}
        for name in ("plain", "cached")
    )
    assert plain.keys() == cached.keys() == set(range(1, 7))
    for step, loss in plain.items():
        assert abs(loss - cached[step]) < 1e-4 * loss
    # A later run finds all of it; one with other weights, none.
    train_here(here / "again", *words, *FROZEN)
    assert work["embedded"] == 160
    assert losses(here / "again") == losses(here / "cached")
    train_here(here / "other", *words, *FROZEN, "seed=1")
    assert work["embedded"] == 320


def test_an_unfinished_table_is_resumed(here, work):
    words = [*SHORT, *PLAIN, *FROZEN, f"cache_frozen.folder={here / 'frozen'}"]
    train_here(here / "first", *words)
    (folder,) = (here / "frozen").iterdir()
    status = np.load(folder / "status.npy", mmap_mode="r+")
    values = np.load(folder / "embeddings.npy", mmap_mode="r+")
    before = values.copy()
    status[40:] = 0
    values[40:] = np.nan
    status.flush(), values.flush()
    work.update(decoded=0, embedded=0)
    train_here(here / "second", *words)
    assert work == {"decoded": 120, "embedded": 120}
    assert np.array_equal(np.load(folder / "embeddings.npy"), before)
    assert losses(here / "second") == losses(here / "first")


def test_random_choices_need_views(here):
    words = [*SHORT, *FROZEN, f"cache_frozen.folder={here / 'frozen'}"]
    with pytest.raises(ValueError, match=r"'image' of source 'measured' is random: its transform"):
        train_here(here / "refused", *words)
    assert not (here / "frozen").exists()
    train_here(here / "views", *words, "cache_frozen.views=3")
    (folder,) = (here / "frozen").iterdir()
    table = FrozenEmbeddings(folder)
    assert (len(table), table.views) == (160, 3)
    views = [table.read(7, view) for view in range(3)]
    assert all(abs(float(view.norm()) - 1) < 1e-5 for view in views)
    assert not torch.equal(views[0], views[1])


def test_a_modality_may_have_its_own_number_of_views(here):
    words = [*SHORT, *FROZEN, f"cache_frozen.folder={here / 'frozen'}"]
    train_here(here / "run", *words, "cache_frozen.views=2", "+cache_frozen.views_of.image=3")
    (folder,) = (here / "frozen").iterdir()
    assert FrozenEmbeddings(folder).views == 3


@pytest.mark.parametrize(("more", "is_refused"), [("depth", True), ("text", False)])
def test_what_is_read_in_the_same_view_has_as_many_views(tmp_path, more, is_refused):
    sample = {"a.png": b"", "depth.npy": b"", "json": json_bytes(name="a")}
    path = write_source(tmp_path, {"train": [[("k", sample)]]})
    members = {
        "image": {"member": "a.png"},
        "depth": {"member": "depth.npy"},
        "text": {"member": "json", "key": "name"},
    }
    source = Source(str(path), members)
    source.decoder.name = "seen"
    jobs = [Job(source, name, None, None, None) for name in members]
    cache = FrozenCache(str(tmp_path), 4, {}, views_of={more: 2})
    if is_refused:
        message = r"'seen' reads these in the same view.*\(image: 4, depth: 2\): give them the same"
        with pytest.raises(ValueError, match=message):
            cache.check_views(jobs)
    else:
        cache.check_views(jobs)
    taught = Job(source, "text", None, None, None, taught=True)
    with pytest.raises(ValueError, match="in the same view"):
        cache.check_views([*jobs, taught])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+data.cache_frozen=true"], "there is no tower with `frozen: true`"),
        (["cache_frozen.views=4"], "requires data.cache_frozen=true"),
        ([*FROZEN, "cache_frozen.views=0"], "must be at least 1, or null"),
        (["+cache_frozen.views_of.image=4"], "requires data.cache_frozen=true"),
        ([*FROZEN, "+cache_frozen.views_of.image=0"], r"views_of\.image\s+must be at least 1"),
        (
            [*FROZEN, "+cache_frozen.views_of.sensor=2"],
            r"views_of\.sensor\s+no frozen tower has this name; image has",
        ),
        (
            [
                *FROZEN,
                "head@model.towers.image.head=mlp",
                "model.towers.image.head.standardize=true",
            ],
            r"image\.head\.standardize\s+needs `frozen: encoder` and data\.cache_frozen=true",
        ),
    ],
)
def test_uncacheable_inputs_are_rejected_by_the_configuration(here, words, message):
    from experiment_helpers import SENSOR

    with composed(*SENSOR, *words) as cfg, pytest.raises(ConfigError, match=message):
        check(cfg)


@pytest.mark.slow
def test_ranks_share_the_work(here):
    words = [
        "+experiment=sensor", *SHORT, *FROZEN, "cache_frozen.views=2", "trainer=ddp",
        "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
        f"cache_frozen.folder={here / 'frozen'}", f"hydra.run.dir={here / 'run'}",
    ]  # fmt: skip
    run = run_training(words, here / "shards")
    assert run.returncode == 0, run.stderr[-3000:]
    assert "frozen image of measured: 80/80 embedded" in run.stderr
    (folder,) = (here / "frozen").iterdir()
    assert np.load(folder / "status.npy").tolist() == [1] * 160
    assert (np.load(folder / "embeddings.npy") != 0).any(-1).all()


# Views and their geometry


@pytest.fixture
def aligned(tmp_path):
    """Pictures with depth maps, and a table of three views of the pictures."""
    random = np.random.default_rng(0)
    samples = [
        (
            f"k{n}",
            {
                "a.png": image_bytes(random.integers(0, 256, (40, 40, 3), np.uint8)),
                "depth.npy": npy_bytes(random.uniform(1, 9, (40, 40)).astype(np.float32)),
                "json": json_bytes(),
            },
        )
        for n in range(12)
    ]
    path = write_source(tmp_path, {"train": [samples]})
    source = Source(str(path), {"image": {"member": "a.png"}, "depth": {"member": "depth.npy"}})
    crop = {"scale": [0.2, 0.6], "flip": 0.5}
    transforms = {
        "image": ImageTransform(16, [0.5] * 3, [0.5] * 3, brightness=0.5, **crop),
        "depth": DepthTransform(16, unit_m=1.0, **crop),
    }
    FrozenEmbeddings.create(tmp_path / "table", 12, 3, 4)
    table = FrozenEmbeddings(tmp_path / "table", writable=True)
    for index in range(12):
        table.write(index, torch.tensor([[index, view, 0.0, 0.0] for view in range(3)]))
    table.flush()
    return source, transforms, FrozenEmbeddings(tmp_path / "table")


def test_what_is_aligned_has_the_geometry_of_the_view(aligned):
    source, transforms, table = aligned
    seen = set()
    for repeat in range(6):
        rng = SampleRNG(3, 1, source.name, 5, repeat)
        sample = load(source, transforms, 5, rng, frozen={"image": table})
        assert isinstance(sample, Sample)
        assert set(sample.inputs) == {"depth"}
        index, view = sample.embeddings["image"][:2].int().tolist()
        assert index == 5
        seen.add(view)
        # What the cache embedded, and what its depth map would have been.
        of_view = SampleRNG.of_view(3, source.name, 5, view)
        expected = load(source, transforms, 5, of_view)
        assert torch.equal(sample.inputs["depth"], expected.inputs["depth"])
        own = load(source, transforms, 5, rng)
        assert not torch.equal(sample.inputs["depth"], own.inputs["depth"])
    assert seen == {0, 1, 2}


def test_batches_carry_embeddings_in_place_of_inputs(aligned):
    source, transforms, table = aligned
    source.frozen["image"] = table
    loader = scheduled_loader({"made": source}, transforms, 4, 0, num_workers=1)
    for batch in loader:
        assert set(batch.inputs) == {"depth"}
        assert batch.embeddings["image"].shape == (4, 4)
        rows = batch.embeddings["image"][:, 0].tolist()
        assert [f"k{row:.0f}" for row in rows] == batch.keys
        moved = batch.to("cpu")
        assert torch.equal(moved.embeddings["image"], batch.embeddings["image"])


def test_a_run_is_not_resumed_with_other_views(aligned):
    source, transforms, table = aligned
    state = scheduled_loader({"made": source}, transforms, 4, 0).state_dict()
    source.frozen["image"] = table
    with pytest.raises(ValueError, match=r"had the cached views none, has \{'image': 3\}"):
        scheduled_loader({"made": source}, transforms, 4, 0).load_state_dict(state)


def test_a_run_is_not_resumed_where_views_were_drawn_otherwise(aligned):
    source, transforms, table = aligned
    source.frozen["image"] = table
    loader = scheduled_loader({"made": source}, transforms, 4, 0)
    state = loader.state_dict()
    loader.load_state_dict(state)
    del state["signature"]["sources"]["made"]["draws"]  # as before views were drawn alone
    with pytest.raises(ValueError, match="drew its cached views as earlier versions do"):
        loader.load_state_dict(state)


class Counting:
    """A tower's embedding of texts: sums of ids; refuses padding that nothing needs."""

    def __init__(self):
        self.lengths = []

    def frozen_part(self, modality, ids, mask):
        assert modality == "text"
        self.lengths += [ids.shape[1]] * len(ids)
        return (ids * mask).sum(dim=1, keepdim=True).repeat(1, 2)


@pytest.mark.parametrize("fill", [False, True])
def test_equal_texts_are_embedded_once_and_with_those_of_their_length(fill):
    class Letters:
        start, end, pad = 1, 2, 0

        def encode(self, text):
            return [ord(letter) for letter in text]

    transform = TextTransform(Letters(), 80, fill=fill)
    random = np.random.default_rng(0)
    texts = ["a" * int(n) + "bcd"[int(n) % 3] for n in random.integers(1, 70, 150)]
    ids, mask = transform.collate([transform(text, None) for text in texts])
    model = Counting()
    job = Job(None, "text", model, transform, {})
    made = job.embed(ids, mask, torch.device("cpu"))
    assert torch.equal(made, (ids * mask).sum(dim=1, keepdim=True).repeat(1, 2).float())
    assert len(model.lengths) == len(set(texts)) < 150
    if fill:
        assert set(model.lengths) == {80}
    else:
        needed = sum(len(text) + 2 for text in set(texts))
        assert needed <= sum(model.lengths) < 1.5 * needed < ids.shape[1] * len(set(texts))


def test_sounds_are_embedded_with_those_of_their_length():
    class Means:
        frames = 0

        def frozen_part(self, modality, sounds, mask):
            self.frames += sounds.shape[0] * sounds.shape[2]
            kept = sounds * mask[:, None]
            return kept.sum(dim=2) / mask.sum(dim=1, keepdim=True)

    transform, model = WhisperTransform(), Means()
    lengths = [*np.random.default_rng(0).integers(20, 90, 130).tolist(), 300]
    sounds = [torch.randn(80, length) for length in lengths]
    made = Job(None, "audio", model, transform, {}).embed(
        *transform.collate(sounds), torch.device("cpu")
    )
    torch.testing.assert_close(made, torch.stack([sound.mean(dim=1) for sound in sounds]))
    assert model.frames < 1.3 * sum(lengths) < 0.3 * len(sounds) * max(lengths)


class Identified:
    """Ten rows a block, which say who embedded them, with how many threads."""

    def __getitem__(self, number):
        return torch.full((10, 1), float(number)), None, [True] * 10

    def embed(self, inputs, mask, device):
        if inputs[0, 0] == 3:
            raise ConfigError([ConfigProblem("model.towers.image", "is too small")])
        who = torch.tensor([os.getpid(), torch.get_num_threads()]).expand(len(inputs), 2)
        return torch.cat([inputs, who], dim=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_on_a_cpu_every_core_embeds_what_it_reads(monkeypatch, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    both, settings = Identified(), LoaderSettings(workers)
    blocks = embedded_blocks(both, both, Steps(range(3)), settings, torch.device("cpu"))
    rows = torch.cat([rows for rows, _ in blocks])
    assert rows[:, 0].tolist() == [0.0] * 10 + [1.0] * 10 + [2.0] * 10
    assert set(rows[:, 2].tolist()) == {1.0}
    processes = set(rows[:, 1].tolist())
    assert processes == {os.getpid()} if workers == 0 else len(processes - {os.getpid()}) == 3


def test_a_user_s_error_in_an_embedding_process_is_raised_as_it_is():
    both = Identified()
    blocks = embedded_blocks(both, both, Steps(range(4)), LoaderSettings(1), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"model\.towers\.image"):
        list(blocks)


def test_a_sample_that_could_not_be_embedded_is_a_bad_sample(aligned):
    source, transforms, table = aligned
    FrozenEmbeddings(table.folder, writable=True).write(5, None)
    table = FrozenEmbeddings(table.folder)
    assert table.bad == 1
    with pytest.raises(DecodeError, match="not_embedded"):
        table.read(5, 0)
    source.frozen["image"] = table
    loader = scheduled_loader({"made": source}, transforms, 4, 0)
    keys = [key for batch in loader for key in batch.keys]
    assert "k5" not in keys
    assert loader.counter.reasons == {"not_embedded": 1}


@pytest.mark.heavy
def test_the_features_of_a_frozen_encoder_are_cached_and_its_head_is_trained(here, work):
    words = [*SHORT, *PLAIN, "model.towers.image.frozen=encoder"]
    cached = [*words, "+data.cache_frozen=true", f"cache_frozen.folder={here / 'frozen'}"]
    train_here(here / "plain", *words)
    work.update(decoded=0)
    train_here(here / "cached", *cached, "callbacks.checkpoint.every_n_train_steps=3")
    assert work["decoded"] == 160  # every sample once
    for step, loss in losses(here / "plain").items():
        assert float(losses(here / "cached")[step]) == pytest.approx(float(loss), rel=1e-4)
    (folder,) = (here / "frozen").iterdir()
    features = FrozenEmbeddings(folder).read(0, 0)
    assert features.norm() != pytest.approx(1.0, abs=1e-3)
    # Another head, and a head that has learned, read the same table.
    train_here(here / "again", *cached, "head@model.towers.image.head=mlp")
    assert work["decoded"] == 160
    head = "model.towers.image.head.projection.weight"
    before, after = (weights(here / "cached", step) for step in (3, 6))
    assert all(same_bits(after[n], before[n]) for n in after if ".image.encoder." in n)
    assert not torch.equal(after[head], before[head])


def test_a_head_standardises_by_all_cached_features(here):
    train_here(
        here / "run", *SHORT, *PLAIN, "+data.cache_frozen=true",
        "model.towers.image.frozen=encoder", f"cache_frozen.folder={here / 'frozen'}",
        "head@model.towers.image.head=mlp", "model.towers.image.head.standardize=true",
    )  # fmt: skip
    (folder,) = (here / "frozen").iterdir()
    table = FrozenEmbeddings(folder, writable=True)
    table.write(1, None)  # a bad sample counts for nothing
    good = [index for index in range(len(table)) if index != 1]
    rows = torch.stack([table.read(index, 0) for index in good]).double()
    count, total, squares = table.sums()
    assert count == len(good)
    np.testing.assert_allclose(total, rows.sum(0))
    np.testing.assert_allclose(squares, (rows**2).sum(0))
    everything = torch.from_numpy(np.load(folder / "embeddings.npy"))[:, 0].double()
    kept = weights(here / "run", 6)
    mean, deviation = (
        kept[f"model.towers.image.head.standardize.{name}"].double()
        for name in ("mean", "deviation")
    )
    torch.testing.assert_close(mean, everything.mean(0), rtol=1e-5, atol=1e-6)
    expected = everything.std(0, correction=0)
    expected[expected <= 1e-6 * expected.max()] = 1
    torch.testing.assert_close(deviation, expected, rtol=1e-4, atol=1e-6)


def test_constant_features_are_centred_only():
    layer = Standardize(3)
    values = torch.tensor([[5.0, 1.0, 0.0], [5.0, 3.0, 400.0]])
    assert torch.equal(layer(values), values)
    layer.fit(values.mean(0), values.std(0, correction=0))
    expected = torch.tensor([[0.0, -1.0, -1.0], [0.0, 1.0, 1.0]])
    torch.testing.assert_close(layer(values), expected)
