"""What can be run: `multimodal VERB`, `python scripts/VERB.py`, `python -m multimodal.cli VERB`."""

from typing import TYPE_CHECKING

from multimodal.core.imports.lazy import lazy

if TYPE_CHECKING:
    from multimodal.cli.jobs.sweep import SweepRecord
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["SweepRecord"]
