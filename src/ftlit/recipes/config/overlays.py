"""What a scenario or an experiment wanted, and the command line has replaced: options that go with values of their own."""

from collections.abc import Iterator
from typing import Any

from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

OVERLAYS = ("scenario", "experiment")  # a later one beats an earlier one


def replaced(cfg: DictConfig) -> list[str]:
    """A line for each option of the picked overlays in whose place the command line has put another one, with the values that are lost."""
    if not GlobalHydra.instance().is_initialized():  # the config was composed elsewhere
        return []
    hydra = HydraConfig.get()
    given = {word.lstrip("+").partition("=")[0] for word in hydra.overrides.task}
    wanted = {group: want for overlay in OVERLAYS for group, want in _wanted(f"{overlay}/{hydra.runtime.choices.get(overlay)}")}
    lines = []
    for group, (overlay, option, values) in wanted.items():
        choice = hydra.runtime.choices.get(group)
        if group in given and choice and choice != option:
            names = [name for name in values if f"{group}.{name}" not in given and cfg[group].get(name) != values[name]]
            lost = ", ".join(f"{group}.{name}={values[name]}" for name in names)
            lines.append(
                f"{group}={choice} takes the place of {overlay}'s {group}={option}" + (f" and of its values ({lost})" if lost else "")
            )
    return lines


def _wanted(overlay: str) -> Iterator[tuple[str, tuple[str, str, dict[str, Any]]]]:
    """Group, overlay, option and the values that both files set of it, as the overlay has them."""
    loader: Any = GlobalHydra.instance().config_loader()  # whose repository knows the folders of --config-dir too
    loaded = loader.repository.load_config(overlay)
    for entry in loaded.defaults_list if loaded else ():
        if isinstance(entry, ConfigDefault) and entry.path not in (None, "_self_"):  # it begins as another one
            path = str(entry.path)
            yield from _wanted(path.removeprefix("/") if path.startswith("/") else f"{overlay.partition('/')[0]}/{path}")
        if isinstance(entry, GroupDefault) and entry.override and isinstance(entry.value, str):
            group = str(entry.group).removeprefix("/")
            option = loader.repository.load_config(f"{group}/{entry.value}")
            values = {**(_plain(option.config) if option else {}), **_plain(loaded.config).get(group, {})}
            known = {
                name: value for name, value in values.items() if not name.startswith("_") and value is not None and "${" not in str(value)
            }
            yield group, (overlay.replace("/", "="), entry.value, known)


def _plain(config: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config)  # as written: what it refers to is not here
    return {str(name): value for name, value in values.items()}
