"""Check the record in a checkpoint before anything is built from it: a checkpoint may come from anyone."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ftlit.data.dataset import wrong_class_names
from ftlit.data.limits import MAX_PIXELS, MAX_VALUE
from ftlit.errors import UserError, shorten
from ftlit.zoo.timm_arguments import refused_arguments

Record = Mapping[str, Any]

COMMON = frozenset({"name", "weights", "weights_key", "cut", "reinit", "in_chans", "input_spec", "split_at", "pooling"})
BERT_ARGUMENTS = frozenset(
    {
        "download",  # replaced before the call
        *("max_length", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "embedding_size", "hidden_act"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range", "layer_norm_eps"),
        *("max_position_embeddings", "type_vocab_size", "vocab_size"),
        *("dim", "hidden_dim", "n_layers", "n_heads", "activation", "dropout", "attention_dropout", "seq_classif_dropout"),  # DistilBERT
        *("embedding_dropout", "mlp_dropout", "norm_eps", "local_attention"),  # ModernBERT
    }
)
ARGUMENTS = {"bert": BERT_ARGUMENTS}  # of a loader; that of torchvision takes those of the network's class only

MAX_NUMBER = 1 << 20  # in the arguments of a record, except an input spec
MAX_LENGTH = 1000  # of a list or text in arguments
MAX_DEPTH = 4  # of nested lists and mappings
MAX_ELEMENTS = 1 << 30  # of all tensors of a network, unless its checkpoint holds more: 4 GiB of float32
MAX_ELEMENTS_SLIM = 1 << 32  # if the checkpoint holds differences only
ELEMENTS_PER_STORED = 4  # a backbone is built whole before it is cut


RESTORE = "restore the file from a copy, or train again"
TRUST = "if you trust this file, add --trust (in Python: trust=True)"


class BadRecord(UserError):
    """A record from which no network is built.

    Args:
        reason: what is wrong.
        remedy: what to do.
    """

    def __init__(self, reason: str, remedy: str = RESTORE) -> None:
        super().__init__(f"{reason}: {remedy}")


def check_record(record: Record, *, trust: bool) -> None:
    """Check the fields of a record (see `read_record`), and, without `trust`, that its arguments are plain and small.

    Raises:
        BadRecord: a field or an argument that is not allowed; its name and value.
    """
    names = record["class_names"]
    if not isinstance(names, list) or not names or wrong_class_names(names):
        raise BadRecord("the class names are not a list of distinct texts")
    if not all(isinstance(record[name], bool) for name in ("affine", "multilabel")):
        raise BadRecord("the fields affine and multilabel are not true or false")
    if (lora := record.get("lora")) is not None and not _is_lora(lora):
        raise BadRecord("its field lora needs a rank, an alpha and names of weights")
    for noun in ("backbone", "head"):
        part = record[noun]
        if not isinstance(part, dict) or not isinstance(part.get("arguments"), dict) or not isinstance(_name(part), str):
            raise BadRecord(f"the {noun} has no name or no arguments")
        if not trust and "import" not in part:
            _check_arguments(noun, part)
    for name in ("train_counts", "class_weights"):  # records of earlier programs have none
        if (values := record.get(name)) is not None and not _are_amounts(values, len(names)):
            raise BadRecord(f"the field {name} does not have one number, 0 or more, for each class")
    outputs = record["head"]["arguments"].get("num_classes", len(names))
    if outputs != len(names):
        raise BadRecord(f"the head has {outputs} outputs, but there are {len(names)} classes")


def _are_amounts(values: Any, length: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == length
        and all(isinstance(value, int | float) and isfinite(value) and value >= 0 for value in values)
    )


def _is_lora(lora: Any) -> bool:
    return (
        isinstance(lora, dict)
        and lora.keys() == {"rank", "alpha", "targets"}
        and isinstance(lora["rank"], int)
        and isinstance(lora["alpha"], int | float | None)
        and isinstance(lora["targets"], list)
        and all(isinstance(name, str) for name in lora["targets"])
    )


def _name(part: Record) -> Any:
    return part.get("import", part.get("name"))


def _check_arguments(noun: str, part: Record) -> None:
    arguments, allowed = part["arguments"], ARGUMENTS.get(part["name"]) if noun == "backbone" else None
    others = refused_arguments(arguments) if noun == "backbone" and part["name"] == "timm" else []
    if allowed is not None:
        others = [name for name in arguments if name not in allowed]
    if others := [name for name in others if name not in COMMON]:
        network = f"{noun} ({arguments.get('name')} of {part['name']})"
        raise BadRecord(
            f"the {network} has the arguments {shorten(sorted(map(str, others)))}, which ftlit accepts only from a trusted file", TRUST
        )
    for name, value in arguments.items():
        most = MAX_VALUE if name == "input_spec" else MAX_NUMBER
        for leaf in _leaves(value):
            if not _is_small(leaf, most) and name != "weights":
                raise BadRecord(
                    f"the {noun} has {name}={shorten([repr(leaf)[:40]])}, but ftlit accepts only numbers up to {most:g}, short texts, "
                    "true, false and null",
                    TRUST,
                )
    spec = arguments.get("input_spec") or {}
    sizes = {name: spec.get(name) for name in ("size", "resize")} if isinstance(spec, dict) else {}
    if large := [f"{name}={size}" for name, size in sizes.items() if isinstance(size, int) and size > MAX_PIXELS]:
        raise BadRecord(f"the {noun} has input_spec.{large[0]}, above the limit of {MAX_PIXELS} pixels", TRUST)


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the plain values in lists and mappings. A list or mapping that is too long, or too deep, is yielded itself."""
    if isinstance(value, list | tuple | dict) and len(value) <= MAX_LENGTH and depth < MAX_DEPTH:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner, depth + 1)
    else:
        yield value


def _is_small(value: Any, most: float) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, str):
        return len(value) <= MAX_LENGTH
    return isinstance(value, int | float) and isfinite(value) and abs(value) <= most


class LimitedAllocation(TorchFunctionMode):
    """Context that limits the number of elements of all tensors that are allocated to build a network.

    Args:
        record: of the network.
        state: the tensors of the checkpoint.
    """

    FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __init__(self, record: Record, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        stored = sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))
        self.left = max(MAX_ELEMENTS_SLIM if record.get("base") else MAX_ELEMENTS, ELEMENTS_PER_STORED * stored)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the elements before memory is allocated."""
        settings = dict(kwargs or {})
        if func in self.FACTORIES and str(settings.get("device")) != "meta":
            plain = {name: value for name, value in settings.items() if name not in ("generator", "pin_memory", "out")}
            self.left -= func(*args, **{**plain, "device": "meta"}).numel()
            if self.left < 0:
                raise BadRecord("the network has far more parameters than the file has weights, and may use up the memory", TRUST)
        return func(*args, **settings)
