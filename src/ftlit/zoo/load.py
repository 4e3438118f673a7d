"""`load_backbone`: a network by its name, taken apart, with the weights and the input that belong to them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from ftlit.backbone import RANDOM_START, Backbone
from ftlit.errors import UserError, one_line, unknown
from ftlit.text import TextSpec
from ftlit.transform import InputSpec
from ftlit.zoo import glyph
from ftlit.zoo.families import take_apart
from ftlit.zoo.fitting import fill, original_names
from ftlit.zoo.parts import IMAGENET, Parts
from ftlit.zoo.weights import Source, find, read, sources


@dataclass(frozen=True)
class Net:
    """A network that can be loaded.

    Args:
        build: keyword arguments -> the network, at random; `families.take_apart` knows its type (`Layers` for a network of our own).
        sources: name of weights -> where they are; `default` among them.
        arguments: what `build` takes.
    """

    build: Callable[..., nn.Module]
    sources: Mapping[str, Source]
    arguments: tuple[str, ...] = ()


BUILDERS: dict[str, Net] = {
    "glyph": Net(glyph.build, {"default": Source(f"shipped {glyph.FILE.name}", partial(read, glyph.FILE), glyph.INPUT_SPEC)})
}  # networks of this package; all other names are torchvision's


def _renormalising(spec: InputSpec, published: bool) -> dict[str, Any]:
    """The published weights want images normalised with 0.5; torchvision brings them there from ImageNet's mean and std."""
    comes_as_imagenet = tuple(zip(spec.mean, spec.std, strict=True)) == IMAGENET
    return {"transform_input": published and comes_as_imagenet, "aux_logits": False, "init_weights": True}


# family -> input, whether the weights are torchvision's -> what that implies for the builder
IMPLIED: dict[str, Callable[[InputSpec, bool], dict[str, Any]]] = {
    "vit": lambda spec, _: {"image_size": spec.size},
    "maxvit": lambda spec, _: {"input_size": (spec.size, spec.size)},
    "googlenet": _renormalising,
    "inception": _renormalising,
}
SIGNATURES_HIDE = {models.MobileNetV3: ("width_mult", "reduced_tail", "dilated")}  # arguments that only the builder's inside tells


def load_backbone(
    name: str,
    *,
    weights: str | PathLike[str] | None = "default",
    cut: str | int | None = None,
    reinit: Sequence[str | int] = (),
    input_spec: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Backbone:
    """A pretrained network without its classifier, as named layers.

    Args:
        name: a classification builder of torchvision (`resnet50`), or a network of this package (`glyph`).
        weights: `default`; a name that torchvision gives (`IMAGENET1K_V1`); a file (.pth, .pt, .th, .ckpt, .safetensors) with a
            state dict of the original network, with or without classifier, or of the backbone; `None` for a random start.
        cut: keep the layers up to and with this one; see `Backbone.upto`.
        reinit: draw these layers anew, by torch's global random state, as the network draws them at a random start; counted as cuts are.
            The weights need not have them.
        input_spec: fields of `InputSpec` that override what the weights say (a file says nothing: the `default` weights'
            are taken). `None` values are ignored. A `size` without `resize` keeps their ratio.
        kwargs: for the builder: `width_mult=0.35`. ViT's and MaxViT's image size is the input spec's, and the learned
            positions are resized to it; GoogLeNet and Inception normalise their input again (`transform_input`) under torchvision's
            published weights, also from a file of the published name, which want it; other weights are taken as they are.

    Raises:
        UserError: an unknown name, argument, cut or field; weights that cannot be had (before anything is built) or do not fit.
    """
    net = _net(name)
    for argument in kwargs:
        if argument not in net.arguments:
            raise unknown(f"argument of {name}", argument, net.arguments)
    source = find(weights, net.sources)
    spec = _input_spec(source, net.sources.get("default"), input_spec)
    published = source is not None and source.published_as is not None
    build = partial(net.build, **(_implied(name, spec, published) | kwargs))
    return assembled(name, build, take_apart, spec, source, cut=cut, reinit=reinit)


def assembled(
    name: str,
    build: partial[nn.Module],
    apart: Callable[[nn.Module], Parts],
    spec: InputSpec | TextSpec,
    source: Source | None,
    *,
    cut: str | int | None = None,
    reinit: Sequence[str | int] = (),
) -> Backbone:
    """A network built, taken apart, cut and filled.

    Args:
        name: for errors.
        build: makes the network, at random.
        apart: takes it apart; modules are shared.
        spec: its input.
        source: of its weights; `None` for a random start.
        cut: see `load_backbone`.
        reinit: see `load_backbone`.

    Raises:
        UserError: as `load_backbone`.
    """
    tensors = source.load() if source else None  # before anything is built
    model = _build(name, build, empty=source is not None)
    parts = apart(model)
    origin, trained_with = (source.origin, source.input_spec) if source else (RANDOM_START, None)
    whole = Backbone(parts.layers, spec, token_pool=parts.token_pool, origin=origin, trained_with=trained_with)
    backbone = whole if cut is None else whole.upto(cut)
    places = sorted({backbone.index(layer) for layer in reinit})
    backbone.reinit = tuple(backbone.cuts[place] for place in places)
    if tensors is not None:
        names = original_names(model, whole)
        fill(backbone, tensors, names, model.state_dict().keys() - names.keys())
        if backbone.reinit:
            fresh = apart(_build(name, build, empty=False)).layers
            for layer in backbone.reinit:
                backbone.get_submodule(layer).load_state_dict(fresh[layer].state_dict(), assign=True)
    _check_size(name, backbone)
    return backbone


def available() -> list[str]:
    """All that `load_backbone` can load."""
    return [*BUILDERS, *models.list_models(module=models)]


def _net(name: str) -> Net:
    if name in BUILDERS:
        return BUILDERS[name]
    if name not in available():
        raise unknown("backbone", name, available())
    family = inspect.signature(models.get_model_builder(name)).return_annotation
    arguments = [*inspect.signature(family).parameters.keys() - {"kwargs"}, *SIGNATURES_HIDE.get(family, ())]
    return Net(partial(models.get_model, name, weights=None), sources(name), tuple(sorted(arguments)))


def _input_spec(source: Source | None, default: Source | None, given: Mapping[str, Any] | None) -> InputSpec:
    known = (source and source.input_spec) or (default and default.input_spec) or InputSpec()
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


def _implied(name: str, spec: InputSpec, published: bool) -> dict[str, Any]:
    family = name.split("_")[0]
    return IMPLIED[family](spec, published) if family in IMPLIED else {}


def _build(name: str, build: partial[nn.Module], *, empty: bool) -> nn.Module:
    try:
        with EmptyWeights() if empty else nullcontext():
            return build()
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        raise UserError(f"{name} cannot be built with {build.keywords}: {one_line(error)}") from error


def _check_size(name: str, backbone: Backbone) -> None:
    try:
        _ = backbone.code_shapes  # kept by the backbone: heads ask for it next
    except RuntimeError as error:
        raise UserError(f"{name} cannot take {backbone.input_spec.inputs}: {one_line(error)}") from error


class EmptyWeights(TorchFunctionMode):
    """Inside, `torch.empty` gives tensors on `meta`: most parameters cost neither memory nor random numbers until a file fills
    them. Tables that a network computes while it is built stay real, as under `torch.device("meta")` they would not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if func is torch.empty:
            settings["device"] = "meta"
        return func(*args, **settings)
