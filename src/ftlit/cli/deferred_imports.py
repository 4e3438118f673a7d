"""Imports of a command line: parts of libraries that it does not need only when something asks for them, and the others at once."""

import atexit
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

LIGHT = {  # what Lightning takes, and the module that defines it
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "__version__": "torchmetrics.__about__",
}
COMPILER = "torch._dynamo"
COMPILER_UTILS = f"{COMPILER}.utils"


def defer_imports() -> None:
    """Let two packages load when more than a few names of them is asked for. A package that is imported already stays as it is.

    - torchmetrics, whose metrics of sound and texts import scipy and transformers: a third of the time of all imports.
    - `torch._dynamo`, torch's compiler, which torchvision and Lightning import to ask whether something is compiled: a sixth of the time.
    """
    if "torchmetrics" not in sys.modules and not any(isinstance(finder, _MetricsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MetricsFinder())
    if COMPILER not in sys.modules and not any(isinstance(finder, _CompilerFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CompilerFinder())


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


class _MetricsFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "torchmetrics":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _MetricsLoader(spec.loader)
        return spec


class _MetricsLoader(Loader):
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


class _CompilerFinder(MetaPathFinder):
    """Finds torch's compiler, which loads when another name is asked for than those that `_CompilerLoader` knows."""

    def __init__(self) -> None:
        self.package: _CompilerLoader | None = None

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname == COMPILER:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = self.package = _CompilerLoader(spec.loader)
            return spec
        if self.package is None or self.package.is_begun or not fullname.startswith(f"{COMPILER}."):
            return None
        if fullname == COMPILER_UTILS:
            return ModuleSpec(fullname, _Given(self.package.utils()))
        self.package.load()
        if (loaded := sys.modules.get(fullname)) is None:
            return None
        spec = ModuleSpec(fullname, _Given(loaded))  # a second module of this name would have its own settings
        vars(loaded)["__spec__"] = spec  # Python takes this one, and not what is returned, where the module exists by now
        return spec


class _Given(Loader):
    """A loader of a module that exists, which keeps its spec."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec or module.__spec__


class _CompilerLoader(Loader):
    """Gives `torch._dynamo` the names that torchvision, Lightning and torch's optimizers ask for, and loads it for any other."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.is_begun, self.is_loaded = loader, False, False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            if name in given:
                return given[name]
            if name.startswith("__") and name != "__all__":  # what Python asks of any module
                raise AttributeError(name)
            self.load()
            return getattr(module, name)

        compiled = type("Compiled", (type,), {"__instancecheck__": lambda _, value: self._is_compiled(value)})
        given = {"OptimizedModule": compiled("OptimizedModule", (), {}), "disable": self._disable}
        self.module = module
        module.__dict__["__getattr__"] = get

    def utils(self) -> ModuleType:
        """A module `torch._dynamo.utils` before the compiler is loaded."""

        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(self._loaded_utils(), name)

        module = ModuleType(COMPILER_UTILS)
        module.__dict__.update({"__getattr__": get, "is_compile_supported": lambda kind: self._loaded_utils().is_compile_supported(kind)})
        return module

    def load(self) -> None:
        """Load the package into the module that others have."""
        if not self.is_begun:
            self.is_begun = True
            del self.module.__dict__["__getattr__"]
            sys.modules.pop(COMPILER_UTILS, None)
            self.loader.exec_module(self.module)
            self.is_loaded = True

    def _loaded_utils(self) -> ModuleType:
        self.load()
        return import_module(COMPILER_UTILS)

    def _is_compiled(self, value: Any) -> bool:
        return self.is_loaded and isinstance(value, self.module.OptimizedModule)

    def _disable(self, function: Any = None, recursive: bool = True, **how: Any) -> Any:
        """As `torch.compiler.disable`. A function is run as it is until the compiler is loaded."""
        if function is None:
            return partial(self._disable, recursive=recursive, **how)
        if not isinstance(function, FunctionType):
            self.load()
            return self.module.disable(function, recursive, **how)
        disabled: list[Callable[..., Any]] = []

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            if not self.is_loaded:
                return function(*arguments, **options)
            if not disabled:
                disabled.append(self.module.disable(function, recursive, **how))
            return disabled[0](*arguments, **options)

        vars(run)["_torchdynamo_disable"] = True  # the compiler does not look into it
        return run
