"""The state dict of a run by the names of the library that has its network, torchvision or timm.

Names are found by the identity of the tensors, without a table.
"""

from copy import deepcopy
from typing import Any, Literal

from torch import Tensor, nn
from torchvision import models

from ftlit.errors import UserError
from ftlit.inference.network import Network
from ftlit.models.backbone import Backbone
from ftlit.models.batchnorm_fold import affine_to_batchnorm
from ftlit.models.heads import head_cuts
from ftlit.zoo import efficientnet_lite
from ftlit.zoo.blocks import NetworkParts
from ftlit.zoo.timm_nets import size_argument
from ftlit.zoo.timm_split import timm_layers
from ftlit.zoo.torchvision_layers import take_apart
from ftlit.zoo.weights.state_dict import original_names
from ftlit.zoo.weights.weight_files import PHOTO_BACKBONE

Library = Literal["torchvision", "timm"]
NOT_ARGUMENTS = ("loader", "name", "weights", "weights_key", "input_spec", "cut", "reinit", "pooling", "split_at")  # in a backbone's record


def builder(network: Network, library: Library) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the network as the library builds it. Raises `UserError` if the library does not have it."""
    record = network.backbone.record or {}
    if not record:
        raise _no_original(library, f"its backbone was not loaded by a name of {library}, as ftlit.load_backbone loads it")
    name = record.get("name", "the backbone")
    by_timm = record.get("loader") == "timm" or name == PHOTO_BACKBONE
    by_torchvision = record.get("loader") == "torchvision" and name in models.list_models(module=models)
    if not (by_timm if library == "timm" else by_torchvision):
        raise _no_original(library, f"{library} has no network {name}" if library == "torchvision" else f"{name} is not built by timm")
    if library == "torchvision" and (in_chans := record.get("in_chans", 3)) != 3:
        raise _no_original(library, f"the network takes images of {in_chans} channels, but torchvision's {name} takes three")
    arguments = {key: value for key, value in record.items() if key not in NOT_ARGUMENTS}
    skipped = {key: False for key in ("init_weights",) if key in arguments}  # random weights are replaced anyway
    if library == "timm":
        name = (
            efficientnet_lite.TIMM_NAME if name == PHOTO_BACKBONE else name.partition(".")[0]
        )  # without the tag of its pretrained weights
        arguments = size_argument(name, network.input_spec.size) | arguments
    return name, {**arguments, **skipped, "num_classes": len(network.class_names)}


def built(network: Network, library: Library) -> nn.Module:
    """That network with random weights, in evaluation mode."""
    name, arguments = builder(network, library)
    if library == "torchvision":
        model: nn.Module = models.get_model(name, weights=None, **arguments)
    else:
        import timm

        model = timm.create_model(name, **arguments)
    return model.eval()


def original_state(network: Network, library: Library, *, half: bool = False) -> dict[str, Tensor]:
    """The tensors of the run by the names of the library.

    Args:
        network: of images.
        library: `torchvision` or `timm`.
        half: parameters in float16; buffers stay as they are.

    Raises:
        UserError: the network differs from that of the library.
    """
    model, (name, _) = built(network, library), builder(network, library)
    parts = _parts_of(model, network, library)
    classifier, head = _only_linear(parts.classifier), _only_linear(network.head)
    if classifier is None or classifier.bias is None:  # MaxViT's has none
        raise _no_original(library, f"{library}'s {name} does not end with a linear layer with a bias")
    if network.backbone.cuts != tuple(parts.layers):
        ends = f"the network ends at {network.backbone.cuts[-1]}, but {library}'s {name} ends at {[*parts.layers][-1]}"
        raise _no_original(library, f"{ends} (a run with scenario=small_similar or scenario=large_similar keeps all layers)")
    if network.backbone.token_pool != parts.token_pool:
        pooling = (network.backbone.record or {}).get("pooling")
        why = f"the network pools tokens by {pooling}, but {library}'s {name} by {parts.token_pool} (leave backbone.pooling out)"
        raise _no_original(library, why)
    if cuts := head_cuts(network.head):
        why = f"the head reads {len(cuts)} layers, but the head of {library}'s {name} reads only the last one (head.cuts=null)"
        raise _no_original(library, why)
    if head is None:
        why = f"the head is {type(network.head).__name__}, but the head of {library}'s {name} is one linear layer on pooled features"
        raise _no_original(library, why)
    backbone: Any = affine_to_batchnorm(deepcopy(network.backbone))
    state = Backbone({**dict(backbone.items()), "head": head}, network.input_spec).state_dict()
    names = original_names(model, Backbone({**parts.layers, "head": classifier}, network.input_spec))
    weights = {original for original, _ in model.named_parameters()} if half else set()
    return {original: (state[own].half() if original in weights else state[own]).contiguous() for original, own in names.items()}


def _parts_of(model: nn.Module, network: Network, library: Library) -> NetworkParts:
    record = network.backbone.record or {}
    if library == "torchvision":
        return take_apart(model)
    if record["name"] == PHOTO_BACKBONE:
        return efficientnet_lite.take_apart(model)
    return timm_layers.take_apart(model, network.input_spec.size, record["split_at"], network.input_spec.channels)[0]


def _only_linear(module: nn.Module) -> nn.Linear | None:
    """The linear layer that holds all parameters of a head, or classifier, of pooled features; `None` if there is no such layer."""
    held = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    alone = len(held) == 1 and not getattr(module, "takes_map", False)
    return held[0] if alone and isinstance(held[0], nn.Linear) else None


def _no_original(library: Library, why: str) -> UserError:
    return UserError(f"--to {library} cannot save this network, because {why}: give --to torch or --to onnx")
