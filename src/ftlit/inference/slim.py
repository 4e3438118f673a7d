"""Slim checkpoints: what differs from the pretrained weights, and what tells these from any others."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ftlit.errors import UserError
from ftlit.fingerprint import fingerprint, of_tensor
from ftlit.models.backbone import Backbone

BASE = "backbone."  # in front of the names of what may be left out
Base = Mapping[str, Any]


def base_record(backbone: Backbone) -> dict[str, str]:
    """Name and digest of the weights that a backbone was loaded with; layers that were drawn anew do not count.

    Raises:
        UserError: weights that cannot be had again: a random start, or a backbone that is none of ftlit's.
    """
    if backbone.record is None or not backbone.pretrained:
        what = "this backbone is none of ftlit's" if backbone.record is None else "these weights are a random start"
        raise UserError(f"checkpoint=slim leaves out what pretrained weights give again, and {what}: give checkpoint=full")
    return {"origin": backbone.origin.describe(), "digest": _digest(backbone)}


def check_base(backbone: Backbone, base: Base | None) -> None:
    """Raises `UserError` where the backbone was loaded with other weights than those that `base` tells of, if it tells of any."""
    if base and (here := _digest(backbone)) != base["digest"]:
        raise UserError(
            f"this checkpoint holds what differs from {base['origin']} of digest {base['digest']}, and here these weights have {here}: "
            "bring the old ones back"
        )


def digests(backbone: Backbone) -> dict[str, str]:
    """Name in a checkpoint -> digest, of what may be left out while it stays the same."""
    return {f"{BASE}{name}": of_tensor(tensor) for name, tensor in _base_tensors(backbone).items()}


def slimmed(state: Mapping[str, Tensor], base: Mapping[str, str]) -> dict[str, Tensor]:
    """What differs by a bit from `base`; see `digests`."""
    return {name: tensor for name, tensor in state.items() if name not in base or of_tensor(tensor.detach().cpu()) != base[name]}


def filled(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """What was left out, put back from the backbone that training began with."""
    return {**{f"{BASE}{name}": tensor for name, tensor in backbone.state_dict().items()}, **state}


def _base_tensors(backbone: Backbone) -> dict[str, Tensor]:
    drawn = tuple(f"{layer}." for layer in backbone.reinit)
    return {name: tensor for name, tensor in backbone.state_dict().items() if not (drawn and name.startswith(drawn))}


def _digest(backbone: Backbone) -> str:
    return fingerprint({name: of_tensor(tensor) for name, tensor in _base_tensors(backbone).items()})
