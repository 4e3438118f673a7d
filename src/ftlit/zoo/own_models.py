"""`backbone_from`: a network that exists already, of torchvision, timm, transformers or the user, as a backbone of named layers."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, one_line, shorten, unknown
from ftlit.models.backbone import Backbone
from ftlit.models.weights_origin import RANDOM, WeightsOrigin
from ftlit.patterns import outermost_first
from ftlit.plain_arguments import plain_arguments
from ftlit.zoo import torchvision_layers
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.timm_split import timm_layers
from ftlit.zoo.timm_split.timm_trace import ModuleCall, preserved_state, record_calls

REL_TOLERANCE = 1e-5  # of the check, relative to the largest value


@plain_arguments
def backbone_from(
    model: nn.Module, layers: Sequence[str] | None = None, *, input_spec: InputSpec | None = None, origin: WeightsOrigin | None = None
) -> Backbone:
    """Turn a network into a backbone of named layers, which share its modules and weights. The classifier is left out.

    Two random images pass the network and the layers one after the other; the features have to be equal after each layer. The network stays
    as it is, with its modes.

    Args:
        model: a network of images; a `Backbone` is returned as it is.
        layers: names of submodules, lowest first, each of which takes the output of the one before and nothing else; the first takes the
            images. `None`: those of `load_backbone` or `load_timm`, for networks of torchvision and timm.
        input_spec: size and normalisation of the images; `None`: 224 pixels, normalised as for ImageNet.
        origin: of the weights, if they are pretrained: `WeightsOrigin("torchvision", "IMAGENET1K_V1")`, or `"custom"` with any name.
            `None`: the attribute `origin` of the network, if it has one; otherwise the weights count as random.

    Raises:
        UserError: no such module; layers that do not follow each other; a network that does not take images of `input_spec`; a `Backbone`
            with other layers, input or origin than it has.
    """
    if isinstance(layers, str):
        raise UserError(f"layers={layers!r} is one text: give a list, layers=[{layers!r}]")
    if isinstance(model, Backbone):
        return _unchanged(model, layers, input_spec, origin)
    spec, stated = input_spec or InputSpec(), vars(model).get("origin")
    origin = origin or (stated if isinstance(stated, WeightsOrigin) else RANDOM)
    images = torch.randn(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    weights = next(model.parameters(), images)
    images = images.to(weights.device, weights.dtype)
    if layers is not None:
        return _checked(_from_names(model, layers, images), model, images, spec, origin)
    if type(model) in torchvision_layers.FAMILIES:
        try:
            parts = torchvision_layers.take_apart(model)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # the user has replaced parts of it
            names = _sequence(_calls(model, images), images, 0)
            named = f"give layers=[...], names of modules that run one after the other, such as {shorten(map(repr, names))}"
            raise UserError(
                f"{type(model).__name__} is built in another way than torchvision builds it ({type(error).__name__}: {one_line(error)}): "
                f"{named if names[1:] else 'build ftlit.Backbone from its modules'}"
            ) from error
    elif hasattr(model, "forward_features") and hasattr(model, "pretrained_cfg"):
        parts, _ = timm_layers.take_apart(model, spec.size, in_chans=spec.channels)  # checks the output itself
        parts = replace(parts, classifier=nn.Identity())
    else:
        raise UserError(
            f"the layers of {type(model).__name__} are not known: give layers=[...], names of modules that run one after the other, such "
            f"as {shorten(map(repr, _sequence(_calls(model, images), images, 0)))}"
        )
    return _checked(parts, model, images, spec, origin)


def _unchanged(model: Backbone, layers: Sequence[str] | None, input_spec: InputSpec | None, origin: WeightsOrigin | None) -> Backbone:
    given = {"layers": layers and tuple(layers), "input_spec": input_spec, "origin": origin}
    own = {"layers": model.cuts, "input_spec": model.input_spec, "origin": model.origin}
    if wrong := next((name for name, value in given.items() if value not in (None, own[name])), None):
        shown = shorten(model.cuts) if wrong == "layers" else own[wrong]
        raise UserError(f"the model is a Backbone already, with {wrong} {shown}: leave {wrong} out")
    return model


def _from_names(model: nn.Module, layers: Sequence[str], images: Tensor) -> NetworkParts:
    """The layers of these names. Raises `UserError` where one does not take the output of the one before."""
    modules = dict(model.named_modules())
    if not layers:
        raise UserError("layers=[]: name at least one module")
    for name in layers:
        if name not in modules or not name:
            raise unknown("module", name, outermost_first(modules), owner=type(model).__name__)
    calls = _calls(model, images)
    own: list[ModuleCall] = []
    for name in layers:
        found = [call for call in calls if call.module is modules[name]]
        if len(found) != 1:
            raise UserError(f"{name!r} runs {len(found)} times for an image, so it cannot be a layer: name a module that runs once")
        if found[0].result is None:
            raise UserError(f"{name!r} does not return one tensor, so it cannot be a layer: name the modules in it")
        if others := _other_tensors(found[0]):
            further = ", ".join(others)
            raise UserError(f"{name!r} takes a further input, {further}, so it cannot be a layer: name the module that contains it")
        own.append(found[0])
    if not own[0].takes(images, 0):
        raise UserError(f"{layers[0]} does not take the images: {_between(calls, images, 0, own[0])}")
    for before, after in pairwise(own):
        if not after.follows(before):
            raise UserError(
                f"{after.name} does not take the output of {before.name}: {_between(calls, before.result, before.result_version, after)}"
            )
    return NetworkParts({name: modules[name] for name in layers}, nn.Identity())


def _other_tensors(call: ModuleCall) -> list[str]:
    """The names of arguments with tensors beside the first; whether plain values matter is found by the check."""
    values = {name: value if isinstance(value, list | tuple) else [value] for name, value in call.others.items()}
    return [name for name, parts in values.items() if any(isinstance(part, Tensor) for part in parts)]


def _between(calls: Sequence[ModuleCall], features: Tensor | None, version: int, end: ModuleCall) -> str:
    """What to do about two layers that do not follow each other."""
    names = _sequence(calls, features, version, end)
    if names[-1:] == [end.name]:
        return f"name also what runs before {end.name}: {', '.join(names[:-1])}"
    return "code of the network lies between them; name layers that follow each other, or build ftlit.Backbone from modules with that code"


def _sequence(calls: Sequence[ModuleCall], features: Tensor | None, version: int, end: ModuleCall | None = None) -> list[str]:
    """The outermost modules that run one after the other from `features` on, up to `end`."""
    found: list[str] = []
    while True:
        following = [call for call in calls if call.result is not None and not _other_tensors(call) and call.takes(features, version)]
        call = next((call for call in following if call is end), following[0] if following else None)
        if call is None or call.name in found:
            return found
        found.append(call.name)
        if call is end:
            return found
        features, version = call.result, call.result_version


def _calls(model: nn.Module, images: Tensor) -> list[ModuleCall]:
    """The calls of all modules in a network, in the order in which they begin."""
    calls: list[ModuleCall] = []
    handles: list[Any] = []
    try:
        for name, module in model.named_modules():
            handles += record_calls(name, module, calls.append) if name else []
        with preserved_state(model):
            model(images)
    except Exception as error:  # the code of a user fails in any way
        raise UserError(
            f"{type(model).__name__} cannot be run on images of shape {tuple(images.shape[1:])}: {one_line(error)}; if "
            "it needs another size, give input_spec=InputSpec(size=...)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _checked(parts: NetworkParts, model: nn.Module, images: Tensor, spec: InputSpec, origin: WeightsOrigin) -> Backbone:
    """The backbone of these layers, if it computes what the network computes, at each cut that is a module of it, and in the end."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(part: nn.Module, _: Any, out: Tensor) -> None:
        outputs[part] = out.clone()  # a later layer may work in place

    handles = [layer.register_forward_hook(keep) for layer in parts.layers.values()]
    try:
        with preserved_state(model):
            logits = model(images.clone())
    except Exception as error:
        raise UserError(
            f"{type(model).__name__} cannot be run on images of shape {spec.shape}: {one_line(error)}; give input_spec"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    backbone = Backbone(parts.layers, spec, token_pool=parts.token_pool, origin=origin)
    features = images.clone()
    with preserved_state(backbone), preserved_state(parts.classifier):  # the mode of the classifier stays too
        for name, layer in backbone.items():
            features = layer(features)
            if layer in outputs and not _is_close(features, outputs[layer]):
                raise UserError(f"the layers up to {name} do not give the output that {type(model).__name__} has there: name other layers")
        if not isinstance(parts.classifier, nn.Identity) and not _is_close(parts.classifier(features), logits):
            raise UserError(f"the layers of {type(model).__name__} do not give its output: give layers=[...]")
    return backbone


def _is_close(features: Tensor, wanted: Tensor) -> bool:
    return features.shape == wanted.shape and bool((features - wanted).abs().max() <= REL_TOLERANCE * wanted.abs().max())
