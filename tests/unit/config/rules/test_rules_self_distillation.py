"""Rules of self-distillation: each is broken once, in an experiment of ours."""

import pytest
from experiment_helpers import composed
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check

WORDS = ("+experiment=clip_scratch", "tower@model.towers.image=image_small",
         "self_distillation=hidden")  # fmt: skip
ENCODER = "model.towers.image.encoder"
# keys to change, place of the fault, what it must say
RULES = {
    "no such tower": (
        {"self_distillation.modalities": ["imag"]}, "self_distillation.modalities",
        "no tower 'imag'; did you mean 'image'?",
    ),
    "a frozen tower": (
        {"model.towers.image.frozen": True}, "self_distillation.modalities",
        "the tower image is frozen and learns nothing",
    ),
    "a frozen encoder": (
        {"model.towers.image.frozen": "encoder"}, "self_distillation.modalities",
        "the tower image is frozen and learns nothing",
    ),
    "patches that are left out": (
        {f"{ENCODER}.patch_dropout": 0.5}, f"{ENCODER}.patch_dropout",
        "leaves out patches that self_distillation.hidden wants predicted",
    ),
    "sharded weights": (
        {"trainer.strategy": {"_target_": "multimodal.training.ShardedStrategy"}},
        "self_distillation", "does not go with trainer=fsdp",
    ),
}  # fmt: skip


def faults(*words, **changes):
    with composed(*words) as cfg:
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        try:
            check(cfg)
        except ConfigError as error:
            return [(problem.where, str(problem)) for problem in error.problems]
    return []


def test_the_blocks_are_right():
    assert faults(*WORDS) == []
    assert faults(*WORDS[:2], "self_distillation=local", "self_distillation.local.size=32") == []
    assert faults("+experiment=clip_scratch", "self_distillation=local") == []


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_reported_at_its_place(name):
    changes, where, message = RULES[name]
    found = faults(*WORDS, **changes)
    assert any(place == where and message in text for place, text in found), found


@pytest.mark.parametrize(
    ("words", "where", "message"),
    [
        (["self_distillation=hidden"], "self_distillation.hidden", "has another encoder"),
        (["self_distillation=local", "self_distillation.local.size=32"],
         "self_distillation.local.size", "only a VisionTransformer takes crops of another size"),
        (["self_distillation=local", "tower@model.towers.image=vit_b16_flexible"],
         "self_distillation.modalities", "patches of any number"),
    ],
)  # fmt: skip
def test_what_an_encoder_cannot_do_is_reported(words, where, message):
    found = faults("+experiment=clip_scratch", *words)
    assert any(place == where and message in text for place, text in found), found
