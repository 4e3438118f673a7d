"""Fill a backbone from a state dict: each tensor is assigned, or an error names those that do not fit."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ftlit.errors import UserError, closest, shorten
from ftlit.models.backbone import Backbone
from ftlit.models.weights_origin import WeightsOrigin
from ftlit.patterns import covers, prefixes
from ftlit.zoo.weights.weight_files import Tensors, WeightsFile

LEGACY_NAMES = (
    (re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."), ""),  # torch.compile, FSDP, checkpointing
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),  # densenet*-*.pth, written before torch 0.4
    (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),  # BERT's first weights, named as TensorFlow names them
    (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
    (re.compile(r"\bmlp\.linear_1\."), "mlp.0."),  # vit_*-*.pth, written before torchvision 0.13
    (re.compile(r"\bmlp\.linear_2\."), "mlp.3."),
)
AUXILIARY_HEADS = {"aux1", "aux2", "AuxLogits"}  # the second and third heads of GoogLeNet and Inception v3
LEAST_VARIANCE = -1e-3  # of a batch norm: rounding may leave a little less than 0, to which eps (1e-5 to 1e-3) is added
MAY_BE_MISSING = "num_batches_tracked"  # only a BN without momentum reads it, and early files lack it
EMA = re.compile(r"(?:^|[._])ema(?:[._]|$)")  # an exponential moving average of the weights


def resize_positions(position_embedding: Tensor, length: int) -> Tensor:
    """Interpolate position embeddings (1, 1 + n * n, C) -> (1, length, C) for another image size; that of the class token stays.

    Bicubic with aligned corners, as in torchvision's `interpolate_embeddings`; see section 3.2 of the ViT paper.
    """
    token, positions = position_embedding[:, :1], position_embedding[:, 1:]
    old, new = int(positions.shape[1] ** 0.5), int((length - 1) ** 0.5)
    grid = positions.transpose(1, 2).reshape(1, -1, old, old)
    grid = interpolate(grid, size=new, mode="bicubic", align_corners=True)
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)


RESIZABLE = {"embeddings.position_embedding": resize_positions}  # tensors of another shape that can be converted


def original_names(model: nn.Module, backbone: Backbone) -> dict[str, str]:
    """Map the name of each tensor in the original network to its name in the backbone, which shares it; without the classifier."""
    own_names = {id(tensor): name for name, tensor in backbone.state_dict(keep_vars=True).items()}
    return {name: own_names[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own_names}


@dataclass(frozen=True)
class Candidate:
    """A state dict in a file, or the part of it under a prefix.

    Args:
        key: of the state dict and prefix of the names, joined by dots.
        tensors: by name, without the prefix.
        found: number of names that the network knows.
    """

    key: str
    tensors: Tensors
    found: int


def known_names(model: nn.Module, layers: Mapping[str, nn.Module]) -> set[str]:
    """The names of all tensors in the original network, and in its named layers."""
    return {*model.state_dict(), *(f"{layer}.{name}" for layer, module in layers.items() for name in module.state_dict())}


def select(file: WeightsFile, known: Collection[str], key: str | None = None) -> tuple[Tensors, str]:
    """Select the state dict of a file, and the prefix of its names, under which most of the network's names are found.

    Of two that have equally many, one without `ema` in its key is selected, then the first. Tensors without the prefix belong to another
    part, such as a head or a loss, and are left out.

    Args:
        file: see `read`.
        known: see `known_names`.
        key: select among those whose key begins with this one.

    Returns:
        The tensors, and a note that names the others with at least half as many names; empty if there are none.

    Raises:
        UserError: no state dict has this key.
    """
    candidates = [found for entry in file.state_dicts.items() for found in _candidates(*entry, known)]
    asked = [found for found in candidates if key is None or f"{found.key}.".startswith(f"{key}.")]
    most = max((found.found for found in asked), default=0)
    if not most and key is not None:
        keys = [found.key for found in candidates if found.found > 1]
        meant, there = closest(key, keys), shorten(keys)
        give = f"give backbone.weights_key={meant or '...'} (keys with weights of this network: {there})" if keys else "give other weights"
        raise UserError(f"{file.name} has no weights of this network under backbone.weights_key={key}: {give}")
    if not most:
        return max(file.state_dicts.values(), key=len), ""
    taken = min((found for found in asked if found.found == most), key=lambda found: bool(EMA.search(found.key)))
    others = [found.key for found in candidates if 2 * found.found > most and found.key != taken.key and found.key]
    if not others:
        return taken.tensors, ""
    return (
        taken.tensors,
        f"read from the state dict {taken.key or '(top level)'}; to read another one, give backbone.weights_key=..., such as "
        f"{shorten(others, 4)}",
    )


def _candidates(key: str, tensors: Tensors, known: Collection[str]) -> Iterator[Candidate]:
    """The state dict under each prefix with which a name is known; the shorter of two prefixes first."""
    current = {_current_name(name): tensor for name, tensor in tensors.items()}
    prefixes_of = ((name[:start] for start in _starts(name) if name[start:] in known) for name in current)
    counts = Counter(prefix for found in prefixes_of for prefix in found)
    for prefix in sorted(counts, key=len):
        inside = {name.removeprefix(prefix): tensor for name, tensor in current.items() if name.startswith(prefix)}
        yield Candidate(".".join(filter(None, (key, prefix.removesuffix(".")))), inside, counts[prefix])


def _starts(name: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer(r"\.", name))]


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
    _check_values(backbone.origin, wanted, found)
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
            f"the weights from {origin.describe()} are of another network: they have tensors such as {_first(unexpected)}, but this "
            f"network needs {len(wanted)} tensors such as {_first(missing)}; give the backbone that these weights were trained with, or "
            "other weights"
        )
    if counted := [f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names]:
        raise UserError(
            f"the weights from {origin.describe()} do not fit this network of {len(wanted)} tensors: {', '.join(counted)}; "
            "give the backbone and arguments that these weights were trained with (such as backbone.width_mult=...), or other weights"
        )


def _check_values(origin: WeightsOrigin, wanted: Tensors, found: Tensors) -> None:
    """Reject quantized weights, tensors without ordinary storage, and a file in which nothing was ever stored: every matrix is constant."""
    if odd := [name for name in found if found[name].layout != torch.strided or found[name].is_meta]:
        if found[odd[0]].is_meta:
            fault, remedy = "tensors without values (device meta)", "save them from a network on the CPU or a GPU"
        else:
            fault, remedy = "tensors in a sparse layout", "save them as dense tensors, with to_dense()"
        raise UserError(f"{origin.describe()} has {fault}, such as {_first(odd)}: {remedy}")
    if whole := [name for name in found if wanted[name].is_floating_point() and not found[name].is_floating_point()]:
        kind = str(found[whole[0]].dtype).removeprefix("torch.")
        raise UserError(f"{origin.describe()} has {kind} in place of floats ({_first(whole)}): give weights that are not quantized")
    if negative := [name for name in found if name.endswith("running_var") and bool((found[name] < LEAST_VARIANCE).any())]:
        raise UserError(f"{origin.describe()} has negative variances ({_first(negative)}), which give NaN: give other weights")
    matrices = [tensor for tensor in found.values() if tensor.ndim > 1 and tensor.numel() > 1]
    if matrices and all((tensor == tensor.flatten()[0]).all() for tensor in matrices):
        raise UserError(f"{origin.describe()} was never trained, because in every matrix all numbers are equal: give other weights")


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
            f"{backbone.origin.describe()} has NaN or infinite values in {shorten(bad)}: give a backbone.cut=... nearer to the input, "
            "or other weights"
        )
