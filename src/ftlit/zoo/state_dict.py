"""Fill a backbone from a state dict: each tensor is assigned, or an error names those that do not fit."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn

from ftlit.errors import UserError, shorten
from ftlit.models.backbone import Backbone
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.patterns import covers, prefixes
from ftlit.zoo.vision_transformers import resize_positions
from ftlit.zoo.weights import Tensors

LEGACY_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),  # densenet*-*.pth, written before torch 0.4
    (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),  # BERT's first weights, named as TensorFlow names them
    (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),  # vit_*-*.pth, written before torchvision 0.13
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)
AUXILIARY_HEADS = {"aux1", "aux2", "AuxLogits"}  # the second and third heads of GoogLeNet and Inception v3
MAY_BE_MISSING = "num_batches_tracked"  # only a BN without momentum reads it, and early files lack it
RESIZABLE = {"embeddings.position_embedding": resize_positions}


def original_names(model: nn.Module, backbone: Backbone) -> dict[str, str]:
    """Map the name of each tensor in the original network to its name in the backbone, which shares it; without the classifier."""
    own_names = {id(tensor): name for name, tensor in backbone.state_dict(keep_vars=True).items()}
    return {name: own_names[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own_names}


def fill(backbone: Backbone, tensors: Mapping[str, Tensor], names: Mapping[str, str], severed: Iterable[str]) -> None:
    """Assign `tensors` to `backbone`, in place; `backbone.origin.resized` then lists the tensors that had to be resized.

    Args:
        backbone: may be cut: tensors of layers above its cut are ignored. Its reinitialized layers are not filled.
        tensors: by the names of the original network or of the uncut backbone.
        names: of the uncut backbone; see `original_names`.
        severed: names of the other tensors of the original network: the old classifier may be missing, or have any shape.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape, or not finite.
    """
    given = {_current_name(name): tensor for name, tensor in tensors.items()}
    naming = max(names, {own: own for own in names.values()}, key=lambda known: sum(name in known for name in given))
    ignored = {*_modules_beside(names, severed), *AUXILIARY_HEADS}
    unexpected = [name for name in given if name not in naming and ignored.isdisjoint(prefixes(name))]
    wanted = {name: tensor for name, tensor in backbone.state_dict().items() if not any(covers(layer, name) for layer in backbone.reinit)}
    found = {naming[name]: tensor for name, tensor in given.items() if naming.get(name) in wanted}
    resized = [name for name in RESIZABLE if name in found and _can_resize(found[name], wanted[name])]
    found |= {name: RESIZABLE[name](found[name].float(), wanted[name].shape[1]) for name in resized}
    _check_fit(backbone.origin, wanted, found, unexpected)
    exact = {name: tensor.to(wanted[name].dtype, copy=True) for name, tensor in found.items()}
    backbone.load_state_dict(exact, strict=False, assign=True)
    backbone.origin = replace(backbone.origin, resized=tuple(resized))
    _check_finite(backbone)


def _current_name(name: str) -> str:
    for pattern, replacement in LEGACY_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _modules_beside(kept: Iterable[str], severed: Iterable[str]) -> Iterator[str]:
    """Yield for each severed tensor the highest module that contains it and nothing of the backbone: `fc`, `classifier.6`."""
    kept_modules = {prefix for name in kept for prefix in prefixes(name)}
    for name in severed:
        yield next(prefix for prefix in prefixes(name) if prefix not in kept_modules)


def _can_resize(given: Tensor, wanted: Tensor) -> bool:
    return given.ndim == wanted.ndim == 3 and given.shape[1] != wanted.shape[1] and given.shape[2] == wanted.shape[2]


def _check_fit(origin: WeightsOrigin, wanted: Tensors, found: Tensors, unexpected: list[str]) -> None:
    missing = [name for name in wanted if name not in found and not name.endswith(MAY_BE_MISSING)]
    other = [name for name in found if found[name].shape != wanted[name].shape]
    shapes = [f"{name} {_shape(found[name])} instead of {_shape(wanted[name])}" for name in other]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if wanted and not found:
        raise UserError(
            f"the weights are of another network, {origin.describe()}: none of its tensors ({_first(unexpected)}) has the name of one of "
            f"this network's {len(wanted)} ({_first(missing)}); use the backbone that they were saved from, or other weights"
        )
    if counted := [f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names]:
        raise UserError(
            f"the weights do not fit this network, {origin.describe()}: of {len(wanted)} tensors expected, {'; '.join(counted)}; "
            "use the backbone that they were saved from, with its own arguments (backbone.width_mult=...), or other weights"
        )


def _first(names: list[str], most: int = 3) -> str:
    return ", ".join(names if len(names) <= most else [*names[:most], "..."])


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _check_finite(backbone: Backbone) -> None:
    """Raise `UserError` for NaN or infinity: VGG16's published IMAGENET1K_FEATURES has NaN in `fc6` and `fc7`."""
    filled = [(name, layer) for name, layer in backbone.items() if name not in backbone.reinit]
    bad = [name for name, layer in filled if not all(tensor.isfinite().all() for tensor in layer.state_dict().values())]
    if bad:
        raise UserError(
            f"{backbone.origin.describe()} has NaN or infinite values in {shorten(bad)}: cut below (backbone.cut=...), or use other weights"
        )
