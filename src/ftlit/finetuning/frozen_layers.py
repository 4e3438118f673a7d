"""Layers that the user froze in every stage: text encoders have an option for it."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ftlit.errors import UserError, shorten

EMBEDDINGS = "embeddings"
NUMBERED_LAYER = re.compile(r"encoder\.(\d+)")
Numbers = int | str | Sequence[int]  # 3, "1,2,3", "0-3,5", "", [1, 2, 3]


def frozen_layers(layers: Sequence[str], embeddings: bool = False, numbers: Numbers = "") -> list[str]:
    """Select the layers that the user froze, in order.

    Args:
        layers: names of a backbone's layers, lowest first.
        embeddings: whether to freeze the layer `embeddings`.
        numbers: numbers of the layers `encoder.0`, `encoder.1`, ... to freeze: a number, a list, or a text of numbers and ranges, both ends
            included; an empty text freezes none.

    Raises:
        UserError: no such layer, or a text that is not a list of numbers.

    >>> frozen_layers(["embeddings", "encoder.0", "encoder.1", "pooler"], True, "0-1")
    ['embeddings', 'encoder.0', 'encoder.1']
    """
    if embeddings and EMBEDDINGS not in layers:
        raise UserError(f"freeze_embeddings=true: this backbone has no layer {EMBEDDINGS!r}, {_alternatives(layers, 'freeze_embeddings')}")
    known = [int(found[1]) for layer in layers if (found := NUMBERED_LAYER.fullmatch(layer))]
    wanted = set(_numbers(numbers))
    if wanted and not known:
        raise UserError(
            f"freeze_layers={numbers} freezes layers named encoder.0, encoder.1, ..., but this backbone has "
            f"{_alternatives(layers, 'freeze_layers')}"
        )
    if missing := sorted(wanted - set(known)):
        raise UserError(f"freeze_layers={numbers}: there is no layer encoder.{missing[0]}: give numbers from {min(known)} to {max(known)}")
    names = {f"encoder.{number}" for number in wanted} | ({EMBEDDINGS} if embeddings else set())
    return [layer for layer in layers if layer in names]


def all_but(layers: Sequence[str], frozen: Sequence[str]) -> dict[str, Any]:
    """Return the fields `train` and `name` of a stage that trains everything except these layers."""
    if not frozen:
        return {"train": ["*"], "name": "all"}
    train = ["head", *in_backbone([layer for layer in layers if layer not in frozen])]
    return {"train": train, "name": f"all but {shorten(frozen)}" if len(train) > 1 else "head"}


def in_backbone(layers: Sequence[str]) -> list[str]:
    """Return the names of the layers in a module that has the backbone as `backbone`."""
    return [f"backbone.{layer}" for layer in layers]


def _numbers(given: Numbers) -> Iterator[int]:
    for part in given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given:
        if not (text := str(part).strip()):
            continue
        if not (ends := re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)):
            raise UserError(f'freeze_layers={given}: {text!r} is not a layer number: give numbers and ranges, such as "1,2,3" or "0-3"')
        if int(ends[2] or ends[1]) < int(ends[1]):
            raise UserError(f'freeze_layers={given}: a range begins with its lower number: give "{ends[2]}-{ends[1]}"')
        yield from range(int(ends[1]), int(ends[2] or ends[1]) + 1)


def _alternatives(layers: Sequence[str], option: str) -> str:
    return f"only {shorten(layers, most=3)}: leave out {option}, or give schedule=explicit to freeze layers by name"
