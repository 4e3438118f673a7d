"""Undocumented parts of Hydra and OmegaConf, and what depends on the version of Hydra; others only in `hydra_sweeps` and `hydra_errors`.

Tried with Hydra 1.3.8 and 1.4.0rc3. Each function has a contract test in tests/recipes/config/test_hydra_internals.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import hydra
import hydra.utils
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

CONFIG_MODULE = "ftlit.conf"

# Hydra 1.4 warns where version_base is given and where a target is called without an execution whitelist; Hydra 1.3 warns where
# version_base is missing, and has no whitelist. A config may name any class (a head in a file of the user): all targets are trusted.
_NO_CHECKS = getattr(hydra.utils, "UNSAFE_DISABLE_EXECUTION_CHECKS", None)
_VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if _NO_CHECKS is None else {}
_TRUSTED_MAIN: dict[str, Any] = {} if _NO_CHECKS is None else {"execution_whitelist": _NO_CHECKS}
_TRUSTED_TARGETS: dict[str, Any] = {} if _NO_CHECKS is None else {"_execution_whitelist_": _NO_CHECKS}


def hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], Any]]:
    """Decorate the main function of a program whose config is `config_name` of ftlit's config groups."""
    return hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name=config_name, **_VERSION_BASE, **_TRUSTED_MAIN)


def set_help(help_text: Callable[[DictConfig], str]) -> None:
    """Let `--help` print what this function returns for the composed config with its `hydra` node; see conf/hydra/ftlit.yaml."""
    renamed = "replace" in signature(OmegaConf.register_resolver).parameters  # since 2.4; in 2.3 the old name of another function
    register: Any = OmegaConf.register_resolver if renamed else OmegaConf.register_new_resolver
    register("ftlit.help", lambda *, _root_: help_text(_root_), replace=True)


def initialize_hydra() -> AbstractContextManager[None]:
    """Initialize Hydra with ftlit's config groups for a block that calls `hydra.compose`."""
    return hydra.initialize_config_module(CONFIG_MODULE, **_VERSION_BASE)


@contextmanager
def fresh_hydra() -> Iterator[None]:
    """Initialize Hydra as `initialize_hydra` does, in place of what it was initialized with; it is not initialized afterwards."""
    GlobalHydra.instance().clear()
    try:
        with initialize_hydra():
            yield
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def own_hydra() -> Iterator[None]:
    """For a block, leave the Hydra of the surrounding program aside, as if there were none; afterwards it is as it was."""
    holder, before = HydraConfig.instance(), GlobalHydra.instance().hydra
    config, holder.cfg = holder.cfg, None
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before  # of the instance now: initializing replaces it
        holder.cfg = config


@contextmanager
def kept_hydra() -> Iterator[None]:
    """For a block that may initialize Hydra again; afterwards it is as it was."""
    before = GlobalHydra.instance().hydra
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before  # of the instance now: initializing replaces it


def compose_defaults(chosen: Mapping[str, Any]) -> DictConfig:
    """Compose ftlit's own config files with these options and no other override; a group whose option is a user's is left out.

    Args:
        chosen: config group -> option; a group with `None`, as most overlays have, is as by default.
    """
    with kept_hydra(), fresh_hydra():
        given = {group: option for group, option in chosen.items() if option is not None}
        words = [f"{group}={option}" if option in group_options(group) else f"~{group}" for group, option in given.items()]
        return hydra.compose("train", words)


def instantiate(config: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the target of a config node with its values, and with these arguments, which go first.

    Returns:
        What the target returns; for a node with `_partial_`, a plain `functools.partial`, which can be pickled under both versions.
    """
    made = hydra.utils.instantiate(config, *args, **_TRUSTED_TARGETS, **kwargs)
    return partial(made.func, *made.args, **made.keywords) if hasattr(made, "_hydra_resolved_from") else made


def hydra_config() -> Any:
    """The `hydra` node of the running program's config; `None` outside of a Hydra program."""
    return HydraConfig.get() if HydraConfig.initialized() else None


@contextmanager
def use_hydra_config(cfg: DictConfig) -> Iterator[None]:
    """For a block, take `cfg`, composed with its `hydra` node, for the config of the running program."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(cfg)
    try:
        yield
    finally:
        holder.cfg = before


def run_mode() -> str | None:
    """`RUN` for a single run, `MULTIRUN` for a job of a sweep, `None` outside of a Hydra program."""
    config = hydra_config()
    return None if config is None or config.mode is None else RunMode(config.mode).name


def run_folder_template() -> str:
    """The folder of a single run as the running program's config gives it, with its interpolations."""
    template: Any = OmegaConf.to_container(hydra_config().run, resolve=False)
    return str(template["dir"])


def choices() -> Any:
    """The chosen option of each group of the running program's config, by the group's name."""
    config = hydra_config()
    return {} if config is None else config.runtime.choices  # one that was composed elsewhere


def set_choices(chosen: Any) -> None:
    """Replace the chosen option of each group in the running program's config."""
    config = hydra_config()
    with read_write(config):
        config.runtime.choices = chosen


def task_overrides() -> list[str]:
    """The overrides that the running program's config was composed from, without those of Hydra's own settings."""
    return list(hydra_config().overrides.task)


def set_task_overrides(words: Sequence[str]) -> None:
    """Replace the overrides that the running program's config was composed from."""
    config = hydra_config()
    with read_write(config):
        config.overrides.task = list(words)


def adopt(cfg: DictConfig) -> DictConfig:
    """Make `cfg`, composed with its `hydra` node, the config of this program: Hydra's choices are updated, and the node is removed."""
    set_choices(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        cfg.pop("hydra")
    return cfg


def compose_again(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose the primary config of the running program with other overrides.

    Args:
        overrides: all of them; none is taken from the command line.
        with_hydra: whether the result has the `hydra` node.
    """
    return hydra.compose(hydra_config().job.config_name, list(overrides), return_hydra_config=with_hydra)


def add_task_override(word: str) -> None:
    """Add an override to those that the running program's config was composed from."""
    config = hydra_config()
    with read_write(config), open_dict(config):
        config.overrides.task.append(word)


def group_options(group: str) -> list[str]:
    """The names of the options of a config group, those of `--config-dir` included."""
    return list(GlobalHydra.instance().config_loader().get_group_options(group))


@dataclass(frozen=True)
class ConfigFile:
    """A config file as written, before it is composed.

    Attributes:
        values: without what its defaults list brings; interpolations are not resolved.
        parents: paths of the config files that its defaults list includes; relative to its group, unless they begin with /.
        overrides: group -> option for each entry `override /group: option` of its defaults list.
    """

    values: dict[str, Any]
    parents: list[str]
    overrides: dict[str, str]


def read_config_file(path: str) -> ConfigFile | None:
    """Read `group/option`, also from a folder given by `--config-dir`. `None` where Hydra is not initialized or there is no such file."""
    if not GlobalHydra.instance().is_initialized():
        return None
    loader: Any = GlobalHydra.instance().config_loader()
    loaded = loader.repository.load_config(path)
    if loaded is None:
        return None
    entries = loaded.defaults_list
    parents = [str(entry.path) for entry in entries if isinstance(entry, ConfigDefault) and entry.path not in (None, "_self_")]
    overrides = {
        str(entry.group).removeprefix("/"): entry.value
        for entry in entries
        if isinstance(entry, GroupDefault) and entry.override and isinstance(entry.value, str)
    }
    values: Any = OmegaConf.to_container(loaded.config)
    return ConfigFile({str(name): value for name, value in values.items()}, parents, overrides)
