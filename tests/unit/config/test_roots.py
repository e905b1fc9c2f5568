"""Every command's own keys are checked when they are composed, and so is what leads nowhere."""

import sys

import pytest
from hydra import compose, initialize_config_dir

from multimodal.cli.__main__ import main
from multimodal.config import ConfigError, config_dir
from multimodal.config.roots import ROOTS, check_root

PATHS = {
    "train": ["+experiment=clip_scratch"],
    "evaluate": ["checkpoint=a.ckpt"],
    "embed": ["checkpoint=a.ckpt", "input=a", "output=b.npy"],
    "mine": ["checkpoint=a.ckpt", "input=a.json", "output=b.npz"],
    "search": ["checkpoint=a.ckpt", "index=a.npy", "query=a"],
    "serve": ["checkpoint=a.ckpt", "index=a.npy"],
    "export": ["checkpoint=a.ckpt", "output=b"],
    "adapters": ["checkpoint=a.ckpt", "output=b"],
    "import_weights": ["input=a", "output=b.ckpt"],
}


def problems(command, *words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(command, [*PATHS[command], *words])
    try:
        check_root(cfg, command)
    except ConfigError as error:
        return {problem.where: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize("command", ROOTS)
def test_what_is_right_passes(command):
    assert problems(command) == {}


@pytest.mark.parametrize(
    ("command", "word", "expected"),
    [
        ("train", "resume=3", "given 3, expected a string or null"),
        ("train", "resume=[a]", "given ['a'], expected a string or null"),
        ("train", "name=null", "given null, expected a string"),
        ("train", "seed=1.5", "given 1.5, expected an integer"),
        ("evaluate", "checkpoint=null", "given null, expected a string"),
        ("evaluate", "checkpoint=3", "given 3, expected a string"),
        ("evaluate", "weights=mean", "given 'mean', expected one of 'average', 'raw' or null"),
        ("embed", "batch_size=0", "given 0, expected a number at least 1"),
        ("embed", "kind=normal", "expected one of 'normalized', 'raw', 'scaled'"),
        ("embed", "rate_hz=-1", "given -1, expected a number above 0"),
        ("mine", "count=0", "given 0, expected a number at least 1"),
        ("mine", "share=-1", "given -1, expected a number above 0"),
        ("search", "k=0", "given 0, expected a number at least 1"),
        ("search", "k=many", "given 'many', expected an integer"),
        ("search", "query=null", "given null, expected a string"),
        ("search", "approximate=perhaps", "given 'perhaps', expected true or false"),
        ("serve", "port=99999999", "given 99999999, expected a number in [0, 65535]"),
        ("serve", "port=http", "given 'http', expected an integer"),
        ("serve", "max_upload_mb=-1", "given -1, expected a number at least 0"),
        ("export", "tolerance=0", "given 0, expected a number above 0"),
        ("export", "towers=image", "given 'image', expected a list"),
        ("adapters", "merge=2", "given 2, expected true or false"),
        ("import_weights", "image_size=0", "given 0, expected a number at least 1"),
        ("import_weights", "allow=3", "given 3, expected a list"),
    ],
)
def test_what_is_wrong_names_its_key(command, word, expected):
    key = word.partition("=")[0]
    assert expected in problems(command, word)[key]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=${nope}", "given ${nope}, which cannot be resolved: Interpolation key"),
        ("optimizer.lr=${optimizer.wieght_decay}", "did you mean 'optimizer.weight_decay'?"),
        ("optimizer.lr=${oc.env:NOT_SET_AT_ALL}", "Environment variable 'NOT_SET_AT_ALL' not"),
        ("optimizer.lr=${nosuch:1}", "Unsupported interpolation type nosuch"),
    ],
)
def test_an_interpolation_that_leads_nowhere_names_its_key(word, expected):
    message = problems("train", word)["optimizer.lr"]
    assert expected in message
    assert len(message) < 200


def test_blocks_of_an_evaluation_are_resolved_in_the_checkpoints_configuration():
    """They refer to its seed, for example."""
    assert problems("evaluate", "data=clip_sample", "evaluation=clip_sample") == {}


SCALAR, BYTES, WORD = b"42\n", b"\xff\xfe\x00", b"# @package _global_\ndefaults: nope\n"


@pytest.mark.parametrize("content", [SCALAR, BYTES, WORD], ids=["scalar", "bytes", "defaults"])
def test_a_file_that_holds_no_configuration(content, tmp_path, monkeypatch, capsys):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    words = ["multimodal", "train", "--config-dir", str(tmp_path), "+experiment=mine"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "experiment/mine" in said
    assert "expected a text in UTF-8 that holds keys with their values" in said
    assert "Traceback" not in said
