"""Weights between the beginning and the end of training: WiSE-FT (Wortsman et al. 2022, Robust fine-tuning of zero-shot models)."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ftlit.errors import UserError
from ftlit.plain_arguments import plain_arguments


@plain_arguments
def interpolated(start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float, of_end: Collection[str] = ()) -> dict[str, Tensor]:
    """Return the weights (1 - alpha) start + alpha end of two states of one network: Wortsman et al. 2022, section 3.

    Statistics of batch norms are interpolated too. Tensors that are no floating-point numbers are those of the end. With alpha 0 and 1 all
    tensors are exactly those of the start and of the end, and tensors that are equal in both stay as they are, bit for bit.

    Args:
        start: state at the beginning of training.
        end: state at its end.
        alpha: share of the end, 0 to 1.
        of_end: names of tensors that are those of the end with each alpha above 0.

    Raises:
        UserError: an alpha out of range, or states of two networks.

    >>> interpolated({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha={alpha}: give a number from 0 (the weights before training) to 1 (those after)")
    if start.keys() != end.keys() or any(start[name].shape != end[name].shape for name in start):
        raise UserError(
            "weights of two different networks cannot be interpolated: give the states of one network, before and after training"
        )
    if alpha == 0:
        return dict(start)
    return {
        name: torch.lerp(start[name], tensor, alpha) if tensor.is_floating_point() and name not in of_end else tensor
        for name, tensor in end.items()
    }
