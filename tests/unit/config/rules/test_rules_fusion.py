"""Rules across fields for models that fuse: each is broken once, in an experiment of ours."""

import pytest
from experiment_helpers import composed
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check

IMAGE_TEXT = {"image_text": {"anchor": "image", "other": "text"}}

# experiment, key to change, value, place of the fault, what it must say
RULES = {
    "no task and no pair": ("fusion", "tasks", None, "tasks", "nothing to learn"),
    "tasks without a fusion": ("fusion", "fusion", None, "fusion", "fusion=cross_attention"),
    "target that no source has": (
        "fusion", "tasks.digit.target", "lable", "tasks.digit.target", "did you mean 'label'?"
    ),
    "target that is shown": (
        "fusion", "tasks.digit.target", "image", "tasks.digit.target", "an input of the model"
    ),
    "fused modality without a tower": (
        "fusion", "model.fused", ["imag"], "model.fused", "did you mean 'image'?"
    ),
    "query that is not fused": ("albef", "fusion.query", "txt", "fusion.query", "'text'?"),
    "matched modality that is not fused": (
        "albef", "tasks.match.second", "txt", "tasks.match.second", "did you mean 'text'?"
    ),
    "a pair's modality that may be missing": (
        "albef", "data.sources.emoji.modalities.text.optional", True,
        "data.sources.emoji.modalities.text.optional", "the pair 'image_text' needs it",
    ),
    "pairs and modality dropout": (
        "albef", "model.modality_dropout", 0.1, "model.modality_dropout", "set it to 0.0"
    ),
    "pieces of a batch": ("fusion", "micro_batch_size", 8, "micro_batch_size", "at once"),
    "cached towers": ("fusion", "data.cache_frozen", True, "data.cache_frozen", "tokens"),
    "a queue": (
        "albef", "candidates", {"_target_": "multimodal.objectives.Queue", "size": 8},
        "pairs.image_text", "candidates=all_ranks",
    ),
    "captions that are fused": ("coca", "model.fused", ["image", "text"], "tasks.caption", "leave"),
    "captions that see ahead": (
        "coca", "model.towers.text.encoder.trunk.causal", False,
        "model.towers.text.encoder.trunk.causal", "true",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_each_rule(rule):
    experiment, key, value, where, words = RULES[rule]
    with composed(f"+experiment={experiment}") as cfg:
        OmegaConf.set_struct(cfg, False)
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        with pytest.raises(ConfigError) as caught:
            check(cfg)
    found = {problem.where: problem.message for problem in caught.value.problems}
    assert where in found, found
    assert words in found[where]


def test_captions_go_beside_a_sigmoid_loss():
    words = (
        "loss=siglip",
        "pairs.image_text.logit_scale.init=10",
        "+pairs.image_text.logit_bias=-10",
    )
    with composed("+experiment=coca", *words) as cfg:
        check(cfg)
        assert set(cfg.tasks) == {"caption"}
        assert cfg.pairs.image_text.logit_bias == -10
