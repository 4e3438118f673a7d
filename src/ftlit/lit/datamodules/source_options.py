"""Options that the data sources share, and the decorator that spreads them as flat arguments (`data.batch_size=8`)."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from ftlit.data.splitting.splits import SplitRule
from ftlit.data.splitting.stored_split import StoredSplit, read_split
from ftlit.features.image_hashes import cached_hashes

Made = TypeVar("Made")
ENTRY = r"^ {{4}}{}: .*\n(?: {{8}}.*\n)*"  # of an argument in a docstring, by its name


@dataclass(frozen=True)
class Splits:
    """Sizes and seed of splits that the source does not give.

    Args:
        val_fraction: share of the images without a given split that val gets.
        test_fraction: share that test gets.
        split_seed: of the hashes. It is not `seed`, so that a new seed leaves the test images as they are.
        split_from: folder of a run, whose images keep the split that they had there; `None`: all are split by their hashes.
    """

    val_fraction: float = 0.2
    test_fraction: float = 0.2
    split_seed: int = 0
    split_from: str | Path | StoredSplit | None = None

    @property
    def rule(self) -> SplitRule:
        """How images are distributed."""
        stored = read_split(self.split_from) if isinstance(self.split_from, str | Path) else self.split_from
        return SplitRule({"val": self.val_fraction, "test": self.test_fraction}, self.split_seed, stored, cached_hashes)


@dataclass(frozen=True)
class Loading:
    """How images become batches; the arguments of `ImageData`.

    Args:
        augment: none, photo, trivial_augment or rand_augment.
        mix: none, mixup, cutmix or both.
        batch_size: images in a batch of one process.
        num_workers: processes that load; `None`: see `ftlit.data.loading.default_workers`.
        seed: of order, augmentation and mixing.
        per_class: training images of each class; `None`: all.
        views: augmented views of each training image; see `ImageData`.
    """

    augment: str = "photo"
    mix: str = "none"
    batch_size: int = 32
    num_workers: int | None = None
    seed: int = 0
    per_class: int | None = None
    views: int | Literal["auto"] = "auto"


def flat_options(*, without: Sequence[str] = ()) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """Give a factory one argument for each field of its record parameters, in place of the records.

    A record parameter has a dataclass as default; its fields are the defaults of the flat arguments. The flat arguments are in the
    signature and in the annotations, so that a config is checked against them, and in the docstring, where they are described.

    Args:
        without: fields that the factory does not take; they keep their default.
    """

    def decorate(factory: Callable[..., Made]) -> Callable[..., Made]:
        signature, hints = inspect.signature(factory), get_type_hints(factory)
        records = {name: parameter.default for name, parameter in signature.parameters.items() if is_dataclass(parameter.default)}
        own = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items() if name not in records]
        flat = [parameter for record in records.values() for parameter in _parameters(record) if parameter.name not in without]
        flat_signature = signature.replace(parameters=[*own, *flat])

        @wraps(factory)
        def made(*args: Any, **options: Any) -> Made:
            flat_signature.bind(*args, **options)  # raises TypeError for an unknown name, as a call does
            built = {name: _built(record, options) for name, record in records.items()}
            return factory(*args, **{name: value for name, value in options.items() if name in signature.parameters}, **built)

        made.__signature__ = flat_signature  # type: ignore[attr-defined]
        made.__annotations__ = {parameter.name: parameter.annotation for parameter in flat_signature.parameters.values()}
        made.__doc__ = _flat_docstring(factory, records, [parameter.name for parameter in flat])
        return made

    return decorate


def _flat_docstring(factory: Callable[..., Any], records: Mapping[str, Any], names: Collection[str]) -> str | None:
    """The docstring of a factory, with the entries of the fields that are arguments in place of the entry of each record."""
    text = inspect.getdoc(factory)
    for name, record in records.items() if text else ():
        described = f"{inspect.getdoc(type(record))}\n"
        entries = {found[1]: found[0] for found in re.finditer(ENTRY.format(r"(\w+)"), described, re.MULTILINE)}
        flat = "".join(entries[field.name] for field in fields(record) if field.name in names)
        text = re.sub(ENTRY.format(name), lambda _, flat=flat: flat, f"{text}\n", flags=re.MULTILINE).removesuffix("\n")  # type: ignore[misc]
    return text


def _parameters(record: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(type(record))
    names = [field.name for field in fields(record)]
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(record, name), annotation=hints[name]) for name in names
    ]


def _built(record: Any, options: dict[str, Any]) -> Any:
    """Return the record with the options that are fields of it."""
    return replace(record, **{field.name: options[field.name] for field in fields(record) if field.name in options})
