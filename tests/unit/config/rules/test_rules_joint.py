"""Rules of joint embeddings: each is broken once, in an experiment of ours."""

import pytest
from experiment_helpers import composed
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check
from multimodal.config.rules.joint import joint_templates

WORDS = (
    "+experiment=omni", "+joint@model.joint.both=template",
    "model.joint.both.modalities=[image,text]",
    "+pairs.both_depth={anchor: [image, text], other: depth}",
)  # fmt: skip
WHERE = "model.joint.both.modalities"
# keys to change, place of the fault, what it must say
RULES = {
    "a side without a joint embedding": (
        {"pairs.both_depth.anchor": ["image", "audio"]}, "pairs.both_depth.anchor",
        "no joint embedding of image and audio: add one, +joint@model.joint.NAME=gated",
    ),
    "a part without a tower": (
        {WHERE: ["image", "txt"]}, WHERE, "no tower 'txt'; did you mean 'text'?",
    ),
    "a pair's part without a tower": (
        {"pairs.both_depth.anchor": ["image", "txt"]}, "pairs.both_depth.anchor",
        "no tower 'txt'; did you mean 'text'?",
    ),
    "one modality alone": ({WHERE: ["image"]}, WHERE, "expected two or more, once each"),
    "a modality twice": (
        {WHERE: ["image", "text", "text"]}, WHERE, "expected two or more, once each",
    ),
    "the same modalities twice": (
        {"model.joint.again": {
            "_target_": "multimodal.models.FusedJoint", "_partial_": True,
            "modalities": ["text", "image"],
        }},
        "model.joint.again.modalities", "model.joint.both is of the same modalities",
    ),
    "a tower that is not connected": (
        {"model.towers.image.encoder": {
            "_target_": "multimodal.models.FeatureEncoder", "in_features": 3,
        }},
        WHERE, "the tower image is not connected to the language model of text",
    ),
    "no source with all parts": (
        {"pairs.both_depth.sources": ["speech"]}, "pairs.both_depth",
        "no source carries image and text and depth together",
    ),
    "a retrieval by what the model does not join": (
        {"evaluation.sets.furniture.retrieval": [[["image", "depth"], "text"]]},
        "evaluation.sets.furniture.retrieval[0]", "no joint embedding of image and depth",
    ),
    "a retrieval by what the set lacks": (
        {"evaluation.sets.furniture.retrieval": [[["image", "audio"], "text"]]},
        "evaluation.sets.furniture.retrieval[0]", "the set's source has no 'audio'",
    ),
    "an optional part": (
        {"data.sources.furniture.modalities.text.optional": True},
        "data.sources.furniture.modalities.text.optional", "needs it: it cannot be optional",
    ),
    "sharded weights": (
        {"trainer.strategy": {
            "_target_": "multimodal.training.ShardedStrategy", "timeout_s": 1.0,
        }},
        "model.joint", "does not go with trainer=fsdp: they were not tried",
    ),
    "a class that is none": (
        {"model.joint.both._target_": "multimodal.models.MLPHead"}, "model.joint.both._target_",
        "Joint",
    ),
    "a name that stands for several": (
        {"model.towers.image&text": "image"}, "model.towers.image&text",
        "'&' stands for several modalities together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_reported_at_its_place(rule):
    changes, where, message = RULES[rule]
    with composed(*WORDS) as cfg:
        check(cfg)
        OmegaConf.set_struct(cfg, False)
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, merge=False)
        with pytest.raises(ConfigError) as caught:
            check(cfg)
    found = {}
    for problem in caught.value.problems:
        found.setdefault(problem.where, []).append(problem.message)
    assert any(message in each for each in found.get(where, [])), found


def test_what_is_monitored_may_be_of_a_joint_embedding():
    monitored = "val/furniture/image&text_to_depth_r@1"
    with composed(*WORDS) as cfg:
        OmegaConf.set_struct(cfg, False)
        cfg.callbacks.stop_early = {
            "_target_": "multimodal.training.EarlyStopping", "monitor": monitored,
        }  # fmt: skip
        check(cfg)


def test_a_model_that_fuses_has_none():
    with composed("+experiment=fusion") as cfg:
        OmegaConf.set_struct(cfg, False)
        cfg.pairs = {"both": {"anchor": ["image", "audio"], "other": "image"}}
        with pytest.raises(ConfigError, match="a model with a fusion has no joint embedding"):
            check(cfg)


@pytest.mark.parametrize("kind", ["weighted", "gated", "mlp", "template"])
def test_every_kind_is_right_in_the_command_line(kind):
    words = [word.replace("both=template", f"both={kind}") for word in WORDS]
    with composed(*words) as cfg:
        check(cfg)


def test_a_template_may_be_of_modalities_that_share_the_tower_of_its_backbone():
    template = {
        "_target_": "multimodal.models.TemplateJoint", "modalities": ["image", "text"],
        "backbone": "text",
    }  # fmt: skip
    towers = {"text": {"encoder": {}}, "image": "text", "depth": {"encoder": {}}}
    tree = {"model": {"towers": towers, "joint": {"both": template}}}
    assert not list(joint_templates(tree))
    towers["image"] = "depth"
    assert [problem.where for problem in joint_templates(tree)] == [WHERE]
