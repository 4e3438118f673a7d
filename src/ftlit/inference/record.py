"""The record in a checkpoint: the parts of the network as plain values, and how they are built again.

The record names a built-in part by its registry name, `{"name": ..., "arguments": {...}}`; a user's class or function by its import
path, `{"import": "package.module.Class", "arguments": {...}}`, which is imported with `trust` only.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from torch import nn

from ftlit.data.input_spec import InputSpec
from ftlit.errors import UserError, one_line
from ftlit.formats import JsonObject, upgraded, with_format
from ftlit.inference.record_checks import check_record
from ftlit.inference.slim import check_base
from ftlit.models.backbone import Backbone
from ftlit.models.batchnorm_fold import batchnorm_to_affine
from ftlit.models.heads import HEADS
from ftlit.models.lora import Lora, add_lora
from ftlit.registry import Registry
from ftlit.zoo import BACKBONES, load_bert
from ftlit.zoo.weights.own_checkpoints import measured_in

KEY = "ftlit"  # of the record, in a checkpoint
PACKAGE = "ftlit"
HYDRA_KEYS = ("_target_", "_convert_", "_partial_", "_recursive_")

Record = Mapping[str, Any]


def record_of(
    backbone: Backbone,
    own: Mapping[str, Any],
    head: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    multilabel: bool,
    affine: bool,
    lora: Record | None = None,
    loss: Record | None = None,
    train_counts: Sequence[int] | None = None,
    class_weights: Sequence[float] | None = None,
) -> JsonObject:
    """Plain values that `ftlit.load` builds the network from.

    Args:
        backbone: as it was loaded.
        own: `_target_` and arguments of a custom backbone, which has no record.
        head: `_target_` and arguments.
        class_names: class number -> name.
        multilabel: whether an image has several labels.
        affine: whether the batch norms were rewritten.
        lora: the fields of the `Lora` that gave weights low-rank matrices, with their names as targets; `None`: none have any.
        loss: see `part_of`; recorded only for those who read the checkpoint: `ftlit.load` builds no loss.
        train_counts: number of training images of each class, see `ftlit.inference.prior`.
        class_weights: weight of each class in the loss; `None`: none.
    """
    loaded = backbone.record
    return with_format(
        {
            "backbone": part_of(own, BACKBONES) if loaded is None else _named(loaded["loader"], loaded, without=("loader",)),
            "grey_range": None if (grey := getattr(backbone.input_spec, "grey_range", None)) is None else list(grey),
            **_bands_record(backbone.input_spec),
            "affine": affine,
            "lora": lora,
            "head": part_of({"in_features": backbone.num_features, **head}, HEADS),
            "loss": loss,
            "class_names": list(class_names),
            "multilabel": multilabel,
            "train_counts": None if train_counts is None else list(train_counts),
            "class_weights": None if class_weights is None else list(class_weights),
        }
    )


def part_of(given: Mapping[str, Any], registry: Registry[Any]) -> JsonObject:
    """The entry of a part in a record: by its registry name where it is built in, else by its import path.

    Args:
        given: `_target_` and arguments.
        registry: of its group.
    """
    path = str(given["_target_"])
    part = resolve_name(path)
    part = vars(part).get("recorded_as", part) if isinstance(part, type) else part  # of this class: a user's subclass inherits it
    name = registry.name_of(part) if str(getattr(part, "__module__", "")).partition(".")[0] == PACKAGE else None
    return {"import": path, "arguments": _plain(given)} if name is None else _named(name, given)


def read_record(checkpoint: Mapping[str, Any], file: object = "this checkpoint") -> JsonObject:
    """The record of a checkpoint in today's format. Raises `KeyError` where there is none, `UserError` for one of a newer program."""
    return upgraded(checkpoint[KEY], str(file), _from_0)


def base_of(record: Record) -> Backbone:
    """The backbone of a slim checkpoint as training began with it.

    Args:
        record: see `read_record`.

    Raises:
        UserError: see `ftlit.load`.
    """
    return rewrite(build_backbone(record, trust=False), record)


def rewrite(backbone: Backbone, record: Record) -> Backbone:
    """Rewrite a backbone as training did, in place: batch norms become affine layers, weights get LoRA matrices. Returns it."""
    if record["affine"]:
        batchnorm_to_affine(backbone)
    if lora := record.get("lora"):  # records of earlier programs have none
        add_lora(backbone, Lora(**lora))
    return backbone


