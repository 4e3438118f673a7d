"""The state dict of a run under torchvision's own names, which are found by the identity of the tensors, without a table."""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torchvision import models

from ftlit.errors import UserError
from ftlit.inference.network import Network
from ftlit.models.backbone import Backbone
from ftlit.models.batchnorm_fold import affine_to_batchnorm
from ftlit.models.heads import head_cuts
from ftlit.zoo.torchvision_layers import take_apart
from ftlit.zoo.weights.state_dict import original_names

NOT_ARGUMENTS = (
    "loader",
    "name",
    "weights",
    "weights_key",
    "input_spec",
    "cut",
    "reinit",
    "pooling",
)  # in the record of a backbone


def builder(network: Network) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the network as torchvision builds it. Raises `UserError` if torchvision does not have it."""
    record = network.backbone.record or {}
    name = record.get("name", "the backbone")
    if record.get("loader") != "torchvision" or name not in models.list_models(module=models):
        raise _no_original(f"torchvision has no network {name}")
    if (in_chans := record.get("in_chans", 3)) != 3:
        raise _no_original(f"it takes images of {in_chans} channels, but torchvision's {name} takes three")
    arguments = {key: value for key, value in record.items() if key not in NOT_ARGUMENTS}
    skipped = {key: False for key in ("init_weights",) if key in arguments}  # random weights are replaced anyway
    return name, {**arguments, **skipped, "num_classes": len(network.class_names)}


def built(network: Network) -> nn.Module:
    """That network with random weights, in evaluation mode."""
    name, arguments = builder(network)
    model: nn.Module = models.get_model(name, weights=None, **arguments)
    return model.eval()


def original_state(network: Network) -> dict[str, Tensor]:
    """The tensors of the run by torchvision's names. Raises `UserError` if the network differs from that of torchvision."""
    model, (name, _) = built(network), builder(network)
    parts = take_apart(model)
    classifier, head = _only_linear(parts.classifier), _only_linear(network.head)
    if classifier is None or classifier.bias is None:  # MaxViT's has none
        raise _no_original(f"torchvision's {name} does not end with a linear layer with a bias")
    if network.backbone.cuts != tuple(parts.layers):
        ends = f"it ends at {network.backbone.cuts[-1]}, but torchvision's {name} ends at {[*parts.layers][-1]}"
        raise _no_original(f"{ends} (a run with scenario=small_similar or scenario=large_similar keeps all layers)")
    if network.backbone.token_pool != parts.token_pool:
        pooling = (network.backbone.record or {}).get("pooling")
        raise _no_original(f"it pools tokens by {pooling}, but torchvision's {name} by {parts.token_pool} (leave backbone.pooling out)")
    if cuts := head_cuts(network.head):
        raise _no_original(
            f"its head reads {len(cuts)} layers, but the head of torchvision's {name} reads the last one; train with head.cuts=null"
        )
    if head is None:
        raise _no_original(
            f"its head is {type(network.head).__name__}, but the head of torchvision's {name} is one linear layer on pooled features"
        )
    backbone: Any = affine_to_batchnorm(deepcopy(network.backbone))
    state = Backbone({**dict(backbone.items()), "head": head}, network.input_spec).state_dict()
    names = original_names(model, Backbone({**parts.layers, "head": classifier}, network.input_spec))
    return {original: state[own].contiguous() for original, own in names.items()}


def _only_linear(module: nn.Module) -> nn.Linear | None:
    """The linear layer that holds all parameters of a head, or classifier, of pooled features; `None` if there is no such layer."""
    held = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    alone = len(held) == 1 and not getattr(module, "takes_map", False)
    return held[0] if alone and isinstance(held[0], nn.Linear) else None


def _no_original(why: str) -> UserError:
    return UserError(f"this network cannot be saved under torchvision's names: {why}; use --to torch or --to onnx")
