"""Word the error for a word of the command line that the composed config does not take: the closest name, or what to give instead."""

import re
import sys
from difflib import get_close_matches

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, one_line, shorten, unknown
from ftlit.formatting import shell_word
from ftlit.recipes.config import hydra_errors, hydra_internals
from ftlit.recipes.config.option_names import (
    LISTS,
    below_a_value,
    below_an_overlay,
    known_names,
    lacks_argument,
    names_in,
    not_global,
    overlay_groups,
    renamed_option,
    unknown_hydra_option,
)
from ftlit.recipes.config.overrides import search_overrides
from ftlit.recipes.config.synonyms import synonym

SEARCHED = "hydra.sweeper.params."
NOT_GIVEN = "..."
USUAL = ("folder", "csv", "digits")  # options that an error names first
MOST_NAMED = 3


def wrong_override(chain: list[BaseException]) -> UserError:
    """`trainer.max_epoch=3` or `backbones=resnet50`: the closest name in the composed config."""
    if searched := next((word for word in sys.argv[1:] if word.lstrip("+").startswith(SEARCHED)), None):
        return UserError(
            f"{searched}: to search over values, leave out {SEARCHED!r} and give {searched.lstrip('+').removeprefix(SEARCHED)}"
        )
    text = " ".join(one_line(error) for error in chain)
    if word := hydra_errors.swept_value(text):
        key, _, value = word.lstrip("+").partition("=")
        word = f"{key}={value}" if key in (*known_names(), *overlay_groups()) else word  # a group needs no +
        return UserError(f"{word} gives several values: add -m to run a sweep over them{_instead_of_several(word)}")
    if (overlay := hydra_errors.group_of_replacement(text)) in overlay_groups():
        return not_global(str(overlay), str(_given_value(str(overlay))))
    if twice := hydra_errors.chosen_twice(text):
        return _chosen_twice(twice)
    if rejected := hydra_errors.rejected_override(text):
        return _rejected_override(*rejected)
    if again := hydra_errors.added_again(text):
        return UserError(f"{again.partition('=')[0]} has a value already, so + cannot add it: leave out the +, so give {shell_word(again)}")
    name = hydra_errors.rejected_name(text)
    if name is None:
        return UserError(one_line(chain[-1]))
    parent, _, leaf = name.rpartition(".")
    if (own := _given_value(f"{parent}._target_")) != NOT_GIVEN and not name.startswith("hydra."):
        return UserError(f"there is no option {name!r} beside {parent}._target_: to pass it to {own}, give {_added(name)}")
    if re.match(r"hydra[./]", name):
        return unknown_hydra_option(name, sys.argv[1:])
    if meant := renamed_option(name) or synonym(name, _given_value(name)):
        return meant
    if parent.partition(".")[0] in overlay_groups():
        return below_an_overlay(name)
    composed = composed_without(name)
    known = list(dict.fromkeys([*names_in(composed), *known_names(), *overlay_groups()]))
    if not parent and (deeper := [other for other in known if other.endswith(f".{name}")]):  # `lr=1e-3`
        return UserError(f"there is no option {name!r}: did you mean {' or '.join(deeper[:3])}?")
    if parent in known and not OmegaConf.is_dict(OmegaConf.select(composed, parent)):
        return below_a_value(name, _given_value(name), composed)
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    leaves = [other.rpartition(".")[2] for other in siblings]
    target = OmegaConf.select(composed, f"{parent}._target_")
    if leaf not in leaves and (lacking := lacks_argument(parent, _chosen(parent), target, leaf, leaves)):
        return lacking
    if get_close_matches(leaf, leaves) or not parent:
        return unknown("option", name, siblings)
    return _name_of_another_option(name, parent, leaves)


