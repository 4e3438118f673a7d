"""Networks for other than three channels: their first convolution, and pretrained weights of three channels adapted to it.

As timm's `adapt_input_conv` (timm/models/_manipulate.py): for one channel the weights are summed over the three, so that a grey image gives
what its copy in three channels gave. For C channels they are repeated in order (R G B R G B ...) and multiplied by 3 / C, so that the
features keep their scale.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ftlit.errors import UserError
from ftlit.formatting import count

RGB = 3


def adapted(weight: Tensor, in_chans: int) -> Tensor:
    """Weights (out, 3, h, w) of a convolution -> float32 (out, in_chans, h, w); the same tensor for three channels.

    In float32, unlike timm's: weights in a file may be rounded to 16 bits, and a sum of them would be rounded again.
    """
    if in_chans == RGB:
        return weight
    exact = weight.float()
    if in_chans == 1:
        return exact.sum(dim=1, keepdim=True)
    repeated = exact.repeat(1, -(-in_chans // RGB), 1, 1)[:, :in_chans]
    return repeated * (RGB / in_chans)


def set_in_chans(name: str, model: nn.Module, in_chans: int) -> nn.Module:
    """Let the first convolution of a network take another number of channels, in place, with new random weights of the same spread.

    Args:
        name: of the network, for the error.
        model: a network of RGB images.
        in_chans: number of channels.

    Raises:
        UserError: the network does not begin with a convolution of three channels.
    """
    if in_chans == RGB:
        return model
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != RGB or first.groups != 1:
        raise cannot_adapt(name, in_chans)
    old = first.weight
    weight = torch.empty(first.out_channels, in_chans, *first.kernel_size, dtype=old.dtype, device=old.device)
    first.in_channels, first.weight = in_chans, nn.Parameter(weight if old.is_meta else weight.normal_(std=float(old.detach().std())))
    return model


def adapt_weights(name: str, tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], in_chans: int) -> str:
    """Adapt those of `tensors` that are convolutions of three channels, where the network takes another number, in place.

    Args:
        name: of the network, for the error.
        tensors: by name; those of a network of `in_chans` channels stay as they are.
        wanted: tensors of the network by the same names.
        in_chans: number of channels of the network.

    Returns:
        A note on what was adapted; empty if nothing was.

    Raises:
        UserError: the first layer is another one than a convolution of three channels.
    """
    note = ""
    for key, tensor in tensors.items():
        own = wanted.get(key)
        if own is None or own.ndim != tensor.ndim or own.ndim < 2 or own.shape[1] == tensor.shape[1] or own.shape[0] != tensor.shape[0]:
            continue
        if own.shape[1] * RGB != tensor.shape[1] * in_chans:
            continue  # another misfit, which is reported where tensors are assigned
        if own.ndim != 4 or tensor.shape[1] != RGB:
            raise cannot_adapt(f"{name} ({key})", in_chans)
        tensors[key] = adapted(tensor, in_chans)
        note = f"first convolution adapted to {count(in_chans, 'channel')}"
    return note


def in_chans_record(in_chans: int) -> dict[str, int]:
    """The entry of the record of a backbone; none for three channels, as in the records of earlier programs."""
    return {} if in_chans == RGB else {"in_chans": in_chans}


def cannot_adapt(name: str, in_chans: int) -> UserError:
    """The error for a network whose first layer is no convolution of three channels."""
    return UserError(
        f"{name} does not support backbone.in_chans={in_chans}, because its first layer is not a convolution of three channels: "
        "give another backbone"
    )
