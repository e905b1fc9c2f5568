"""Where a run's numbers go."""

from typing import TYPE_CHECKING

from multimodal.core.imports.former import former

if not TYPE_CHECKING:
    __getattr__ = former(__name__)  # it was a module of release 0.1
