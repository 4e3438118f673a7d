"""From a network taken apart to a backbone: its input, its cut, its weights, the layers drawn anew."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, one_line, unknown
from ftlit.models.backbone import Backbone
from ftlit.models.weights_origin import RANDOM
from ftlit.registry import Registry
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.state_dict import fill, original_names
from ftlit.zoo.weights import WeightSource

BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone source")  # by the names that stand in checkpoints
LARGEST = 1024  # px, among which the smallest size that fits is looked for
CANNOT_BUILD = (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError)


def overridden(known: InputSpec, given: Mapping[str, Any] | None) -> InputSpec:
    """`known` with the fields of `given` that are not `None`; a `size` without `resize` keeps their ratio.

    Raises:
        UserError: an unknown field, or a value that it cannot take.
    """
    overrides = {name: value for name, value in (given or {}).items() if value is not None}
    for name in overrides:
        if name not in (options := [field.name for field in fields(InputSpec)]):
            raise unknown("field of input_spec", name, options)
    try:
        if "size" in overrides:
            overrides.setdefault("resize", round((known.resize or known.size) * overrides["size"] / known.size))
        return replace(known, **overrides)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"input_spec {overrides}: {error}") from error


def built(name: str, build: Callable[..., nn.Module], settings: Mapping[str, Any]) -> nn.Module:
    """The network at random. Raises `UserError` for settings that it cannot be built with."""
    try:
        return build(**settings)
    except CANNOT_BUILD as error:
        raise UserError(f"{name} cannot be built with {dict(settings)}: {one_line(error)}") from error


def assembled(
    name: str,
    model: nn.Module,
    parts: NetworkParts,
    spec: InputSpec | TextSpec,
    *,
    source: WeightSource | None,
    tensors: Mapping[str, Tensor] | None,
    cut: str | int | None,
    reinit: Sequence[str | int],
    fresh: Callable[[], NetworkParts],
    record: Mapping[str, Any],
) -> Backbone:
    """The backbone of a network that was taken apart.

    Args:
        name: of the network.
        model: the network.
        parts: what it fell into; the modules are those of `model`.
        spec: the input.
        source: where the weights come from, or `None` for the random ones that the network has.
        tensors: what `source` gave.
        cut: keep the layers up to and with this one.
        reinit: layers that are not filled from `tensors`.
        fresh: the parts of the same network drawn at random, for these.
        record: name of the loader and its arguments, but the cut; see `Backbone`.

    Raises:
        UserError: an unknown cut or layer, weights that do not fit, or a size of image that the network cannot take.
    """
    origin, trained_with = (source.origin, source.input_spec) if source else (RANDOM, None)
    record = {**record, "cut": [*parts.layers][-1], "reinit": [layer if isinstance(layer, str) else int(layer) for layer in reinit]}
    whole = Backbone(parts.layers, spec, token_pool=parts.token_pool, origin=origin, trained_with=trained_with, record=record)
    backbone = whole if cut is None else whole.upto(cut)
    places = sorted({backbone.index(layer) for layer in reinit})
    backbone.reinit = tuple(backbone.cuts[place] for place in places)
    if tensors is not None:
        names = original_names(model, whole)
        fill(backbone, tensors, names, model.state_dict().keys() - names.keys())
        if backbone.reinit:
            layers = fresh().layers
            for layer in backbone.reinit:
                backbone.get_submodule(layer).load_state_dict(layers[layer].state_dict(), assign=True)
    _check_size(name, backbone)
    return backbone


def _check_size(name: str, backbone: Backbone) -> None:
    try:
        _ = backbone.feature_shapes  # kept by the backbone: heads ask for it next
    except (RuntimeError, AssertionError) as error:
        spec = backbone.input_spec
        if isinstance(spec, TextSpec):
            raise UserError(f"{name} cannot take {spec.inputs}: {one_line(error)}") from error
        least = bisect_left(range(LARGEST), 1, lo=spec.size, key=lambda larger: int(_fits(backbone, larger)))
        hint = f"the smallest that its strides leave something of are {least} px" if least < LARGEST else one_line(error)
        raise UserError(f"{name} cannot take {spec.inputs}: {hint} (input_spec.size)") from error


def _fits(backbone: Backbone, size: int) -> bool:
    try:
        return bool(backbone.on_meta((3, size, size)))
    except (RuntimeError, AssertionError):
        return False


class EmptyWeights(TorchFunctionMode):
    """Inside, `torch.empty` gives tensors on `meta`: most parameters cost neither memory nor random numbers until a file fills
    them. Tables that a network computes while it is built stay real, as under `torch.device("meta")` they would not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if func is torch.empty:
            settings["device"] = "meta"
        return func(*args, **settings)
