"""Which errors of Hydra and of what it builds are a person's mistake, and how each is said in one line."""

import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from traceback import walk_tb
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ftlit.errors import UserError, one_line, unknown
from ftlit.recipes.config.check_values import overlay_groups


def as_user_error(error: BaseException) -> UserError | None:
    """The mistake behind an error, in one line; `None` where the error is not a person's doing."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, UserError):
            return cause
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            return _wrong_option(cause)
        if isinstance(cause, ValueError) and str(cause).startswith("No trials are completed"):  # Optuna's
            return UserError("no trial of this search ended well: what each failed with stands above")
        if isinstance(cause, ConfigCompositionException):
            return _wrong_override(chain)
        if isinstance(cause, ValueError) and str(cause).startswith("Config group override must be"):  # `scenario=null`, `head=3`
            return UserError("a group takes the name of one of its options, group=option; ~group leaves it out")
        if isinstance(cause, OverrideParseException):
            return UserError(f"cannot read {cause.override!r}: give group=option or name=value (quote what has spaces or commas)")
        if isinstance(cause, InstantiationException):
            return _refused_arguments(cause)
        if isinstance(cause, HydraException | OmegaConfBaseException):
            return UserError(one_line(cause))
    return _misconfigured(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__  # not the context: an error of ours that is raised while a mistake is handled is a fault


def _refused_arguments(error: InstantiationException) -> UserError | None:
    """What the called thing says of its arguments. `None` where it broke inside: another kind of error, or one that passed through ftlit,
    whose own refusals are `UserError`s.
    """
    cause = error.__cause__
    part = re.search(r"full_key: (\S+)", str(error))
    where = f"{part[1]}: " if part else ""
    if cause is None:
        return UserError(f"{where}{one_line(error)}")
    if misconfigured := _misconfigured(cause):
        return UserError(f"{where}{misconfigured}")
    foreign = not any(frame.f_globals.get("__name__", "").startswith("ftlit.") for frame, _ in walk_tb(cause.__traceback__))
    if isinstance(cause, OSError | ImportError) or (isinstance(cause, TypeError | ValueError) and foreign):
        return UserError(f"{where}{one_line(cause)}")
    return None


def _misconfigured(error: BaseException) -> UserError | None:
    """Lightning's word for a wrong choice, with what would do instead where we know it."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # here: no other mistake waits for Lightning

    if not isinstance(error, MisconfigurationException):
        return None
    text = one_line(error)
    return UserError(next((hint for words, hint in MISCONFIGURED.items() if words in text), text))


MISCONFIGURED = {  # a piece of Lightning's text -> what a person can do
    "No supported gpu backend": "no GPU that torch can use is here: take trainer=auto or trainer=cpu",
    "CUDAAccelerator` can not run": "no GPU that torch can use is here: take trainer=auto or trainer=cpu",
}


PLUGINS = {  # options that a package brings -> its extra
    "hydra/sweeper=optuna": "sweep",
    "hydra/launcher=joblib": "sweep",
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=ray": "ray",
}


def _wrong_option(error: MissingConfigException) -> UserError:
    """`backbone=resnet51`: Hydra lists the options; the nearest goes in front."""
    missing = re.search(r"Could not find '(.+)/(.+)'", str(error))
    options = [option for option in error.options or [] if not option.startswith("_")]
    if missing and (extra := PLUGINS.get(f"{missing[1]}={missing[2]}")):
        return UserError(f'{missing[1]}={missing[2]} needs another package: pip install "ftlit[{extra}]"')
    return unknown(f"option of {missing[1]}", missing[2], options) if missing and options else UserError(one_line(error))


def _wrong_override(chain: list[BaseException]) -> UserError:
    """`trainer.max_epoch=3` or `backbones=resnet50`: the nearest name that the composed config has."""
    text = " ".join(one_line(error) for error in chain)
    for pattern in (r"Could not override '([^']+)'", r"Could not find '([^']+)'", r"No match in the defaults list"):
        if found := re.search(pattern, text):
            name = found[1] if found.groups() else (re.search(r"override '([^']+)'", text) or [None, ""])[1]
            name = str(name).split("@")[0]
            parent, known = name.rpartition(".")[0], [*_names(), *overlay_groups()]
            if not parent and (deeper := [other for other in known if other.endswith(f".{name}")]):  # `lr=1e-3`
                return UserError(f"no option {name!r}: did you mean {' or '.join(deeper[:3])}?")
            beside = [other for other in known if other.rpartition(".")[0] == parent]
            leaf, leaves = name.rpartition(".")[2], [other.rpartition(".")[2] for other in beside]
            return unknown("option", name, beside) if get_close_matches(leaf, leaves) or not parent else _of_another(name, parent, leaves)
    return UserError(one_line(chain[-1]))


def _of_another(name: str, parent: str, leaves: list[str]) -> UserError:
    """`head.hiden=3` where the head picked takes nothing of the kind: another option of its group may."""
    choice = next((a.partition("=")[2] for a in sys.argv[1:] if a.startswith(f"{parent}=")), None)
    picked = f"{parent}={choice}" if choice else f"the {parent} picked"
    GlobalHydra.instance().clear()
    with initialize_config_module("ftlit.conf", version_base="1.3"):
        options = GlobalHydra.instance().config_loader().get_group_options(parent)
        takes = {key: option for option in options for key in _keys(compose(overrides=[f"+{parent}={option}"])) if "." in key}
    other = {key.removeprefix(f"{parent}."): option for key, option in takes.items()}
    near = get_close_matches(name.removeprefix(f"{parent}."), [key for key in other if key not in leaves], n=1)
    meant = f": did you mean {parent}.{near[0]} of {parent}={other[near[0]]}?" if near else ""
    return UserError(f"no option {name!r}: {picked} takes {', '.join(leaves) or 'none'}{meant}")


def _names() -> list[str]:
    """Every name of the composed config, with the groups that were asked for but no values."""
    GlobalHydra.instance().clear()
    with initialize_config_module("ftlit.conf", version_base="1.3"):
        for overrides in ([a for a in sys.argv[1:] if re.fullmatch(r"[a-z_]+=\w+", a)], []):
            try:
                return list(_keys(compose("train", overrides=overrides)))
            except HydraException:
                continue  # another of them is wrong too: the defaults then
    return []


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in (key for key in map(str, node) if not key.startswith("_")):
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _keys(child, f"{prefix}{key}.")
