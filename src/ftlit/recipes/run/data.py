"""The data of a run, read once: those of a `data` option, and what a function of the user's own returns (`data._target_`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ftlit.data.input_spec import InputSpec
from ftlit.data.sources.torch_datasets import TorchData, read_splits, splits_in
from ftlit.data.sources.torch_items import kind_of
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError
from ftlit.lit.datamodules.image_data import ImageData
from ftlit.lit.datamodules.own_data import SHARED, check_module, check_trainable, image_data_of
from ftlit.printing import print_line
from ftlit.recipes.checks.own_parts import build_part, is_own, takes
from ftlit.recipes.config.hydra_internals import instantiate
from ftlit.recipes.config.overrides import given

MANY = 2000  # items that are not read in a moment
_read: list[tuple[Any, Any]] | None = None  # within `data_read_once`: what was asked for, and what was read


@contextmanager
def data_read_once() -> Iterator[None]:
    """Within a block, the same data are read once: `scenario=auto` builds them twice, to measure them and to train. A block within another
    one has no effect. Nothing is kept after the block: later the files may be others.
    """
    global _read
    if _read is not None:
        yield
        return
    _read = []
    try:
        yield
    finally:
        _read = None


def _known(asked: object, read: Callable[[], Any]) -> Any:
    """What `read` returns, or returned before for what is asked."""
    for before, found in _read or ():
        if before == asked:
            return found
    found = read()
    if _read is not None and isinstance(found, TorchData | ImageData):
        _read[:] = [*_read[-1:], (asked, found)]  # at most two: those of a user's function, and the data module made of them
    return found


def read_data_early(cfg: DictConfig) -> None:
    """Read data of the user's own that do not depend on the backbone, so that their errors come before its weights are loaded."""
    if is_own("data", cfg.data) and not takes(resolve_name(cfg.data._target_), "input_spec"):
        made = _built_or_read(cfg)
        if not isinstance(made, TorchData):
            check_module(made, f"data._target_={cfg.data._target_}")


def build_data(cfg: DictConfig, input_spec: InputSpec | TextSpec, **more: Any) -> Any:
    """The data of a config. A function of the user's own may return torch Datasets, an `ImageData` or another `LightningDataModule`.

    Args:
        cfg: the composed config.
        input_spec: what the backbone expects.
        more: values of options that take the place of those in the config.

    Raises:
        UserError: what `build_part` raises; data that cannot be used; options that nothing reads.
    """
    if not is_own("data", cfg.data):
        if more:  # the split of another run, which is read each time
            return instantiate(cfg.data, input_spec=input_spec, **more)
        asked = OmegaConf.to_container(cfg.data, resolve=True), input_spec
        return _with_own_notes(_known(asked, lambda: instantiate(cfg.data, input_spec=input_spec)))
    target, source = resolve_name(cfg.data._target_), f"data._target_={cfg.data._target_}"
    passed = {name: value for name, value in more.items() if takes(target, name)}
    made = _built_or_read(cfg, **({"input_spec": input_spec} if takes(target, "input_spec") else {}), **passed)
    if isinstance(made, TorchData):
        options: dict[str, Any] = {name: cfg.data[name] for name in SHARED if name in cfg.data}
        return image_data_of(made, input_spec, {**options, **more}, source)
    check_module(made, source)
    if cfg.recipe in ("finetune", "lr_find"):  # others say themselves which data they read
        check_trainable(made, source)
    if unread := [name for name in SHARED if name in cfg.data and not takes(target, name) and _is_chosen(name)]:
        raise UserError(
            f"data.{unread[0]} has no effect, because {source} returned {kind_of(made)} and has no argument {unread[0]!r}: add it to the "
            "function and pass it on, or return torch Datasets (docs/extending.md#data-source)"
        )
    return _with_own_notes(made)


def _with_own_notes(data: Any) -> Any:
    """The same data with a list of notes of its own, to which a recipe adds."""
    if not isinstance(data, ImageData):
        return data
    other = copy(data)
    other.notes = [*data.notes]
    return other


def _is_chosen(name: str) -> bool:
    """Whether the user, or the user's option, sets a value, rather than the option whose target the command line replaces."""
    return bool(given(f"data.{name}")) or not given("data._target_")


def _built_or_read(cfg: DictConfig, **passed: Any) -> Any:
    """What a function of the user's own returns, or returned before; of torch Datasets what was read."""
    target, source = resolve_name(cfg.data._target_), f"data._target_={cfg.data._target_}"
    values: Any = OmegaConf.to_container(cfg.data, resolve=True)
    # not a copy: Hydra 1.4 reads values that were removed from a copy in the config that it was made from
    node = OmegaConf.create({name: value for name, value in values.items() if name not in SHARED or takes(target, name)})

    def read() -> Any:
        made = build_part("data", node, **passed)
        splits = splits_in(made, source)
        return made if splits is None else read_splits(*splits, source, _report)

    return read() if passed else _known((target, OmegaConf.to_container(node)), read)


def _report(items: int) -> None:
    if items >= MANY:
        print_line(f"reading {items:,} items of your Datasets once, to identify them by their content")
