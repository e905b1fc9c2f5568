"""docs/data.md: each of its recipes packs the described data, and trains from it."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from data_helpers import audio_bytes, image_bytes, npy_bytes
from hydra.utils import instantiate

from multimodal.data import errors

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from multimodal.cli import make_shards

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def recipe(heading: str) -> tuple[list[str], dict]:
    """The words of a section's command, and its sources."""
    section = PAGE.partition(f"### {heading}")[2].partition("\n#")[0]
    (command,) = re.findall(r"```bash\n(.*?)\n```", section, re.DOTALL)
    words = shlex.split(command)
    assert words[:2] == ["multimodal", "shards"]
    content = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])
    return words[2:], content.get("sources", content)


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    return image_bytes(pixels, "JPEG")


@pytest.mark.parametrize(
    "heading",
    ["An image-text folder", "A CSV with sounds", "An RGB-D set", "A modality of your own"],
)
def test_a_recipe_does_what_it_says(tmp_path, monkeypatch, heading):
    monkeypatch.chdir(tmp_path)
    words, sources = recipe(heading)
    source = Path(words[0])
    if source.suffix == ".csv":
        with source.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file", "caption", "speaker"])
            for number in range(40):
                Path(f"{number}.wav").write_bytes(audio_bytes(np.zeros((1, 100)), 16000))
                table.writerow([f"{number}.wav", f"sound {number}", f"speaker {number % 10}"])
    else:
        source.mkdir()
        for number in range(40):
            (source / f"a{number}.jpg").write_bytes(picture(number))
            (source / f"a{number}.txt").write_text(f"a dog {number}")
            depth = np.full((16, 16), 1000 + number, np.uint16)
            (source / f"a{number}.depth.png").write_bytes(image_bytes(depth))
            (source / f"a{number}.gps.npy").write_bytes(npy_bytes(np.full((64, 2), 48.0)))
    assert make_shards.main(words) == 0
    (config,) = sources.values()
    built = instantiate(config)
    assert len(built) >= 20
    decoded = built.decode(3, None)
    assert set(decoded.values) == set(config["modalities"])


@pytest.mark.slow
def test_packing_in_shares_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = PAGE.partition("## Packing at scale")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)\n```", section, re.DOTALL)
    Path("photos").mkdir()
    for number in range(30):
        Path(f"photos/{number}.jpg").write_bytes(picture(number))
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["multimodal", "shards"]
        assert make_shards.main(words[2:]) == 0
    tars = [sorted(Path(f"shards/{name}").glob("*.tar")) for name in ("photos", "copy")]
    assert len(tars[0]) == 3
    assert [p.read_bytes() for p in tars[0]] == [p.read_bytes() for p in tars[1]]


def test_every_layout_and_option_is_on_the_page():
    from multimodal.data.packing.layouts.find import LAYOUTS

    named = set(re.findall(r"`--layout (\w+)`", PAGE))
    assert named >= LAYOUTS.keys() - {"table", "captions"}
    assert {"metadata", "rows", "saved", "tars", "pairs", "classes"} <= LAYOUTS.keys()


def test_every_reason_is_on_the_page_and_no_other():
    table = PAGE.partition("| reason | |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"`(\w+)`", table))
    files = Path(errors.__file__).parent.rglob("*.py")
    code = "".join(path.read_text() for path in files if path.parent.name != "packing")
    raised = set(re.findall(r'DecodeError\(\s*"(\w+)"', code))
    raised |= set(re.findall(r'"(shard_\w+)"', code))
    raised |= set(re.findall(r'\("(duplicate_\w+)",', code))
    assert documented == raised
