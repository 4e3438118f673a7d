"""Check the names at the top of a config: Hydra takes any name from the command line and from config files, and nothing would read it."""

import re
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from ftlit.errors import UserError, unknown
from ftlit.recipes.config.hydra_internals import choices, hydra_config
from ftlit.recipes.config.option_names import known_names, not_global, overlay_groups
from ftlit.recipes.config.overrides import overlay_files
from ftlit.recipes.config.synonyms import synonym


def check_names(cfg: DictConfig) -> None:
    """Check the names at the top of the config.

    Raises:
        UserError: a config file gives the option of a group as a value (`schedule: top_down`), or is an overlay without the header; a name
            that nothing reads, added on the command line (`+sede=1`) or by a config file (`sede: 1`).
    """
    if hydra_config() is None:
        return
    for group in choices():
        value = cfg.get(group)
        if isinstance(value, DictConfig) and group in overlay_groups():
            raise not_global(group, str(choices().get(group)))
        if value is not None and not isinstance(value, DictConfig):
            raise _option_as_value(group, value)
    for name in _unread(cfg):
        error = synonym(name, cfg.get(name)) or unknown("option", name, [*known_names(), *overlay_groups()])
        file = _file_with(name)
        raise UserError(f"{file} sets {name}, but {error}") if file else error


def _option_as_value(group: str, value: object) -> UserError:
    """The error for `schedule: top_down` in a config file: Hydra takes the name for a value and looks up no option."""
    return UserError(
        f"`{group}: {value}` in {_file_with(group) or 'a config file'} chooses no option, because {group} is a config group: write "
        f"`- override /{group}: {value}` below `defaults:` there (docs/sweeps.md#experiments-of-your-own)"
    )


def _unread(cfg: DictConfig) -> Iterator[str]:
    """The names at the top of the config that are neither options nor used by an interpolation."""
    known = {*known_names(), *choices(), "hydra"}
    names = [name for name in map(str, cfg) if name not in known]
    files = "".join(str(values) for _, values in overlay_files()) if names else ""  # an interpolation may be overridden in `cfg`
    text = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(hydra_config()) + files if names else ""
    return (name for name in names if not re.search(rf"\$\{{[^}}]*\b{re.escape(name)}\b", text))


def _file_with(name: str) -> str | None:
    """The file of a chosen overlay that sets a name at the top of the config."""
    return next((f"{path}.yaml" for path, values in overlay_files() if name in values), None)
