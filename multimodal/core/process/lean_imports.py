"""Lightning and torch's optimizers without torchmetrics and TorchDynamo, until those are used.

Lightning imports both only for a class or two, and torchmetrics brings transformers, scipy and
matplotlib where they are installed. torch's optimizers import TorchDynamo
to mark places where it must not trace. Together they cost three to five times as much as torch
itself, in every rank, job and subprocess.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from types import FunctionType, MethodType, ModuleType
from typing import Any

DYNAMO, METRICS = "torch._dynamo", "torchmetrics"
DEFERRED = (DYNAMO, METRICS)
_PLOT = f"{METRICS}.utilities.plot"
_PARTS_ALONE: set[str] = set()  # packages whose parts are imported without loading the whole


def import_lightning() -> None:
    """Imports Lightning, and leaves torchmetrics and TorchDynamo to their first use.

    Afterwards `torchmetrics` and `torch._dynamo` load themselves when anything else of them is
    asked for. Call it before anything imports Lightning; once that has happened it does nothing.
    """
    if "pytorch_lightning" in sys.modules:
        return
    with _no_garbage_collection():
        import_module("torch")
        sys.meta_path.insert(0, _Finder())
        for name in DEFERRED:
            import_module(name)
        with _classes_of_torchmetrics(), _named_only(DYNAMO, "OptimizedModule"):
            import_module("pytorch_lightning")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Modules are not garbage: looking through them takes an eighth of the time of importing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _classes_of_torchmetrics() -> Iterator[None]:
    """Imports its two classes that Lightning names, without the metrics, for the time of the block.

    Lightning's own results are a subclass, so they are the real ones. What they draw plots by is
    imported when a plot is drawn.
    """
    module = sys.modules.get(METRICS)
    if not isinstance(module, _Deferred):
        yield
        return
    _PARTS_ALONE.add(METRICS)
    try:
        module.__dict__.update(__version__=version(METRICS), _logger=logging.getLogger(METRICS))
        import_module(f"{METRICS}.utilities")  # first: it and `metric` import each other
        module.__dict__["Metric"] = import_module(f"{METRICS}.metric").Metric
        collections = import_module(f"{METRICS}.collections")
        module.__dict__["MetricCollection"] = collections.MetricCollection
        yield
    finally:
        _PARTS_ALONE.discard(METRICS)
        if isinstance(plot := sys.modules.get(_PLOT), _Deferred):
            for name in _PLOTS:
                delattr(plot, name)


def _plot(*args: Any, **kwargs: Any) -> Any:
    return sys.modules[_PLOT].plot_single_or_multi_val(*args, **kwargs)


_PLOTS = {"_AX_TYPE": Any, "_PLOT_OUT_TYPE": Any, "plot_single_or_multi_val": _plot}


@contextlib.contextmanager
def _named_only(module_name: str, class_name: str) -> Iterator[None]:
    """A deferred module's class can be named, for the time of the block, without loading it."""
    module = sys.modules.get(module_name)
    if not isinstance(module, _Deferred):
        yield
        return
    setattr(module, class_name, stand_in := _class_of(module_name, class_name))
    try:
        yield
    finally:
        if vars(module).get(class_name) is stand_in:  # it was not loaded in the meantime
            delattr(module, class_name)


def _class_of(module: str, name: str) -> type:
    """A class whose instances are those of ``module.name``: none, until that is imported."""

    class OfTheRealClass(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return cls.__subclasscheck__(type(instance))

        def __subclasscheck__(cls, subclass: type) -> bool:
            loaded = sys.modules.get(module)
            real = None if loaded is None else vars(loaded).get(name)
            return real is cls or (real is not None and issubclass(subclass, real))

    return OfTheRealClass(name, (), {"__module__": module})


class _Deferred(ModuleType):
    """A module that becomes the real one, in place, when an attribute is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what passes by and looks at all modules
            raise AttributeError(f"module {self.__name__!r} is not loaded yet and has no {name!r}")
        _load(self)
        return getattr(self, name)


class _Part:
    """A deferred module's part, of which some functions answer while nothing is loaded.

    Args:
        whole: the deferred module.
        name: of the part.
        answers: what each of these functions returns until then.
    """

    def __init__(self, whole: ModuleType, name: str, **answers: Any) -> None:
        self._whole, self._name, self._answers = whole, name, answers

    def __getattr__(self, name: str) -> Any:
        if name in self._answers and isinstance(self._whole, _Deferred):
            return lambda: self._answers[name]
        if name.startswith("__"):
            raise AttributeError(f"{self._name} is not loaded yet and has no {name!r}")
        _load(self._whole)
        return getattr(sys.modules[f"{self._whole.__name__}.{self._name}"], name)


_loading = threading.RLock()


def _load(module: ModuleType) -> None:
    with _loading:
        if not isinstance(module, _Deferred):
            return
        module.__class__ = ModuleType  # type: ignore[assignment]
        parent = sys.modules.get(module.__name__.rpartition(".")[0])
        spec = PathFinder.find_spec(module.__name__, getattr(parent, "__path__", None))
        assert spec is not None
        assert spec.loader is not None
        module.__spec__, module.__loader__ = spec, spec.loader
        spec.loader.exec_module(module)


class _Finder(MetaPathFinder):
    """Finds some packages as deferred modules, and loads them where a part of one is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The deferred module; a part of it that is there already; None for all else."""
        if fullname in (*DEFERRED, _PLOT) and target is None:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None:
                spec.loader = _DeferredLoader()
            return spec
        package = next((name for name in DEFERRED if fullname.startswith(f"{name}.")), None)
        if package is None or package in _PARTS_ALONE:
            return None
        _load(sys.modules[package])
        if (loaded := sys.modules.get(fullname)) is None or target is not None:
            return None
        spec = copy.copy(loaded.__spec__)  # importing the whole imported this part of it
        if spec is not None:
            spec.loader = _Loaded(loaded)
        return spec


class _DeferredLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == DYNAMO:
            module.__dict__.update(disable=_disable(module), graph_break=_graph_break(module))
            # of every rank: a process group clears its caches, and DDP asks for a setting
            module.__dict__["trace_rules"] = _Part(module, "trace_rules", clear_lru_cache=None)
            module.__dict__["utils"] = _Part(module, "utils", get_optimize_ddp_mode="ddp_optimizer")
        elif module.__name__ == _PLOT:
            module.__dict__.update(_PLOTS)


class _Loaded(Loader):
    """Returns a loaded module, for an import that would execute it again."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _disable(module: ModuleType) -> Callable[..., Any]:
    """`torch._dynamo.disable` of functions: they are as they are while nothing can trace them."""

    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        if fn is None:
            return functools.partial(disable, recursive=recursive, **options)
        if not isinstance(module, _Deferred) or not isinstance(fn, FunctionType | MethodType):
            _load(module)
            return module.disable(fn, recursive, **options)
        disabled: list[Any] = []

        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            if isinstance(module, _Deferred):
                return fn(*args, **kwargs)
            if not disabled:
                disabled.append(module.disable(fn, recursive, **options))
            return disabled[0](*args, **kwargs)

        return inner

    return disable


def _graph_break(module: ModuleType) -> Callable[..., None]:
    def graph_break(*args: Any, **kwargs: Any) -> None:
        if not isinstance(module, _Deferred):
            module.graph_break(*args, **kwargs)

    return graph_break
