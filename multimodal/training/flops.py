"""Floating-point operations: how many a computation takes, and how many a device can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

Arithmetic = Literal["half", "tf32", "float32"]

# Dense peaks in TFLOP/s, from NVIDIA's data sheets: bfloat16 or float16 with float32 sums, TF32,
# float32 without tensor cores. The first name that the device's own contains counts.
PEAKS: tuple[tuple[str, float, float, float], ...] = (
    ("B200", 2250.0, 1125.0, 75.0),
    ("H200", 989.0, 494.0, 67.0),
    ("H100 PCIe", 756.0, 378.0, 51.0),
    ("H100 NVL", 835.0, 417.0, 60.0),
    ("H100", 989.0, 494.0, 67.0),
    ("A100", 312.0, 156.0, 19.5),
    ("A10G", 70.0, 35.0, 35.0),
    ("A10", 125.0, 62.5, 31.2),
    ("L40S", 362.0, 183.0, 91.6),
    ("L4", 121.0, 60.0, 30.3),
    ("V100", 125.0, 15.7, 15.7),
    ("T4", 65.0, 8.1, 8.1),
)


def peak_flops(device: torch.device, arithmetic: Arithmetic) -> float | None:
    """Operations per second that the data sheet of ``device`` promises; None where it is unknown.

    Args:
        device: a CUDA device; of others nothing is known.
        arithmetic: of the matrix products.
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), arithmetic)


def peak_of(device_name: str, arithmetic: Arithmetic) -> float | None:
    """As `peak_flops`, of a name as CUDA gives it (``NVIDIA H100 80GB HBM3``)."""
    for name, *teraflops in PEAKS:
        if name in device_name:
            return 1e12 * teraflops[("half", "tf32", "float32").index(arithmetic)]
    return None


def count_flops(compute: Callable[[], Any]) -> tuple[int, Any]:
    """The operations of ``compute()``, and what it returns.

    Counted are matrix products, convolutions and attention, forward and backward, each
    multiplication and each addition as one (`torch.utils.flop_counter`), as they are executed: also
    what checkpointing computes a second time. Compiled code is not seen: call within
    ``torch.compiler.set_stance("force_eager")``.
    """
    from torch.utils import flop_counter  # brings sympy

    aten: Any = torch.ops.aten  # what torch leaves out: attention's kernels for the CPU
    missing = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=missing) as counter:
        result = compute()
    return int(counter.get_total_flops()), result


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Of the kernel that takes these shapes ``[B, H, T, W]``."""
    from torch.utils import flop_counter

    count: Any = flop_counter.sdpa_flop_count
    return int(count(q, k, v))


def _attention_backward(
    grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any
) -> int:
    from torch.utils import flop_counter

    count: Any = flop_counter.sdpa_backward_flop_count
    return int(count(grad, q, k, v))
