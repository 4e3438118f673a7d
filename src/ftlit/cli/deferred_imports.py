"""Imports of a command line: parts of libraries that it does not need only when something asks for them, and the others at once."""

import atexit
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
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
    """Defer two packages: each is loaded when a name is asked for that its loader below does not give by itself. A package that is imported
    already stays as it is.

    - torchmetrics, whose metrics of sound and texts import scipy and transformers: a third of the time of all imports.
    - `torch._dynamo`, torch's compiler, of which torchvision, Lightning and optimizers use a few names in every run: a sixth of the time.
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
    """Finds torch's compiler, which loads when another name is asked for than those that `_CompilerLoader` gives."""

    def __init__(self) -> None:
        self.package: _CompilerLoader | None = None

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        inner = fullname.startswith(f"{COMPILER}.") and self.package is not None and not self.package.is_begun
        if fullname != COMPILER and not inner:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            if self.package is None or fullname == COMPILER:
                spec.loader = self.package = _CompilerLoader(spec.loader)
            else:
                spec.loader = _InnerLoader(spec.loader, self.package)
        return spec


class _InnerLoader(Loader):
    """A loader of a module within the compiler, for which the compiler is loaded first. That may load the module too: a second one of this
    name would have settings of its own.
    """

    def __init__(self, loader: Loader, package: "_CompilerLoader") -> None:
        self.loader, self.package = loader, package
        self.spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if spec.name == COMPILER_UTILS and not self.package.is_begun:
            return self.package.utils()
        self.package.load()
        if (loaded := sys.modules.get(spec.name)) is not None:
            self.spec = loaded.__spec__
        return loaded if loaded is not None else self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self.spec is not None:
            vars(module)["__spec__"] = self.spec
        elif not isinstance(module, _Utils):
            self.loader.exec_module(module)


class _CompilerLoader(Loader):
    """Gives `torch._dynamo` the names that torchvision, Lightning and torch's optimizers ask for, and loads it for any other. Until then
    nothing is compiled, so there is nothing to disable and no graph to break.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader, self.is_begun, self.is_loaded = loader, False, False
        self.module: Any = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        compiled = type("Compiled", (type,), {"__instancecheck__": lambda _, value: self._is_compiled(value)})
        given = {
            "OptimizedModule": compiled("OptimizedModule", (), {}),
            "disable": self._disable,
            "graph_break": lambda *words, **options: self.module.graph_break(*words, **options) if self.is_loaded else None,
        }

        def get(name: str) -> Any:
            if name in given:
                return given[name]
            if name.startswith("__") and name != "__all__":  # what Python asks of any module
                raise AttributeError(name)
            self.load()
            return getattr(module, name)

        self.module, self.get = module, get
        module.__dict__["__getattr__"] = get

    def utils(self) -> ModuleType:
        """A module `torch._dynamo.utils` before the compiler is loaded."""

        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(self._loaded_utils(), name)

        def is_compile_supported(device_type: Any) -> Any:
            return self._loaded_utils().is_compile_supported(device_type)

        vars(is_compile_supported)["_dynamo_marked_constant"] = True  # as torch marks it
        module = _Utils(COMPILER_UTILS)
        module.__dict__.update({"__getattr__": get, "is_compile_supported": is_compile_supported})
        return module

    def load(self) -> None:
        """Load the package into the module that others have. A load that fails is tried again by the next one who asks."""
        if self.is_begun:
            return
        self.is_begun = True
        sys.modules.pop(COMPILER_UTILS, None)
        for name in ("__getattr__", "utils"):
            self.module.__dict__.pop(name, None)
        try:
            with _no_triton():
                self.loader.exec_module(self.module)
        except BaseException:
            self.module.__dict__["__getattr__"], self.is_begun = self.get, False
            raise
        self.is_loaded = True

    def _loaded_utils(self) -> ModuleType:
        self.load()
        return import_module(COMPILER_UTILS)

    def _is_compiled(self, value: Any) -> bool:
        return self.is_loaded and isinstance(value, self.module.OptimizedModule)

    def _disable(self, fn: Any = None, recursive: bool = True, **how: Any) -> Any:
        """As `torch._dynamo.disable`; a function is run as it is until the compiler is loaded."""
        if not isinstance(fn, FunctionType):
            self.load()
            return self.module.disable(fn, recursive, **how)
        disabled: list[Callable[..., Any]] = []

        @wraps(fn)
        def run(*arguments: Any, **options: Any) -> Any:
            if not self.is_loaded:
                return fn(*arguments, **options)
            if not disabled:
                self.module.decorators.skip(run)  # by its code, which all these functions share
                disabled.append(self.module.disable(fn, recursive, **how))
            return disabled[0](*arguments, **options)

        about = {"": True, "_msg": how.get("reason"), "_recursive": recursive}
        vars(run).update({f"_torchdynamo_disable{name}": value for name, value in about.items()})
        vars(run).update({"_torchdynamo_orig_callable": fn, "_torchdynamo_wrapper_id": id(run)})
        return run


class _Utils(ModuleType):
    """In the place of `torch._dynamo.utils` until the compiler is loaded."""
