"""Classes go by new paths; what release 0.1 called them goes on working."""

import json
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from multimodal.config.targets.renamed import RENAMED, renamed, with_new_names

RELEASE = Path(__file__).parents[3] / "vectors" / "release_0_1" / "targets.json"
TARGETS = json.loads(RELEASE.read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_of_release_0_1_is_still_there(target):
    """It leads to the class of the same name, which a room of ours offers."""
    now = renamed(target)
    found = get_object(now)
    assert found.__name__ == now.rpartition(".")[2]
    assert target.rpartition(".")[2] in (found.__name__, *FORMER.get(found.__name__, ()))
    assert len(now.split(".")) == 3, "a room, and a name in it"


FORMER = {
    "BadSampleError": ["BadSample"],
    "ConfigProblem": ["Fault"],
    "Constant": ["constant"],
    "DataMismatchError": ["OtherBatches"],
    "TooManyBadSamplesError": ["TooManyBadSamples"],
    "TowerOptim": ["Rates"],
    "WarmupCosine": ["warmup_cosine"],
}


def test_a_new_path_is_not_renamed_again():
    for target in TARGETS:
        assert renamed(renamed(target)) == renamed(target)
    for module, room in RENAMED.items():
        assert room not in RENAMED, module


def test_blocks_are_renamed_where_they_stand():
    cfg = OmegaConf.create(
        {
            "width": 8,
            "head": {"_target_": "multimodal.heads.LinearHead", "embed_dim": "${width}"},
            "more": [{"_target_": "multimodal.tuning.LoRA"}, None, "${width}"],
            "nothing": None,
            "later": "???",
        }
    )
    OmegaConf.set_readonly(cfg, True)
    new = with_new_names(cfg)
    assert new.head == {"_target_": "multimodal.models.LinearHead", "embed_dim": 8}
    assert new.more[0]._target_ == "multimodal.models.LoRA"
    assert OmegaConf.is_missing(new, "later")
    assert cfg.head._target_ == "multimodal.heads.LinearHead", "the caller's stays as it was"
    head = with_new_names(cfg.head)
    assert head.embed_dim == 8, "interpolations still lead to the whole configuration"
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert with_new_names(plain) == OmegaConf.to_container(new, resolve=False)


def test_what_is_new_stays_the_same_object():
    cfg = OmegaConf.create({"head": {"_target_": "multimodal.models.LinearHead"}})
    assert with_new_names(cfg) is cfg
