"""Imports of a command line: parts of libraries that it does not need only when something asks for them, and the others at once."""

import atexit
import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LIGHT = {  # what Lightning takes, and the module that defines it
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "__version__": "torchmetrics.__about__",
}


def defer_torchmetrics() -> None:
    """Let `import torchmetrics` load its base classes only, and the rest when it is asked for: its metrics of sound and texts import
    scipy and transformers, which takes a third of the time of all imports. It has no effect where torchmetrics is imported already.
    """
    if "torchmetrics" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch, and what a block imports, without garbage collection, which takes long and finds nothing during imports. Later
    collections, those at the end of the program too, skip the objects that exist by then. It has no effect where torch is imported already.
    """
    if "torch" in sys.modules:
        yield
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        import_module("torch")
        with _no_triton():
            yield
        gc.freeze()
        if "triton" in sys.modules:  # it prints on stderr at the end that its objects were not freed
            atexit.register(gc.unfreeze)
    finally:
        if collects:
            gc.enable()


@contextmanager
def _no_triton() -> Iterator[None]:
    """Let torch find no triton, its compiler for GPUs, in a block, where there is no GPU: as in torch's builds for CPUs."""
    import torch

    if "triton" in sys.modules or torch.cuda.device_count() or torch.xpu.device_count():
        yield
        return
    log = logging.getLogger("torch.utils.flop_counter")  # it warns that it does not count the operations of triton
    level = log.level
    log.setLevel(logging.ERROR)
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["triton"]
        log.setLevel(level)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "torchmetrics":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Load a package by its `__init__` when a name other than `LIGHT` is looked up."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            if name in LIGHT:
                import_module("torchmetrics.utilities")  # first: it and the module of `Metric` import each other
                return getattr(import_module(LIGHT[name]), name)
            if name.startswith("__") and name != "__all__":  # what Python asks of any module
                raise AttributeError(name)
            del module.__dict__["__getattr__"]
            self.loader.exec_module(module)
            return getattr(module, name)

        module.__dict__.update({"__getattr__": get, "_logger": logging.getLogger(module.__name__)})  # its base classes take the logger
