"""From configured sets to metrics.json and report.html, by a model whose answers are known."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import audio_bytes, image_bytes, json_bytes, npy_bytes, write_source
from gloo import run_ranks
from loader_helpers import evaluate_sets, evaluation_loader
from markupsafe import Markup
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn
from torch.nn import functional

from multimodal.core.batch import EncoderOutput
from multimodal.data.source import Source
from multimodal.data.tokenizers.bpe import train_bpe
from multimodal.data.transforms.array import ArrayTransform
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.sound.audio import AudioTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.evaluation.evaluators.base import Line, Outcome
from multimodal.evaluation.evaluators.retrieval import RetrievalResult
from multimodal.evaluation.evaluators.space import EmbeddingMap
from multimodal.evaluation.evaluators.zero_shot import ZeroShotResult
from multimodal.evaluation.report.page import links
from multimodal.evaluation.report.sections import Section, sections_of
from multimodal.evaluation.report.write import galleries
from multimodal.evaluation.run import evaluate_run
from multimodal.evaluation.sets import (
    ComposedQuery,
    EvaluationSet,
    MapTask,
    ProbeTask,
    ZeroShotTask,
)
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.models.towers import EmbeddingModel, Tower

COUNT, WIDTH = 8, 4096
NAMES = [*(f"thing {'very ' * i}{i}" for i in range(7)), "thing very very very very very very 6"]
MODALITIES = {
    "image": {"member": "image.png"},
    "sonar": {"member": "sonar.npy"},
    "audio": {"member": "audio.wav"},
    "text": {"member": "json", "key": "name"},
}


def flat(inputs: torch.Tensor) -> torch.Tensor:
    rows = inputs.flatten(1).float()
    return functional.pad(rows, (0, WIDTH - rows.shape[1]))


class Oracle(nn.Module):
    """Recognises the nearest of known inputs and answers with its assigned basis vector."""

    width = COUNT

    def __init__(self, known: torch.Tensor, answers: list[int]) -> None:
        super().__init__()
        self.known = nn.Parameter(flat(known))
        self.answers = answers

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> EncoderOutput:
        found = torch.cdist(flat(inputs), self.known).argmin(dim=1)
        features = torch.eye(COUNT)[torch.tensor(self.answers)[found]]
        return EncoderOutput(features, features[:, None])


class Unchanged(nn.Identity):
    embed_dim = COUNT

    def __init__(self, width: int) -> None:
        super().__init__()


def member_bytes(i: int) -> dict[str, bytes]:
    seconds = 0.2 + 0.01 * len(NAMES[i])  # a sound is as long as its name
    wave = np.sin(np.arange(int(16000 * seconds)) * (0.05 + 0.02 * i))[None]
    return {
        "image.png": image_bytes(np.full((8, 8, 3), 20 + 25 * i, np.uint8)),
        "sonar.npy": npy_bytes(np.full((2, 5), i, np.float32)),
        "audio.wav": audio_bytes(0.5 * wave, 16000),
        "json": json_bytes(name=NAMES[i], parity="odd" if i % 2 else "even"),
    }


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    samples = [(f"k{i}", member_bytes(i)) for i in range(COUNT)]
    return str(write_source(tmp_path / "data", {"test": [samples[:5], samples[5:]]}, name="toy"))


@pytest.fixture
def transforms(tmp_path: Path) -> dict:
    tokenizer = train_bpe(NAMES, 300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return {
        "image": ImageTransform(8, [0.5] * 3, [0.5] * 3),
        "sonar": ArrayTransform([2, 5]),
        "audio": AudioTransform(num_frames=30, num_mel_bins=16),
        "text": TextTransform(str(tmp_path / "tokenizer.json"), 32),
    }


@pytest.fixture
def model(manifest: str, transforms: dict) -> EmbeddingModel:
    """Image and sonar are right, text swaps the first two things, audio takes all for the first."""
    [batch] = evaluation_loader(source(manifest), transforms, None, COUNT)
    right = [0, 1, 2, 3, 4, 5, 6, 6]
    answers = {"image": right, "sonar": right, "text": [1, 0, 2, 3, 4, 5, 6, 6], "audio": [0] * 8}
    return EmbeddingModel(
        {name: Tower(Oracle(batch.inputs[name], said), Unchanged) for name, said in answers.items()}
    )


def source(manifest: str, *modalities: str) -> Source:
    wanted = modalities or MODALITIES
    return Source(manifest, {name: MODALITIES[name] for name in wanted}, split="test")


TRAINED = {
    frozenset(("image", "text")): None,
    frozenset(("image", "sonar")): frozenset({"other"}),
    frozenset(("image", "audio")): frozenset({"other", "toy"}),
}


def test_scores_of_a_model_whose_answers_are_known(model, manifest, transforms):
    sets = {
        "toy": EvaluationSet(
            source(manifest),
            description="eight things",
            zero_shot=[ZeroShotTask("sonar", "name", ["{}"])],
            duration_baseline=True,
        )
    }
    metrics = evaluate_sets(model, sets, transforms, TRAINED, batch_size=3).metrics()["toy"]
    assert {key: metrics[key] for key in ("split", "samples", "description")} == {
        "split": "test", "samples": 8, "description": "eight things",
    }  # fmt: skip

    # The last two things share a name: one text, which both pictures find.
    row = metrics["image_to_text"]
    assert (row["r@1"], row["r@5"], row["trained"]) == (
        6 / 8,
        pytest.approx(6 / 8 + 2 / 8 * 4 / 6),
        True,
    )
    assert (row["queries"], row["gallery"], row["chance"]["r@1"]) == (8, 7, pytest.approx(1 / 7))
    back = metrics["text_to_image"]
    assert (back["r@1"], back["queries"], back["gallery"]) == (5 / 7, 7, 8)
    assert metrics["image_to_sonar"]["r@1"] == 7 / 8  # the last two embed alike
    assert metrics["image_to_sonar"]["trained"] is False  # only in another source
    assert metrics["image_to_audio"]["trained"] is True
    assert metrics["sonar_to_text"]["trained"] is False

    # Everything sounds like one text to the model. The lengths alone tell every name.
    heard = metrics["audio_to_text"]
    assert heard["r@1"] == 1 / 8
    assert heard["duration_only"]["r@1"] == 1.0
    assert "duration_only" not in row

    classified = metrics["zero_shot_sonar_name"]
    assert (classified["top@1"], classified["classes"]) == (6 / 8, 7)
    assert classified["mean_per_class"] == pytest.approx(5 / 7)
    assert classified["chance"]["top@1"] == pytest.approx(1 / 7)
    assert json.loads(json.dumps(metrics)) == metrics


@pytest.mark.parametrize("batch_size", [2, 3])
def test_all_captions_of_a_picture_are_asked_for_and_right(tmp_path, transforms, batch_size):
    captions = [["a", "a b"], "a b c", ["c", "c c", "c c c", "c c c c"], ["b b", "b"]]
    samples = [
        (f"k{i}", member_bytes(i) | {"json": json_bytes(captions=texts, parity="even")})
        for i, texts in enumerate(captions)
    ]
    path = write_source(tmp_path / "captions", {"test": [samples]})
    text = {"member": "json", "key": "captions"}

    def evaluated(**more):
        modalities = {"image": MODALITIES["image"], "text": text | more}
        held = Source(str(path), modalities, split="test")
        [batch] = evaluation_loader(held, transforms, None, COUNT)
        # The second caption of the first picture is taken for the third picture's.
        right = batch.keys.copy()
        if more:
            assert batch.keys == ["k0"] * 2 + ["k1"] + ["k2"] * 4 + ["k3"] * 2
            assert batch.repeats.tolist() == [0, 1, 0, 0, 1, 2, 3, 0, 1]
            right[1] = "k2"
        answers = [int(key[1:]) for key in right]
        seen = []
        oracle = Oracle(batch.inputs["image"], [int(key[1:]) for key in batch.keys])
        oracle.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])))
        # Texts are padded to their batch's longest, so they are known by their real tokens.
        words = {
            tuple(row[mask].tolist()): answer
            for row, mask, answer in zip(
                batch.inputs["text"], batch.masks["text"], answers, strict=True
            )
        }
        model = EmbeddingModel(
            {"image": Tower(oracle, Unchanged), "text": Tower(Reader(words), Unchanged)}
        )
        sets = {
            "captions": EvaluationSet(
                held, zero_shot=[ZeroShotTask("image", "parity")] if more else (), gallery=9
            )
        }
        results = evaluate_sets(model, sets, transforms, {}, batch_size)
        assert sum(seen) == 4  # each picture once, however many captions it has
        return results, held

    metrics = evaluated()[0].metrics()["captions"]
    assert (metrics["text_to_image"]["r@1"], metrics["text_to_image"]["queries"]) == (1, 4)

    results, held = evaluated(keep="all")
    metrics = results.metrics()["captions"]
    assert metrics["samples"] == 4
    asked, found = metrics["text_to_image"], metrics["image_to_text"]
    assert (asked["queries"], asked["gallery"], asked["r@1"]) == (9, 4, 8 / 9)
    assert (found["queries"], found["gallery"]) == (4, 9)
    # One of the five texts that are the third picture's to the model is another's.
    assert found["r@1"] == pytest.approx((3 + 4 / 5) / 4)
    # And the first picture's other text is as far from it as those of all others.
    assert found["map"] < 1
    by_text = next(
        r for r in results.of(RetrievalResult) if (r.query, r.gallery) == ("text", "image")
    )
    shown = {example.query for example in by_text.examples}
    assert shown == {0, 4, 1, 2, 6, 10, 14, 3, 7}  # places, and four times the caption's number
    [gallery] = [
        g for g in galleries(results, {"captions": EvaluationSet(held)}) if g.result is by_text
    ]
    assert "a b" in str(gallery.rows[1][0])


class Reader(nn.Module):
    """Answers a text's real tokens with the basis vector that belongs to them."""

    width = COUNT

    def __init__(self, answers: dict[tuple[int, ...], int]) -> None:
        super().__init__()
        self.answers = answers
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> EncoderOutput:
        assert mask is not None
        rows = [
            self.answers.get(tuple(r[m].tolist()), 0) for r, m in zip(inputs, mask, strict=True)
        ]
        features = torch.eye(COUNT)[torch.tensor(rows)]
        return EncoderOutput(features, features[:, None])


