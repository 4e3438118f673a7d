"""Check a config against the signatures of the classes and functions that it names, before anything is built."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules, resolve_name
from typing import Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict

from ftlit.data.dataset import wrong_class_names
from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.torch_items import kind_of
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, one_line, shorten, unknown
from ftlit.finetuning.losses import LOSSES
from ftlit.finetuning.presets import SCHEDULES
from ftlit.lit import datamodules
from ftlit.lit.datamodules.image_data import DATA_SOURCES
from ftlit.lit.datamodules.own_data import SHARED
from ftlit.models.heads import HEADS
from ftlit.recipes.checks import check_values, own_parts
from ftlit.recipes.checks.ranges import HARDWARE_SETTINGS
from ftlit.recipes.checks.value_types import check_type
from ftlit.recipes.config.hydra_internals import choices, hydra_config
from ftlit.recipes.config.option_names import lacks_argument, renamed_option
from ftlit.recipes.config.overrides import OF_LINEAR_PROBE, chosen_part, given, overlay_of
from ftlit.recipes.config.synonyms import synonym
from ftlit.registry import Registry
from ftlit.renamed import new_path
from ftlit.zoo import BACKBONES

# config group -> its built-in parts
REGISTRIES: Mapping[str, Registry[Any]] = {
    "backbone": BACKBONES,
    "data": DATA_SOURCES,
    "head": HEADS,
    "loss": LOSSES,
    "schedule": SCHEDULES,
}

PLAIN = (bool, int, float, str)  # types of defaults that take the place of a built-in option's values; `None` stands for the latter
OF_AN_OPTION = ("backbone.name", "backbone.weights")  # values of a built-in option that mean nothing to another part

FLAGS: Mapping[str, tuple[object, ...]] = {  # keys that Hydra reads in a node -> their values
    "_partial_": (False, True),
    "_recursive_": (True, False),
    "_convert_": ("none", "partial", "object", "all"),
}


def bind(cfg: DictConfig) -> None:
    """Check every node of `cfg` that has a `_target_`: its names are arguments of the target, and plain values have the annotated type.
    Then check values as `check_values.check` does.

    A plain default of the user's own part takes the place of a value that only the built-in option gives.
    Removed from `cfg` are settings of `OF_LINEAR_PROBE` that a head of one's own does not take, and those of the chosen option that a part
    which the command line puts in its place does not name. Parts of the user's own are checked by `own_parts.check_signature`.
    Only annotations of numbers, strings, paths, literals, lists and mappings are checked.

    Raises:
        UserError: the full name of the value, what was given, and what is accepted.
    """
    for name, node in _targets(cfg):
        target = _found(name, node["_target_"])
        _check_flags(name, node)
        own = own_parts.is_own(name, node)
        signature = inspect.signature(target)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        shared = SHARED if own and name == "data" else {}  # ftlit reads them where the data are torch Datasets
        written: Any = OmegaConf.to_container(node)
        hints = _hints(target)
        for key in [key for key in map(str, node) if not key.startswith("_")]:
            full_name = f"{name}.{key}"
            left_over = _is_left_over(name, key)
            if key not in signature.parameters or (left_over and full_name in OF_AN_OPTION):
                if (full_name in OF_LINEAR_PROBE and not given(full_name)) or (left_over and key not in shared and not open_ended):
                    with open_dict(node):
                        del node[key]
                    continue
                if open_ended:
                    continue
                if key not in shared:
                    known = renamed_option(full_name) or synonym(full_name, written[key])
                    passed = own_parts.PASSED.get(name, ())
                    raise known or _refused(name, node, key, written[key], [p for p in signature.parameters if p not in passed])
            default = signature.parameters[key].default if key in signature.parameters else None
            if own and left_over and isinstance(default, PLAIN) and not _interpolated_name(written[key]) and overlay_of(full_name) is None:
                node[key] = default
            if OmegaConf.is_missing(node, key):
                raise UserError(f"{name}.{key} has no value: give {name}.{key}=...")
            hint = hints.get(key, shared.get(key))
            if f"{name}.{key}" in (*HARDWARE_SETTINGS, "head.cuts") and hint is not None:
                hint = Literal["auto"] | hint
            check_type(_interpolated_name(written[key]) or f"{name}.{key}", node[key], hint)
        if own:
            own_parts.check_signature(name, node, target)
    check_values.check(cfg)


def _is_left_over(name: str, key: str) -> bool:
    """Whether a value is that of the chosen option, whose target the command line replaces, and not given itself."""
    return hydra_config() is not None and bool(given(f"{name}._target_")) and not given(f"{name}.{key}")


def _refused(name: str, node: DictConfig, key: str, value: object, takes: Sequence[str]) -> UserError:
    """The error for a value that the target of a node does not take, with the overlay that sets it."""
    option = choices().get(name)
    chosen = chosen_part(name, option) if option else f"the chosen {name}"
    words = given(f"{name}.{key}") if hydra_config() is not None else []
    plus = "+" if any(re.match(r"\+(?!\+)", word) for word in words) else ""  # for arguments that the config does not hold yet
    names = [f"{'' if p in node else plus}{name}.{p}" for p in takes]
    owner = "" if names else name
    error = lacks_argument(name, chosen, node["_target_"], key, takes) or unknown("option", f"{name}.{key}", names, owner=owner)
    overlay = overlay_of(f"{name}.{key}")
    return UserError(f"{overlay} sets {name}.{key}={value}, but {error}") if overlay else error


def _check_flags(name: str, node: DictConfig) -> None:
    """Check Hydra's own keys in a node."""
    for key, options in FLAGS.items():
        if (given := node.get(key, options[0])) not in options or type(given) is not type(options[0]):
            raise check_values.not_among(f"{name}.{key}", given, options)


