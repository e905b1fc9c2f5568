"""Saves and restores every rank's random number generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from multimodal.core.distributed import all_gather_object, world_size


class RandomState(pl.Callback):
    """Saves every rank's random states and restores them before the first resumed step."""

    def __init__(self) -> None:
        self._pending: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks, as tensors and plain lists; every rank must call it."""
        version, internal, gauss = random.getstate()
        legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - others use it
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": [version, list(internal), gauss],
            "numpy": {
                "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
                "pos": int(legacy["state"]["pos"]),
                "has_gauss": int(legacy["has_gauss"]),
                "gauss": float(legacy["gauss"]),
            },
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return {"ranks": all_gather_object(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until the first step: setting up a run consumes random numbers."""
        self._pending = state_dict["ranks"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Restores this rank's states, once."""
        if self._pending is None:
            return
        ranks, self._pending = self._pending, None
        # At another world size there is no exact state to restore; the seed's initial one is kept.
        if len(ranks) != world_size():
            return
        state = ranks[trainer.global_rank]
        torch.set_rng_state(state["torch"].cpu())
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        numpy_state = state["numpy"]
        inner = {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]}
        np.random.set_state(  # noqa: NPY002
            {
                "bit_generator": "MT19937",
                "state": inner,
                "has_gauss": numpy_state["has_gauss"],
                "gauss": numpy_state["gauss"],
            }
        )
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"].cpu())
