"""FLOPs are counted forward and backward; devices' peaks are found by their names."""

import pytest
import torch
from torch.nn import functional as F

from multimodal.training.flops import count_flops, peak_flops, peak_of


def test_products_and_attention_are_counted_forward_and_backward():
    x = torch.randn(2, 4, 10, 16, requires_grad=True)
    weight = torch.randn(3, 160, requires_grad=True)

    def compute():
        attended = F.scaled_dot_product_attention(x, x, x)
        return F.linear(attended.flatten(2), weight).sum()

    attention = 2 * (2 * 4 * 10 * 10 * 16 * 2)  # queries by keys, weights by values
    linear = 2 * 8 * 160 * 3
    assert count_flops(compute)[0] == attention + linear
    flops, loss = count_flops(lambda: compute().backward())
    # attention's backward recomputes one product of its five, a linear layer's has two
    assert flops == attention * 3.5 + linear * 3
    assert loss is None


@pytest.mark.parametrize(
    ("name", "arithmetic", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "half", 989),
        ("NVIDIA H100 PCIe", "half", 756),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A10G", "half", 70),
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("Another Card", "half", None),
    ],
)
def test_the_peak_of_a_device_by_its_name(name, arithmetic, teraflops):
    assert peak_of(name, arithmetic) == (None if teraflops is None else 1e12 * teraflops)
    assert peak_flops(torch.device("cpu"), arithmetic) is None