def test_batch_size_changes_no_digit(model, manifest, transforms):
    def metrics(batch_size: int) -> dict:
        sets = {"toy": EvaluationSet(source(manifest), duration_baseline=True, gallery=0)}
        return evaluate_sets(model, sets, transforms, TRAINED, batch_size).metrics()

    assert metrics(1) == metrics(5) == metrics(8)


def test_what_cannot_be_evaluated_is_listed(model, manifest, transforms):
    del model.towers["sonar"], model.towers["text"]
    sets = {
        "toy": EvaluationSet(source(manifest, "image", "sonar", "text"),
                             zero_shot=[ZeroShotTask("image", "parity")]),
        "thermal": EvaluationSet(None, description="no such pictures"),
    }  # fmt: skip
    results = evaluate_sets(model, sets, transforms, TRAINED)
    metrics = results.metrics()
    assert metrics["toy"]["missing"] == {
        "sonar": "the model has no tower for it",
        "text": "the model has no tower for it",
        "zero-shot parity": "the model has no tower for text",
    }
    assert metrics["thermal"] == {"missing": {"samples": "no sample source: no such pictures"}}
    assert results.of(RetrievalResult) == results.of(ZeroShotResult) == []
    alone = evaluate_sets(
        model, {"toy": EvaluationSet(source(manifest, "sonar"))}, transforms, TRAINED
    )
    assert list(alone.metrics()["toy"]) == ["missing"]
    assert "thermal, samples: no sample source: no such pictures" in str(results.table().caption)


