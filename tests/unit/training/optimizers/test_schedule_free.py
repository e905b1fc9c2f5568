"""Schedule-free AdamW, beside a loop over the paper's algorithm 1 in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from multimodal.training.optimizers.schedule_free import ScheduleFreeAdamW

RATES = [0.01, 0.02, 0.03, 0.03, 0.03]  # a warm-up


def follow(parameter, optimizer, grads, rates):
    for grad, rate in zip(grads, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = grad.clone()
        optimizer.step()


def test_it_is_algorithm_1():
    torch.manual_seed(0)
    y = nn.Parameter(torch.randn(4, dtype=torch.float64))
    grads = torch.randn(5, 4, dtype=torch.float64)
    optimizer = ScheduleFreeAdamW([y], lr=0.03, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.2)
    x = y.detach().clone()
    z, v, total = x.clone(), torch.zeros_like(x), 0.0
    for step, (grad, rate) in enumerate(zip(grads, RATES, strict=True), start=1):
        here = 0.2 * z + 0.8 * x
        v = 0.9 * v + 0.1 * grad**2
        update = grad / (v.sqrt() / math.sqrt(1 - 0.9**step) + 1e-8) + 0.2 * here
        z = z - rate * update
        total += rate**2
        x = x + rate**2 / total * (z - x)
        follow(y, optimizer, grads[step - 1 : step], [rate])
        torch.testing.assert_close(y.detach(), 0.2 * z + 0.8 * x, rtol=0, atol=1e-13)
        torch.testing.assert_close(optimizer.averages()[y], x, rtol=0, atol=1e-13)


def test_a_restored_state_continues_to_the_bit():
    torch.manual_seed(0)
    first, grads = nn.Parameter(torch.randn(4)), torch.randn(5, 4)
    optimizer = ScheduleFreeAdamW([first])
    follow(first, optimizer, grads[:2], RATES[:2])
    second = nn.Parameter(first.detach().clone())
    restored = ScheduleFreeAdamW([second])
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    follow(first, optimizer, grads[2:], RATES[2:])
    follow(second, restored, grads[2:], RATES[2:])
    assert torch.equal(first, second)
    assert torch.equal(optimizer.averages()[first], restored.averages()[second])


def test_an_untrained_parameter_is_its_own_average():
    still = nn.Parameter(torch.ones(2))
    assert torch.equal(ScheduleFreeAdamW([still]).averages()[still], torch.ones(2))


def test_the_average_beats_the_last_iterate_on_a_noisy_bowl():
    torch.manual_seed(0)
    y = nn.Parameter(torch.full((50,), 3.0))
    optimizer = ScheduleFreeAdamW([y], lr=0.05)
    for _ in range(400):
        y.grad = y.detach() + torch.randn(50)
        optimizer.step()
    assert optimizer.averages()[y].norm() < 0.5 * optimizer.state[y]["z"].norm()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", -1.0), ("betas", (0.0, 0.9)), ("eps", 0.0), ("weight_decay", -0.1)],
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"optimizer.{setting}="):
        ScheduleFreeAdamW([nn.Parameter(torch.ones(2))], **{setting: value})
