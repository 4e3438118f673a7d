"""Names of options: those of train.yaml, old ones, and Hydra's own. Without torch, so that a mistyped name is an error at once."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, unknown
from ftlit.formatting import shell_word
from ftlit.recipes.config.hydra_internals import fresh_hydra, group_options
from ftlit.renamed import OPTIONS

MAPPINGS = ("loss.class_weights", "schedule.lora", "schedule.lr_scale", "schedule.until")  # null by default, else a mapping
# options that take a list too, but have none by default
LISTS = ("backbone.among", "head.cuts", "probe.cuts", "probe.l2", "schedule.freeze_layers", "trainer.devices")
# config group -> a file with the values that most of its built-in options have, and the section on custom options
SHARED = {"backbone": ("_zoo.yaml", "backbone"), "data": ("data/digits.yaml", "data-source")}


def renamed_option(name: str) -> UserError | None:
    """The error for an old name, `group=option` or the name of a value; `None` where it is not one."""
    new = OPTIONS.get(name)
    return UserError(f"{name} was renamed: give {new if '=' in new else f'{new}=...'}") if new else None


def known_names() -> list[str]:
    """The names at the top of train.yaml, which all recipes share; groups after `_self_` are overlays and hold no values."""
    train = _train_yaml()
    groups = takewhile(lambda entry: entry != "_self_", train.defaults)
    return [str(name) for entry in groups for name in entry if name != "hydra"] + [str(name) for name in train if name != "defaults"]


def overlay_groups() -> list[str]:
    """The groups of train.yaml whose options have no values of their own: the header `# @package _global_` of their files lets them set
    those of others. A later group beats an earlier one.
    """
    groups = dropwhile(lambda entry: entry != "_self_", _train_yaml().defaults)
    return [str(name) for entry in groups if isinstance(entry, DictConfig) for name in entry if not str(name).startswith("override ")]


def not_global(overlay: str, option: str) -> UserError:
    """The error for an option of an overlay whose values Hydra put under the name of its group, where nothing reads them."""
    return UserError(
        f"the values of {overlay}={option} would have no effect, because {overlay}/{option}.yaml does not begin with '# @package "
        "_global_': add this line at its top (docs/sweeps.md#experiments-of-your-own)"
    )


def below_an_overlay(name: str) -> UserError:
    """The error for `scenario.epoch=1`: the options of an overlay only set those of other groups."""
    overlay = name.partition(".")[0]
    return UserError(
        f"there is no option {name!r}: {overlay}=NAME has no options of its own, it sets those of other groups, such "
        "as optimizer.lr; give one of those"
    )


def lacks_argument(group: str, chosen: str, target: str | None, leaf: str, takes: Iterable[str]) -> UserError | None:
    """The error for a value that most built-in options of a group have and a custom one does not; `None` for another name or option.

    Args:
        group: the config group.
        chosen: its option, in words.
        target: import path of the option's function, `None` where it is not known.
        leaf: name of the value in the group.
        takes: names that the option has.

    >>> print(lacks_argument("backbone", "backbone=mine", "my_nets.build", "cut", ["width"]))  # doctest: +ELLIPSIS
    backbone=mine does not accept 'cut' (accepted: width): add the argument cut to my_nets.build, and the line ...
    """
    if group not in SHARED or target is None or target.startswith("ftlit."):
        return None
    if leaf.startswith("_") or leaf not in (shared := _conf_file(SHARED[group][0])):
        return None
    written: Any = OmegaConf.to_container(shared)[leaf]  # type: ignore[index, call-overload]
    value = "null" if written is None or isinstance(written, dict | list) else written
    line = f"the line `{leaf}: {value}` to its config file (docs/extending.md#{SHARED[group][1]})"
    advice = f"add the argument {leaf} to {target}, and {line}"
    return UserError(f"{chosen} does not accept {leaf!r} (accepted: {', '.join(takes) or 'nothing'}): {advice}")


def below_a_value(name: str, value: str, composed: DictConfig) -> UserError:
    """The error for `schedule.lora.rank=8` where `schedule.lora` is null, or another value that is no mapping."""
    parent, _, leaf = name.rpartition(".")
    whole = f"{{{leaf}: {value}}}" if parent in MAPPINGS and OmegaConf.select(composed, parent) is None else "..."
    what = "a mapping that is given as a whole" if whole != "..." else "a single value"
    return UserError(f"there is no option {name!r}, because {parent} is {what}: give {shell_word(f'{parent}={whole}')}")


def below_a_list(words: Iterable[str], composed: DictConfig) -> UserError | None:
    """The error for `backbone.reinit.0=layer4`, an item of a list; `None` where no word is one."""
    given = (word.lstrip("+~").partition("=") for word in words)
    lists = ((name, value) for name, _, value in given if OmegaConf.is_list(OmegaConf.select(composed, name.rpartition(".")[0])))
    return next((below_a_value(name, value, composed) for name, value in lists), None)


def unknown_hydra_option(name: str, words: Iterable[str]) -> UserError:
    """The error for a name that Hydra's own config, the node and the groups of `hydra`, does not have.

    Args:
        name: `hydra.launcher.partion`, or `hydra/lancher`.
        words: of the command line; those that choose options of groups decide which names there are.
    """
    chosen = [word for word in words if re.fullmatch(r"[a-z_/]+=\w+", word)]
    with fresh_hydra():
        known = _hydra_names(chosen)
        if "/" in name:
            return unknown("option", name, [group for other in known if group_options(group := other.replace(".", "/"))])
        while (parent := name.rpartition(".")[0]) not in ("hydra", *known):  # the first part that is wrong
            name = parent
        siblings, group = _leaves(known, parent), parent.replace(".", "/")
        others = {f"{group}={option}": _leaves(_hydra_names([f"{group}={option}"]), parent) for option in group_options(group)}
    leaf = name.rpartition(".")[2]
    if get_close_matches(leaf, siblings):
        return unknown("option", name, [f"{parent}.{sibling}" for sibling in siblings])
    if near := get_close_matches(leaf, [other for leaves in others.values() for other in leaves], n=1):
        needed = " or ".join(option for option, leaves in others.items() if near[0] in leaves)
        return UserError(f"there is no option {name!r}: give {parent}.{near[0]}=... with {needed}")
    deeper = [other for other in known if other.endswith(f".{leaf}")]
    meant = f"did you mean {' or '.join(deeper[:3])}?" if deeper else "to list Hydra's own options, add --cfg hydra"
    return UserError(f"there is no option {name!r}: {meant}")


def _leaves(names: Iterable[str], parent: str) -> list[str]:
    """The last parts of the names that stand directly below this one."""
    return [leaf for above, _, leaf in (name.rpartition(".") for name in names) if above == parent]


def _hydra_names(chosen: Sequence[str]) -> list[str]:
    """The names of Hydra's own config, with these options of groups."""
    try:
        config = compose("train", [*chosen], return_hydra_config=True)
    except HydraException:  # another word is wrong too
        config = compose("train", return_hydra_config=True)
    return list(names_in(config.hydra, "hydra."))


def names_in(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every name of a config, except those that begin with an underscore.

    >>> list(names_in(OmegaConf.create({"a": {"b": 1, "_c": 2}})))
    ['a', 'a.b']
    """
    for key in (key for key in map(str, node) if not key.startswith("_")):
        yield f"{prefix}{key}"
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            child: Any = node[key]
            if isinstance(child, DictConfig):
                yield from names_in(child, f"{prefix}{key}.")


def _conf_path(name: str) -> Path:
    return Path(str(files("ftlit.conf") / name))


def _train_yaml() -> DictConfig:
    return _conf_file("train.yaml")


@lru_cache
def _conf_file(name: str) -> DictConfig:
    config = OmegaConf.load(str(_conf_path(name)))
    assert isinstance(config, DictConfig)
    return config  # not to be changed
