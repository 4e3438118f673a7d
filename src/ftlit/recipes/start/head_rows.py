"""Start a head from that of an earlier run: rows of known classes are copied, and rows of new ones are put beside them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ftlit.errors import UserError
from ftlit.models.heads import LinearHead


def same_features(before: nn.Module, now: nn.Module, last_cut: str) -> bool:
    """Whether both are linear heads on the same features, so that rows of one fit in the other.

    Args:
        before: head of the run.
        now: head of the new run.
        last_cut: of the backbone, which a head without cuts reads.
    """
    if not (isinstance(before, LinearHead) and isinstance(now, LinearHead)):
        return False
    cuts = [head.cuts or (last_cut,) for head in (before, now)]
    averages = [head.combine == "average" for head in (before, now)]
    return cuts[0] == cuts[1] and averages[0] == averages[1] and before.weight.shape[1] == now.weight.shape[1]


def copy_rows(head: nn.Linear, before: nn.Linear, known: Mapping[int, int], *, aligned: bool) -> None:
    """Copy the rows of known classes into a linear layer, in place.

    Logits are determined up to a number that is the same for all classes, and the rows of one fit may be larger than those of another. So
    the rows of new classes are moved and scaled: they are to those of the known classes here as they were in the fitted layer.

    Args:
        head: whose rows of new classes are kept, or aligned.
        before: layer of the run.
        known: class number in `head` -> in `before`.
        aligned: whether all rows of `head` were fitted together; random ones are not aligned.
    """
    rows, given = _rows(head), _rows(before).to(head.weight)
    now, then = list(known), list(known.values())
    if aligned:
        center, own = given[then].mean(dim=0), rows[now].mean(dim=0)
        spread = float((rows[now] - own)[:, : head.weight.shape[1]].norm())
        scale = float((given[then] - center)[:, : head.weight.shape[1]].norm()) / spread if spread and len(now) > 1 else 1.0
        rows = center + (rows - own) * scale
    rows[now] = given[then]
    with torch.no_grad():
        width = head.weight.shape[1]
        head.weight.copy_(rows[:, :width])
        head.bias.copy_(rows[:, width:].T.reshape(-1))


def copy_head(head: nn.Module, before: nn.Module, known: Mapping[int, int], run: str) -> None:
    """Copy a head of the run into one of the same kind, in place: rows of its last linear layer by class, all other tensors as they are.

    Args:
        head: of the new run, with random weights.
        before: of the run.
        known: class number in `head` -> in `before`.
        run: name of the run, for messages.

    Raises:
        UserError: another kind of head, or one of another size.
    """
    last, old = (_last_linear(each) for each in (head, before))
    own, given = head.state_dict(), before.state_dict()
    apart = {f"{last[0]}weight", f"{last[0]}bias"}
    if last[0] != old[0] or own.keys() != given.keys() or any(own[name].shape != given[name].shape for name in own.keys() - apart):
        raise UserError(f"init_from={run}: the head of that run has layers of another kind or size: leave head=... and head.* out")
    if last[1].weight.shape[1] != old[1].weight.shape[1]:
        raise UserError(f"init_from={run}: the head of that run reads other features: leave head.* out")
    head.load_state_dict({**own, **{name: tensor for name, tensor in given.items() if name not in apart}})
    copy_rows(last[1], old[1], known, aligned=False)


def _rows(head: nn.Linear) -> Tensor:
    """Weights and biases of each class (K, ...), a copy. An average has a bias for each of its cuts."""
    classes = len(head.weight)
    return torch.cat([head.weight.detach(), head.bias.detach().view(-1, classes).T], dim=1)


def _last_linear(head: nn.Module) -> tuple[str, nn.Linear]:
    found = [(f"{name}." if name else "", part) for name, part in head.named_modules() if isinstance(part, nn.Linear)]
    if not found:
        raise UserError(f"init_from cannot continue {type(head).__name__}, which has no linear layer: leave init_from out")
    return found[-1]