def test_a_bad_sample_is_listed_and_shifts_no_example(model, tmp_path, transforms):
    samples = [(f"k{i}", member_bytes(i)) for i in range(COUNT)]
    samples[2][1]["image.png"] = b"not a picture"
    manifest = str(write_source(tmp_path / "bad", {"test": [samples]}, name="toy"))
    entry = EvaluationSet(source(manifest, "image", "sonar"), gallery=COUNT)
    results = evaluate_sets(model, {"toy": entry}, transforms, TRAINED)
    assert results.metrics()["toy"]["missing"] == {"1 of 8 samples": "cannot be read: see the log"}
    forward = next(r for r in results.of(RetrievalResult) if r.query == "image")
    assert [example.query for example in forward.examples] == [0, 1, 3, 4, 5, 6, 7]
    for example in forward.examples[:5]:
        index, similarity, right = example.neighbours[0]
        assert (index, round(similarity, 4), right) == (example.query, 1.0, True)
        assert example.rank == 1
        assert not any(right for _, _, right in example.neighbours[1:])
    # Samples 6 and 7 embed alike but are two things: the right one of two comes at 1.5.
    assert [example.rank for example in forward.examples[5:]] == [1.5, 1.5]


def test_each_pair_has_one_matrix_and_its_examples(model, manifest, transforms):
    entry = EvaluationSet(source(manifest, "image", "sonar"), gallery=3)
    forward, back = evaluate_sets(model, {"toy": entry}, transforms, TRAINED).of(RetrievalResult)
    assert back.matrix is None
    expected = torch.eye(COUNT)
    expected[6:, 6:] = 1  # the last two embed alike
    assert forward.matrix is not None
    assert sorted(forward.matrix.flatten().tolist()) == sorted(expected.flatten().tolist())
    assert forward.matrix.trace() == COUNT
    for result in (forward, back):
        assert [example.query for example in result.examples] == [0, 2, 5]


