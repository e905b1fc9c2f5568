"""docs/tutorials/photos.md: its four commands are run as they stand, and the search finds."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "photos.md").read_text()
COMMANDS = re.findall(
    r"^multimodal .*$", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)), re.M
)
COLOURS = ("red", "green", "blue", "orange", "purple", "black")


def write_photos(folder: Path, count: int = 300) -> None:
    """Drawings of a shape in a colour, at a random place, as JPEGs; and their table."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "caption"])
        for number in range(count):
            colour, shape = COLOURS[number % 6], ("circle", "square", "triangle")[number // 6 % 3]
            x, y, size = (int(v) for v in random.integers((10, 10, 40), (50, 50, 60)))
            image = Image.new("RGB", (128, 128), "white")
            draw = ImageDraw.Draw(image)
            box = (x, y, x + size, y + size)
            if shape == "triangle":
                draw.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
            else:
                (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
            name = f"photos/{number:04d}_{colour}_{shape}.jpg"
            image.save(folder / name, quality=90)
            table.writerow([name, f"a {colour} {shape} on white"])


def run(command: str, folder: Path) -> str:
    words = [sys.executable, "-m", "multimodal.cli", *shlex.split(command)[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_there_are_four():
    assert [shlex.split(c)[1] for c in COMMANDS] == ["shards", "new", "train", "search"]


@pytest.mark.slow
def test_from_a_csv_to_a_searched_model(tmp_path):
    write_photos(tmp_path)
    shown = [run(command, tmp_path) for command in COMMANDS]
    assert COMMANDS[2] in shown[1]  # the second ends by printing the third
    assert "best checkpoint:" in shown[2]
    assert (tmp_path / "outputs" / "my_photos" / "report.html").exists()
    found = re.findall(r"\d{4}_(\w+)_\w+\.jpg", shown[3])
    assert len(found) == 3
    assert found.count("red") >= 2  # by chance: one in six
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    code = code.replace("photos/0001.jpg", "photos/0001_green_circle.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tensor" in done.stdout