def _instead_of_several(word: str) -> str:
    """What several values may be meant as in a single run: a list where the option takes one, or one number with a decimal comma."""
    typed, _, value = word.partition("=")
    name = typed.lstrip("+")
    composed = composed_without(name)
    default = OmegaConf.select(composed, name, throw_on_missing=False)
    takes_list = OmegaConf.is_list(default) or name in LISTS or name not in [*names_in(composed), *overlay_groups()]
    if takes_list and re.fullmatch(r"[\w.,+-]+", value):
        return f"; for a list, give {shell_word(f'{typed}=[{value}]')}"
    if isinstance(default, float) and re.fullmatch(r"\d+,\d+", value):
        return f"; for a number, write {name}={value.replace(',', '.')}"
    return ""


def _chosen_twice(group: str) -> UserError:
    """The error for `+head=mlp`, or `- /head: mlp` without `override` in a defaults list, where train.yaml chooses an option already."""
    words = [word for word in sys.argv[1:] if word.startswith(f"+{group}=")]
    if not words:
        return UserError(f"a config file chooses {group} a second time: write `- override /{group}: NAME` in its defaults list")
    return UserError(f"+ would choose a second option of {group}: leave out the +, so give {shell_word(words[0].lstrip('+'))}")


def _rejected_override(path: str, group: str) -> UserError:
    """The error for `override GROUP: NAME` in the defaults list of a file, where Hydra finds no such group."""
    name = group.removeprefix(f"{path.rpartition('/')[0]}/")
    known = [*known_names(), *overlay_groups()]
    if name != group and name in known:
        return UserError(f"{path}.yaml has `override {name}: ...` without a slash: write `override /{name}: ...`")
    if name in overlay_groups():
        return UserError(f"{path}.yaml cannot choose {name}: give {name}=... on the command line, and leave the line out of the file")
    error = unknown("config group", name, known)
    return UserError(f"{path}.yaml has `override /{name}: ...`, but {error}")


def _given_value(name: str) -> str:
    """The value of the command line for this name; `NOT_GIVEN` where a config file gave it."""
    given = (word.lstrip("+").partition("=") for word in sys.argv[1:])
    return next((value for word, _, value in given if word == name), NOT_GIVEN)


def _added(name: str) -> str:
    """The word that adds a value of the command line to the config."""
    return shell_word(f"+{name}={_given_value(name)}")


def _name_of_another_option(name: str, group: str, leaves: list[str]) -> UserError:
    """`head.hiden=3` where the chosen head takes nothing similar: the closest name of another option of the group."""
    chosen = _chosen(group)
    having: dict[str, list[str]] = {}  # name of a value -> the options that have it
    with hydra_internals.fresh_hydra():
        options = sorted(hydra_internals.group_options(group), key=lambda option: [option != usual for usual in USUAL])
        for option in options:
            for key in names_in(compose(overrides=[f"+{group}={option}"])):
                having.setdefault(key.removeprefix(f"{group}."), []).append(option)
    near = get_close_matches(name.removeprefix(f"{group}."), [key for key in having if key not in (group, *leaves)], n=1)
    owners = f"{group}={shorten(having[near[0]], MOST_NAMED)}" if near else ""
    if near and name == f"{group}.{near[0]}":
        what = f"{owners} too" if len(having[near[0]]) == 1 else "one of these"
        return UserError(f"{name} is an option of {owners}, not of {chosen}: leave {name} out, or give {what}")
    has = f"{chosen} has {'the options ' + ', '.join(leaves) if leaves else 'no options'}"
    if near:
        has = f"did you mean {group}.{near[0]}, an option of {owners}? ({has})"
    return UserError(f"there is no option {name!r}: {has}")


def _chosen(group: str) -> str:
    choice = next((word.partition("=")[2] for word in sys.argv[1:] if word.startswith(f"{group}=")), None)
    return f"{group}={choice}" if choice else f"the chosen {group}"


def composed_without(name: str) -> DictConfig:
    """The config that is composed from the groups that were given, without the values that were given.

    Args:
        name: the rejected one; its word is left out.
    """
    with hydra_internals.fresh_hydra():
        for overrides in ([word for word in sys.argv[1:] if re.fullmatch(r"[a-z_]+=\w+", word) and word.partition("=")[0] != name], []):
            try:
                return compose("train", overrides=[*overrides, *search_overrides()])
            except HydraException:
                continue  # another group is wrong too: the defaults then
    return OmegaConf.create({})
