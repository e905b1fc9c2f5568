"""Training whose weights are copied to every rank (DDP), with a limit on waiting for a rank."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class ReplicatedStrategy(DDPStrategy):
    """DDP over all ranks.

    Args:
        timeout_s: seconds after which a collective that a rank does not join is an error.
        find_unused_parameters: whether a step may leave trained parameters unused, so that DDP has
            to look for them in every step; None: as the module says of its sources
            (``may_leave_unused``).

    Raises:
        ValueError: if ``timeout_s`` is not above 0.
    """

    def __init__(
        self, timeout_s: float = 1800.0, find_unused_parameters: bool | None = None
    ) -> None:
        if timeout_s <= 0:
            raise ValueError(f"trainer.strategy.timeout_s={timeout_s} must be above 0")
        super().__init__(timeout=timedelta(seconds=timeout_s))
        self._find_unused = find_unused_parameters

    def configure_ddp(self) -> None:
        """Wraps the module for DDP; called before the first step."""
        module: Any = self.lightning_module
        find = self._find_unused
        if find is None:
            sources = getattr(module.trainer.datamodule, "sources", {})
            modalities = {
                name: (*source.modalities, *getattr(source, "frozen", ()))
                for name, source in sources.items()
            }
            find = module.may_leave_unused(modalities)
        self._find_unused = find
        for parameter in module.parameters():
            if parameter.requires_grad and 1 in parameter.shape:
                parameter.register_hook(_laid_out_as(parameter))
        super().configure_ddp()

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        devices = self.determine_ddp_device_ids()
        # As Lightning does: https://pytorch.org/docs/stable/notes/cuda.html#id5
        with nullcontext() if devices is None else torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            # Where every step uses all parameters, gradients live in the buckets: one copy less.
            replica = _Replica(
                model,
                devices,
                find_unused_parameters=bool(self._find_unused),
                gradient_as_bucket_view=not self._find_unused,
            )
        replica.keep_buckets()
        return replica


class _Replica(DistributedDataParallel):
    """DDP whose buckets stay as they are, and that looks for unused parameters without a word.

    Where a gradient stands in its bucket decides in which order three ranks or more add it up. DDP
    moves gradients after its first step, so that a resumed run, whose first step is another one,
    would differ in the last digits. Here they are in the reverse order of the parameters from the
    start, about the order in which they arrive.

    A step with modality dropout uses all parameters or not, so DDP has to look, and its advice
    not to is no use. It is written past Python's warnings, except while Python is called by one of
    torch's own functions; there `quieten_libraries` filters it.
    """

    def keep_buckets(self) -> None:
        """Has the order of the parameters stand for the one in which gradients would arrive."""
        if not self.find_unused_parameters:  # else it never moves any
            self.reducer._push_all_rebuilt_params()
            self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[nn.Parameter], list[bool]]:
        parameters, sparse = super()._build_params_for_reducer()  # type: ignore[no-untyped-call]
        # Without a rebuild DDP reverses them itself.
        return (
            (parameters, sparse)
            if self.find_unused_parameters
            else (parameters[::-1], sparse[::-1])
        )

    def _post_forward(self, output: Any) -> Any:
        result: list[Any] = []

        def call() -> None:
            with torch.enable_grad():
                result.append(super(_Replica, self)._post_forward(output))  # type: ignore[no-untyped-call]

        if not (self.find_unused_parameters and torch.is_grad_enabled()):
            return super()._post_forward(output)  # type: ignore[no-untyped-call]
        _CalledByTorch.apply(call)  # type: ignore[no-untyped-call]
        return result[0]


class _CalledByTorch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Callable[[], None]) -> None:
        call()


def _laid_out_as(parameter: nn.Parameter) -> Callable[[Tensor], Tensor]:
    """A hook that gives a gradient the strides of ``parameter``.

    DDP compares them, and warns, also along sides of 1: there the gradient of a convolution on
    channels-last pictures has others, for the same layout in memory.
    """
    strides, sides = parameter.stride(), [i for i, n in enumerate(parameter.shape) if n > 1]

    def hook(gradient: Tensor) -> Tensor:
        if all(gradient.stride(side) == strides[side] for side in sides):
            return gradient.as_strided(gradient.shape, strides, gradient.storage_offset())
        return gradient

    return hook
