"""Slim checkpoints: only tensors that differ from the pretrained weights, and the digest of these weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ftlit.errors import UserError
from ftlit.identity.fingerprint import fingerprint, of_tensor
from ftlit.models.backbone import Backbone
from ftlit.models.lora import lora_parameters

BASE = "backbone."  # prefix of the tensors that may be left out
PUBLISHED = ("shipped", "package", "torchvision", "timm")  # of `WeightsKind`; a file may be gone later, and text encoders need --trust
Base = Mapping[str, Any]


def base_record(backbone: Backbone) -> dict[str, str]:
    """Origin and digest of the weights that a backbone was loaded with, without its reinitialized layers.

    Raises:
        UserError: weights that cannot be loaded again: a random start, or a custom backbone.
    """
    if backbone.record is None or not backbone.pretrained:
        reason = "this backbone is not part of ftlit" if backbone.record is None else "these weights are random"
        raise UserError(f"checkpoint=slim needs pretrained weights that can be loaded again, but {reason}: use checkpoint=full")
    return {"origin": backbone.origin.describe(), "digest": _digest(backbone)}


def loads_again(backbone: Backbone) -> bool:
    """Whether the backbone's weights are part of ftlit or published, so that a slim checkpoint finds them wherever it is read."""
    return backbone.record is not None and backbone.origin.kind in PUBLISHED


def check_base(backbone: Backbone, base: Base | None) -> None:
    """Raise `UserError` if the backbone was loaded with other weights than those of `base`; `None`: the checkpoint is not slim."""
    if base and (here := _digest(backbone)) != base["digest"]:
        raise UserError(
            f"the pretrained weights found are not those of this slim checkpoint: restore the weights with digest {base['digest']} "
            f"({base['origin']}; the weights found have digest {here})"
        )


def digests(backbone: Backbone) -> dict[str, str]:
    """Name in a checkpoint -> digest, for the tensors that may be left out while they are unchanged."""
    return {f"{BASE}{name}": of_tensor(tensor) for name, tensor in _base_tensors(backbone).items()}


def slimmed(state: Mapping[str, Tensor], base: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors that differ from `base` in any bit; see `digests`."""
    return {name: tensor for name, tensor in state.items() if name not in base or of_tensor(tensor.detach().cpu()) != base[name]}


def filled(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The complete state: tensors that were left out come from the backbone that training began with."""
    return {**{f"{BASE}{name}": tensor for name, tensor in backbone.state_dict().items()}, **state}


def _base_tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Its tensors without those of reinitialized layers and of LoRA, which are random."""
    reinitialized = tuple(f"{layer}." for layer in backbone.reinit)
    random = {tensor.data_ptr() for tensor in lora_parameters(backbone)}
    return {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not (reinitialized and name.startswith(reinitialized)) and tensor.data_ptr() not in random
    }


def _digest(backbone: Backbone) -> str:
    return fingerprint({name: of_tensor(tensor) for name, tensor in _base_tensors(backbone).items()})
