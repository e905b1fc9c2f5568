"""Which place of a document answers which token of a query."""

from __future__ import annotations

import json

import pytest
import torch
from data_helpers import image_bytes, json_bytes, write_source
from torch import Tensor, nn
from torch.nn import functional as F

from multimodal.core.batch import EncoderOutput
from multimodal.core.similarity.similarities import COSINE, MaxSim
from multimodal.data.source import Source
from multimodal.data.tokenizers.bpe import train_bpe
from multimodal.data.transforms.image import ImageTransform
from multimodal.data.transforms.text import TextTransform
from multimodal.evaluation.report import token_maps
from multimodal.evaluation.report.token_maps import examples, heats, sections
from multimodal.evaluation.sets import EvaluationSet
from multimodal.models.heads import IdentityHead
from multimodal.models.towers import EmbeddingModel, Tower


def test_the_hottest_place_is_the_tokens_best_match():
    document = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    asked = torch.cat([document[[0, 4, 2]], torch.zeros(1, 4)])
    found = heats("text", asked, document, ["start", "a", "b", "padding"])
    assert [word for word, _ in found] == ["“a”", "“b”"]
    assert [int(heat.argmax()) for _, heat in found] == [4, 2]
    (whole,) = heats("image", asked, document, None)
    torch.testing.assert_close(whole[1], (asked[:3] @ document.T).mean(dim=0))


class Brightness(nn.Module):
    """The four quarters of a picture, each bright or dark."""

    width, grid = 2, (2, 2)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        bright = F.avg_pool2d(inputs.mean(dim=1), 4).flatten(1)
        tokens = torch.stack([bright, 1 - bright], dim=2)
        return EncoderOutput(tokens.mean(dim=1), tokens)


class Asks(nn.Module):
    """Every word asks for brightness."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> EncoderOutput:
        tokens = self.weight.expand(*inputs.shape, 2)
        return EncoderOutput(tokens[:, 0], tokens, mask)


@pytest.fixture
def case(tmp_path):
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8)
    pixels[:4, 4:] = 255  # the second quarter
    members = {"png": image_bytes(pixels.numpy()), "json": json_bytes(caption="white corner")}
    write_source(tmp_path, {"test": [[(f"s{n}", members) for n in range(3)]]}, name="set")
    train_bpe(["white corner"], 270).save(str(tmp_path / "tokenizer.json"))
    modalities = {"image": {"member": "png"}, "text": {"member": "json", "key": "caption"}}
    source = Source(str(tmp_path / "set.json"), modalities, "test")
    transforms = {
        "image": ImageTransform(8, [0.0] * 3, [1.0] * 3),
        "text": TextTransform(str(tmp_path / "tokenizer.json"), 16),
    }

    def head(width: int) -> IdentityHead:
        return IdentityHead(width, 2)

    model = EmbeddingModel({"image": Tower(Brightness(), head), "text": Tower(Asks(), head)})
    return model, source, transforms


def test_a_report_shows_them(case, monkeypatch):
    model, source, transforms = case
    sets = {"held out": EvaluationSet(source, gallery=2)}
    model.compare_by(COSINE)
    assert sections(model, sets, transforms) == []
    model.compare_by(MaxSim(query="text"))
    seen = []
    drawn = token_maps.draw
    monkeypatch.setattr(token_maps, "draw", lambda *a: (seen.append(a[2]), drawn(*a))[1])
    (section,) = sections(model, sets, transforms)
    assert seen
    assert all(int(heat.argmax()) == 1 for heat in seen)
    assert "held out" in section.body
    assert section.body.count("<img") == len(seen)
    assert "image → text" not in section.body
    shown = examples(model, source, transforms, [("text", "image")], 2)
    assert [example.lines for example in shown] == [[("text → image", "1.000")]] * 2
    assert json.dumps([example.name for example in shown]) == '["s0", "s2"]'
    model.compare_by(MaxSim(query="image"))
    (section,) = sections(model, sets, transforms)
    assert "image → text" in section.body
    assert "background:rgba" in section.body  # words under their heat
