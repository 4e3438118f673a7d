"""The candidates of `backbone=auto`: the words of the command line that stand for each."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, unknown
from ftlit.formats import JsonObject
from ftlit.recipes.config.hydra_internals import group_options, hydra_config, read_config_file, task_overrides
from ftlit.recipes.config.literal_values import quote
from ftlit.run_folder import read_backbone_choice

AUTO, GROUP = "auto", "backbone"
OF_AUTO = re.compile(rf"\+{{0,2}}{GROUP}(=|\.among=)")


@dataclass(frozen=True)
class BackboneCandidate:
    """A backbone that `backbone=auto` may choose.

    Args:
        name: of the network, as tables show it.
        words: of the command line that choose it.
    """

    name: str
    words: tuple[str, ...]


def candidates_of(cfg: DictConfig) -> tuple[list[BackboneCandidate], int]:
    """The candidates, and the number of named backbones that are left out because their weights are not at hand.

    Raises:
        UserError: an entry of `backbone.among` is no option of the group, or there is no entry.
    """
    among = cfg.backbone.among
    names = [name for name in group_options(GROUP) if name != AUTO]
    if among is not None:
        entries = OmegaConf.to_container(among, resolve=True) if OmegaConf.is_config(among) else among
        if not isinstance(entries, list) or not entries:
            raise UserError(f"backbone.among={among}: give a list of backbones, such as [resnet18,squeezenet1_1], or null for all")
        return _named_apart([_candidate(entry, names) for entry in entries]), 0
    known = [name for name in names if _is_at_hand(name)]
    return [BackboneCandidate(name, (f"{GROUP}={name}",)) for name in known], len([name for name in names if _is_plain(name)]) - len(known)


def _candidate(entry: Any, names: Sequence[str]) -> BackboneCandidate:
    """The candidate of an entry of `backbone.among`: the name of an option, or a mapping with it and values of the option."""
    values = dict(entry) if isinstance(entry, Mapping) else {GROUP: entry}
    if (option := values.pop(GROUP, None)) is None:
        raise UserError(f"backbone.among has the entry {entry}, which names no backbone: give {{backbone: NAME, ...}}")
    if option not in names:
        raise unknown("backbone", option, names)
    known = _keys(f"{GROUP}/{option}")
    words = [f"{'' if key.partition('.')[0] in known else '+'}{GROUP}.{key}={_value(value)}" for key, value in _leaves(values)]
    name = str(values.get("name", option))
    shown = "/".join(Path(name).parts[-2:]) if Path(name).exists() else name
    return BackboneCandidate(shown, (f"{GROUP}={option}", *words))


def _named_apart(candidates: Sequence[BackboneCandidate]) -> list[BackboneCandidate]:
    """The candidates, each once; those of one name get the values in which they differ."""
    different = list(dict.fromkeys(candidates))
    return [
        BackboneCandidate(" ".join([own.name, *_values_apart(own, [one for one in different if one.name == own.name])]), own.words)
        for own in different
    ]


def _values_apart(candidate: BackboneCandidate, alike: Sequence[BackboneCandidate]) -> list[str]:
    """The values of a candidate that not all of these have."""
    return [word.lstrip("+").removeprefix(f"{GROUP}.") for word in candidate.words if not all(word in one.words for one in alike)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of each leaf, within the group."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: object) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return quote(value) if isinstance(value, str) else str(value)


def _keys(path: str) -> set[str]:
    """The names of all values of an option, with those of the files that it includes."""
    file = read_config_file(path)
    if file is None:
        return set()
    return {*file.values, *(key for parent in file.parents for key in _keys(parent.removeprefix("/").partition("@")[0]))}


def _is_plain(name: str) -> bool:
    """Whether an option is a network of `load_backbone` with pretrained weights, complete as it is."""
    from ftlit.zoo.torchvision_nets import available  # here, so that --help stays fast

    values = _values(name)
    return values.get("name") in available() and values.get("weights", "default") is not None


def _is_at_hand(name: str) -> bool:
    """Whether the weights of an option are in a file, in the cache of torchvision, or in a package."""
    from ftlit.zoo.torchvision_nets import is_at_hand

    values = _values(name)
    if not _is_plain(name):
        return False
    return is_at_hand(str(values["name"]), str(values.get("weights", "default")))


def _values(name: str) -> dict[str, Any]:
    file = read_config_file(f"{GROUP}/{name}")
    return file.values if file else {}


def words_with(candidate: Sequence[str], cfg: DictConfig) -> list[str]:
    """The overrides of this program with the words of a candidate in place of `backbone=auto`.

    Args:
        candidate: words that choose a backbone.
        cfg: the composed config with `backbone=auto`.
    """
    before = task_overrides()
    others = [word for word in before if not OF_AUTO.match(word)]
    given = any(re.match(rf"\+{{0,2}}{GROUP}\.among=", word) for word in before)
    rest = [f"~{GROUP}.among"] if cfg.backbone.among is not None and not given else []  # an experiment gives it
    return [*candidate, *rest, *others]


def set_auto(words: Sequence[str]) -> list[str]:
    """Add `backbone=auto` to the words of a command line that give its candidates and no backbone.

    Raises:
        UserError: they give `backbone=auto` an option of a single backbone.

    >>> print(*set_auto(["seed=1", "backbone.among=[resnet18,glyph]"]))
    seed=1 backbone.among=[resnet18,glyph] backbone=auto
    """
    given = {name.lstrip("+"): value for name, _, value in (word.partition("=") for word in words)}
    chosen = given.get(GROUP, AUTO if f"{GROUP}.among" in given else None)
    for name, value in given.items() if chosen == AUTO else ():
        if name.startswith(f"{GROUP}.") and name not in (f"{GROUP}.among", f"{GROUP}._target_"):
            own = name.removeprefix(f"{GROUP}.")
            raise UserError(
                f"{name}={value} belongs to one backbone, but backbone=auto compares several: leave it out, or give "
                f"'backbone.among=[{{backbone: NAME, {own}: {value}}},...]'"
            )
    return [*words, f"{GROUP}={AUTO}"] if chosen == AUTO and GROUP not in given else list(words)


def choice_of_run(folder: str) -> JsonObject | None:
    """`backbone.json` of the run in a folder; `None` where this program did not take its backbone from there."""
    found = read_backbone_choice(folder) if hydra_config() else None
    return found if found and set(found["words"]) <= set(task_overrides()) else None
