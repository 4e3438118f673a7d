"""Parts of the user's own (`data._target_`, `head._target_`, ...): how ftlit calls them and what they return, checked in one line."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pkgutil import resolve_name
from traceback import extract_tb
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.torch_datasets import TorchData, read_splits, splits_in
from ftlit.data.sources.torch_items import kind_of
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, one_line
from ftlit.finetuning.schedule import Schedule
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.datamodules.own_data import SHARED, check_module, check_trainable, image_data_of
from ftlit.models.backbone import Backbone
from ftlit.printing import print_line
from ftlit.recipes.config.error_messages import is_out_of_memory
from ftlit.recipes.config.hydra_errors import failed_call
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.overrides import given

MANY = 2000  # items that are not read in a moment


class Contract(NamedTuple):
    """How a part of a config group is called, and what it returns.

    Args:
        passed: arguments that the recipe passes by name.
        returns: class of the part; `None` where several are accepted.
        example: of what it returns.
        section: of docs/extending.md.
    """

    passed: tuple[str, ...]
    returns: type | None
    example: str
    section: str


CONTRACTS: Mapping[str, Contract] = {  # config group -> contract
    "backbone": Contract((), Backbone, "ftlit.backbone_from(network)", "backbone"),
    "data": Contract(("input_spec",), None, "", "data-source"),
    "head": Contract(("in_features", "num_classes"), nn.Module, "a torch.nn.Module that maps (N, in_features) to (N, num_classes)", "head"),
    "loss": Contract(("counts",), nn.Module, "a torch.nn.Module that maps logits and targets to a scalar", "loss"),
    "schedule": Contract(("layers",), Schedule, "Schedule([Stage(['head'])], [('*', 1.0)])", "schedule"),
}
PASSED: Mapping[str, tuple[str, ...]] = {group: contract.passed for group, contract in CONTRACTS.items()}
OPTIONAL = ("input_spec",)  # passed where the part takes it
_read: list[tuple[Any, Any]] | None = None  # within `data_read_once`: what was asked for, and what was read


def is_own(group: str, node: DictConfig) -> bool:
    """Whether a part is not one of ftlit."""
    return group in CONTRACTS and not str(node.get("_target_")).startswith("ftlit.")


def takes(target: Callable[..., Any], name: str) -> bool:
    """Whether a class or function takes an argument of this name."""
    return any(_takes(parameter, name) for parameter in inspect.signature(target).parameters.values())


def _takes(parameter: inspect.Parameter, name: str) -> bool:
    by_name = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    return parameter.kind is parameter.VAR_KEYWORD or (by_name and parameter.name == name)


def check_signature(group: str, node: DictConfig, target: Callable[..., Any]) -> None:
    """Raise `UserError` for a part that cannot be called as ftlit calls it, or that needs an argument that has no value."""
    contract, source = CONTRACTS[group], f"{group}._target_={node['_target_']}"
    parameters = inspect.signature(target).parameters.values()
    written = ", ".join(str(parameter).partition(":")[0].partition("=")[0].strip() for parameter in parameters) or "no argument"
    if lacking := [name for name in contract.passed if name not in OPTIONAL and not takes(target, name)]:
        raise UserError(
            f"{source} does not take {' and '.join(lacking)}, which ftlit passes (it takes {written}): give a function or class with "
            f"{'this argument' if len(lacking) == 1 else 'these arguments'} (docs/extending.md#{contract.section})"
        )
    by_position = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in by_position and p.name not in contract.passed]
    if (missing := [name for name in needed if name not in node]) and "_args_" not in node and not node.get("_partial_"):
        words = " ".join(f"+{group}.{name}=..." for name in missing)
        raise UserError(f"{source} needs a value for {' and '.join(missing)}: give {words}")


def build_part(group: str, node: DictConfig, **passed: Any) -> Any:
    """Build a part. What one of the user's own raises, or returns in place of the part, is an error of one line.

    Raises:
        UserError: the part could not be built, or is not what its group needs.
    """
    if not is_own(group, node):
        return instantiate(node, **passed)
    contract, source = CONTRACTS[group], f"{group}._target_={node._target_}"
    try:
        made = instantiate(node, **passed)
    except Exception as error:  # a user's code raises anything
        call = failed_call(error)
        cause = (call and call.cause) or error
        if isinstance(cause, UserError) or is_out_of_memory(cause):
            raise
        raise UserError(f"{source} failed: {reason(cause)}; HYDRA_FULL_ERROR=1 shows the traceback") from error
    if contract.returns is not None and not isinstance(made, contract.returns):
        raise UserError(
            f"{source} returned {kind_of(made)}: let it return a {group}, such as {contract.example} (docs/extending.md#{contract.section})"
        )
    return made


def reason(error: BaseException) -> str:
    """An error of a user's code in words: its type and text, and the last line of code outside of installed packages."""
    text = one_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
    frames = [frame for frame in extract_tb(error.__traceback__) if "site-packages" not in frame.filename and frame.filename[:1] != "<"]
    own = [frame for frame in frames if not _is_ftlits(frame.filename)]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text


