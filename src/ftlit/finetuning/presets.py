"""Ready-made schedules, the options of the config group `schedule`: each takes the names of a backbone's layers, lowest first.

Their patterns name parameters of a module that holds the backbone and the head under the names `backbone` and `head`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ftlit.errors import UserError, shorten, unknown
from ftlit.finetuning.schedule import Schedule
from ftlit.finetuning.stage import Stage, Until
from ftlit.patterns import covers

EMBEDDINGS = "embeddings"


NUMBERED = re.compile(r"encoder\.(\d+)")


Numbers = int | str | Sequence[int]  # 3, "1,2,3", "0-3,5", "", [1, 2, 3]


def layer_scales(
    layers: Sequence[str], scale: float = 1.0, decay: float = 1.0, *, backbone: str = "backbone", head: str = "head"
) -> list[tuple[str, float]]:
    """The head at 1, the top layer at `scale`, and each layer below at `decay` times the one above it.

    Discriminative rates: Howard and Ruder 2018 (ULMFiT), section 3.2; layer-wise decay: Clark et al. 2020 (ELECTRA), appendix A.

    >>> layer_scales(["stem", "layer1"], 0.1, 0.5)
    [('head', 1.0), ('backbone.layer1', 0.1), ('backbone.stem', 0.05)]
    """
    return [(head, 1.0)] + [(f"{backbone}.{layer}", scale * decay**depth) for depth, layer in enumerate(reversed(layers))]


def head_only(layers: Sequence[str]) -> Schedule:
    """The backbone stays frozen; only the head trains."""
    return Schedule([Stage(["head"], name="head")], layer_scales(layers))


def all_at_once(
    layers: Sequence[str], *, scale: float = 1.0, decay: float = 1.0, freeze_embeddings: bool = False, freeze_layers: Numbers = ""
) -> Schedule:
    """Everything trains from the first epoch, the backbone at `scale` times the head's rate, less by `decay` a layer downwards; but for
    what is frozen, see `frozen_layers`.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    return Schedule([Stage(**all_but(layers, frozen))], layer_scales(layers, scale, decay), in_backbone(frozen))


def head_then_all(
    layers: Sequence[str],
    *,
    epoch: int = 2,
    until: Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
    freeze_embeddings: bool = False,
    freeze_layers: Numbers = "",
) -> Schedule:
    """The head alone until `epoch`, so that its random start does not tear at the pretrained layers; then everything.

    Args:
        layers: the backbone's layers.
        epoch: when the backbone joins in; with `until`, the latest.
        until: fields of `Until`: the head alone until a metric says so.
        scale: the top layer's rate over the head's.
        decay: a layer's rate over that of the layer above it.
        freeze_embeddings: the layer `embeddings` stays frozen in every stage.
        freeze_layers: the same of layers called `encoder.<number>`, by their numbers; see `frozen_layers`.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    stages = [Stage(["head"], name="head"), Stage(epoch=epoch, until=_until(until), **all_but(layers, frozen))]
    return Schedule(stages, layer_scales(layers, scale, decay), in_backbone(frozen))


def last_k(
    layers: Sequence[str], *, k: int = 1, epoch: int = 2, until: Mapping[str, Any] | None = None, scale: float = 0.1, decay: float = 0.8
) -> Schedule:
    """The head alone until `epoch` (see `head_then_all`), then the head and the top `k` layers; the layers below stay frozen."""
    if not 1 <= k <= len(layers):
        raise UserError(f"last_k with k={k}: this backbone has {len(layers)} layers, give 1 to {len(layers)}")
    top = list(layers[-k:])
    name = f"head + {top[0]}" + (f"..{top[-1]}" if k > 1 else "")
    train = ["head", *(f"backbone.{layer}" for layer in top)]
    return Schedule([Stage(["head"], name="head"), Stage(train, epoch, until=_until(until), name=name)], layer_scales(layers, scale, decay))


def top_down(
    layers: Sequence[str],
    *,
    every: int = 1,
    epoch: int = 1,
    until: Mapping[str, Any] | None = None,
    scale: float = 0.1,
    decay: float = 0.8,
    freeze_embeddings: bool = False,
    freeze_layers: Numbers = "",
) -> Schedule:
    """Gradual unfreezing (Howard and Ruder 2018, section 3.3): the head alone until `epoch`, then one more layer every `every` epochs;
    what is frozen (see `head_then_all`) is passed over.

    With `until` (see `head_then_all`) each layer joins in as soon as the metric says so, and at these epochs at the latest.
    """
    frozen = frozen_layers(layers, freeze_embeddings, freeze_layers)
    stages, joining = [Stage(["head"], name="head")], [layer for layer in layers if layer not in frozen]
    for i, lowest in enumerate(reversed(joining)):
        last, train = i + 1 == len(joining), ["head", *in_backbone(joining[len(joining) - i - 1 :])]
        name = all_but(layers, frozen)["name"] if last else f"head + {lowest} and above"
        stages.append(Stage(train, epoch + i * every, until=_until(until), name=name))
    return Schedule(stages, layer_scales(layers, scale, decay), in_backbone(frozen))


def explicit(layers: Sequence[str], *, stages: Sequence[Mapping[str, Any]], lr_scale: Mapping[str, float] | None = None) -> Schedule:
    """Stages and scales as written. A pattern that is a layer's name or a glob over layers' names stands for `backbone.<it>`.

    Args:
        layers: the backbone's layers.
        stages: mappings with the fields of `Stage`, `until` a mapping with the fields of `Until`.
        lr_scale: pattern -> factor; the first that covers a parameter wins. 1 for everything by default.

    Raises:
        UserError: as `Stage` and `Schedule`, or a field that a stage has not.
    """

    def full(pattern: str) -> str:
        names_layer = any(covers(pattern, layer) or pattern.startswith(f"{layer}.") for layer in layers)
        return f"backbone.{pattern}" if names_layer and pattern != "*" else pattern

    def made(given: Mapping[str, Any]) -> Stage:
        stage = _fields(Stage, given)
        train = stage.get("train") or ()
        stage["train"] = [full(pattern) for pattern in ([train] if isinstance(train, str) else train)]
        return Stage(**{**stage, "until": _until(stage.get("until"))})

    scales = [(full(pattern), factor) for pattern, factor in (lr_scale or {"*": 1.0}).items()]
    return Schedule([made(given) for given in stages], scales)


def _until(given: Mapping[str, Any] | None) -> Until | None:
    if given is None:
        return None
    if "metric" not in given:
        raise UserError(f"until {dict(given)}: name the metric, val/accuracy for instance")
    return Until(**_fields(Until, given))


def _fields(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, if `kind` has fields of these names."""
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            raise unknown(f"field of {kind.__name__}", name, known)
    return dict(given)


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
