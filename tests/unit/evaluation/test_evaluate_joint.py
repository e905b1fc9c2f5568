"""Retrieval by the joint embedding of several modalities, beside the sum of their embeddings."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from data_helpers import json_bytes, npy_bytes, write_source
from omegaconf import OmegaConf

from multimodal.data.settings import EvaluationData
from multimodal.data.source import Source
from multimodal.data.transforms.array import ArrayTransform
from multimodal.evaluation.evaluators.retrieval import RetrievalResult
from multimodal.evaluation.report.page import links
from multimodal.evaluation.run import evaluate
from multimodal.evaluation.sets import ComposedQuery, EvaluationSet
from multimodal.evaluation.trained_pairs import trained_pairs
from multimodal.models.encoders.features import FeatureEncoder
from multimodal.models.fusion.pooled import ConcatFusion
from multimodal.models.heads import IdentityHead
from multimodal.models.joint.fused import FusedJoint
from multimodal.models.towers import EmbeddingModel, Tower

COUNT = 8
NAMES = ("left", "right", "both")


def source(folder: Path) -> Source:
    """``left`` has two bits of a number, ``right`` the third, and each a faint lie of the rest."""
    samples = []
    for number in range(COUNT):
        bits = [1.0 if number >> bit & 1 else -1.0 for bit in range(3)]
        values = {
            "left": [*bits[:2], -0.01 * bits[2]],
            "right": [-0.01 * b for b in bits[:2]] + bits[2:],
            "both": bits,
        }
        arrays = {f"{n}.npy": npy_bytes(torch.tensor(v).numpy()) for n, v in values.items()}
        samples.append((f"k{number}", {**arrays, "json": json_bytes(name=str(number))}))
    manifest = write_source(folder, {"test": [samples]}, name="bits")
    return Source(str(manifest), {n: {"member": f"{n}.npy"} for n in NAMES}, split="test")


def model() -> EmbeddingModel:
    """Answers with the bits."""
    towers = {n: Tower(FeatureEncoder(3), partial(IdentityHead, embed_dim=3)) for n in NAMES}
    joint = partial(FusedJoint, modalities=["right", "left"], fusion=partial(ConcatFusion, width=3))
    return EmbeddingModel(towers, joint={"sides": joint})


@pytest.mark.parametrize("asked", ["all", [[["right", "left"], "both"]]])
def test_both_together_find_what_neither_does_alone(asked, tmp_path):
    entry = EvaluationSet(source(tmp_path), retrieval=asked)
    if asked == "all":
        entry.composed = [ComposedQuery({"left": 1.0, "right": 1.0}, "both")]
    data = EvaluationData({n: ArrayTransform([3]) for n in NAMES}, 4)
    trained = trained_pairs(
        OmegaConf.create({"pairs": {"p": {"anchor": ["right", "left"], "other": "both"}}})
    )
    results = evaluate(model(), {"bits": entry}, data, trained)
    found = {r.key: r for r in results.of(RetrievalResult)}
    joint = found["left&right_to_both"]
    assert joint.scores.recall[1] == 1.0
    assert joint.trained
    assert joint.composed
    assert results.metrics()["bits"]["left&right_to_both"]["r@1"] == 1.0
    if asked != "all":
        assert list(found) == ["left&right_to_both"]
        return
    assert found["left_to_both"].scores.recall[1] == 0
    assert found["right_to_both"].scores.recall[1] == 0
    assert not found["left_to_both"].trained
    assert "left+right_to_both" in found  # the sum, under a name of its own
    assert "both_to_left&right" in found
    assert "left_to_left&right" not in found
    assert all("&" not in "".join(link.ends) for link in links(results))


def test_a_joint_embedding_that_the_model_lacks_is_told(tmp_path):
    entry = EvaluationSet(source(tmp_path), retrieval=[[["both", "left"], "right"]])
    data = EvaluationData({n: ArrayTransform([3]) for n in NAMES}, 4)
    with pytest.raises(ValueError, match=r"retrieval names \['both&left'\]; the source and the"):
        evaluate(model(), {"bits": entry}, data, {})
