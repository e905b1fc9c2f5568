"""Options stay in the folders of configurations, names in the folders they name."""

import pytest

from multimodal.config import ConfigError, compose_or_explain


@pytest.mark.parametrize(
    "words",
    [
        ["+experiment=../../x"],
        ["+experiment=/etc/x"],
        ["+experiment='../../x'"],
        ["+experiment=clip_scratch,../x", "-m"],
        ["+experiment=clip_scratch", "loss=../optimizer/adamw"],
        ["+experiment=clip_scratch", "loss=[info_nce,../../x]"],
        ["+experiment=clip_scratch", "tower@model.towers.image=../../x"],
        ["+experiment=clip_scratch", "+../x@y=z"],
        ["+experiment=clip_scratch", "name=../../x"],
        ["+experiment=clip_scratch", "name=/tmp/x"],
        ["+experiment=clip_scratch", "name=a/../../x"],
        ["+experiment=clip_scratch", "name=a,../x", "-m"],
        ["+experiment=clip_scratch", "name='..\\\\x'"],
        ["+experiment=clip_scratch", "hydra.job.name=../../x"],
        ["+experiment=clip_scratch", "hydra.output_subdir=../x"],
        ["+experiment=clip_scratch", "hydra.sweep.subdir=../x", "-m"],
        ["+experiment=imagebind_scratch", "anchor.experiment=../../x"],
        ["+experiment=clip_scratch", "hydra.job.name=${name}", "name=${oc.env:ELSEWHERE}"],
        ["--config-name", "../x"],
        ["--config-name=/etc/x"],
    ],
)
def test_what_leads_out_is_rejected_by_the_first_gate(words, monkeypatch):
    monkeypatch.setenv("ELSEWHERE", "../..")
    with pytest.raises(ConfigError, match="configuration") as caught:
        compose_or_explain(words, "train")
    assert any(
        part in str(caught.value) for part in ("leads out", "is not an override", "not a valid")
    )


@pytest.mark.parametrize(
    "words",
    [
        ["+experiment=clip_scratch", "hydra.run.dir=../elsewhere"],
        ["+experiment=clip_scratch", "hydra.run.dir=/tmp/elsewhere", "name=team/clip"],
        ["+experiment=clip_scratch", "name=v1..2", "resume=../x/checkpoints/step=1.ckpt"],
        ["+experiment=clip_scratch", "hydra.sweep.dir=/tmp/elsewhere", "-m"],
    ],
)
def test_what_is_given_on_purpose_is_not(words):
    from multimodal.config import normalize_args

    compose_or_explain(normalize_args(words), "train")