def _is_ftlits(file: str) -> bool:
    root = str(sys.modules["ftlit"].__file__).removesuffix("__init__.py")
    return file.startswith((root, sys.base_prefix))


@contextmanager
def data_read_once() -> Iterator[None]:
    """Within a block, the same data are read once: `scenario=auto` builds them twice, to measure them and to train. A block within another
    one has no effect. Nothing is kept after the block: later the files may be others.
    """
    global _read
    if _read is not None:
        yield
        return
    _read = []
    try:
        yield
    finally:
        _read = None


def _known(asked: object, read: Callable[[], Any]) -> Any:
    """What `read` returns, or returned before for what is asked."""
    for before, found in _read or ():
        if before == asked:
            return found
    found = read()
    if _read is not None and isinstance(found, TorchData | ImageData):
        _read[:] = [*_read[-1:], (asked, found)]  # at most two: those of a user's function, and the data module made of them
    return found


def read_data_early(cfg: DictConfig) -> None:
    """Read data of the user's own that do not depend on the backbone, so that their errors come before its weights are loaded."""
    if is_own("data", cfg.data) and not takes(resolve_name(cfg.data._target_), "input_spec"):
        made = _built_or_read(cfg)
        if not isinstance(made, TorchData):
            check_module(made, f"data._target_={cfg.data._target_}")


def build_data(cfg: DictConfig, input_spec: InputSpec | TextSpec, **more: Any) -> Any:
    """The data of a config. A function of the user's own may return torch Datasets, an `ImageData` or another `LightningDataModule`.

    Args:
        cfg: the composed config.
        input_spec: what the backbone expects.
        more: values of options that take the place of those in the config.

    Raises:
        UserError: what `build_part` raises; data that cannot be used; options that nothing reads.
    """
    if not is_own("data", cfg.data):
        if more:  # the split of another run, which is read each time
            return instantiate(cfg.data, input_spec=input_spec, **more)
        asked = OmegaConf.to_container(cfg.data, resolve=True), input_spec
        return _with_own_notes(_known(asked, lambda: instantiate(cfg.data, input_spec=input_spec)))
    target, source = resolve_name(cfg.data._target_), f"data._target_={cfg.data._target_}"
    passed = {name: value for name, value in more.items() if takes(target, name)}
    made = _built_or_read(cfg, **({"input_spec": input_spec} if takes(target, "input_spec") else {}), **passed)
    if isinstance(made, TorchData):
        options: dict[str, Any] = {name: cfg.data[name] for name in SHARED if name in cfg.data}
        return image_data_of(made, input_spec, {**options, **more}, source)
    check_module(made, source)
    if cfg.recipe in ("finetune", "lr_find"):  # others say themselves which data they read
        check_trainable(made, source)
    if unread := [name for name in SHARED if name in cfg.data and not takes(target, name) and _is_chosen(name)]:
        raise UserError(
            f"data.{unread[0]} has no effect, because {source} returned {kind_of(made)} and has no argument {unread[0]!r}: add it to the "
            "function and pass it on, or return torch Datasets (docs/extending.md#data-source)"
        )
    return _with_own_notes(made)


def _with_own_notes(data: Any) -> Any:
    """The same data with a list of notes of its own, to which a recipe adds."""
    if not isinstance(data, ImageData):
        return data
    other = copy(data)
    other.notes = [*data.notes]
    return other


def _is_chosen(name: str) -> bool:
    """Whether the user, or the user's option, sets a value, rather than the option whose target the command line replaces."""
    return bool(given(f"data.{name}")) or not given("data._target_")


def _built_or_read(cfg: DictConfig, **passed: Any) -> Any:
    """What a function of the user's own returns, or returned before; of torch Datasets what was read."""
    target, source = resolve_name(cfg.data._target_), f"data._target_={cfg.data._target_}"
    values: Any = OmegaConf.to_container(cfg.data, resolve=True)
    # not a copy: Hydra 1.4 reads values that were removed from a copy in the config that it was made from
    node = OmegaConf.create({name: value for name, value in values.items() if name not in SHARED or takes(target, name)})

    def read() -> Any:
        made = build_part("data", node, **passed)
        splits = splits_in(made, source)
        return made if splits is None else read_splits(*splits, source, _report)

    return read() if passed else _known((target, OmegaConf.to_container(node)), read)


def _report(items: int) -> None:
    if items >= MANY:
        print_line(f"reading {items:,} items of your Datasets once, to identify them by their content")
