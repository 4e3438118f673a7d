"""Layers that a person freezes by name or number, whatever the schedule."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ftlit.errors import UserError, shorten

EMBEDDINGS = "embeddings"
NUMBERED = re.compile(r"encoder\.(\d+)")
Numbers = int | str | Sequence[int]  # 3, "1,2,3", "0-3,5", "", [1, 2, 3]


def frozen_layers(layers: Sequence[str], embeddings: bool = False, numbers: Numbers = "") -> list[str]:
    """Those of `layers` that are frozen, in order.

    Args:
        layers: of a backbone, lowest first.
        embeddings: freeze the layer `embeddings`.
        numbers: of the layers `encoder.0`, `encoder.1`, ... to freeze: a number, a list, or a text of numbers and ranges, both ends
            included; an empty one freezes none.

    Raises:
        UserError: no such layer, or a text that is no list of numbers.

    >>> frozen_layers(["embeddings", "encoder.0", "encoder.1", "pooler"], True, "0-1")
    ['embeddings', 'encoder.0', 'encoder.1']
    """
    if embeddings and EMBEDDINGS not in layers:
        raise UserError(f"freeze_embeddings=true: this backbone has no layer {EMBEDDINGS!r}: {_instead(layers)}")
    known = [int(found[1]) for layer in layers if (found := NUMBERED.fullmatch(layer))]
    wanted = set(_numbers(numbers))
    if wanted and not known:
        raise UserError(f"freeze_layers={numbers}: this backbone has no layers encoder.0, encoder.1, ...: {_instead(layers)}")
    if strange := sorted(wanted - set(known)):
        raise UserError(f"freeze_layers={numbers}: there is no encoder.{strange[0]}, give numbers from {min(known)} to {max(known)}")
    names = {f"encoder.{number}" for number in wanted} | ({EMBEDDINGS} if embeddings else set())
    return [layer for layer in layers if layer in names]


def all_but(layers: Sequence[str], frozen: Sequence[str]) -> dict[str, Any]:
    """What a stage trains in which the head and all but these layers do, and its name: fields of `Stage`."""
    if not frozen:
        return {"train": ["*"], "name": "all"}
    train = ["head", *in_backbone([layer for layer in layers if layer not in frozen])]
    return {"train": train, "name": f"all but {shorten(frozen)}" if len(train) > 1 else "head"}


def in_backbone(layers: Sequence[str]) -> list[str]:
    """The layers' names in a module that holds the backbone."""
    return [f"backbone.{layer}" for layer in layers]


def _numbers(given: Numbers) -> Iterator[int]:
    for part in given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else given:
        if not (text := str(part).strip()):
            continue
        if not (ends := re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", text)) or int(ends[2] or ends[1]) < int(ends[1]):
            raise UserError(
                f'freeze_layers={given}: {text!r} is no number of a layer; give numbers from 0 and ranges, such as "1,2,3" or "0-3"'
            )
        yield from range(int(ends[1]), int(ends[2] or ends[1]) + 1)


def _instead(layers: Sequence[str]) -> str:
    return f"it has {', '.join(layers)}; schedule=explicit names what trains"
