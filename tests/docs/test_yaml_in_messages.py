"""Every YAML that a message shows composes as YAML, and following it takes the message away."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_helpers import json_bytes, write_source
from experiment_helpers import composed
from omegaconf import OmegaConf

from multimodal.config import ConfigError, check
from multimodal.data.source import Source
from multimodal.data.streaming.source import StreamSource

ROOT = Path(__file__).parents[2] / "multimodal"
SHOWN = re.compile(r"`(\w[\w.]*: [^`]+)`|='(\{\w+: .*\})'")
FROZEN = {"model": {"towers": {"image": {"frozen": True}, "text": {"frozen": True}}}}
FIXED = {"pairs": {"image_text": {"logit_scale": {"init": 10.0, "learned": False}}}}
LORA = {"_target_": "multimodal.models.LoRA", "rank": 2}


def shown() -> dict[str, set[str]]:
    """YAML in the strings of the package that are no docstrings -> the modules it stands in."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    v.value if isinstance(v, ast.Constant) else "{}" for v in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if id(node) not in docstrings:
                for groups in SHOWN.findall(text):
                    found.setdefault("".join(groups), set()).add(str(path.relative_to(ROOT)))
    return found


def merged(*blocks: dict[str, Any]) -> dict[str, Any]:
    whole = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(b) for b in blocks)))
    assert isinstance(whole, dict)
    return whole


def tower(text: str) -> dict[str, Any]:
    return {"model": {"towers": {"image": yaml.safe_load(text)}}}


def said(content: dict[str, Any], folder: Path) -> str:
    """What `check` says of an experiment on `clip_scratch` with ``content``, as a file."""
    folder.mkdir()
    (folder / "experiment").mkdir()
    head = "# @package _global_\ndefaults: [clip_scratch, _self_]\n"
    (folder / "experiment" / "mine.yaml").write_text(head + yaml.safe_dump(content))
    try:
        with composed("+experiment=mine", f"hydra.searchpath=[file://{folder}]") as cfg:
            check(cfg)
    except ConfigError as error:
        return str(error)
    return ""


# What is shown -> an experiment whose message shows it, and with what it says.
CACHED = {"data": {"cache_frozen": True}, "cache_frozen": {"views": 2}}
TUNED = {"model": {"towers": {"image": {"frozen": True, "tuning": LORA}}}}
ADVICE = {
    "frozen: true": (CACHED, tower("frozen: true")),
    "frozen: encoder": (CACHED, tower("frozen: encoder")),
    "frozen: false": (merged(FROZEN, FIXED), tower("frozen: false")),
    "tuning: null": (TUNED, tower("tuning: null")),
    "head.embed_dim: ${embed_dim}": (
        {"model": {"towers": {"image": {"head": {"embed_dim": 7}}}}},
        {"model": {"towers": {"image": {"head": {"embed_dim": "${embed_dim}"}}}}},
    ),
}
ELSEWHERE = {"allow: [pipe]", "{image: {member: NAME.png}}", "join: KEY"}
# What stood in a file of someone else; nobody is to write it.
FOUND = {"_partial_: true", "_partial_: {}"}


@pytest.mark.heavy
def test_no_other_message_shows_yaml():
    assert shown().keys() == ADVICE.keys() | ELSEWHERE | FOUND


@pytest.mark.parametrize("text", ADVICE)
def test_following_a_message_takes_it_away(text, tmp_path):
    wrong, advice = ADVICE[text]
    before = said(wrong, tmp_path / "before")
    assert f"`{text}`" in before
    assert f"`{text}`" not in said(merged(wrong, advice), tmp_path / "after")


def test_a_stream_that_runs_a_command_is_allowed_as_its_message_says():
    source = {"urls": "pipe:cat a.tar", "modalities": {"image": {"member": "jpg"}}}
    with pytest.raises(ValueError, match=r"add `allow: \[pipe\]`"):
        StreamSource(**source)
    StreamSource(**source, **yaml.safe_load("allow: [pipe]"))


def test_modalities_of_data_that_a_run_never_read_may_be_typed_as_the_message_says():
    from hydra import compose, initialize_config_dir

    from multimodal.config import config_dir, normalize_args

    words = ["checkpoint=a", "input=b.json", "output=c", "modalities={image: {member: NAME.png}}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("embed", normalize_args(words))
    assert cfg.modalities == {"image": {"member": "NAME.png"}}


def test_two_manifests_are_joined_as_the_message_says(tmp_path):
    for name, member in (("photos", "jpg"), ("texts", "txt")):
        samples = [(f"k{n}", {member: b"a", "json": json_bytes(id=n)}) for n in range(3)]
        write_source(tmp_path, {"train": [samples]}, name=name)
    manifests = [str(tmp_path / f"{name}.json") for name in ("photos", "texts")]
    modalities = {"image": {"member": "jpg"}, "text": {"member": "txt"}}
    with pytest.raises(ValueError, match="with `join: KEY` two that share the key"):
        Source(manifests, modalities)
    assert len(Source(manifests, modalities, **yaml.safe_load("join: id"))) == 3