def test_errors_name_the_set(model, manifest, transforms):
    def fail(**options: object) -> str:
        sets = {"toy": EvaluationSet(source(manifest, "image", "text"), **options)}
        with pytest.raises(ValueError, match="evaluation set 'toy': ") as error:
            evaluate_sets(model, sets, transforms, TRAINED)
        return str(error.value)

    assert "retrieval names ['sound']" in fail(retrieval=[["image", "sound"]])
    assert "under 'colour' in every" in fail(zero_shot=[ZeroShotTask("image", "colour")])
    assert "labels ['odd']" in fail(zero_shot=[ZeroShotTask("image", "parity", classes=["even"])])
    assert "needs audio and text" in fail(duration_baseline=True)
    with torch.no_grad():
        model.towers["image"].head = nn.Linear(COUNT, COUNT)
        model.towers["image"].head.weight.fill_(float("nan"))
    assert "holds NaN" in fail()


def _on_a_rank(rank: int, folder: Path) -> None:
    model, sets, transforms, trained = torch.load(folder / "pieces.pt", weights_only=False)
    found = evaluate_sets(model, sets, transforms, trained, batch_size=4).metrics()
    if rank == 1:
        del transforms["image"]
    with pytest.raises(ValueError, match="has the modality 'image'"):
        evaluate_sets(model, sets, transforms, trained)
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.heavy
def test_ranks_share_the_work_and_find_what_one_finds(model, manifest, transforms, tmp_path):
    """Two batches for three ranks; then an error of one rank, which is raised on all."""
    entry = EvaluationSet(
        source(manifest),
        zero_shot=[ZeroShotTask("sonar", "name")],
        composed=[ComposedQuery({"image": 1.0, "sonar": 0.5}, "text")],
        duration_baseline=True,
    )
    generator = torch.Generator().manual_seed(0)
    for tower in model.towers.values():  # answers that differ in more than their place
        tower.head = nn.Linear(COUNT, COUNT)
        tower.head.embed_dim = COUNT
        nn.init.normal_(tower.head.weight, generator=generator)
    pieces = (model, {"toy": entry}, transforms, TRAINED)
    alone = json.loads(json.dumps(evaluate_sets(*pieces, batch_size=4).metrics()))
    torch.save(pieces, tmp_path / "pieces.pt")
    run_ranks(_on_a_rank, 3, tmp_path, tmp_path)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


def test_sums_of_embeddings_find_their_own(model, manifest, transforms):
    task = ComposedQuery({"image": 1.0, "text": -0.5}, "sonar")
    entry = EvaluationSet(source(manifest), retrieval=None, composed=[task], gallery=2)
    results = evaluate_sets(model, {"toy": entry}, transforms, TRAINED)
    # The text takes away: of the first two it is the other's, which does no harm; of the rest it
    # is the picture's own, of which half stays. The last two sonars are alike to the model.
    row = results.metrics()["toy"]["image-0.5text_to_sonar"]
    assert row["r@1"] == 7 / 8
    assert row["trained"] is False
    assert links(results) == []
    task = ComposedQuery({"image": 0.5, "text": 1.0}, "sonar")
    entry = EvaluationSet(source(manifest), retrieval=None, composed=[task])
    row = evaluate_sets(model, {"toy": entry}, transforms, TRAINED).metrics()["toy"]
    assert row["0.5image+text_to_sonar"]["r@1"] == 5 / 8  # the words of the first two mislead
    with pytest.raises(ValueError, match="two or more modalities"):
        ComposedQuery({"image": 1.0, "text": 1.0}, "text")


