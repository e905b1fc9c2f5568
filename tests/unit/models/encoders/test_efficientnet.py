"""EfficientNet-Lite by the names of its weights, against plain functional code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from multimodal.data.transforms.image import ImageTransform
from multimodal.inference.importing import import_weights
from multimodal.models.encoders.efficientnet import EfficientNetLite, NormalisedConvolution
from multimodal.models.pretrained.efficientnet import LITE0, MEAN, STD
from multimodal.models.pretrained.keys import WeightsError

SMALL = {
    "stem_channels": 4, "channels": [4, 6, 6, 8], "blocks": [1, 2, 1, 2],
    "kernels": [3, 5, 3, 5], "strides": [1, 2, 1, 2], "expansions": [1, 6, 3, 2],
    "top_channels": 16,
}  # fmt: skip


def block_sizes(sizes: dict) -> list[tuple[int, int, int, int, int]]:
    """In, out, kernel, stride and expansion of each block."""
    made, before = [], sizes["stem_channels"]
    for stage, count in enumerate(sizes["blocks"]):
        for number in range(count):
            after, stride = sizes["channels"][stage], sizes["strides"][stage]
            each = sizes["kernels"][stage], stride if number == 0 else 1, sizes["expansions"][stage]
            made.append((before, after, *each))
            before = after
    return made


def foreign_weights(sizes: dict) -> dict[str, Tensor]:
    """A random state dict in the layout of the released files."""
    random = torch.Generator().manual_seed(3)
    state: dict[str, Tensor] = {}

    def convolution(name: str, norm: str, out: int, into: int, kernel: int) -> None:
        spread = (into * kernel * kernel) ** -0.5
        state[f"{name}.weight"] = spread * torch.randn(out, into, kernel, kernel, generator=random)
        state[f"{norm}.weight"] = 1 + 0.2 * torch.rand(out, generator=random)
        state[f"{norm}.bias"] = 0.5 + 0.2 * torch.randn(out, generator=random)
        state[f"{norm}.running_mean"] = 0.2 * torch.randn(out, generator=random)
        # As small as the epsilon, so that another epsilon shows.
        state[f"{norm}.running_var"] = 1e-3 + 0.3 * torch.rand(out, generator=random)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    convolution("_conv_stem", "_bn0", sizes["stem_channels"], 3, 3)
    for number, (before, after, kernel, _, ratio) in enumerate(block_sizes(sizes)):
        own, inside = f"_blocks.{number}", before * ratio
        if ratio > 1:
            convolution(f"{own}._expand_conv", f"{own}._bn0", inside, before, 1)
        convolution(f"{own}._depthwise_conv", f"{own}._bn1", inside, 1, kernel)
        convolution(f"{own}._project_conv", f"{own}._bn2", after, inside, 1)
    convolution("_conv_head", "_bn1", sizes["top_channels"], sizes["channels"][-1], 1)
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(7, sizes["top_channels"]), torch.zeros(7)
    return state


def reference(state: dict[str, Tensor], sizes: dict, x: Tensor) -> Tensor:
    """The network as functions of its tensors."""

    def normed(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-3).sqrt() * weight + bias

    def six(y: Tensor) -> Tensor:
        return y.clamp(0, 6)

    x = six(normed(F.conv2d(x, state["_conv_stem.weight"], stride=2, padding=1), "_bn0"))
    for number, (before, after, kernel, stride, ratio) in enumerate(block_sizes(sizes)):
        own, inside, y = f"_blocks.{number}", before * ratio, x
        if ratio > 1:
            y = six(normed(F.conv2d(y, state[f"{own}._expand_conv.weight"]), f"{own}._bn0"))
        depthwise = state[f"{own}._depthwise_conv.weight"]
        y = F.conv2d(y, depthwise, stride=stride, padding=kernel // 2, groups=inside)
        y = six(normed(y, f"{own}._bn1"))
        y = normed(F.conv2d(y, state[f"{own}._project_conv.weight"]), f"{own}._bn2")
        x = x + y if stride == 1 and before == after else y
    x = six(normed(F.conv2d(x, state["_conv_head.weight"]), "_bn1"))
    return x.mean((2, 3))


@pytest.mark.parametrize("side", [32, 45])
def test_the_weights_by_their_own_names_give_what_plain_functions_give(side):
    state = foreign_weights(SMALL)
    tower = import_weights(state, SMALL).model.tower("image").double()
    state = {name: tensor.double() for name, tensor in state.items()}
    pictures = 4 * torch.randn(3, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        output = tower.encode(pictures)
    torch.testing.assert_close(output.features, reference(state, SMALL, pictures))
    torch.testing.assert_close(output.tokens.mean(1), output.features)


def test_lite0_is_the_size_of_the_released_file():
    encoder = EfficientNetLite()
    # 4,652,008 parameters with the classifier of 1,000 classes (Tan and Le's release).
    assert sum(p.numel() for p in encoder.parameters()) + 1280 * 1000 + 1000 == 4_652_008
    assert encoder.width == 1280
    made = import_weights(foreign_weights(LITE0))
    assert made.transforms["image"]["size"] == 224
    assert not made.diff


def test_pixels_arrive_as_the_weights_were_trained_with_them():
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
    picture = ImageTransform(size=16, mean=MEAN, std=STD)(pixels, None)
    wanted = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(picture, wanted, atol=1e-5, rtol=0)


def test_training_moves_no_statistics_and_a_sample_does_not_see_its_batch():
    made = import_weights(foreign_weights(SMALL), SMALL)
    encoder = made.model.tower("image").encoder.train()
    encoder = encoder.double()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    pictures = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    together = encoder(pictures).features
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    torch.testing.assert_close(encoder(pictures[:1]).features, together[:1])


def test_a_file_that_lacks_a_tensor_is_refused_by_name():
    state = foreign_weights(SMALL)
    del state["_blocks.2._bn1.running_var"]
    with pytest.raises(WeightsError, match=r"_blocks\.2\._bn1\.running_var"):
        import_weights(state, SMALL)


def test_inputs_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[B, 1, height, width\], got \[2, 3, 8, 8\]"):
        EfficientNetLite(in_channels=1)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"kernels=\[3\]: expected a number of at least 1 for"):
        EfficientNetLite(kernels=[3])
    with pytest.raises(ValueError, match="takes no mask"):
        EfficientNetLite()(torch.zeros(2, 3, 8, 8), torch.ones(2, 8, dtype=torch.bool))
    with pytest.raises(WeightsError, match="not known: depth"):
        import_weights(foreign_weights(SMALL), {**SMALL, "depth": 3})


@torch.no_grad()
def test_the_first_blocks_alone_are_those_of_the_whole_network():
    torch.manual_seed(0)
    whole = EfficientNetLite(**SMALL, taps=[0, 2]).eval()
    first = EfficientNetLite(**SMALL, taps=[0], first_blocks=3).eval()
    state = whole.state_dict()
    left = {key for key in state if first.leaves_out(key)}
    assert left == state.keys() - first.state_dict().keys()
    first.load_state_dict({key: tensor for key, tensor in state.items() if key not in left})
    inputs = torch.randn(2, 3, 64, 64)
    seen: list[torch.Tensor] = []
    whole.blocks[2].register_forward_hook(lambda _, __, out: seen.append(out))
    whole(inputs)
    features = first(inputs).features
    assert features.shape == (2, first.width)
    torch.testing.assert_close(features[:, : seen[0].shape[1]], seen[0].mean(dim=(2, 3)))
    assert first.after_layers() == []
    for count in (0, 7):
        with pytest.raises(ValueError, match=f"first_blocks={count}: expected 1 to 6"):
            EfficientNetLite(**SMALL, first_blocks=count)


def test_tapped_blocks_stand_beside_the_last_map():
    torch.manual_seed(0)
    encoder = EfficientNetLite(**SMALL, taps=[1, 3]).eval()
    assert encoder.width == 16 + 6 + 6
    seen = {}
    for number in (1, 3):
        encoder.blocks[number].register_forward_hook(
            lambda _module, _inputs, out, number=number: seen.setdefault(number, out)
        )
    with torch.no_grad():
        output = encoder(torch.randn(2, 3, 32, 32))
    wanted = torch.cat([seen[1].mean((2, 3)), seen[3].mean((2, 3))], dim=1)
    torch.testing.assert_close(output.features[:, 16:], wanted)
    assert output.tokens.shape[2] == encoder.width
    plain = EfficientNetLite(**SMALL)
    assert plain.state_dict().keys() == encoder.state_dict().keys()
    for taps in ([6], [-1], [1, 1]):
        with pytest.raises(ValueError, match="numbers of the 6 blocks"):
            EfficientNetLite(**SMALL, taps=taps)


def unmerged(layer: NormalisedConvolution, x: Tensor) -> Tensor:
    out = layer[1](layer[0](x))
    return out.clamp(0, 6) if layer.relu6 else out


@pytest.mark.parametrize("relu6", [False, True])
def test_a_norm_merged_into_its_kernel_has_the_same_values_and_gradients(relu6):
    torch.manual_seed(0)
    layer = NormalisedConvolution(3, 6, 3, stride=2, groups=3, relu6=relu6).double()
    for name, tensor in layer[1].named_buffers():
        tensor.uniform_(0.5, 2) if name == "running_var" else tensor.normal_()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())
    assert len(inputs) == 4
    with FlopCounterMode(display=False) as counter:
        merged = layer(x)
    assert set(map(str, counter.get_flop_counts()["Global"])) == {"aten.convolution"}
    plain = unmerged(layer, x)
    torch.testing.assert_close(merged, plain)
    weights = torch.randn_like(plain)
    given = torch.autograd.grad((merged * weights).sum(), inputs)
    torch.testing.assert_close(given, torch.autograd.grad((plain * weights).sum(), inputs))


def test_no_map_is_normalised_outside_of_a_compiler(monkeypatch):
    class Features(EfficientNetLite):
        def forward(self, inputs):
            return super().forward(inputs).features

    encoder = Features(**SMALL).eval()
    passes = []
    norm = F.batch_norm
    monkeypatch.setattr(
        F, "batch_norm", lambda *rest, **more: passes.append(1) or norm(*rest, **more)
    )
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = encoder(inputs)
    assert not passes
    program = torch.export.export(encoder, (inputs,))
    assert passes
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("batch_norm" in target for target in targets)
    torch.testing.assert_close(program.module()(inputs), own)


def test_an_adapter_in_the_place_of_a_convolution_is_run():
    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    layer = NormalisedConvolution(3, 4, 1)
    x = torch.randn(2, 3, 5, 5)
    plain = layer(x)
    layer[0] = Doubled(layer[0])
    torch.testing.assert_close(layer(x), 2 * plain)


def test_inputs_are_left_as_they_were():
    encoder = EfficientNetLite(**SMALL, taps=[0, 2])
    inputs = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    before = inputs.clone()
    seen: dict[int, Tensor] = {}
    for number in (0, 2):
        encoder.blocks[number].register_forward_hook(
            lambda _m, _i, out, number=number: seen.update({number: (out, out.detach().clone())})
        )
    encoder(inputs).features.sum().backward()
    assert torch.equal(inputs, before)
    assert len(seen) == 2
    assert all(torch.equal(kept, then) for kept, then in seen.values())
