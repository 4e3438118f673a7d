"""Named layers of any timm network, from the module calls of one forward pass; the result is checked against the network.

    embeddings (code before) | module, module, module, ... | top (code after) | neck

The modules are the longest sequence of calls inside `forward_features` (`timm_pieces`). Code before and after them runs in a partial copy
of the network (`timm_partial`). The neck is `forward_head` up to the classifier, unless that is just a pooling of `models.pooling`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ftlit.errors import UserError, one_line
from ftlit.models.pooling import TokenPool, pool
from ftlit.zoo.blocks import NetworkParts, sequential
from ftlit.zoo.timm_split.timm_partial import AverageLogits, PartialForward, channels_first, classifier_paths, without
from ftlit.zoo.timm_split.timm_pieces import sequence_layers
from ftlit.zoo.timm_split.timm_trace import Trace, preserved_state, trace

SplitAt = Literal["stages", "blocks"]
WHOLE = "used as a single layer, because its layers cannot be separated exactly"  # followed by the reason
SMALL_SIZE = 96  # pixels; enough for five halvings
REL_TOLERANCE = 1e-5  # relative to the largest value: an average may be summed in another order
TIMM_POOLS: tuple[TokenPool, ...] = ("mean", "class_token")
TAILS = (("forward_features",), ("forward_cls", "norm"))  # methods with the code after the modules; the second: class attention


def take_apart(model: Any, size: int, split_at: SplitAt = "stages", in_chans: int = 3) -> tuple[NetworkParts, str]:
    """Split a timm network into named layers and classifier.

    Invariant 1 is checked on two random images. The network, its mode and torch's random state stay as they are; modules are shared, not
    copied. The classifier is the identity if the network has none, or if its logits need more than one vector.

    Args:
        model: a network of timm.
        size: side of the images, in pixels.
        split_at: how a network of stages is split, see `load_timm`.
        in_chans: channels of the images.

    Returns:
        The parts, and why the network is a single layer, `whole`; an empty text if it is not.

    Raises:
        UserError: the network gives no vector for each image, or cannot process images of this size.
    """
    with preserved_state(model):
        traced = _trace(model, size, in_chans, by_block=split_at == "blocks")
        reasons: list[str] = []
        methods: list[Callable[[Trace], dict[str, nn.Module]]] = [*(partial(sequence_layers, tail=tail) for tail in TAILS), _whole]
        for method in methods:
            parts = _checked(method, traced)
            if not isinstance(parts, str):
                break
            reasons.append(parts)
        else:
            raise UserError(
                f"{type(model).__name__} cannot be used as a backbone, because it gives no single vector for an image ({reasons[-1]}): "
                "use another network"
            )
    for layer in parts.layers.values():
        layer.train(model.training)
    return parts, f"{WHOLE} ({reasons[0]})" if "whole" in parts.layers else ""


def _trace(model: Any, size: int, in_chans: int, *, by_block: bool) -> Trace:
    """Trace the network on small images if it accepts them; on images of `size` otherwise, and if its blocks take constants of the size."""
    fixed = model.pretrained_cfg.get("fixed_input_size") or size <= SMALL_SIZE
    for side in [size] if fixed else [SMALL_SIZE, size]:
        images = torch.randn(2, in_chans, side, side, generator=torch.Generator().manual_seed(0))
        try:
            traced = trace(model, images, by_block=by_block)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            reason = error
        else:
            if side == size or not any(call.others for call in traced.calls):
                return traced
    raise UserError(
        f"{type(model).__name__} does not accept images of {size} px: give another backbone.input_spec.size ({one_line(reason)})"
    ) from reason


def _checked(method: Callable[[Trace], dict[str, nn.Module]], traced: Trace) -> NetworkParts | str:
    """Return the parts that `method` makes, if they compute what the network computed, otherwise the reason why they do not."""
    try:
        layers = method(traced)
        features = traced.images
        for layer in layers.values():
            given, version = features, features._version
            features = layer(given)
            if given._version != version:
                return "a layer modifies its input in place"
        parts = _with_classifier(layers, features, traced)
    except Exception as error:  # a partial copy without a module that its code needs fails in any way
        return one_line(error)
    parameters = [id(parameter) for layer in parts.layers.values() for parameter in layer.parameters()]
    return parts if len(parameters) == len(set(parameters)) else "layers share parameters"


def _with_classifier(layers: dict[str, nn.Module], features: Tensor, traced: Trace) -> NetworkParts:
    """Complete the parts with a pooling equal to the network's, or with a neck. Raises `ValueError` if neither is exact."""
    model = traced.model
    vector = model.forward_head(traced.features, pre_logits=True)
    if vector.ndim != 2:
        raise ValueError("forward_head gives no vector")
    classifier = next(one for one in _classifier_candidates(model) if isinstance(one, nn.Identity) or _gives(one, vector, traced.logits))
    for token_pool in TIMM_POOLS:
        if _is_close(pool(features, token_pool), vector):
            return NetworkParts(layers, classifier, token_pool)
    unused = {name for name, _ in model.named_children()} - {call.name.split(".")[0] for call in traced.head_calls}
    direct = [name for name, _ in model.named_parameters(recurse=False)]
    neck = PartialForward(without(model, [*unused, *classifier_paths(model)], direct), "forward_head")
    layers = {**layers, "neck": channels_first([neck], traced.features, vector)}
    if not _is_close(layers["neck"](features), vector):
        raise ValueError("its layers, called one after the other, do not give the output of the network")
    return NetworkParts(layers, classifier)


def _gives(classifier: nn.Module, vector: Tensor, logits: Tensor) -> bool:
    try:
        return _is_close(classifier(vector), logits)
    except RuntimeError:  # a classifier of a part of the vector
        return False


def _is_close(features: Tensor, wanted: Tensor) -> bool:
    return features.shape == wanted.shape and bool((features - wanted).abs().max() <= REL_TOLERANCE * wanted.abs().max())


def _classifier_candidates(model: Any) -> list[nn.Module]:
    """List modules that may compute the logits of a vector, the most likely first; the identity if there is none."""
    found = [model.get_submodule(path) for path in classifier_paths(model)]
    if len(found) > 1:
        return [AverageLogits(found), nn.Identity()]
    if found and isinstance(found[0], nn.Conv2d):
        found = [sequential(unflatten=nn.Unflatten(1, (-1, 1, 1)), conv=found[0], flatten=nn.Flatten(1))]
    return [*found, nn.Identity()]


def _whole(traced: Trace) -> dict[str, nn.Module]:
    model = traced.model
    return {"whole": PartialForward(without(model, classifier_paths(model)), "forward_features", "forward_head")}
