"""Checks that the head of a network suits its backbone and its class names."""

from collections.abc import Sequence

from torch import Tensor, nn

from ftlit.errors import UserError, shorten
from ftlit.formatting import count


def check_class_names(head: nn.Module, class_names: Sequence[str]) -> None:
    """Raise `UserError` where a head that ends with a linear layer has another number of outputs than there are names."""
    if (last := _linear(head, -1)) is not None:
        check_outputs(last.out_features, class_names)


def check_outputs(outputs: int, class_names: Sequence[str]) -> None:
    """Raise `UserError` where a head has another number of outputs than there are names."""
    if outputs != len(class_names):
        names = f"{count(len(class_names), 'name')} ({shorten(class_names, most=5)})"
        raise UserError(
            f"the head of this Network has {count(outputs, 'output')}, but class_names has {names}: give one name for each output"
        )


def check_width(head: nn.Module, features: Sequence[Tensor]) -> None:
    """Raise `UserError` where a head that begins with a linear layer takes vectors of another length than those of `features`."""
    first, width = _linear(head, 0), sum(values.shape[-1] for values in features)
    if first is not None and not getattr(head, "takes_map", False) and first.in_features != width:
        raise UserError(
            f"the head of this Network takes {count(first.in_features, 'feature')}, but the backbone gives {width:,}: give a head such as "
            f"nn.Linear({width}, {first.out_features})"
        )


def _linear(head: nn.Module, place: int) -> nn.Linear | None:
    """The first (0) or last (-1) layer of a head, dropout aside, if it is linear."""
    layers = [layer for layer in (head if isinstance(head, nn.Sequential) else [head]) if not isinstance(layer, nn.Dropout)]
    layer = layers[place] if layers else None
    return layer if isinstance(layer, nn.Linear) else None
