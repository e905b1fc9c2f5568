"""Rules of listed negatives: each is broken once, in an experiment of ours."""

import pytest
from experiment_helpers import composed
from omegaconf import OmegaConf, open_dict

from multimodal.config import ConfigError, check

LISTED = {"key": "hard", "count": 1}
TEXT = "data.sources.emoji.modalities.text.negatives"


def problems(experiment, changes):
    with composed(f"+experiment={experiment}") as cfg:
        with open_dict(cfg):
            for key, value in changes.items():
                OmegaConf.update(cfg, key, value, force_add=True)
        try:
            check(cfg)
        except ConfigError as error:
            return {problem.where: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize(
    "listed",
    [
        LISTED,
        {"samples": "others"},
        {"member": "wrong.txt"},
        {"table": "a.npz"},
        {"swap": "swap_object"},
    ],
)
def test_they_go_with_pairs(listed):
    assert problems("clip_scratch", {TEXT: listed}) == {}


def test_a_misspelt_key_is_named():
    found = problems("clip_scratch", {TEXT: {"kye": "hard"}})
    assert "no such key here; did you mean 'key'?" in found[f"{TEXT}.kye"]


def test_targets_read_none():
    loss = {"_target_": "multimodal.objectives.CosineTarget"}
    found = problems("clip_scratch", {TEXT: LISTED, "loss": loss})
    assert "cosine, mse and affinity read none" in found[TEXT]


def test_a_fusion_reads_none():
    found = problems("albef", {"data.sources.emoji.modalities.text.negatives": LISTED})
    assert "a fusion's pairs do not read listed negatives" in found[TEXT]


def test_a_stream_knows_no_other_samples():
    source = {
        "_target_": "multimodal.data.StreamSource",
        "urls": ["a.tar"],
        "modalities": {
            "image": {"member": "jpg"},
            "text": {"member": "txt", "negatives": {"samples": "others"}},
        },
    }
    found = problems("clip_scratch", {"data.sources.tars": source})
    assert "index the shards" in found["data.sources.tars.modalities.text.negatives.samples"]


def test_another_scope_is_refused():
    found = problems("clip_scratch", {"candidates.listed": "all"})
    assert "expected one of 'batch', 'anchor'" in found["candidates.listed"]
