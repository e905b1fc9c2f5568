"""Training with weights, gradients and optimizer states sharded over the ranks (FSDP2)."""

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

from multimodal.core.distributed import all_reduce_sum, is_split, world_size
from multimodal.inference.checkpoint import file as checkpoint_file
from multimodal.inference.checkpoint import sharded, store
from multimodal.inference.checkpoint.file import CheckpointError
from multimodal.inference.checkpoint.weights import STATE
from multimodal.models.fusion_model import FusionModel
from multimodal.models.towers import Tower
from multimodal.training.checkpoint_plugin import AtomicCheckpointIO


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with checkpoints that are folders (`inference.checkpoint.sharded`).

    A run resumes from a checkpoint of any number of ranks, and from one of a single file; a single
    process or DDP resume from its folders too.

    Args:
        timeout_s: seconds after which a collective that a rank does not join is an error.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        if timeout_s <= 0:
            raise ValueError(f"trainer.strategy.timeout_s={timeout_s} must be above 0")
        super().__init__(tensor_parallel_size=1, timeout=timedelta(seconds=timeout_s))

    def setup_environment(self) -> None:
        """Shards over all ranks; Lightning's default is those of a node."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Names -> this rank's shard of the weights."""
        assert self.lightning_module is not None
        return dict(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As for any optimizer, of this rank's shard of the weights."""
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

        A folder's hashes are not verified again: they were verified when it was chosen.
        """
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        if not path.is_dir():
            content = store.read(path)
            _load_unsharded(content, self.lightning_module, self.optimizers)
            return content
        rest = checkpoint_file.load_plain(path / sharded.REST)
        reader = sharded.Reader(path)
        states = [
            {"state": _empty_states(optimizer, number, reader), "param_groups": []}
            for number, optimizer in enumerate(self.optimizers)
        ]
        here = {"state_dict": self.lightning_module.state_dict(), "optimizer_states": states}
        average = _empty_average(self.lightning_module, reader)
        tensors, _ = sharded.flatten({**here, **({STATE: average} if average else {})})
        sharded.load(tensors, reader)
        content = sharded.unflatten(tensors, rest)
        self.lightning_module.load_state_dict(content["state_dict"])
        for optimizer, state in zip(self.optimizers, content["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        return content


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards every tower of ``model``, and each of its layers, over the ranks of ``mesh``.

    Each layer is unsharded only during its own forward and backward. Of a fusion model the layers
    alone are sharded: its fusion and tasks read what is around them in a tower. What is not sharded
    is on every rank.
    """
    fused = isinstance(model, FusionModel)
    for tower in _towers(model):
        layers = getattr(tower.encoder, "layers", None)
        for layer in () if layers is None or isinstance(layers, nn.Module) else layers():
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        if not fused:
            fully_shard(tower, mesh=mesh, reshard_after_forward=True)
    if isinstance(model, FusionModel):
        model.skips_absent = False  # a layer's weights are gathered by all ranks, or by none


def _towers(model: nn.Module) -> list[Tower]:
    return [module for module in model.modules() if isinstance(module, Tower)]


def all_reduce_replicated_grads(module: nn.Module, uneven: bool = False) -> None:
    """Averages over the ranks the gradients of parameters that are not sharded (logit scales).

    Idempotent, so it may be called after each backward of an accumulation.

    Args:
        module: that has them.
        uneven: whether a parameter may have a gradient on some ranks only (a fusion's, whose
            batches lack modalities); it counts as zero on the others.
    """
    replicated = [p for p in module.parameters() if p.requires_grad and not is_split(p)]
    if uneven and replicated:
        has = torch.tensor([p.grad is not None for p in replicated], device=replicated[0].device)
        everywhere = all_reduce_sum(has.float()).tolist()
        for parameter, ranks in zip(replicated, everywhere, strict=True):
            if ranks and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in replicated if p.grad is not None]
    for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
        same = [gradient for gradient in gradients if gradient.dtype == dtype]
        joined = all_reduce_sum(torch.cat([gradient.flatten() for gradient in same]))
        for gradient, mean in zip(
            same, torch.split(joined, [g.numel() for g in same]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient) / world_size())


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within, every rank has the full weights, and forward passes need no communication.

    For validation and evaluation, where ranks have different numbers of batches. A no-op if nothing
    is sharded. The weights must not be changed within.
    """
    unshard(module)
    try:
        yield
    finally:
        reshard(module)


def unshard(module: nn.Module) -> None:
    """Gathers the full weights on every rank, until `reshard`."""
    for part in module.modules():  # a tower before its layers, which it then is the root of
        if isinstance(part, FSDPModule) and part._get_fsdp_state()._is_root is None:
            part._get_fsdp_state()._lazy_init()  # before the first step it has not happened yet
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def reshard(module: nn.Module) -> None:
    """Frees all but this rank's shard of the weights."""
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
    """Empty tensors for the saved state of every parameter, sharded like the parameter."""
    states: dict[int, dict[str, Tensor]] = {}
    prefix = f"optimizer/{number}/"
    parameters = _parameters(optimizer)
    for name, entry in reader.entries().items():
        if not name.startswith(prefix):
            continue
        index, _, key = name.removeprefix(prefix).partition("/")
        if int(index) >= len(parameters):
            raise CheckpointError(
                f"{reader.folder}: the checkpoint has more trained parameters than this run"
            )
        parameter, dtype = parameters[int(index)].detach(), entry.properties.dtype
        is_sharded = isinstance(parameter, DTensor) and parameter.shape == entry.size
        states.setdefault(int(index), {})[key] = (
            torch.empty_like(parameter, dtype=dtype)
            if is_sharded
            else torch.empty(entry.size, dtype=dtype)
        )
    return states


def _empty_average(module: nn.Module, reader: sharded.Reader) -> dict[str, Tensor]:
    """Empty tensors for the saved moving average of the weights, sharded like these."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    average: dict[str, Tensor] = {}
    for name, entry in reader.entries().items():
        kind, _, own = name.partition("/")
        if kind == sharded.AVERAGE:
            like = parameters.get(own)
            average[own] = (
                torch.empty_like(like.detach(), dtype=entry.properties.dtype)
                if like is not None and like.shape == entry.size
                else torch.empty(entry.size, dtype=entry.properties.dtype)
            )
    return average


def _load_unsharded(
    content: Mapping[str, Any], module: nn.Module, optimizers: list[Optimizer]
) -> None:
    """Loads a checkpoint of one file into sharded weights."""
    module.load_state_dict(sharded_like(content["state_dict"], module))
    for optimizer, saved in zip(optimizers, content["optimizer_states"], strict=True):
        parameters = _parameters(optimizer)
        states = {
            index: {key: shard_like(value, parameters[index]) for key, value in values.items()}
            for index, values in saved["state"].items()
        }
        # One kernel for a group, as without sharding, cannot take sharded and whole weights.
        fused = [{"fused": g["fused"]} if "fused" in g else {} for g in optimizer.param_groups]
        groups = [g | own for g, own in zip(saved["param_groups"], fused, strict=True)]
        optimizer.load_state_dict({"state": states, "param_groups": groups})


def sharded_like(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """A whole state dict, of which each rank has its shard where the module's weights are split."""
    here = module.state_dict()
    return {name: shard_like(value, here.get(name)) for name, value in state.items()}


def shard_like(value: Any, like: Tensor | None) -> Any:
    """``value`` with each rank's part of it, as ``like`` has it; itself where that is whole."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
