"""`load_timm`: an image classifier of timm by its name, as named layers, with weights and input specification."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from http.client import HTTPException
from os import PathLike
from typing import Any, get_args
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, invalid, one_line, unknown
from ftlit.models.backbone import Backbone
from ftlit.models.pooling import TokenPooling
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.plain_arguments import plain_arguments
from ftlit.tensor_files import weights_only
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.build import BACKBONES, assemble_backbone, build_network, pool_tokens, spec_of
from ftlit.zoo.input_channels import in_chans_record
from ftlit.zoo.timm_arguments import REPLACED_ARGUMENTS, TEXTS, refused_arguments
from ftlit.zoo.timm_split.timm_layers import SplitAt, take_apart
from ftlit.zoo.weights.weight_files import WITHOUT_DOWNLOAD, WeightsFile
from ftlit.zoo.weights.weight_sources import WeightSource, find, network_timeout, weights_record
from ftlit.zoo.weights.weights_folder import file_of

Config = dict[str, Any]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@BACKBONES.register("timm")
@plain_arguments
def load_timm(
    name: str,
    *,
    weights: str | PathLike[str] | None = "default",
    weights_key: str | None = None,
    cut: str | int | None = None,
    reinit: Sequence[str | int] = (),
    in_chans: int = 3,
    input_spec: Mapping[str, Any] | None = None,
    split_at: SplitAt = "stages",
    pooling: TokenPooling | None = None,
    **kwargs: Any,
) -> Backbone:
    """Load a pretrained network of timm without its classifier, as named layers; the counterpart of `load_backbone`.

    Its layers are the modules that a forward pass runs one after the other; that they compute what the network computes is checked on two
    random images while it loads. A network that cannot be split exactly is one layer, `whole`, and the note of its `origin` says why.

    Args:
        name: timm's name of an architecture (`convnextv2_atto`), with or without the tag of its weights (`resnet18.a1_in1k`).
        weights: `default`: timm's weights of this name, through its cache; a file (.pth, .safetensors, ...) with a state dict of the
            original network, with or without classifier, or of the backbone; a folder, see `load_backbone`; `None` for random weights.
        weights_key: see `load_backbone`.
        cut: keep the layers up to and including this one; see `Backbone.upto`.
        reinit: reinitialize these layers; see `load_backbone`.
        in_chans: channels of an image; see `load_backbone`. Weights of three channels are adapted as timm adapts them.
        input_spec: fields of `InputSpec` that override timm's data config. `None` values are ignored.
        split_at: `stages`: a network of stages (ConvNeXt, Swin, MetaFormer, ResNet) has a layer for each stage; `blocks`: for each block of
            its stages, and for what reduces the resolution between them. Other networks have a layer for each block anyway.
        pooling: see `load_backbone`.
        kwargs: arguments of timm's builder, such as `drop_path_rate=0.1`. A network with a fixed image size is built for that of the
            input spec.

    Raises:
        UserError: timm is not installed; an unknown name, argument, cut or field; a network for other than square RGB images, or one that
            gives no vector for an image; weights that cannot be loaded or do not fit.
    """
    if split_at not in get_args(SplitAt):
        raise invalid("backbone.split_at", split_at, get_args(SplitAt))
    create = partial(_timm().create_model, name)
    config = _config(name)
    for argument in kwargs:
        if argument in REPLACED_ARGUMENTS:
            raise UserError(f"{name} does not accept backbone.{argument}: {REPLACED_ARGUMENTS[argument]}")
    if refused := refused_arguments(kwargs):
        argument = refused[0]
        accepted = "the name of a layer (letters, digits and _)" if argument in TEXTS else "a number, true or false, or a list of them"
        raise UserError(f"{name} does not accept backbone.{argument}={kwargs[argument]!r}: give {accepted}")
    known = _input_spec(name, config)
    published = WeightSource(_origin(config), lambda: _fetch(name, config, settings), known)
    weights = file_of(weights, name)
    source = find(weights, {"default": published} if _has_weights(config) else {}, weights_key)
    spec = spec_of((source and source.input_spec) or known, in_chans, input_spec)
    settings = size_argument(name, spec.size) | kwargs
    with torch.random.fork_rng(devices=[]) if source else nullcontext():
        file = source.load() if source else None
        model = build_network(name, create, settings | in_chans_record(in_chans))
    parts, note = take_apart(model, spec.size, split_at, in_chans)
    adapt = partial(_resize, model=model) if source is not published else None

    def fresh() -> NetworkParts:
        return take_apart(build_network(name, create, settings | in_chans_record(in_chans)), spec.size, split_at, in_chans)[0]

    weights_of = {**weights_record(weights, weights_key), **in_chans_record(in_chans)}
    record = {"loader": "timm", "name": name, **weights_of, "input_spec": spec.to_dict(), "split_at": split_at, **kwargs}
    backbone = assemble_backbone(
        name, model, parts, spec, source=source, file=file, adapt=adapt, cut=cut, reinit=reinit, fresh=fresh, record=record
    )
    origin = backbone.origin
    backbone.origin = replace(origin, note="; ".join(filter(None, (origin.note, note))))
    return pool_tokens(backbone, pooling)


def size_argument(name: str, size: int) -> dict[str, int]:
    """The argument of timm's builder for images of this size; none for a network that takes images of any size, or whose size it is."""
    config = _config(name)
    return {"img_size": size} if config.get("fixed_input_size") and size != _input_spec(name, config).size else {}


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError('backbone=timm needs the package timm: pip install "ftlit[timm]"') from error
    return timm