def check_labelled(data: Any) -> None:
    """Raise `UserError` for data without labels, from which only pretraining learns, and for class names that are not different texts."""
    if not data.num_classes:
        raise UserError("the data have no labels: give labelled data, or recipe=pretrain pretrain=autoencoder")
    names, owner = list(getattr(data, "class_names", ())), type(data).__name__
    if len(names) != data.num_classes:
        raise UserError(f"class_names of {owner} has {len(names)} names for {data.num_classes} classes: give one name per class")
    if other := [repr(name) for name in names if type(name) is not str]:
        raise UserError(f"class_names of {owner} must be texts (str), but {shorten(other)} {'is' if len(other) == 1 else 'are'} not")
    if wrong := wrong_class_names(names):
        raise UserError(f"class_names of {owner} has {shorten(wrong)} more than once: give each class another name")


def check_input(cfg: DictConfig, input_spec: object) -> None:
    """Check that network and data both take images, or both take texts, by the signature of the data.

    Raises:
        UserError: what each takes, and what to give.
    """
    wanted = _hints(_found("data", cfg.data._target_)).get("input_spec")
    if wanted is InputSpec and isinstance(input_spec, TextSpec):
        raise UserError("the backbone takes texts, but the data are images: give data=text_csv data.csv=..., or a backbone for images")
    if wanted is TextSpec and isinstance(input_spec, InputSpec):
        raise UserError(
            "the backbone takes images, but the data are texts: give backbone=bert backbone.name=FOLDER (docs/texts.md names a text "
            "encoder), or image data"
        )


def _found(name: str, path: Any) -> Callable[..., Any]:
    if not isinstance(path, str):
        raise UserError(f"{name}._target_={path}: give the import path of a class or function")
    try:
        target = resolve_name(path)  # Hydra's get_object logs what it raises
    except Exception as error:  # no module, no such name in it, an empty part; a user's module raises anything
        raise UserError(f"{name}._target_={path} cannot be imported: {_why(name, path)}") from error
    if not callable(target):
        raise UserError(f"{name}._target_={path} is {kind_of(target)}: give the import path of a class or function")
    return target  # type: ignore[no-any-return]


def _why(name: str, path: str) -> str:
    """The new path of a class that moved; else the closest built-in part, or name in the user's module; else Python's error."""
    if new := new_path(path):
        return f"it has moved; give {name}._target_={new}"
    if name in REGISTRIES and path.startswith("ftlit."):
        registry = REGISTRIES[name]
        for found in iter_modules(datamodules.__path__, f"{datamodules.__name__}."):
            import_module(found.name)  # data sources register; only this error needs all
        return str(unknown(registry.noun, path, [f"{part.__module__}.{part.__qualname__}" for part in registry.values()]))
    module, _, leaf = path.rpartition(".")
    if not module:
        return f"give its module too, such as {name}._target_=my_module.{path}"
    try:
        names = [other for other in dir(import_module(module)) if not other.startswith("_")]
        return str(unknown("class or function", leaf, names, owner=module))
    except Exception as fault:  # a module can raise anything
        top = path.partition(".")[0]
        if not isinstance(fault, ModuleNotFoundError) or fault.name != top:
            return own_parts.reason(fault)
        return f"{one_line(fault)}: run the command in the folder that holds {top}, or add that folder to PYTHONPATH"


def _targets(node: Any, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Full name and node of each node with a `_target_`; not of those behind an interpolation, nor of Hydra's own."""
    if not isinstance(node, DictConfig):
        return
    if OmegaConf.is_missing(node, "_target_"):
        raise UserError(f"{name}._target_ has no value: give {name}._target_=...")
    if "_target_" in node:
        yield name, node
    for key in node:
        leaf = str(key)
        written = not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key)  # type: ignore[arg-type]
        if written and (name or leaf != "hydra"):
            yield from _targets(node[key], f"{name}.{leaf}" if name else leaf)


def _interpolated_name(written: object) -> str | None:
    """`trainer.max_epochs` where a value is written `${trainer.max_epochs}`: the user gave that name."""
    found = re.fullmatch(r"\$\{([\w.]+)\}", str(written))
    return found[1] if found else None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    except (NameError, TypeError):  # annotations that only a type checker can read
        return {}
