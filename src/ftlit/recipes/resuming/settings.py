"""The settings of a run in a form that is compared across releases: without the modules of ftlit, and with a release's new defaults."""

from collections.abc import Iterable, Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftlit.recipes.config.hydra_internals import choices, compose_defaults
from ftlit.renamed import new_path


class Change(NamedTuple):
    """A setting that differs: its full name, and its values. `None` stands for one that is not there too."""

    name: str
    before: Any
    now: Any


def resolved_settings(cfg: DictConfig) -> DictConfig:
    """The settings of a composed config, resolved as `config.yaml` holds them."""
    resolved: Any = OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True))
    return stable_settings(resolved)


def stable_settings(cfg: DictConfig) -> DictConfig:
    """A copy without the modules of ftlit, so that a class that moves changes no setting.

    The `_target_` of a registered part is `group:name`, that of other classes and functions of ftlit `ftlit:name`. A user's, and those of
    other packages, keep their import path.
    """
    settings: Any = OmegaConf.create(_without_modules(OmegaConf.to_container(cfg)))
    for group, name in registered_parts(cfg).items():
        settings[group]["_target_"] = name
    return settings  # type: ignore[no-any-return]


def registered_parts(cfg: DictConfig) -> dict[str, str]:
    """Config group -> `group:name` of each built-in part that is registered."""
    from ftlit.recipes.checks.validate import REGISTRIES  # here, so that --help stays fast

    settings: Any = OmegaConf.to_container(cfg)
    nodes = {group: settings[group] for group in REGISTRIES if isinstance(settings.get(group), dict)}
    names = {group: REGISTRIES[group].name_of(_built_in_part(str(node.get("_target_")))) for group, node in nodes.items()}
    return {group: f"{group}:{name}" for group, name in names.items() if name is not None}


def chosen_options() -> dict[str, Any]:
    """The chosen option of each config group, without those of Hydra itself."""
    return {str(group): option for group, option in choices().items() if not str(group).startswith("hydra")}


def changes(before: DictConfig, now: DictConfig, chosen: Mapping[str, Any], may_change: Iterable[str] = ()) -> list[Change]:
    """The settings that differ, without those that a later release has added: these have the default of the options that were chosen.

    Args:
        before: settings when the run began, see `stable_settings`.
        now: settings now, resolved as `before` is.
        chosen: `chosen_options` when the run began; empty where they are not known: no setting is taken for a new default then.
        may_change: names of settings and groups to ignore.
    """
    old, new = dict(_leaves(OmegaConf.to_container(before))), dict(_leaves(OmegaConf.to_container(now)))
    kept = tuple(f"{name}." for name in may_change)
    names = [name for name in dict.fromkeys([*old, *new]) if not f"{name}.".startswith(kept) and old.get(name) != new.get(name)]
    defaults = _defaults(chosen) if chosen and any(name not in old for name in names) else {}
    return [
        Change(name, old.get(name), new.get(name))
        for name in names
        if name in old or name not in defaults or _resolved_in(now, name, defaults[name]) != new[name]
    ]


def _resolved_in(settings: DictConfig, name: str, value: Any) -> Any:
    """A value as it would be in place of a setting: an interpolation such as `${seed}` is resolved, if the settings have that name."""
    tried = settings.copy()
    OmegaConf.update(tried, name, value, force_add=True)
    try:
        return OmegaConf.select(tried, name)
    except OmegaConfBaseException:
        return value


def settings_text(settings: DictConfig, may_change: Iterable[str]) -> str:
    """Settings as text: all but those that may change when a run is resumed."""
    kept = settings.copy()
    for name in may_change:
        parent, _, leaf = name.rpartition(".")
        node = OmegaConf.select(kept, parent) if parent else kept
        if isinstance(node, DictConfig) and leaf in list(map(str, node)):  # `in` and `pop` would resolve the value
            del node[leaf]
    return OmegaConf.to_yaml(kept, sort_keys=True)


def _defaults(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Full name and value of each setting of this release where the user sets none but chooses these options."""
    return dict(_leaves(OmegaConf.to_container(stable_settings(compose_defaults(chosen)))))


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Full name and value of each leaf."""
    if not isinstance(node, dict):
        yield name, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _without_modules(node: Any) -> Any:
    """A container in which each `_target_` within ftlit is `ftlit:name`. An old name becomes the present one."""
    if isinstance(node, list):
        return [_without_modules(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    path = str(node.get("_target_"))
    short = {"_target_": f"ftlit:{(new_path(path) or path).rpartition('.')[2]}"} if path.startswith("ftlit.") else {}
    return {key: _without_modules(value) for key, value in node.items()} | short


def _built_in_part(path: str) -> object:
    """The object at a path within ftlit; `None` for a user's, which is not imported before it is built."""
    if not path.startswith("ftlit."):
        return None
    try:
        return resolve_name(new_path(path) or path)
    except (ImportError, AttributeError):
        return None
