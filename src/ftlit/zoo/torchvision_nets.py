"""`load_backbone`: a network of torchvision or of `BUILDERS` by its name, as named layers, with weights and input specification."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn
from torchvision import models

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, unknown
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import TokenPooling
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.plain_arguments import plain_arguments
from ftlit.zoo import efficientnet_lite, glyph, mlp
from ftlit.zoo.blocks import IMAGENET, NetworkParts
from ftlit.zoo.build import BACKBONES, EmptyWeights, assemble_backbone, build_network, pool_tokens, spec_of
from ftlit.zoo.input_channels import in_chans_record, set_in_chans
from ftlit.zoo.torchvision_layers import take_apart
from ftlit.zoo.weights.weight_files import read
from ftlit.zoo.weights.weight_sources import WeightSource, find, published_source, sources, weights_record
from ftlit.zoo.weights.weights_folder import file_of, has_file


@dataclass(frozen=True)
class Net:
    """A network that can be loaded.

    Args:
        build: keyword arguments -> the network with random weights.
        sources: name of weights -> their source; `default` is one of the names.
        arguments: names of the arguments of `build`.
        input_spec: the input, where the weights do not define it.
        take_apart: the network -> its named layers and classifier.
    """

    build: Callable[..., nn.Module]
    sources: Mapping[str, WeightSource]
    arguments: tuple[str, ...] = ()
    input_spec: InputSpec = field(default_factory=InputSpec)
    take_apart: Callable[[Any], NetworkParts] = take_apart


GLYPH_ORIGIN = WeightsOrigin("shipped", glyph.FILE.name)
GLYPH_WEIGHTS = WeightSource(GLYPH_ORIGIN, partial(read, glyph.FILE), glyph.INPUT_SPEC, path=lambda: glyph.FILE)


BUILDERS: dict[str, Net] = {
    "glyph": Net(glyph.build, {"default": GLYPH_WEIGHTS}),
    "mlp": Net(mlp.build, {}, ("hidden", "activation"), mlp.INPUT_SPEC),
    "efficientnet_lite0": Net(
        efficientnet_lite.build,
        {"default": efficientnet_lite.WEIGHTS},
        input_spec=efficientnet_lite.INPUT_SPEC,
        take_apart=efficientnet_lite.take_apart,
    ),
}  # all other names are torchvision's


def _renormalising(spec: InputSpec, published: bool) -> dict[str, Any]:
    """Let torchvision convert ImageNet's normalisation to mean and std 0.5, which the published weights expect."""
    imagenet_normalised = tuple(zip(spec.mean, spec.std, strict=True)) == IMAGENET
    return {"transform_input": published and imagenet_normalised, "aux_logits": False, "init_weights": True}


# family -> (input, whether the weights are torchvision's) -> the builder's arguments that follow from these
IMPLIED_ARGUMENTS: dict[str, Callable[[InputSpec, bool], dict[str, Any]]] = {
    "mlp": lambda spec, _: {"size": spec.size, "channels": spec.channels},
    "vit": lambda spec, _: {"image_size": spec.size},
    "maxvit": lambda spec, _: {"input_size": (spec.size, spec.size)},
    "googlenet": _renormalising,
    "inception": _renormalising,
}
RENORMALISED = ("googlenet", "inception")
# family -> builder's name -> number of pixels of which the image size is a multiple: patches, windows at every depth
SIZE_STEPS: dict[str, Callable[[str], int]] = {"vit": lambda name: int(name.rpartition("_")[2]), "maxvit": lambda name: 224}
HIDDEN_ARGUMENTS = {models.MobileNetV3: ("width_mult", "reduced_tail", "dilated")}  # arguments that are not in the signature