def test_several_labels_of_a_sample(model, tmp_path, transforms):
    samples = [(f"k{i}", member_bytes(i)) for i in range(COUNT)]
    for i, (_, members) in enumerate(samples):
        members["json"] = json_bytes(name=NAMES[i], tags=[NAMES[i], NAMES[(i + 1) % 6]])
    manifest = str(write_source(tmp_path / "tags", {"test": [samples]}, name="toy"))
    entry = EvaluationSet(
        source(manifest), retrieval=None, zero_shot=[ZeroShotTask("sonar", "tags")]
    )
    results = evaluate_sets(model, {"toy": entry}, transforms, TRAINED)
    row = results.metrics()["toy"]["zero_shot_sonar_tags"]
    # The model takes the first two names for each other; the first thing is tagged with both.
    assert 0 < row["chance"]["map"] < row["map"] < 1
    assert row["top@1"] == 7 / 8
    assert results.of(ZeroShotResult)[0].scores.confusion is None


def test_a_probe_learns_from_its_own_source(model, manifest, transforms, tmp_path):
    train = [(f"t{i}", member_bytes(i % COUNT)) for i in range(40)]
    written = str(write_source(tmp_path / "more", {"train": [train]}, name="more"))
    learn = Source(written, {"sonar": MODALITIES["sonar"]}, split="train")
    task = ProbeTask("sonar", "parity", learn, shots=(1, 4), draws=2)
    entry = EvaluationSet(source(manifest), retrieval=None, probes=[task])
    found = evaluate_sets(model, {"toy": entry}, transforms, TRAINED).metrics()["toy"]
    row = found["probe_sonar_parity"]
    # Samples 6 (even) and 7 (odd) embed alike: one of them must be wrong.
    assert row["linear"]["top1"] == 7 / 8
    assert (row["classes"], row["train"], row["test"], row["guess"]) == (2, 40, 8, 0.5)
    assert set(row["few_shot"]) == {"1", "4"}


def test_diagnostics_and_map_of_a_set(model, manifest, transforms):
    entry = EvaluationSet(
        source(manifest, "image", "sonar"), map=MapTask(samples=5, label="parity")
    )
    results = evaluate_sets(
        model, {"toy": entry}, transforms, TRAINED,
        temperatures={frozenset(("image", "sonar")): 0.05},
    )  # fmt: skip
    found = results.metrics()["toy"]["diagnostics"]
    assert found["image_sonar"] == {"alignment": 0, "gap": 0, "temperature": 0.05}
    shares = [1 / (6 + 2**0.5)] * 6 + [2**0.5 / (6 + 2**0.5)]  # the last two embed alike
    entropy = -sum(share * math.log(share) for share in shares)
    assert found["image"]["effective_rank"] == pytest.approx(math.exp(entropy))
    [laid_out] = results.of(EmbeddingMap)
    assert laid_out.points.shape == (10, 2)
    assert laid_out.modalities == ["image"] * 5 + ["sonar"] * 5
    assert sorted(laid_out.labels[:5]) == laid_out.labels[:5]
    # The two modalities of a sample embed alike, and stand together.
    assert torch.cdist(laid_out.points[:5], laid_out.points[5:]).argmin(1).tolist() == list(
        range(5)
    )


def test_training_mode_is_left_as_it_was(model, manifest, transforms):
    model.train()
    evaluate_sets(
        model, {"toy": EvaluationSet(source(manifest, "image", "text"))}, transforms, TRAINED
    )
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retrieval": "every"}, "'all' or a list"),
        ({"retrieval": ["image", "text"]}, "'all' or a list"),
        ({"gallery": -1}, "0 or more"),
    ],
)
def test_sets_reject_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSet(None, **options)


def test_prompts_are_templates_with_several_names():
    with pytest.raises(ValueError, match="must be templates"):
        ZeroShotTask("image", "label", ["a thing"])
    task = ZeroShotTask("image", "label", ["{}", "a {}"], classes={"sofa": ["sofa", "couch"]})
    assert task.texts(task.names(["sofa"])["sofa"]) == ["sofa", "a sofa", "couch", "a couch"]


def test_pairs_restricted_to_sources_are_trained_only_there(manifest, tmp_path):
    other = write_source(tmp_path / "other", {"train": [[("k", member_bytes(0))]]}, name="other")
    run = OmegaConf.create(
        {
            "data": {"sources": {"toys": {"manifest": manifest}}},
            "pairs": {
                "one": {"anchor": "text", "other": "imu", "sources": ["toys"]},
                "two": {"anchor": "image", "other": "text", "sources": ["toys"]},
            },
        }
    )
    more = OmegaConf.create(
        {
            "data": {"sources": {"others": {"manifest": str(other)}}},
            "pairs": {"three": {"anchor": "imu", "other": "text", "sources": ["others"]}},
        }
    )
    assert trained_pairs(run, more)[frozenset(("text", "imu"))] == {"toy", "other"}
    anchor = OmegaConf.create({"pairs": {"all": {"anchor": "image", "other": "text"}}})
    assert trained_pairs(run, None) == {
        frozenset(("text", "imu")): {"toy"},
        frozenset(("image", "text")): {"toy"},
    }
    for order in ((run, anchor), (anchor, run)):
        assert trained_pairs(*order)[frozenset(("image", "text"))] is None


