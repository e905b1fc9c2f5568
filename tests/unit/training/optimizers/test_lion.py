"""Lion, beside a loop over the paper's algorithm 2 in float64."""

import copy

import pytest
import torch
from torch import nn

from multimodal.training.optimizers.lion import Lion


def test_lion_is_algorithm_2():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 2), (4,))]
    expected = [p.detach().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in expected]
    optimizer = Lion(parameters, lr=0.01, betas=(0.8, 0.95), weight_decay=0.3)
    for _ in range(5):
        grads = [torch.randn_like(p) for p in parameters]
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        optimizer.step()
        for p, m, grad in zip(expected, momenta, grads, strict=True):
            c = 0.8 * m + 0.2 * grad
            p -= 0.01 * (c.sign() + 0.3 * p)
            m.copy_(0.95 * m + 0.05 * grad)
    for p, e in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=0, atol=1e-15)


def test_a_restored_state_continues_to_the_bit():
    torch.manual_seed(0)
    first = nn.Parameter(torch.randn(5))
    optimizer = Lion([first], lr=0.01)
    grads = torch.randn(6, 5)

    def steps(parameter, optimizer, some):
        for grad in some:
            parameter.grad = grad.clone()
            optimizer.step()

    steps(first, optimizer, grads[:3])
    second = nn.Parameter(first.detach().clone())
    restored = Lion([second], lr=0.01)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(first, optimizer, grads[3:])
    steps(second, restored, grads[3:])
    assert torch.equal(first, second)


def test_a_parameter_without_a_gradient_stays():
    moved, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moved.grad = torch.ones(2)
    Lion([moved, still], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(2))
    torch.testing.assert_close(moved.detach(), torch.full((2,), 1 - 0.05 - 0.1))


@pytest.mark.parametrize(
    ("setting", "value"), [("lr", 0.0), ("betas", (0.9, 1.0)), ("weight_decay", -1.0)]
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"optimizer.{setting}="):
        Lion([nn.Parameter(torch.ones(2))], **{setting: value})