@BACKBONES.register("torchvision")
@plain_arguments
def load_backbone(
    name: str,
    *,
    weights: str | PathLike[str] | None = "default",
    weights_key: str | None = None,
    cut: str | int | None = None,
    reinit: Sequence[str | int] = (),
    in_chans: int = 3,
    input_spec: Mapping[str, Any] | None = None,
    pooling: TokenPooling | None = None,
    **kwargs: Any,
) -> Backbone:
    """Load a pretrained network without its classifier, as named layers.

    Args:
        name: a classification builder of torchvision (`resnet50`), the network that ships with ftlit (`glyph`), or `efficientnet_lite0`,
            whose ImageNet weights come with the extra `ftlit[photos]`.
        weights: `default`; a name that torchvision gives (`IMAGENET1K_V1`); a file (.pth, .pt, .th, .ckpt, .safetensors) with a
            state dict of the original network, with or without classifier, or of the backbone; a folder with such a file that has the
            name of the network (`resnet50.pth`; without such a file, `glyph` and `efficientnet_lite0` keep
            the weights that are installed); `None` for random weights. The
            names of tensors may have any one prefix.
        weights_key: of the state dict to take, where a file holds several (`model_ema`, `teacher`); `None`: the first, EMA weights last.
        cut: keep the layers up to and including this one; see `Backbone.upto`.
        reinit: reinitialize these layers (names or indices), with the network's own initialisation and torch's global random state. The
            weights need not contain them.
        in_chans: channels of an image. Where they are not three, the first convolution is adapted, see `ftlit.zoo.input_channels`, and
            mean and std of the input spec become their averages (1 channel) or unknown (bands).
        input_spec: fields of `InputSpec` that override those of the weights (of the `default` weights if `weights` is a file, except
            a checkpoint of ftlit, which has its own). `None` values are ignored. A `size` without `resize` keeps the ratio of the two.
        pooling: of tokens to a vector: `class_token`, `mean` or `class_token_mean` (both); `None`: as the network pools. Not for maps.
        kwargs: arguments of the builder, such as `width_mult=0.35`. ViT and MaxViT are built for the image size of the input spec, and
            learned position embeddings are resized to it. GoogLeNet and Inception normalise their input again (`transform_input`) with
            torchvision's published weights, also from a file of the published name, because these expect it; not with other weights.

    Raises:
        UserError: an unknown name, argument, cut or field; weights that cannot be loaded (before anything is built) or do not fit.
    """
    net, typed, weights = _net(name), weights, file_in_folder(weights, name)
    for argument in kwargs:
        if argument not in net.arguments:
            raise unknown("argument", argument, net.arguments, owner=name)
    source = find(weights, net.sources, weights_key)
    if source and weights == "default" != typed:
        source = replace(source, origin=replace(source.origin, note=f"backbone.weights={typed} has no file for {name}"))
    published = source is not None and source.published_as is not None
    known = (source and source.input_spec) or _default_spec(net)
    if in_chans == 1 and published and name.split("_")[0] in RENORMALISED:
        known = replace(known, mean=(0.5,) * 3, std=(0.5,) * 3)  # without the step that converts the normalisation of RGB images
    spec = spec_of(known, in_chans, input_spec)
    _check_step(name, spec.size)
    file = source.load() if source else None
    settings = _implied(name, spec, published) | kwargs

    def build() -> nn.Module:
        model = build_network(name, net.build, settings)
        return model if name == "mlp" else set_in_chans(name, model, in_chans)

    with EmptyWeights() if source else nullcontext():
        model = build()

    def fresh() -> NetworkParts:
        return net.take_apart(build())

    given = {argument: value for argument, value in settings.items() if argument in net.arguments}
    weights_of = {**weights_record(weights, weights_key), **in_chans_record(in_chans)}
    record = {"loader": "torchvision", "name": name, **weights_of, "input_spec": spec.to_dict(), **given}
    parts = net.take_apart(model)
    how: dict[str, Any] = {"source": source, "file": file, "cut": cut, "reinit": reinit, "fresh": fresh, "record": record}
    return pool_tokens(assemble_backbone(name, model, parts, spec, **how), pooling)


def backbone_without_weights(name: str, **kwargs: Any) -> Backbone:
    """The layers of a network on the `meta` device, to check names of layers: no weights are read and no memory is taken.

    Args:
        name: as `load_backbone` takes it.
        kwargs: arguments of the builder.

    Raises:
        UserError: an unknown name, or a network that cannot be built in this way.
    """
    net = _net(name)
    spec = _default_spec(net)
    with torch.device("meta"):
        model = build_network(name, net.build, _implied(name, spec, False) | kwargs)
    return Backbone(net.take_apart(model).layers, spec)


def available() -> list[str]:
    """List all names that `load_backbone` accepts."""
    return [*BUILDERS, *models.list_models(module=models)]


def file_in_folder(weights: str | PathLike[str] | None, name: str) -> str | PathLike[str] | None:
    """`weights`; of a folder the file for a network, or `default` where it has none and the network's own weights are installed.

    Args:
        weights: as `load_backbone` takes them.
        name: as `load_backbone` takes it.

    Raises:
        UserError: an unknown name, or no file or several for this network; see `file_of`.
    """
    return file_of(weights, name, _net(name).sources.get("default"))


def is_at_hand(name: str, weights: str | None = "default") -> bool:
    """Whether a network is known by this name and has weights that can be loaded without a download.

    Args:
        name: as `load_backbone` takes it.
        weights: as `load_backbone` takes them; random ones (`None`) do not count.
    """
    if weights is None or name not in available():
        return False
    source = published_source(weights, _net(name).sources)
    return source.is_at_hand if source else has_file(weights, name, _net(name).sources.get("default"))


def download(name: str, weights: str = "default") -> None:
    """Download published weights of a network into the cache, if they are not there; nothing is done for a file.

    Args:
        name: as `load_backbone` takes it.
        weights: as `load_backbone` takes them.

    Raises:
        UserError: the download fails, or a package with the weights is not installed.
    """
    source = published_source(weights, _net(name).sources)
    if source and not source.is_at_hand:
        source.load()


def _net(name: str) -> Net:
    if name in BUILDERS:
        return BUILDERS[name]
    if name not in available():
        raise unknown("backbone", name, available())
    family = inspect.signature(models.get_model_builder(name)).return_annotation
    arguments = [*inspect.signature(family).parameters.keys() - {"kwargs"}, *HIDDEN_ARGUMENTS.get(family, ())]
    return Net(partial(models.get_model, name, weights=None), sources(name), tuple(sorted(arguments)))


def _default_spec(net: Net) -> InputSpec:
    default = net.sources.get("default")
    return (default and default.input_spec) or net.input_spec


def _implied(name: str, spec: InputSpec, published: bool) -> dict[str, Any]:
    family = name.split("_")[0]
    return IMPLIED_ARGUMENTS[family](spec, published) if family in IMPLIED_ARGUMENTS else {}


def _check_step(name: str, size: int) -> None:
    family = name.split("_")[0]
    step = SIZE_STEPS[family](name) if family in SIZE_STEPS else 1
    if size % step:
        below, above = size // step * step, -(-size // step) * step
        near = f"{below} or {above}" if below else str(above)
        raise UserError(f"{name} needs an image size that is a multiple of {step} px, not {size}: give input_spec.size={near}")