def test_a_run_leaves_metrics_and_report(model, manifest, transforms, tmp_path, capsys):
    text = {"_target_": "multimodal.data.TextTransform",
            "tokenizer": str(tmp_path / "tokenizer.json"), "context_length": 32}  # fmt: skip
    image = {"_target_": "multimodal.data.ImageTransform", "size": 8,
             "mean": [0.5] * 3, "std": [0.5] * 3}  # fmt: skip
    held_out = {"_target_": "multimodal.data.Source", "manifest": manifest, "split": "test",
                "modalities": {name: MODALITIES[name] for name in ("image", "text")}}  # fmt: skip
    cfg = OmegaConf.create(
        {
            "name": "toy run",
            "data": {
                "transforms": {"image": image, "text": text},
                "eval_batch_size": 3,
                "num_workers": 0,
            },
            "evaluation": {
                "sets": {
                    "toy": {
                        "source": held_out,
                        "retrieval": [["image", "text"]],
                        "zero_shot": [{"modality": "image", "label": "parity", "prompts": ["{}"]}],
                    },
                    "taken_out": None,
                    "thermal": {"source": None},
                }
            },
        }
    )
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,2.5\n1,1.5\n")
    evaluate_run(model, cfg, tmp_path, TRAINED)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["toy"]["image_to_text"]["r@1"] == 6 / 8
    assert metrics["toy"]["zero_shot_image_parity"]["classes"] == 2
    assert set(metrics) == {"toy", "thermal"}
    page = (tmp_path / "report.html").read_text()
    for shown in ("toy run", "image → text", "75.0", "training loss", "no sample source", NAMES[3]):
        assert shown in page
    printed = capsys.readouterr().out
    assert "75.0" in printed
    assert str(tmp_path / "report.html") in printed.replace("\n", "")


@pytest.mark.slow
def test_the_script_finds_what_the_run_found(tmp_path):
    root = Path(__file__).parents[3]

    def run(script: str, *words: str) -> dict:
        folder = tmp_path / script
        command = [sys.executable, f"scripts/{script}.py", *words, f"hydra.run.dir={folder}"]
        subprocess.run(command, cwd=root, check=True)
        return json.loads((folder / "metrics.json").read_text())

    trained = run("train", "+experiment=clip_scratch", "debug=fast")
    [checkpoint] = (tmp_path / "train" / "checkpoints").glob("*.ckpt")
    assert run("evaluate", f"checkpoint='{checkpoint}'") == trained


@dataclass(frozen=True)
class HubnessResult(Outcome):
    set: str
    modality: str
    share: float

    @property
    def key(self):
        return f"hubness_{self.modality}"

    @property
    def group(self):
        return "Hubs"

    def row(self):
        return {"share": self.share}

    def lines(self):
        return [Line(f"  {self.modality}", f"{100 * self.share:.1f}")]

    @classmethod
    def section(cls, outcomes):
        return Section("hubs", "Hubs", Markup("<p>{}</p>").format(len(outcomes)))


@dataclass
class Hubness:
    """The share of samples that are nobody's nearest neighbour."""

    modality: str

    def evaluate(self, context):
        vectors = context.samples.embeddings[self.modality]
        nearest = (vectors @ vectors.T).fill_diagonal_(-2).argmax(dim=1)
        share = 1 - len(nearest.unique()) / len(nearest)
        yield HubnessResult(context.samples.name, self.modality, share)


def test_an_evaluator_of_ones_own_is_one_class_and_one_block(model, manifest, transforms):
    block = {
        "source": source(manifest, "image", "text"),
        "retrieval": None,
        "evaluators": {"hubs": Hubness("image")},
    }
    results = evaluate_sets(model, {"toy": EvaluationSet.from_blocks(block)}, transforms, TRAINED)
    share = results.metrics()["toy"]["hubness_image"]["share"]
    assert 0 < share < 1
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results.table())
    printed = console.export_text()
    assert "Hubs" in printed
    assert f"{100 * share:.1f}" in printed
    assert [part.anchor for part in sections_of(results)] == ["hubs", "space"]
