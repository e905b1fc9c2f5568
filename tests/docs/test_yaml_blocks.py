"""Every YAML that a page shows is composed and checked as YAML, where it is meant to stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data_helpers import image_bytes, json_bytes, write_source
from experiment_helpers import composed

from multimodal.config import ConfigError, build, check
from multimodal.config.rules.pairs import modalities_of_sources
from multimodal.config.schema import Modality
from multimodal.data.modality import _KEYS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    (page, text)
    for page in PAGES
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)
    if "@package" not in text  # a whole file, which its own page's test runs
]
# `text: {member: json, key: captions}` within a sentence
INLINE = [
    (page, text)
    for page in PAGES
    for text in re.findall(r"`(\w+: \{member[^`]*\})`", page.read_text())
]
SOURCE = {
    "_target_": "multimodal.data.Source", "manifest": "a.json",
    "modalities": {"image": {"member": "jpg"}},
}  # fmt: skip
DATA = ("sources", "val_sources", "transforms")


def filled_in(text: str) -> str:
    """What a reader would write in place of the dots."""
    return re.sub(r"\{\.\.\.\}", str(SOURCE), text.replace(", ...}", ", modalities: {}}"))


def placed(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration with ``content`` where its keys belong."""
    if content.keys() & set(DATA):
        return {"data": content}
    if "sets" in content:
        return {"evaluation": content}
    if all(
        isinstance(v, dict) and v.get("_target_", "").endswith("Source") for v in content.values()
    ):
        return {"data": {"sources": content}}
    return content


def problems(content: dict[str, Any], folder: Path) -> list[str]:
    """What `check` says of an experiment with ``content``, but for what the experiment lacks."""
    (folder / "experiment").mkdir()
    file = folder / "experiment" / "mine.yaml"
    head = "# @package _global_\ndefaults: [clip, _self_]\nallowed_packages: [my_package]\n"
    file.write_text(head + yaml.safe_dump(content))
    lacking = r"no pair relates|no tower|no transform|no source|carries both|has no modality"
    try:
        with composed("+experiment=mine", f"hydra.searchpath=[file://{folder}]") as cfg:
            check(cfg)
    except ConfigError as error:
        return [str(p) for p in error.problems if not re.search(lacking, p.message)]
    return []


@pytest.mark.parametrize(("page", "text"), BLOCKS, ids=lambda value: getattr(value, "name", ""))
def test_a_block_is_right(page, text, tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from multimodal.evaluation.evaluators.base import Evaluator\n"
        "class Hubness(Evaluator):\n"
        "    def __init__(self, modality: str) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    content = yaml.safe_load(filled_in(text))
    assert problems(placed(content), tmp_path) == []


@pytest.mark.parametrize(("page", "text"), INLINE, ids=lambda value: getattr(value, "name", ""))
def test_a_modality_in_a_sentence_is_right(page, text):
    source = {**SOURCE, "modalities": yaml.safe_load(text)}
    assert list(modalities_of_sources({"data": {"sources": {"mine": source}}})) == []


def test_every_key_that_a_source_reads_may_stand_in_a_yaml():
    assert set(Modality.__dataclass_fields__) == set(_KEYS)


def test_all_captions_are_kept_by_a_yaml(tmp_path):
    """As docs/data.md says: `keep: all` beside the key."""
    picture = image_bytes(np.zeros((8, 8, 3), np.uint8))
    samples = [
        (f"k{n}", {"png": picture, "json": json_bytes(captions=[f"a {n}", f"b {n}"])})
        for n in range(4)
    ]
    write_source(tmp_path, {"train": [samples]}, name="many")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        f"""# @package _global_
defaults: [clip, _self_]
data:
  sources:
    emoji:
      manifest: {tmp_path}/many.json
      modalities:
        image: {{member: png}}
        text: {{member: json, key: captions, keep: all, template: null}}
"""
    )
    with composed("+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]") as cfg:
        check(cfg)
        cfg.data.sources.emoji.positive_key = None
        source = build(cfg, "data", "sources", "emoji")
    assert source.decoder.multi_caption == "text"