def _config(name: str) -> Config:
    """Return timm's config of a network and its weights. Raises `UserError` for an unknown name."""
    timm = _timm()
    if not timm.is_model(name.partition(".")[0]):
        names = timm.list_models()
        nearest = get_close_matches(name, names, n=4, cutoff=0.0)
        raise UserError(f"timm has no network {name!r}: did you mean {' or '.join(nearest)}? timm.list_models() lists all {len(names):,}")
    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        tagged = [other for other in timm.list_pretrained() if other.startswith(f"{architecture}.")]
        if not tagged:
            raise UserError(f"timm has no weights {tag!r} of {architecture}: give backbone.name={architecture}") from error
        raise unknown("network", name, tagged, owner="timm") from error
    return found.to_dict() if found else {}


def _input_spec(name: str, config: Config) -> InputSpec:
    data = _timm().data.resolve_data_config(pretrained_cfg=config)
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            f"{name} needs images of {channels} channels, {height}x{width}; only square RGB images are supported: use another network"
        )
    resize = max(height, round(height / data["crop_pct"]))
    return InputSpec(height, resize, data["mean"], data["std"], data["interpolation"])


def _has_weights(config: Config) -> bool:
    return any(config.get(key) for key in ("hf_hub_id", "url", "file"))


def _origin(config: Config) -> WeightsOrigin:
    return WeightsOrigin("timm", str(config.get("hf_hub_id") or config.get("url") or config.get("file")))


def _fetch(name: str, config: Config, settings: Mapping[str, Any]) -> WeightsFile:
    """Load pretrained weights from timm's cache; download them first if they are missing. Raises `UserError` if that fails."""
    try:
        with network_timeout(seconds=30), weights_only():
            _check_hub(config)
            model: nn.Module = _timm().create_model(name, pretrained=True, **settings)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot download the weights of {name} from {_origin(config).name} ({one_line(error)}): {WITHOUT_DOWNLOAD}"
        ) from error
    return WeightsFile(name, {"": dict(model.state_dict())})


def _resize(tensors: dict[str, Tensor], model: nn.Module) -> tuple[str, ...]:
    """Adapt tensors for another image size (position embeddings) to this network, in place, with timm's own filter.

    Returns:
        What was resized.
    """
    own, adapt = model.state_dict(), getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    other = [name for name, tensor in tensors.items() if name in own and tensor.shape != own[name].shape and "pos" in name]
    if not other or adapt is None:
        return ()
    try:
        found = adapt(dict(tensors), model)
    except Exception:  # tensors of another network; `fill` reports later which do not fit
        return ()
    tensors.update({name: found[name] for name in other if name in found})
    return ("positions",)


def _check_hub(config: Config) -> None:
    """Check once whether the hub can be reached, if the weights are not in the cache: timm would retry for a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    hub = config.get("hf_hub_id")
    if not hub or any(isinstance(try_to_load_from_cache(hub, file), str) for file in (config.get("hf_hub_filename") or "", *HUB_FILES)):
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD")).close()
    except HTTPError:
        pass  # the hub answers
