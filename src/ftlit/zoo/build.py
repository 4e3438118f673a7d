"""Assemble a backbone from the parts of a network: input specification, cut, weights, reinitialized layers."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ftlit.data.input_spec import InputSpec
from ftlit.data.tokens import TextSpec
from ftlit.errors import UserError, invalid, one_line, shorten, unknown
from ftlit.formatting import count
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import TOKEN_POOLINGS, TokenPooling, token_pool_of
from ftlit.models.weights_origin import RANDOM
from ftlit.registry import Registry
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.input_channels import adapt_weights
from ftlit.zoo.weights.own_checkpoints import misfit
from ftlit.zoo.weights.state_dict import fill, known_names, original_names, select
from ftlit.zoo.weights.weight_files import Tensors, WeightsFile
from ftlit.zoo.weights.weight_sources import WeightSource

BACKBONES: Registry[Callable[..., Backbone]] = Registry("backbone source")  # the names are recorded in checkpoints
MAX_SIZE = 1024  # px: upper limit of the search for the smallest possible image size
BUILD_ERRORS = (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError)


def override_input_spec(known: InputSpec, given: Mapping[str, Any] | None) -> InputSpec:
    """Replace the fields of `known` that are not `None` in `given`; a `size` without `resize` keeps the ratio of the two.

    Raises:
        UserError: an unknown field or an invalid value.
    """
    overrides = {name: value for name, value in (given or {}).items() if value is not None}
    for name in overrides:
        if name not in (options := [field.name for field in fields(InputSpec)]):
            raise unknown("field", name, options, owner="input_spec")
    try:
        if isinstance(overrides.get("size"), int | float):
            overrides.setdefault("resize", round((known.resize or known.size) * overrides["size"] / known.size))
        return replace(known, **overrides)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"input_spec {overrides}: {error}") from error


def spec_of(known: InputSpec, in_chans: int, given: Mapping[str, Any] | None) -> InputSpec:
    """The input of a network of `in_chans` channels; see `override_input_spec`.

    Args:
        known: of its weights, or of the network.
        in_chans: as the user gave it.
        given: fields that override those of `known`.

    Raises:
        UserError: a number below 1, one that is not that of the weights, or an invalid field.
    """
    if known.channels not in (3, in_chans):
        raise UserError(
            f"backbone.in_chans={in_chans}, but these weights are of a network of {count(known.channels, 'channel')}: give "
            f"backbone.in_chans={known.channels}"
        )
    spec = override_input_spec(known.with_channels(in_chans), given)
    if spec.channels != in_chans:
        raise UserError(f"input_spec.channels={spec.channels}, but backbone.in_chans={in_chans}: give backbone.in_chans only")
    return spec


def build_network(name: str, build: Callable[..., nn.Module], settings: Mapping[str, Any]) -> nn.Module:
    """Build a network with random weights. Raises `UserError` for invalid settings."""
    try:
        return build(**settings)
    except UserError:  # also a ValueError
        raise
    except BUILD_ERRORS as error:
        raise UserError(f"{name} cannot be built{_with(settings)}: correct its arguments ({one_line(error)})") from error


def _with(settings: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{name}={value!r}' for name, value in settings.items())}" if settings else ""


def assemble_backbone(
    name: str,
    model: nn.Module,
    parts: NetworkParts,
    spec: InputSpec | TextSpec,
    *,
    source: WeightSource | None,
    file: WeightsFile | None,
    cut: str | int | None,
    reinit: Sequence[str | int],
    fresh: Callable[[], NetworkParts],
    record: Mapping[str, Any],
    adapt: Callable[[Tensors], tuple[str, ...]] | None = None,
) -> Backbone:
    """Assemble the backbone: cut it, fill in the weights, reinitialize layers, check the input size.

    Args:
        name: of the network.
        model: the network.
        parts: its layers and classifier; they share the modules of `model`.
        spec: the input.
        source: source of the weights, or `None` to keep the network's random ones.
        file: what `source` loaded.
        cut: keep the layers up to and including this one.
        reinit: layers to reinitialize, in place of filling them from `tensors`.
        fresh: builds the parts of the same network with new random weights, for `reinit`.
        record: name of the loader and its arguments except the cut; see `Backbone`.
        adapt: changes the tensors of a file in place to fit `model`, and returns what it resized.

    Raises:
        UserError: an unknown cut or layer, weights that do not fit, or an image size that the network cannot process.
    """
    origin, trained_with = (source.origin, source.input_spec) if source else (RANDOM, None)
    record = {**record, "cut": [*parts.layers][-1], "reinit": [layer if isinstance(layer, str) else int(layer) for layer in reinit]}
    whole = Backbone(parts.layers, spec, token_pool=parts.token_pool, origin=origin, trained_with=trained_with, record=record)
    backbone = whole if cut is None else whole.upto(cut)
    indices = sorted({backbone.index(layer) for layer in reinit})
    backbone.reinit = tuple(backbone.cuts[index] for index in indices)
    if file is not None and source is not None:
        tensors, selected = select(file, known_names(model, parts.layers), source.key)
        resized, adapted = adapt(tensors) if adapt else (), ""
        if isinstance(spec, InputSpec) and spec.channels != 3:
            own = {f"{layer}.{key}": tensor for layer, module in parts.layers.items() for key, tensor in module.state_dict().items()}
            adapted = adapt_weights(name, tensors, {**own, **model.state_dict()}, spec.channels)
        _fill(backbone, whole, model, tensors, file)
        note = "; ".join(filter(None, (origin.note, selected, adapted)))
        backbone.origin = replace(backbone.origin, resized=(*backbone.origin.resized, *resized), note=note)
        if backbone.reinit:
            layers = fresh().layers
            for layer in backbone.reinit:
                backbone.get_submodule(layer).load_state_dict(layers[layer].state_dict(), assign=True)
    _check_size(name, backbone)
    return backbone


def _fill(backbone: Backbone, whole: Backbone, model: nn.Module, tensors: Tensors, file: WeightsFile) -> None:
    names = original_names(model, whole)
    try:
        fill(backbone, tensors, names, model.state_dict().keys() - names.keys())
    except UserError as error:
        parts = [name for name in file.state_dicts if name]
        key = parts[0] if len(parts) == 1 else f"NAME ({shorten(parts)})"
        keys = f"; to read only a part of {file.name}, give backbone.weights_key={key}" if parts else ""
        reason = misfit(file, str((whole.record or {}).get("name")), backbone.cuts)
        raise UserError(reason or f"{error}{keys}") from error


def _check_size(name: str, backbone: Backbone) -> None:
    spec = backbone.input_spec
    try:
        backbone.on_meta(spec.shape)  # the backbone caches the result, and heads need it next
    except (RuntimeError, AssertionError) as error:
        if isinstance(spec, TextSpec):
            raise UserError(f"{name} does not accept {spec.inputs}: {one_line(error)}") from error
        least = bisect_left(range(MAX_SIZE), 1, lo=spec.size, key=lambda larger: int(_fits(backbone, larger)))
        hint = f"give input_spec.size={least} or more" if least < MAX_SIZE else f"{one_line(error)}; give another input_spec.size=..."
        raise UserError(f"{name} does not accept {spec.inputs}: {hint}") from error


def _fits(backbone: Backbone, size: int) -> bool:
    try:
        return bool(backbone.on_meta((backbone.input_spec.shape[0], size, size)))
    except (RuntimeError, AssertionError):
        return False


def pool_tokens(backbone: Backbone, pooling: TokenPooling | None) -> Backbone:
    """Pool tokens in another way than the network does; in place.

    Args:
        backbone: cut where its features are read.
        pooling: `class_token`, `mean` (of all tokens without padding), `class_token_mean` (one after the other); `None`: as the network.

    Raises:
        UserError: an unknown pooling; features that are no tokens, or a network without a class token.
    """
    if pooling is None:
        return backbone
    if pooling not in TOKEN_POOLINGS:
        raise invalid("backbone.pooling", pooling, TOKEN_POOLINGS)
    last, given = backbone.cuts[-1], f"backbone.pooling={pooling}"
    shapes = backbone.feature_shapes
    if len(shapes[last]) != 2:
        tokens = [cut for cut in backbone.cuts if len(shapes[cut]) == 2]
        remedy = f"give backbone.cut={tokens[-1]}" if tokens else "no cut of this network gives tokens; leave backbone.pooling out"
        raise UserError(f"{given} needs tokens, but the features at {last} are {'maps' if len(shapes[last]) == 3 else 'vectors'}: {remedy}")
    if pooling != "mean" and backbone.token_pool == "mean":
        raise UserError(f"{given}: this network does not use a class token; give backbone.pooling=mean, or leave backbone.pooling out")
    backbone.token_pool = token_pool_of(backbone.token_pool, pooling)
    backbone.record = backbone.record and {**backbone.record, "pooling": pooling}
    return backbone


class EmptyWeights(TorchFunctionMode):
    """Context in which `torch.empty` returns tensors on the `meta` device.

    Most parameters then need neither memory nor random numbers until a file fills them. Tables that a network computes while it is
    built remain real tensors, which they would not under `torch.device("meta")`.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if func is torch.empty:
            settings["device"] = "meta"
        return func(*args, **settings)
