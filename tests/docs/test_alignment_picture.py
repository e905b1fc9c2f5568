"""README's picture of queries and what they find."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from draw_alignment import DEPTH, NAME, ROWS, Row, draw


class Stub:
    """Embeds a name by its letters, and a depth map by nothing that says what it is."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def embed(self, **given):
        ((modality, values),) = given.items()
        if modality == "depth":
            return F.normalize(torch.ones(len(values), 256), dim=1)
        letters = [torch.tensor(list(value.encode())) for value in values]
        rows = torch.stack([torch.bincount(each, minlength=256) for each in letters]).float()
        return (self.sign if len(values) == 1 else 1.0) * F.normalize(rows, dim=1)


@pytest.mark.parametrize(("sign", "last"), [(1.0, False), (-1.0, True)])
def test_the_right_answers_place_is_that_of_its_similarity(tmp_path, sign, last):
    row = Row("words find words", "motion", "test", NAME, NAME, False)
    (place,) = draw(Stub(sign), [row], 0, tmp_path / "words.png")
    assert place == (4 if last else 1)  # of four activities
    with Image.open(tmp_path / "words.png") as picture:
        assert picture.width > 900


def test_every_modality_can_be_shown(tmp_path):
    rows = [Row("words find depth", "furniture", "test_loose", NAME, DEPTH, True)]
    (place,) = draw(Stub(1.0), rows, 1, tmp_path / "depth.png")
    assert 1 <= place <= 165
    assert {row.query[0] for row in ROWS} == {"audio", "depth", "text", "image", "imu"}
