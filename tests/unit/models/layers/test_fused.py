"""A convolution and its ReLU6 in one pass over the maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import profile

from multimodal.models.layers import fused
from multimodal.training.flops import count_flops

FUSED = "mkldnn::_convolution_pointwise"


def layer_and_input(**sizes) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 12, **sizes).requires_grad_(False)
    return layer, 4 * torch.randn(3, 6, 11, 9)


def operators(work) -> set[str]:
    with profile() as profiled:
        work()
    return {event.key for event in profiled.key_averages()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("relu6", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 6},
        {"kernel_size": 5, "padding": 2, "dilation": 2},
    ],
)
def test_it_is_the_convolution_and_then_relu6(sizes, relu6, layout):
    layer, x = layer_and_input(**sizes)
    x = x.contiguous(memory_format=layout)
    before = x.clone()
    kernel, bias = torch.randn_like(layer.weight), 3 * torch.randn(12)
    own = fused.convolve(x, layer, kernel, bias, relu6)
    layer.weight.copy_(kernel), layer.bias.copy_(bias)
    wanted = layer.double()(x.double())
    wanted = wanted.clamp(0, 6) if relu6 else wanted
    torch.testing.assert_close(own.double(), wanted, atol=1e-4, rtol=1e-5)
    assert torch.equal(x, before)
    assert not relu6 or {0.0, 6.0} <= set(own.flatten().tolist())


def test_on_a_cpu_without_gradients_it_is_one_operation():
    layer, x = layer_and_input(kernel_size=3)
    ran = operators(lambda: fused.convolve(x, layer, layer.weight, layer.bias, True))
    assert FUSED in ran
    assert not any("hardtanh" in name or "relu" in name for name in ran)


@pytest.mark.parametrize("reason", ["gradients", "float64", "autocast", "switched off"])
def test_elsewhere_it_is_two(reason):
    layer, x = layer_and_input(kernel_size=3)
    if reason == "gradients":
        layer.requires_grad_(True)
    elif reason == "float64":
        layer, x = layer.double(), x.double()
    with (
        torch.autocast("cpu", enabled=reason == "autocast"),
        torch.backends.mkldnn.flags(enabled=reason != "switched off"),
    ):
        ran = operators(lambda: fused.convolve(x, layer, layer.weight, layer.bias, True))
    assert FUSED not in ran
    assert any("hardtanh" in name for name in ran)


def test_gradients_flow_where_they_are_wanted():
    layer, x = layer_and_input(kernel_size=3)
    x.requires_grad_(True)
    own = fused.convolve(x, layer, layer.weight, layer.bias, True)
    wanted = F.relu6(layer(x))
    torch.testing.assert_close(
        torch.autograd.grad(own.sum(), x), torch.autograd.grad(wanted.sum(), x)
    )


def test_its_operations_are_counted():
    layer, x = layer_and_input(kernel_size=1)
    counted, _ = count_flops(lambda: fused.convolve(x, layer, layer.weight, layer.bias, True))
    assert counted == 2 * 3 * 11 * 9 * 6 * 12


def test_what_is_exported_has_no_operation_of_one_library():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(6, 12, 3).requires_grad_(False)

        def forward(self, x):
            return fused.convolve(x, self.layer, self.layer.weight, self.layer.bias, True)

    _, x = layer_and_input(kernel_size=3)
    module = Module().eval()
    program = torch.export.export(module, (x,))
    assert not [node for node in program.graph.nodes if "mkldnn" in str(node.target)]
    torch.testing.assert_close(program.module()(x), module(x))


def test_it_compiles_as_one_graph_of_two_operations():
    layer, x = layer_and_input(kernel_size=3)
    seen: list[str] = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def work(x):
        return fused.convolve(x, layer, layer.weight, layer.bias, True)

    with torch.no_grad():
        compiled = torch.compile(work, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(compiled, work(x))
    assert any("relu6" in name for name in seen)
    assert not any("mkldnn" in name for name in seen)
