"""Rules about optimizers: what goes with their schedule, averages and sharded weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from multimodal.config.problems import ConfigProblem
from multimodal.config.rules.distributed import SHARDED
from multimodal.config.tree import at

SCHEDULE_FREE = "multimodal.training.ScheduleFreeAdamW"
CONSTANT = "multimodal.training.Constant"
# They compute with whole matrices, or with kernels that take no sharded tensors.
WHOLE = {
    SCHEDULE_FREE: "its average of sharded weights is not gathered for evaluation",
    "multimodal.training.MuonWithAdamW": "it orthogonalises whole matrices",
    "torch.optim.Muon": "it orthogonalises whole matrices",
    "torch.optim.Adafactor": "its rows and columns are those of whole matrices",
}


def optimizer_constraints(tree: dict[str, Any]) -> Iterator[ConfigProblem]:
    """What an optimizer asks of the schedule, the moving average and the strategy."""
    optimizer = at(tree, "optimizer._target_")
    if optimizer == SCHEDULE_FREE:
        schedule = at(tree, "scheduler._target_")
        if schedule not in (None, CONSTANT):
            yield ConfigProblem(
                "scheduler",
                f"{schedule!r} lowers the rate, which optimizer=schedule_free replaces by an "
                "average of the weights; set scheduler=constant (its warmup_steps are welcome)",
            )
        if at(tree, "callbacks.ema") is not None:
            yield ConfigProblem(
                "callbacks.ema",
                "optimizer=schedule_free averages the weights already; leave one of them out",
            )
    if optimizer == "torch.optim.Muon":
        yield ConfigProblem(
            "optimizer._target_",
            "torch.optim.Muon takes matrices only; optimizer=muon gives all else to AdamW",
        )
    if at(tree, "trainer.strategy._target_") == SHARDED and optimizer in WHOLE:
        yield ConfigProblem(
            "optimizer",
            f"{optimizer} does not go with trainer=fsdp: {WHOLE[optimizer]}; use optimizer=adamw, "
            "lion or sgd, or trainer=ddp",
        )
