"""Every loss with every negatives strategy and all candidates, from the command line."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from experiment_helpers import chdir, composed, run_training

from multimodal.cli.train import train
from multimodal.config import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
HEAVY = pytest.mark.heavy
STEPS = 3
SHORT = (
    "+experiment=clip_scratch",
    "~evaluation",
    "data.num_workers=0",
    "data.batch_size=8",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=0",
    "callbacks.checkpoint=null",
)


def names(group: str) -> set[str]:
    return {path.stem for path in (CONFIGS / group).glob("*.yaml")}


SOFTMAX = ("info_nce", "dcl", "sup_con", "soft_target")
MARGIN = ("triplet", "hinge")
TARGETS = ("cosine", "mse")
TAUGHT = {"affinity", "affinity_mse"}  # compare with a teacher: unit/training/test_teacher.py
DROPS = ("in_batch", "random", "hard", "semi_hard", "distance_weighted", "filtered")
BLOCKS = [
    (SOFTMAX, (*DROPS, "reweighted", "debiased")),
    (("siglip",), (*DROPS, "reweighted")),
    (MARGIN, DROPS),
    (TARGETS, DROPS),
]
ANY = ("all_ranks", "local", "queue")  # candidates that go with everything; ring does not
REFUSED = [
    *(("siglip", "debiased"),),
    *itertools.product((*MARGIN, *TARGETS), ("reweighted", "debiased")),
]


def test_the_grid_is_whole():
    """A new name has to find its place in this file."""
    runs = {pair for block in BLOCKS for pair in itertools.product(*block)}
    assert len(runs) == sum(len(losses) * len(negatives) for losses, negatives in BLOCKS)
    assert runs.isdisjoint(REFUSED)
    untaught = names("loss") - TAUGHT
    assert runs | set(REFUSED) == set(itertools.product(untaught, names("negatives")))
    assert names("candidates") == {*ANY, "ring"}


def sweep(
    folder: Path, losses: Sequence[str], negatives: Sequence[str], candidates: Sequence[str]
) -> None:
    """One command line with ``-m``; every job of it has to log ``STEPS`` finite losses."""
    choices = {"loss": losses, "negatives": negatives, "candidates": candidates}
    words = [f"{group}={','.join(chosen)}" for group, chosen in choices.items()]
    run = run_training(["-m", *SHORT, *words, f"hydra.sweep.dir={folder}"], timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    jobs = sorted(path for path in folder.iterdir() if path.is_dir())
    assert len(jobs) == len(losses) * len(negatives) * len(candidates)
    for job in jobs:
        logged(job)


def logged(folder: Path) -> None:
    """Its run has to have logged ``STEPS`` finite losses."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1)), folder
    for row in rows:
        assert math.isfinite(float(row["train/loss"])), folder
        assert float(row["train/without_negatives/image_text"]) == 0, folder


# Each loss and each strategy once; all their combinations are slow.
ONCE = {
    "info_nce": "reweighted", "dcl": "debiased", "sup_con": "in_batch", "soft_target": "random",
    "siglip": "hard", "triplet": "semi_hard", "hinge": "distance_weighted",
    "cosine": "filtered", "mse": "hard",
}  # fmt: skip


def test_each_is_trained_once():
    assert set(ONCE) == names("loss") - TAUGHT
    assert set(ONCE.values()) == names("negatives")


@pytest.mark.parametrize(
    "loss",
    [
        name if name in ("info_nce", "siglip", "triplet") else pytest.param(name, marks=HEAVY)
        for name in ONCE
    ],
)
def test_every_loss_and_strategy_trains(loss, tmp_path):
    candidates = "queue" if loss in SOFTMAX else "local"
    choices = (f"loss={loss}", f"negatives={ONCE[loss]}", f"candidates={candidates}")
    with composed(*SHORT, *choices, f"logger.csv.folder={tmp_path}") as cfg, chdir(tmp_path):
        train(cfg)
    logged(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=["softmax", "siglip", "margin", "targets"])
def test_every_combination(block, tmp_path):
    sweep(tmp_path, *block, ANY)


@pytest.mark.slow
def test_the_ring(tmp_path):
    sweep(tmp_path, ["siglip"], ["in_batch"], ["ring"])


@pytest.mark.parametrize(("loss", "negatives"), [("info_nce", "in_batch"), ("siglip", "hard")])
def test_what_does_not_go_round_the_ranks_is_rejected(loss, negatives):
    choices = (f"loss={loss}", f"negatives={negatives}", "candidates=ring")
    with composed(*SHORT, *choices) as cfg, pytest.raises(ConfigError) as caught:
        train(cfg)
    (problem,) = caught.value.problems
    assert problem.where == "pairs.image_text"
    assert "take candidates=all_ranks" in problem.message


def test_the_command_of_the_page(tmp_path):
    words = ["candidates=queue", "negatives=hard", "loss=triplet", f"hydra.run.dir={tmp_path}"]
    run = run_training([*SHORT, *words])
    assert run.returncode == 0, run.stderr[-3000:]
    config = (tmp_path / ".hydra" / "config.yaml").read_text()
    for target in ("Triplet", "Hard", "Queue"):
        assert f"_target_: multimodal.objectives.{target}" in config
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + STEPS


@pytest.mark.parametrize(("loss", "negatives"), REFUSED)
@pytest.mark.parametrize("candidates", ANY)
def test_incompatible_choices_are_rejected(loss, negatives, candidates):
    choices = (f"loss={loss}", f"negatives={negatives}", f"candidates={candidates}")
    with composed(*SHORT, *choices) as cfg, pytest.raises(ConfigError) as caught:
        train(cfg)
    (problem,) = caught.value.problems
    assert problem.where == "pairs.image_text"
    reason = "a margin loss has no weights" if negatives == "reweighted" else "denominator"
    assert reason in problem.message


@pytest.mark.parametrize("loss", sorted(TAUGHT))
def test_an_affinity_needs_a_teacher(loss):
    with composed(*SHORT, f"loss={loss}") as cfg, pytest.raises(ConfigError) as caught:
        train(cfg)
    assert {problem.where for problem in caught.value.problems} == {
        "pairs.image_text.anchor", "pairs.image_text.other"
    }  # fmt: skip
    assert "needs teacher_image, which nothing gives" in caught.value.problems[0].message


def test_a_refusal_ends_the_program_before_it_starts(tmp_path):
    words = ["loss=triplet", "negatives=debiased", f"hydra.run.dir={tmp_path}"]
    run = run_training([*SHORT, *words])
    assert run.returncode == 2
    assert "pairs.image_text" in run.stderr
    assert "It needs a softmax loss (info_nce, dcl, sup_con, soft_target)" in run.stderr
    assert not (tmp_path / "metrics.csv").exists()
