"""Models of timm, by a stand-in with its interface: tokens, pooling, weights, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multimodal.core.errors import InputMismatchError
from multimodal.core.extras import MissingExtraError
from multimodal.models.encoders.libraries.timm import TimmEncoder
from multimodal.models.heads import IdentityHead
from multimodal.models.towers import Tower
from multimodal.models.tuning import LastLayers

WIDTH = 6
CFG = {
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.2, 0.2),
    "input_size": (3, 8, 8),
    "classifier": "head",
}


class Transformer(nn.Module):
    """As timm's ViTs: one class token, blocks, a pooled head."""

    num_prefix_tokens, num_features, head_hidden_size = 1, WIDTH, WIDTH
    pretrained_cfg = CFG

    def __init__(self, num_classes: int, in_chans: int, img_size: int = 8) -> None:
        super().__init__()
        self.img_size = img_size
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.patch_embed = nn.Conv2d(in_chans, WIDTH, 4, 4)
        self.blocks = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(3)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.img_size, f"Input size {x.shape[-1]} is not {self.img_size}"
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
        return self.norm(self.blocks(tokens))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x[:, 0] if pre_logits else self.head(x[:, 0])


class Convolutional(nn.Module):
    """As timm's ConvNets: a map, and a head whose features are wider."""

    num_features, head_hidden_size, output_fmt = WIDTH, 10, "NCHW"
    pretrained_cfg = CFG

    def __init__(self, num_classes: int, in_chans: int, last: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, WIDTH, 4, 4)
        self.conv_head = nn.Linear(WIDTH, 10)
        if last:
            self.output_fmt = "NHWC"

    def forward_features(self, x: Tensor) -> Tensor:
        made = self.stem(x)
        return made.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else made

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        axes = (1, 2) if self.output_fmt == "NHWC" else (2, 3)
        return self.conv_head(x.mean(axes))


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """timm's own ``create_model``, of two models; what it was asked for."""
    calls: list[dict[str, Any]] = []

    def create_model(model_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        calls.append({"pretrained": pretrained, **kwargs})
        kinds = {"vit_tiny": Transformer, "conv_tiny": Convolutional}
        if model_name not in kinds:
            raise RuntimeError(f"Unknown model ({model_name})")
        return kinds[model_name](**kwargs)

    module = ModuleType("timm")
    vars(module).update(SimpleNamespace(create_model=create_model).__dict__)
    monkeypatch.setitem(sys.modules, "timm", module)
    torch.manual_seed(0)
    return calls


def test_a_transformer_gives_its_tokens_and_its_own_pooling(asked):
    encoder, pictures = TimmEncoder("vit_tiny").eval(), torch.randn(2, 3, 8, 8)
    output = encoder(pictures)
    tokens = encoder.model.forward_features(pictures)
    torch.testing.assert_close(output.tokens, tokens)
    torch.testing.assert_close(output.features, tokens[:, 0])
    assert (output.mask, encoder.width, output.tokens.shape) == (None, WIDTH, (2, 5, WIDTH))
    assert encoder.settings == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "size": 8}
    assert asked == [{"pretrained": False, "num_classes": 0, "in_chans": 3}]
    mean = TimmEncoder("vit_tiny", pooling="mean")
    mean.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(mean(pictures).features, tokens[:, 1:].mean(1))
    first = TimmEncoder("vit_tiny", pooling="class")
    first.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(first(pictures).features, tokens[:, 0])


@pytest.mark.parametrize("last", [False, True])
def test_a_map_becomes_tokens_in_rows(last):
    encoder = TimmEncoder("conv_tiny", options={"last": last}).eval()
    pictures = torch.randn(2, 3, 8, 12)
    output, expected = encoder(pictures), encoder.model.stem(pictures)
    torch.testing.assert_close(output.tokens, expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(output.features, encoder.model.conv_head(expected.mean((2, 3))))
    assert (encoder.width, output.features.shape) == (10, (2, 10))
    mean = TimmEncoder("conv_tiny", pooling="mean", options={"last": last})
    assert mean(pictures).features.shape == (2, mean.width) == (2, WIDTH)


def test_size_and_channels_reach_the_model_and_the_last_layers_can_be_tuned(asked):
    encoder = TimmEncoder("vit_tiny", image_size=12, in_channels=1)
    assert asked[-1]["img_size"] == 12
    assert encoder.settings["size"] == 12
    tower = Tower(
        encoder,
        lambda width: IdentityHead(width, WIDTH),
        tuning=LastLayers(num_layers=1, norm=True),
    )
    trained = {name for name, p in tower.encoder.model.named_parameters() if p.requires_grad}
    assert trained == {"blocks.2.weight", "blocks.2.bias", "norm.weight", "norm.bias"}
    assert tower(torch.randn(2, 1, 12, 12)).shape == (2, WIDTH)


def test_weights_are_those_of_a_file_without_its_classifier(tmp_path: Path):
    whole = Transformer(num_classes=4, in_chans=3)
    path = tmp_path / "model.safetensors"
    save_file(whole.state_dict(), path)
    encoder = TimmEncoder("vit_tiny", weights=str(path))
    pictures = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(encoder(pictures).tokens, whole.forward_features(pictures))
    state = whole.state_dict()
    del state["norm.bias"]
    save_file(state, path)
    with pytest.raises(ValueError, match=r"not those of the model: .*Missing key.*norm\.bias"):
        TimmEncoder("vit_tiny", weights=str(path))
    with pytest.raises(ValueError, match=r"there is no such file\. hf download timm/NAME"):
        TimmEncoder("vit_tiny", weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"name": "vit_tny"}, r"timm: Unknown model \(vit_tny\)"),
        ({"name": "hf-hub:timm/vit"}, "expected the name of an architecture"),
        ({"pooling": "last"}, "pooling='last': expected one of model, class, mean"),
        ({"name": "conv_tiny", "pooling": "class"}, "conv_tiny has no class token"),
        ({"options": {"pretrained": True}}, r"options\.pretrained: is set by this encoder"),
        ({"options": {"depth": 3}}, "timm: .*unexpected keyword argument 'depth'"),
    ],
)
def test_what_makes_no_encoder_is_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**{"name": "vit_tiny", **choices})


def test_other_pictures_are_refused():
    encoder = TimmEncoder("vit_tiny")
    with pytest.raises(InputMismatchError, match=r"expects pictures \[B, 3, H, W\] without a mask"):
        encoder(torch.randn(2, 1, 8, 8))
    with pytest.raises(InputMismatchError, match="Input size 12 is not 8"):
        encoder(torch.randn(2, 3, 12, 12))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"encoder=timm.*multimodal\[timm\]"):
        TimmEncoder("vit_tiny")
