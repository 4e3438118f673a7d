"""Parts of the user's own (`data._target_`, `head._target_`, ...): how ftlit calls them and what they return, checked in one line."""

import inspect
import sys
from collections.abc import Callable, Mapping
from traceback import extract_tb
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import nn

from ftlit.data.sources.torch_items import kind_of
from ftlit.errors import UserError, one_line
from ftlit.finetuning.schedule import Schedule
from ftlit.models.backbone import Backbone
from ftlit.recipes.config.error_messages import is_out_of_memory
from ftlit.recipes.config.hydra_errors import failed_call
from ftlit.recipes.config.hydra_internals import instantiate


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
            f"{source} has no argument {' and no argument '.join(map(repr, lacking))}, which ftlit passes (it has {written}): give a "
            f"function or class with {'this argument' if len(lacking) == 1 else 'these arguments'} (docs/extending.md#{contract.section})"
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
