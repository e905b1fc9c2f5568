"""Distillation from a trained run: who teaches, what the student is given, and what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from experiment_helpers import (
    SENSOR,
    composed,
    losses,
    train_here,
    weights,
    write_sensor_shards,
)

import multimodal
from multimodal.config import ConfigError, check
from multimodal.data.loading.collate import Sample, load
from multimodal.data.loading.frozen_embeddings import FrozenEmbeddings
from multimodal.data.sample_rng import SampleRNG
from multimodal.data.source import Source, SourceContext
from multimodal.inference.load import load_embedder
from multimodal.training.anchor import AnchorError

SHORT = ("trainer.max_steps=2", "~evaluation", "trainer.limit_val_batches=0")
TEACHES = (
    "+data.cache_frozen=true",
    "cache_frozen.views=2",
    "cache_frozen.folder=kept",
    "anchor={checkpoint: teacher, experiment: null, towers: [], teaches: [image, sensor], "
    "folder: kept}",
)
PAIRS = (
    "+loss@pairs.affinity.loss=affinity",
    "+pairs.affinity={anchor: image, other: sensor}",
    "+loss@pairs.feature.loss=cosine",
    "+pairs.feature={anchor: image, other: teacher_image, logit_scale: {learned: false}}",
    "+pairs.contrast={anchor: image, other: teacher_sensor}",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SENSOR_SHARDS", str(write_sensor_shards(folder / "shards")))
        patched.chdir(folder)
        torch.set_num_threads(1)
        train_here(folder / "teacher", *SHORT)
        yield folder


def given(here, *words: str) -> list[str]:
    return [word.replace("teacher,", f"'{here / 'teacher'}',").replace("kept", str(here / "kept"))
            for word in (*SHORT, *TEACHES, *words)]  # fmt: skip


@pytest.fixture(scope="module")
def student(here):
    train_here(here / "student", *given(here, *PAIRS, "seed=3"))
    return here / "student"


def pictures(here) -> Source:
    manifest = str(here / "shards" / "measured.json")
    source = Source(manifest, {"image": {"member": "view.png"}})
    return source.within(SourceContext(), "measured")


def tables(here) -> dict[str, FrozenEmbeddings]:
    return {path.name.split("-")[1]: FrozenEmbeddings(path) for path in (here / "kept").iterdir()}


@pytest.mark.heavy
def test_a_student_trains_on_all_losses_and_keeps_nothing_of_its_teacher(here, student):
    assert set(losses(student)) == {1, 2}
    header, *rows = (student / "metrics.csv").read_text().splitlines()
    for name in ("affinity", "feature", "contrast", "image_sensor"):
        values = [float(r.split(",")[header.split(",").index(f"train/loss/{name}")]) for r in rows]
        assert all(np.isfinite(values))
    state = weights(student, 2)
    assert state.keys() - {k for k in state if k.startswith("objective.")} == {
        k for k in weights(here / "teacher", 2) if not k.startswith("objective.")
    }
    assert multimodal.load(student).embed(image=[np.zeros((16, 16, 3), np.uint8)]).shape == (1, 16)


@pytest.mark.heavy
def test_the_tables_are_the_teacher_s_embeddings_of_the_views(here, student):
    teacher = load_embedder(here / "teacher", device="cpu")
    source = pictures(here)
    for index in (0, 77):
        for view in (0, 1):
            rng = SampleRNG.of_view(3, "measured", index, view)
            sample = load(source, teacher.transforms, index, rng, ["image"])
            assert isinstance(sample, Sample)
            inputs, _ = teacher.transforms["image"].collate([sample.inputs["image"]])
            row = teacher.model.embed("image", inputs)[0].detach()
            torch.testing.assert_close(tables(here)["image"].read(index, view), row)


@pytest.mark.heavy
def test_the_student_is_given_the_view_that_the_teacher_was_given(here, student):
    teacher = load_embedder(here / "teacher", device="cpu")
    source = pictures(here)
    frozen = {"teacher_image": tables(here)["image"]}
    seen = set()
    for epoch in range(6):
        use = SampleRNG(3, epoch, "measured", 5, 0)
        sample = load(source, teacher.transforms, 5, use, frozen=frozen)
        assert isinstance(sample, Sample)
        view = use.choose_view(2)
        again = load(
            source, teacher.transforms, 5, SampleRNG.of_view(3, "measured", 5, view), ["image"]
        )
        assert isinstance(again, Sample)
        assert torch.equal(sample.inputs["image"], again.inputs["image"])
        assert torch.equal(
            sample.embeddings["teacher_image"], frozen["teacher_image"].read(5, view)
        )
        assert sample.repeat == 0
        seen.add(view)
    assert seen == {0, 1}


@pytest.mark.slow
def test_a_resumed_student_goes_on_as_if_it_had_not_stopped(here, student):
    folder = here / "stopped"
    words = [*PAIRS, "seed=3", "callbacks.checkpoint.every_n_train_steps=1"]
    train_here(folder, *given(here, *words), "trainer.max_steps=1", "scheduler.max_steps=2")
    train_here(folder, *given(here, *words), "resume=auto", "scheduler.max_steps=2")
    for name, tensor in weights(student, 2).items():
        assert torch.equal(tensor, weights(folder, 2)[name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([PAIRS[0], PAIRS[1]], None),
        ([*PAIRS, "data.cache_frozen=false", "cache_frozen.views=null"], "requires data.cache_fro"),
        ([*PAIRS, "cache_frozen.views=null"], "requires cache_frozen.views=K"),
        ([*PAIRS, "anchor.teaches=[image]"], "needs teacher_sensor, which nothing gives"),
        ([PAIRS[2], PAIRS[3]], "no pair reads teacher_sensor: remove sensor"),
        ([*PAIRS, "anchor=null"], "needs teacher_image, which nothing gives"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_built(here, words, message):
    with composed(*SENSOR, *given(here, *words)) as cfg:
        if message is None:
            check(cfg)
            return
        with pytest.raises(ConfigError, match=message):
            check(cfg)


def test_a_teacher_that_does_not_fit_is_refused(here):
    words = given(here, *PAIRS, "embed_dim=8", "data.transforms.image.scale=[0.5,1.0]")
    with pytest.raises(AnchorError) as caught:
        train_here(here / "refused", *words)
    assert "pairs.feature: compares embeddings of width 8 with the teacher's of 16" in str(
        caught.value
    )
    assert "data.transforms.image: teacher and student are given the same crop" in str(caught.value)
