"""``model.compile``: the towers run as kernels that torch.compile makes of them.

Modules are compiled in place, so their weights keep their names. Sizes of batches and lengths of
texts are left open, so that a batch of another length needs no other kernels. Nothing of the
compiler is imported before a run asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from multimodal.core.errors import ConfigError, ConfigProblem
from multimodal.core.process.quiet import note
from multimodal.models.encoders.connected import ConnectedEncoder
from multimodal.models.towers import EmbeddingModel, Tower

KEY = "model.compile"
BACKEND = "inductor"
# Blocks of one tower differ in constants (stochastic depth), training from evaluation, towers from
# each other: all are variants of the same code to the compiler, which gives up after 8.
VARIANTS = 1024


def compile_towers(model: EmbeddingModel, device: torch.device, backend: str | None = None) -> None:
    """Compiles what ``model.compile`` says, at its first use; nothing where it is null.

    Args:
        model: its towers; weights loaded into it later are used.
        device: that it will run on.
        backend: of torch.compile; None: `BACKEND`.

    Raises:
        ConfigError: if torch.compile does not work here, or no tower has blocks.
    """
    if model.compile_scope is None:
        return
    backend = backend or BACKEND
    towers = {id(tower): (name, tower) for name, tower in model.towers.items()}
    parts: dict[str, list[nn.Module]] = {}
    for name, tower in towers.values():
        assert isinstance(tower, Tower)
        parts[name] = list(_parts(tower, model.compile_scope))
    without = [name for name, module in parts.items() if not module]
    whole = f"{KEY}=tower compiles whole towers"
    if len(without) == len(parts):
        raise ConfigError([ConfigProblem(KEY, f"blocks: no tower has blocks; {whole}")])
    try_compiler(device, backend)
    if without:
        note(f"{KEY}=blocks: {', '.join(without)} stay as they are, without blocks; {whole}")
    from torch._dynamo import config
    from torch.fx.experimental import _config as shapes

    config.recompile_limit = config.accumulated_recompile_limit = VARIANTS
    shapes.use_duck_shape = False  # or a batch as large as its texts are long would be a kind
    for module in parts.values():
        for part in module:
            part.compile(dynamic=True, backend=backend)


def _parts(tower: Tower, scope: str) -> Iterator[nn.Module]:
    encoder = tower.encoder
    if isinstance(encoder, ConnectedEncoder):
        encoder = encoder.encoder  # the backbone is another tower's
    if scope == "tower":
        yield encoder
        return
    layers = getattr(encoder, "layers", None)
    if layers is not None and not isinstance(layers, nn.Module):  # else a layer of that name
        yield from layers()


def try_compiler(device: torch.device, backend: str) -> None:
    """Compiles something small: whether there is a compiler, Python's headers, Triton on a GPU.

    Raises:
        ConfigError: if that fails, with the reason.
    """
    try:
        torch.compile(_something, backend=backend)(torch.ones(2, device=device))
    except Exception as error:  # the compiler's own, of any kind
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        needed = "Triton" if device.type == "cuda" else "a C++ compiler (g++) and Python's headers"
        raise ConfigError(
            [
                ConfigProblem(
                    KEY,
                    f"torch.compile does not work here: {type(error).__name__}: {reason}. It needs "
                    f"{needed}; install them, or set {KEY}=null",
                )
            ]
        ) from error


def _something(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


class CompileReport(pl.Callback):
    """Says in a line when something was compiled, and how long it took: training stood meanwhile.

    At first every kind of batch is; after that it should not happen any more.
    """

    def __init__(self) -> None:
        self._graphs = 0
        self._seconds = 0.0
        self._since: float | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to listen to the compiler."""
        from torch._dynamo.callback import callback_handler

        callback_handler.register_start_callback(self._begins)
        callback_handler.register_end_callback(self._ends)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends it."""
        from torch._dynamo.callback import callback_handler

        if self._begins in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(self._begins)
            callback_handler.remove_end_callback(self._ends)

    def _begins(self, _: Any) -> None:
        self._since = time.perf_counter()

    def _ends(self, _: Any) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._graphs += 1
            self._since = None

    def _report(self, step: int) -> None:
        if self._graphs:
            times = f"{self._graphs} time{'s' if self._graphs > 1 else ''}"
            note(f"step {step}: compiled {times}, in {self._seconds:.1f} s ({KEY})")
            self._graphs, self._seconds = 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Says what the step had to wait for."""
        self._report(trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says it of the validation."""
        self._report(trainer.global_step)
