"""The names that release 0.1 gave to modules and classes, and what they are called now.

Configurations are renamed before they are judged (`config/targets/renamed.py`). For a user's own
Python, the old modules can be imported: each name in them is that of the room, with a warning.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Module of release 0.1 -> the room that offers what it defined; a name of one -> its name now.
RENAMED = {
    "multimodal.config.faults": "multimodal.config",
    "multimodal.config.faults.Fault": "multimodal.config.ConfigProblem",
    "multimodal.core.errors": "multimodal.core",
    "multimodal.data.clip_bpe": "multimodal.data",
    "multimodal.data.datamodule": "multimodal.data",
    "multimodal.data.decode": "multimodal.data",
    "multimodal.data.draw": "multimodal.data",
    "multimodal.data.draw.Draw": "multimodal.data.SampleRNG",
    "multimodal.data.errors": "multimodal.data",
    "multimodal.data.errors.BadSample": "multimodal.data.BadSampleError",
    "multimodal.data.errors.OtherBatches": "multimodal.data.DataMismatchError",
    "multimodal.data.errors.TooManyBadSamples": "multimodal.data.TooManyBadSamplesError",
    "multimodal.data.huggingface_tokenizer": "multimodal.data",
    "multimodal.data.manifest": "multimodal.data",
    "multimodal.data.source": "multimodal.data",
    "multimodal.data.stream": "multimodal.data",
    "multimodal.data.tokenizers": "multimodal.data",
    "multimodal.data.transforms.array": "multimodal.data",
    "multimodal.data.transforms.audio": "multimodal.data",
    "multimodal.data.transforms.base": "multimodal.data",
    "multimodal.data.transforms.depth": "multimodal.data",
    "multimodal.data.transforms.huggingface": "multimodal.data",
    "multimodal.data.transforms.image": "multimodal.data",
    "multimodal.data.transforms.imu": "multimodal.data",
    "multimodal.data.transforms.target": "multimodal.data",
    "multimodal.data.transforms.text": "multimodal.data",
    "multimodal.data.transforms.thermal": "multimodal.data",
    "multimodal.data.transforms.video": "multimodal.data",
    "multimodal.embedding": "multimodal.inference",
    "multimodal.encoders.audio": "multimodal.models",
    "multimodal.encoders.category": "multimodal.models",
    "multimodal.encoders.convolutional": "multimodal.models",
    "multimodal.encoders.features": "multimodal.models",
    "multimodal.encoders.huggingface": "multimodal.models",
    "multimodal.encoders.imu": "multimodal.models",
    "multimodal.encoders.text": "multimodal.models",
    "multimodal.encoders.transformer": "multimodal.models",
    "multimodal.encoders.vision": "multimodal.models",
    "multimodal.evaluate": "multimodal.evaluation",
    "multimodal.evaluation.results": "multimodal.evaluation",
    "multimodal.evaluation.sets": "multimodal.evaluation",
    "multimodal.fusion.contract": "multimodal.models",
    "multimodal.fusion.cross": "multimodal.models",
    "multimodal.fusion.latent": "multimodal.models",
    "multimodal.fusion.pooled": "multimodal.models",
    "multimodal.fusion_model": "multimodal.models",
    "multimodal.heads": "multimodal.models",
    "multimodal.layers.activations": "multimodal.models",
    "multimodal.layers.pooling": "multimodal.models",
    "multimodal.layers.stems": "multimodal.models",
    "multimodal.layers.transformer": "multimodal.models",
    "multimodal.objectives.candidates": "multimodal.objectives",
    "multimodal.objectives.contract": "multimodal.objectives",
    "multimodal.objectives.margin_losses": "multimodal.objectives",
    "multimodal.objectives.negatives": "multimodal.objectives",
    "multimodal.objectives.objective": "multimodal.objectives",
    "multimodal.objectives.pair": "multimodal.objectives",
    "multimodal.objectives.sigmoid_loss": "multimodal.objectives",
    "multimodal.objectives.softmax_losses": "multimodal.objectives",
    "multimodal.objectives.weighting": "multimodal.objectives",
    "multimodal.pretrained.importing": "multimodal.inference",
    "multimodal.runs.sweep": "multimodal.cli",
    "multimodal.tasks.captioning": "multimodal.models",
    "multimodal.tasks.contract": "multimodal.models",
    "multimodal.tasks.contract.Parts": "multimodal.models.TaskContext",
    "multimodal.tasks.contract.Term": "multimodal.models.LossTerm",
    "multimodal.tasks.labels": "multimodal.models",
    "multimodal.tasks.matching": "multimodal.models",
    "multimodal.tasks.numbers": "multimodal.models",
    "multimodal.training.callbacks": "multimodal.training",
    "multimodal.training.checkpoint_io": "multimodal.inference",
    "multimodal.training.checkpoints": "multimodal.training",
    "multimodal.training.contrastive": "multimodal.training",
    "multimodal.training.data_wait": "multimodal.training",
    "multimodal.training.ddp": "multimodal.training",
    "multimodal.training.ema": "multimodal.training",
    "multimodal.training.fsdp": "multimodal.training",
    "multimodal.training.fusion": "multimodal.training",
    "multimodal.training.loggers": "multimodal.training",
    "multimodal.training.nonfinite": "multimodal.training",
    "multimodal.training.optim": "multimodal.training",
    "multimodal.training.optim.constant": "multimodal.training.Constant",
    "multimodal.training.optim.warmup_cosine": "multimodal.training.WarmupCosine",
    "multimodal.training.spikes": "multimodal.training",
    "multimodal.training.stop": "multimodal.training",
    "multimodal.training.wandb_logger": "multimodal.training",
    "multimodal.tuning": "multimodal.models",
    "multimodal.tuning.Rates": "multimodal.models.TowerOptim",
    "multimodal.types": "multimodal.core",
}


_MODULES = [old for old, now in RENAMED.items() if now.rpartition(".")[2].islower()]


def renamed(target: str) -> str:
    """The present path of a class or function."""
    if target in RENAMED:
        return RENAMED[target]
    module, _, name = target.rpartition(".")
    return f"{RENAMED[module]}.{name}" if module in RENAMED else target


def former(module: str) -> Callable[[str], Any]:
    """`__getattr__` (PEP 562) of what was a module of release 0.1, or holds some.

    Args:
        module: its ``__name__``.
    """

    def get(name: str) -> Any:
        now = renamed(old := f"{module}.{name}")
        room, _, new = now.rpartition(".")
        if now == old or name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            offered = getattr(importlib.import_module(room), new)
        except AttributeError as error:
            raise AttributeError(f"{old} is gone: {error}; see docs/architecture.md") from error
        warnings.warn(f"{old} is now {now}", DeprecationWarning, stacklevel=2)
        return offered

    return get


class FormerModules(MetaPathFinder, Loader):
    """Finds the modules of `RENAMED` that are no longer there; last, after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old module, or of a package that held some; None for all else."""
        if any(f"{module}.".startswith(f"{fullname}.") for module in _MODULES):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's own."""

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it until it is asked for."""
        module.__dict__["__getattr__"] = former(module.__name__)
