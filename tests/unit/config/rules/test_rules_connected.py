"""Rules of connected encoders: each is broken once, in an experiment of ours."""

import pytest
from experiment_helpers import composed
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check
from multimodal.config.rules.distributed import fsdp_constraints

BPE = {"_target_": "multimodal.data.BPETokenizer", "path": "samples://tokenizer.json"}
TOWERS = "model.towers"
# key to change, value, place of the fault, what it must say
RULES = {
    "a backbone that is not there": (
        f"{TOWERS}.image.encoder.backbone", "txt", f"{TOWERS}.image.encoder.backbone",
        "'txt' is not a tower with a language model; did you mean 'text'?",
    ),
    "a backbone that is connected itself": (
        f"{TOWERS}.image.encoder.backbone", "audio", f"{TOWERS}.image.encoder.backbone",
        "'audio' is not a tower with a language model",
    ),
    "another tokenizer": (
        f"{TOWERS}.image.encoder.tokenizer", BPE, f"{TOWERS}.image.encoder.tokenizer",
        "set it to ${data.transforms.text.tokenizer}",
    ),
    "a tokenizer's file": (
        f"{TOWERS}.image.encoder.tokenizer", "samples://tokenizer.json",
        f"{TOWERS}.image.encoder.tokenizer", "expected a block with a `_target_`",
    ),
    "a frozen tower on a backbone that learns": (
        TOWERS, {"text": {"frozen": False}, "image": {"frozen": True}}, f"{TOWERS}.image.frozen",
        "its backbone, the tower text, is trained",
    ),
    "a tuning of a frozen encoder": (
        f"{TOWERS}.image.tuning",
        {"_target_": "multimodal.models.LastLayers", "num_layers": 1, "norm": True},
        f"{TOWERS}.image.tuning", "set encoder.frozen=false",
    ),
    "sharded weights": (
        "trainer.strategy", {"_target_": "multimodal.training.ShardedStrategy", "timeout_s": 1.0},
        f"{TOWERS}.image.encoder", "does not go with trainer=fsdp: a backbone is sharded",
    ),
    "a cache of tokens": (
        TOWERS, {
            "text": {"frozen": False},
            **{name: {"encoder": {"reads": "tokens"}} for name in ("image", "audio", "depth")},
        },
        "data.cache_frozen", "there is no tower with `frozen: true`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_reported_at_its_place(rule):
    key, value, where, message = RULES[rule]
    with composed("+experiment=omni") as cfg:
        check(cfg)
        OmegaConf.set_struct(cfg, False)
        OmegaConf.update(cfg, key, value, merge=isinstance(value, dict) and "_target_" not in value)
        with pytest.raises(ConfigError) as caught:
            check(cfg)
    found = {problem.where: problem.message for problem in caught.value.problems}
    assert message in found[where]


def test_a_vision_language_model_is_not_sharded():
    strategy = {"_target_": "multimodal.training.ShardedStrategy"}
    encoder = {"_target_": "multimodal.models.VisionLanguageEncoder"}
    tree = {"trainer": {"strategy": strategy}, "model": {"towers": {"text": {"encoder": encoder}}}}
    found = {problem.where: problem.message for problem in fsdp_constraints(tree)}
    assert "encoder=vlm was not tried with sharded weights" in found[f"{TOWERS}.text.encoder"]
