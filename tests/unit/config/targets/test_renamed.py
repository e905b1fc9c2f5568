"""Old names of classes in configurations."""

from omegaconf import OmegaConf

from multimodal.config.targets.renamed import with_new_names


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