def build_backbone(record: Record, *, trust: bool) -> Backbone:
    """The backbone of a record, at random, or, where the checkpoint is slim, with its base weights. Raises `BadRecord`."""
    check_record(record, trust=trust)
    part, base = record["backbone"], record.get("base")
    if "import" in part:
        build = _imported("backbone", part["import"], trust)
        try:
            return _with_measured(build(**part["arguments"]), record)
        except OSError as error:  # its weights file was moved, for instance
            raise UserError(f"the backbone {part['import']} cannot be built with {part['arguments']}: {one_line(error)}") from error
    load, arguments = BACKBONES[part["name"]], dict(part["arguments"])
    weights, key = arguments.pop("weights", None), arguments.pop("weights_key", None)
    if load is load_bert:
        arguments["download"] = trust or bool(base)
    backbone = load(weights=weights if base else None, weights_key=key if base else None, **arguments)
    check_base(backbone, base)
    return _with_measured(backbone, record)


def _bands_record(spec: object) -> dict[str, JsonObject]:
    """Mean and std of bands, which are measured on the training images; nothing for images of one or three channels."""
    if not isinstance(spec, InputSpec) or not spec.takes_bands:
        return {}
    return {"bands": {"mean": list(spec.mean), "std": list(spec.std)}}


def _with_measured(backbone: Backbone, record: Record) -> Backbone:
    """Give a backbone what was measured on the training images: the range of grey values, mean and std of bands."""
    if isinstance(backbone.input_spec, InputSpec):
        backbone.input_spec = replace(backbone.input_spec, **measured_in(record))
    return backbone


def build_head(record: Record, *, trust: bool) -> nn.Module:
    """The head of a record, at random."""
    part = record["head"]
    make = _imported("head", part["import"], trust) if "import" in part else HEADS[part["name"]]
    head: nn.Module = make(**{"num_classes": len(record["class_names"]), **part["arguments"]})
    return head


def _named(name: str, arguments: Mapping[str, Any], without: Sequence[str] = ()) -> JsonObject:
    return {"name": name, "arguments": {key: value for key, value in _plain(arguments).items() if key not in without}}


def _imported(noun: str, path: str, trust: bool) -> Callable[..., Any]:
    if not trust:
        raise UserError(
            f"the {noun} of this run is {path}, which is not part of ftlit: if you trust this code, add --trust (in Python: trust=True)"
        )
    try:
        return resolve_name(path)  # type: ignore[no-any-return]
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the {noun} of this run is {path}, which cannot be imported: install the package, or add the folder of the module to "
            f"PYTHONPATH ({one_line(error)})"
        ) from error


def _plain(values: Mapping[str, Any]) -> JsonObject:
    """Without Hydra's own keys, and with lists for tuples and for the containers of OmegaConf, as `weights_only` loading takes them."""
    return {str(name): _plain_value(value) for name, value in values.items() if name not in HYDRA_KEYS}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain_value(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain_value(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


_HEADS_OF_0 = {
    "ftlit.head.LinearHead": "linear",
    "ftlit.head.SolvedLinearHead": "linear",
    "ftlit.head.PooledHead": "pooled",
    "ftlit.head.MLPHead": "mlp",
    "ftlit.head.ConvHead": "conv",
}
_LOADERS_OF_0 = {"load_backbone": "torchvision", "load_timm": "timm", "load_bert": "bert"}


def _from_0(record: JsonObject) -> JsonObject:
    """Format 0 names ftlit's heads by their former import paths, loaders by their functions, and writes some lists as text."""
    backbone, head = (_with_lists(record[part]) for part in ("backbone", "head"))
    loader, path = backbone.pop("loader", None), head.pop("_target_")
    if loader is None:
        backbone = {"import": backbone.pop("_target_"), "arguments": backbone}
    else:
        backbone = {"name": _LOADERS_OF_0.get(loader, loader), "arguments": backbone}
    known = {"name": _HEADS_OF_0[path]} if path in _HEADS_OF_0 else {"import": path}
    return {**record, "backbone": backbone, "head": {**known, "arguments": head}, "loss": None}


def _with_lists(values: Mapping[str, Any]) -> JsonObject:
    """With the lists that OmegaConf's containers were written as: '[8]' -> [8]."""
    return {name: _list_of(value) if isinstance(value, str) and value.startswith("[") else value for name, value in values.items()}


def _list_of(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
