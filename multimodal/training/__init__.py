"""What happens around a step: modules, callbacks, strategies, loggers, resuming."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.training.build import build_data, build_module, build_trainer
    from multimodal.training.callbacks.checkpoint import Checkpoint
    from multimodal.training.callbacks.data_wait import DataWait
    from multimodal.training.callbacks.ema import WeightAverage
    from multimodal.training.callbacks.loss_spikes import LossSpikes
    from multimodal.training.callbacks.nonfinite import SkipNonFinite
    from multimodal.training.callbacks.progress import ProgressBar
    from multimodal.training.callbacks.stopping.early_stopping import EarlyStopping
    from multimodal.training.callbacks.stopping.stop import StopOnSignal
    from multimodal.training.callbacks.summary import Summary
    from multimodal.training.callbacks.throughput import Throughput
    from multimodal.training.loggers.csv import CSVLogger
    from multimodal.training.loggers.others import MLflowLogger, TensorBoardLogger
    from multimodal.training.loggers.wandb import WandbLogger
    from multimodal.training.modules.contrastive import ContrastiveModule
    from multimodal.training.modules.fusion import FusionModule
    from multimodal.training.optimizers.lion import Lion
    from multimodal.training.optimizers.muon import MuonWithAdamW
    from multimodal.training.optimizers.schedule_free import ScheduleFreeAdamW
    from multimodal.training.schedules import (
        Constant,
        InverseSqrt,
        WarmupCosine,
        WarmupLinear,
        WarmupStableDecay,
    )
    from multimodal.training.strategies.ddp import ReplicatedStrategy
    from multimodal.training.strategies.fsdp import ShardedStrategy
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "CSVLogger",
    "Checkpoint",
    "Constant",
    "ContrastiveModule",
    "DataWait",
    "EarlyStopping",
    "FusionModule",
    "InverseSqrt",
    "Lion",
    "LossSpikes",
    "MLflowLogger",
    "MuonWithAdamW",
    "ProgressBar",
    "ReplicatedStrategy",
    "ScheduleFreeAdamW",
    "ShardedStrategy",
    "SkipNonFinite",
    "StopOnSignal",
    "Summary",
    "TensorBoardLogger",
    "Throughput",
    "WandbLogger",
    "WarmupCosine",
    "WarmupLinear",
    "WarmupStableDecay",
    "WeightAverage",
    "build_data",
    "build_module",
    "build_trainer",
]
