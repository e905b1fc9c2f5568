"""Training whose weights, gradients and optimizer states are split among the ranks (FSDP2)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from multimodal.core.distributed import all_reduce_sum, world_size
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import sharded, store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.models.towers import Tower
from multimodal.training.checkpoint_plugin import AtomicCheckpointIO


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with checkpoints that are folders (`inference.checkpoint.sharded`).

    A run goes on from a checkpoint of any number of ranks, and from one of a single file; one
    process alone or DDP go on from its folders too.

    Args:
        timeout_s: seconds after which a collective that a rank does not join is an error.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        if timeout_s <= 0:
            raise ValueError(f"trainer.strategy.timeout_s={timeout_s} must be above 0")
        super().__init__(tensor_parallel_size=1, timeout=timedelta(seconds=timeout_s))

    def setup_environment(self) -> None:
        """All ranks share the weights; Lightning's default are those of a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Names -> this rank's part of the weights."""
        assert self.lightning_module is not None
        return dict(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As of any optimizer, of this rank's part of the weights."""
        return dict(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Saves the folder ``filepath``; a failure is noted as by `AtomicCheckpointIO`."""
        plugin = cast("AtomicCheckpointIO", self.checkpoint_io)
        plugin.failure = None
        try:
            sharded.write(checkpoint, Path(self.broadcast(filepath)))
        except CheckpointError as error:
            plugin.failure = error
            if self.is_global_zero:
                print(f"WARNING: {error}", file=sys.stderr)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Restores weights and optimizers, and returns the rest.

        A folder's hashes are not verified again: who chose this checkpoint has done so.
        """
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        if not path.is_dir():
            content = store.read(path)
            _place(content, self.lightning_module, self.optimizers)
            return content
        rest = checkpoint_file.load_plain(path / sharded.REST)
        reader = sharded.Reader(path)
        states = [
            {"state": _empty_states(optimizer, number, reader), "param_groups": []}
            for number, optimizer in enumerate(self.optimizers)
        ]
        here = {"state_dict": self.lightning_module.state_dict(), "optimizer_states": states}
        tensors, _ = sharded.flatten(here)
        sharded.load(tensors, reader)
        content = sharded.unflatten(tensors, rest)
        self.lightning_module.load_state_dict(content["state_dict"])
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        return content


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Splits every tower of ``model``, and each of its layers, over the ranks of ``mesh``.

    A layer's weights are together only while it computes.
    """
    for tower in _towers(model):
        layers = getattr(tower.encoder, "layers", None)
        for layer in () if layers is None or isinstance(layers, nn.Module) else layers():
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        fully_shard(tower, mesh=mesh, reshard_after_forward=True)


def _towers(model: nn.Module) -> list[Tower]:
    return [module for module in model.modules() if isinstance(module, Tower)]


def average_whole_gradients(module: nn.Module) -> None:
    """Averages over the ranks the gradients of parameters that are not split (logit scales).

    Twice is as once, so it may be called after each backward of an accumulation.
    """
    for parameter in module.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            parameter.grad.copy_(all_reduce_sum(parameter.grad) / world_size())


@contextmanager
def together(module: nn.Module) -> Iterator[None]:
    """Within, every rank has all weights, and forward passes need no other rank.

    For validation and evaluation, where ranks have different numbers of batches. Nothing happens
    where nothing is split. The weights must not be changed within.
    """
    gather(module)
    try:
        yield
    finally:
        scatter(module)


def gather(module: nn.Module) -> None:
    """Gives every rank all weights, until `scatter`."""
    for tower in _towers(module):
        if isinstance(tower, FSDPModule):
            tower._get_fsdp_state()._lazy_init()  # before the first step it has not happened yet
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def scatter(module: nn.Module) -> None:
    """Leaves every rank its own part of the weights again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """The optimizer's parameters in the order by which its state dict numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _empty_states(
    optimizer: Optimizer, number: int, reader: sharded.Reader
) -> dict[int, dict[str, Tensor]]:
    """Room for the saved state of every parameter, split as the parameter is."""
    states: dict[int, dict[str, Tensor]] = {}
    prefix = f"optimizer/{number}/"
    parameters = _parameters(optimizer)
    for name, entry in reader.entries().items():
        if not name.startswith(prefix):
            continue
        index, _, key = name.removeprefix(prefix).partition("/")
        if int(index) >= len(parameters):
            raise CheckpointError(f"{reader.folder}: more parameters are trained there than here")
        parameter, dtype = parameters[int(index)].detach(), entry.properties.dtype
        split = isinstance(parameter, DTensor) and parameter.shape == entry.size
        states.setdefault(int(index), {})[key] = (
            torch.empty_like(parameter, dtype=dtype)
            if split
            else torch.empty(entry.size, dtype=dtype)
        )
    return states


def _place(content: Mapping[str, Any], module: nn.Module, optimizers: list[Optimizer]) -> None:
    """Splits a checkpoint of one file as the weights here are split."""
    here = module.state_dict()
    state = {n: _split_like(value, here.get(n)) for n, value in content["state_dict"].items()}
    module.load_state_dict(state)
    for optimizer, saved in zip(optimizers, content["optimizer_states"], strict=True):
        parameters = _parameters(optimizer)
        states = {
            index: {key: _split_like(value, parameters[index]) for key, value in values.items()}
            for index, values in saved["state"].items()
        }
        optimizer.load_state_dict({"state": states, "param_groups": saved["param_groups"]})


def _split_like(value: Any, like: Tensor | None) -> Any:
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
