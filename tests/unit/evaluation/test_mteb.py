"""A model of ours under MTEB: the same figures as ours on the same samples."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_helpers import image_bytes, json_bytes, write_source
from loader_helpers import evaluate_sets
from PIL import Image
from search_helpers import make_embedder
from torch.nn import functional

from multimodal.core.errors import UserError
from multimodal.core.similarity.similarities import MaxSim
from multimodal.data.source import Source
from multimodal.evaluation.mteb import MTEBEncoder
from multimodal.evaluation.sets import EvaluationSet, ZeroShotTask

CLASSES = ["a red fox", "a blue boat", "green grass"]
PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def picture(number: int) -> np.ndarray:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    return np.kron(pixels, np.ones((8, 8, 1), np.uint8))


@pytest.fixture
def encoder(tmp_path):
    return MTEBEncoder(make_embedder(tmp_path), "me/mine")


def test_a_batch_of_one_modality_is_embedded_as_by_the_model(encoder):
    texts, images = ["a fox", "a boat", "grass"], [Image.fromarray(picture(n)) for n in range(3)]
    sound = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    ours = encoder.embedder
    for batches, expected in (
        ([{"text": texts[:2], "id": [1, 2]}, {"text": texts[2:]}], ours.embed(text=texts)),
        ([{"image": images}], ours.embed(image=images)),
        (
            [{"audio": [{"array": sound, "sampling_rate": 16000}]}],
            ours.embed(audio=[(sound, 16000)]),
        ),
    ):
        found = encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default")
        torch.testing.assert_close(found, functional.normalize(expected, dim=-1))
    decoded = SimpleNamespace(data=torch.from_numpy(sound)[None], sample_rate=16000)
    decoder = SimpleNamespace(get_all_samples=lambda: decoded)
    assert torch.equal(encoder.encode([{"audio": [decoder]}]), found)


def test_several_modalities_of_a_place_are_added_or_joined(encoder, monkeypatch):
    text, image = ["a fox", None], [Image.fromarray(picture(0)), Image.fromarray(picture(1))]
    ours = encoder.embedder
    first = ours.embed(text=text[:1]) + ours.embed(image=image[:1])
    expected = functional.normalize(torch.cat([first, ours.embed(image=image[1:])]), dim=-1)
    torch.testing.assert_close(encoder.encode([{"text": text, "image": image}]), expected)

    def joined(dim, joint, **given):
        assert (dim, joint) == (None, True)
        assert given == {"text": text[:1], "image": image[:1]}
        return torch.ones(1, dim_)

    dim_ = ours.embed_dim
    model = SimpleNamespace(joint={"image&text": None}, embed_dim=dim_)
    monkeypatch.setattr(ours, "model", model)
    monkeypatch.setattr(ours, "embed", joined)
    (row,) = encoder.encode([{"text": text[:1], "image": image[:1]}])
    assert torch.equal(row, functional.normalize(torch.ones(ours.embed_dim), dim=0))


def test_similarities_are_cosines(encoder):
    one, two = torch.randn(3, 5), torch.randn(4, 5)
    found = encoder.similarity(one.numpy(), two)
    expected = functional.cosine_similarity(one[:, None], two[None], dim=-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(encoder.similarity_pairwise(one, two[:3]), expected.diagonal())


def test_what_cannot_be_evaluated_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="MTEB gave video, id; the model takes text, image, audio"):
        encoder.encode([{"video": [None], "id": ["a"]}])
    with pytest.raises(ValueError, match="MTEB gave video; the model takes text, image, audio"):
        encoder.encode([{"text": ["a"], "video": [object()]}])
    with pytest.raises(ValueError, match="nothing to embed at place 1 of a batch"):
        encoder.encode([{"text": ["a", None], "image": [None, None]}])
    for name in ("mine", "a/b/c", "/mine", "me/"):
        with pytest.raises(ValueError, match="expected organisation/model, as on a hub"):
            MTEBEncoder(encoder.embedder, name)
    encoder.embedder.model.similarity = MaxSim()
    with pytest.raises(UserError, match="MTEB takes one embedding of each input"):
        MTEBEncoder(encoder.embedder, "me/mine")
    assert encoder.encode([]).shape == (0, encoder.embedder.embed_dim)


def samples() -> list:
    return [
        (
            f"k{n}",
            {
                "image.png": image_bytes(picture(n)),
                "json": json_bytes(label=CLASSES[n % 3], caption=f"{CLASSES[n % 3]} number {n}"),
            },
        )
        for n in range(24)
    ]


@pytest.mark.slow  # to import MTEB takes long
def test_its_figures_are_ours_on_the_same_samples(encoder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "cache"))
    import mteb
    from mteb.mocks.mock_tasks.retrieval import MockAny2AnyRetrievalT2ITask
    from mteb.mocks.mock_tasks.zeroshot_classification import MockZeroShotClassificationTask

    rows = samples()
    images = [Image.fromarray(picture(n)) for n in range(24)]

    class Classes(MockZeroShotClassificationTask):
        def load_data(self, num_proc=None, **kwargs):
            labels = [n % 3 for n in range(24)]
            test = datasets.Dataset.from_dict({"image": images, "label": labels})
            self.dataset = datasets.DatasetDict({"test": test})
            self.data_loaded = True

        def get_candidate_labels(self):
            return CLASSES

    class Captions(MockAny2AnyRetrievalT2ITask):
        def load_data(self, num_proc=None, **kwargs):
            super().load_data(num_proc, **kwargs)
            split = self.dataset["default"]["test"]
            texts = [f"{CLASSES[n % 3]} number {n}" for n in range(24)]
            split["queries"] = datasets.Dataset.from_dict(
                {"id": [f"q{n}" for n in range(24)], "text": texts}
            )
            split["corpus"] = datasets.Dataset.from_dict(
                {"id": [f"d{n}" for n in range(24)], "image": images}
            )
            split["relevant_docs"] = {f"q{n}": {f"d{n}": 1} for n in range(24)}

    words = PAGE.read_text()
    (line,) = re.findall(r"^results = mteb\.evaluate\(.*$", words, re.MULTILINE)
    given = {"mteb": mteb, "MTEBEncoder": MTEBEncoder, "model": encoder.embedder,
             "tasks": [Classes(), Captions()]}  # fmt: skip
    exec(line, given)
    classified, retrieved = (given["results"][n].scores["test"][0] for n in range(2))

    write_source(tmp_path / "made", {"test": [rows]})
    source = Source(
        str(tmp_path / "made" / "made.json"),
        {"image": {"member": "image.png"}, "text": {"member": "json", "key": "caption"}},
        "test",
    )
    task = ZeroShotTask("image", "label", ["{}"], CLASSES)
    sets = {"made": EvaluationSet(source, retrieval="all", zero_shot=[task])}
    ours = encoder.embedder
    figures = evaluate_sets(ours.model, sets, ours.transforms, {}).metrics()["made"]
    assert classified["accuracy"] == pytest.approx(
        figures["zero_shot_image_label"]["top@1"], abs=1e-6
    )
    found = figures["text_to_image"]
    for k in (1, 5, 10):
        assert retrieved[f"recall_at_{k}"] == pytest.approx(found[f"r@{k}"], abs=1e-5)
