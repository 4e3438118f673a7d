"""Other modules, same function (invariant 7): BatchNorm in evaluation mode is y = a x + b per channel, and comes back for export.

Small data make noisy statistics of a batch. With the known statistics folded into a and b nothing depends on the other images
of the batch any more, a and b still train, and there are no buffers that processes would have to agree on.
"""

from collections.abc import Callable, Collection, Mapping
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ftlit.code_identity import versioned
from ftlit.errors import UserError, shorten

Old = TypeVar("Old", bound=nn.Module)
New = TypeVar("New", bound=nn.Module)

# By exact class: a subclass may compute something else (timm's BatchNormAct2d has its activation inside).
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@versioned("affine_norm", 1)
class AffineNorm(nn.Module):
    """y = weight x + bias per channel; x is (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W). Starts as the identity.

    The same in training and in evaluation mode, without buffers. `load_state_dict` takes its own state and, folded on the
    way in, the state of a BatchNorm (`strict=True` too).

    Args:
        num_features: C.
        kind: the BatchNorm that this was, and that `affine_to_batchnorm` makes of it.
        eps: of that BatchNorm.
        momentum: of that BatchNorm.
        implied: those of "weight" and "bias" that the BatchNorm did not have (`affine=False`); its states count as 1 and 0 there.
    """

    def __init__(
        self,
        num_features: int,
        *,
        kind: type[_BatchNorm] = nn.BatchNorm2d,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        implied: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.num_features, self.kind, self.eps, self.momentum = num_features, kind, eps, momentum
        self.implied = tuple(implied)
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Per channel a x + b, in the dtype of x."""
        # BatchNorm's kernel with mean 0, variance 1, eps 0: one pass over x where `a * x + b` takes two and keeps a copy, and
        # under autocast half precision comes out where half precision comes in, as the network is used to.
        mean, var = torch.zeros_like(self.bias), torch.ones_like(self.weight)
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=0.0)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.num_features}, was {self.kind.__name__}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any) -> None:
        """As in torch, which calls it from `load_state_dict`; a BatchNorm's state is folded first."""
        state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        # An incomplete state is left as it is, so that torch tells what is missing from it.
        if {"running_mean", "running_var", *_but(self.implied)} <= set(state):
            state |= _fold(state, self.eps, torch.promote_types(state["running_mean"].dtype, self.weight.dtype))
            state_dict = {prefix + key: value for key, value in state.items() if key not in STATISTICS}
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def batchnorm_to_affine(module: nn.Module) -> nn.Module:
    """Make of every BatchNorm in `module` the a x + b that it is in evaluation mode; exact to rounding, idempotent.

    a = weight / sqrt(running_var + eps) and b = bias - running_mean a, computed in float64. Names of parameters, device, dtype,
    `requires_grad` and mode stay; what `affine=False` lacked is new and trains. The parameters are new objects: rewrite before
    an optimizer is built. Hooks on a BatchNorm do not come along.

    Returns:
        `module`, changed in place; the new module where `module` itself is a BatchNorm.

    Raises:
        UserError: a BatchNorm without running statistics, or of a class of its own, before anything is changed.
    """
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            _check(norm, f"{name!r} ({type(norm).__name__})" if name else type(norm).__name__)
    return _replace(module, _BatchNorm, _affine)


def affine_to_batchnorm(module: nn.Module) -> nn.Module:
    """Make of every `AffineNorm` in `module` the BatchNorm that it was, for export; the same function in evaluation mode.

    running_mean = 0, running_var = 1 - eps, weight = a, bias = b, and `batchnorm_to_affine` gives the same a and b again, bit for
    bit. Class, eps and momentum are the old ones; `affine=False` comes back with `affine=True`, and SyncBatchNorm in the default
    process group. In training mode the statistics start from these, not from the data's: do not go on training it.

    Returns:
        `module`, changed in place; the new module where `module` itself is an `AffineNorm`.
    """
    return _replace(module, AffineNorm, _batchnorm)


def load_either(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state dict of BatchNorms or of affines into `module`, which has either of them, as `strict=True` does.

    Into an `AffineNorm` torch's own `load_state_dict` does it. This adds the other direction: a BatchNorm for which `state` has a
    weight but no running statistics gets a mean of 0 and a variance of 1 - eps. A BatchNorm with `affine=False` cannot hold a and b.
    `state` itself is left alone.

    Raises:
        RuntimeError: torch's, with the keys that are missing or left over.
    """
    whole: Any = copy(state)  # a copy that keeps `_metadata`, which tells torch the version of each module's state
    for name, norm in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        affine = prefix + "weight" in state and not any(prefix + key in state for key in STATISTICS)
        if affine and isinstance(norm, _BatchNorm) and norm.running_var is not None:
            idle = {key: torch.zeros_like(norm.get_buffer(key)) for key in STATISTICS}
            idle["running_var"] += 1 - norm.eps
            whole |= {prefix + key: value for key, value in idle.items()}
    module.load_state_dict(whole)


def _check(norm: _BatchNorm, what: str) -> None:
    if type(norm) not in KINDS:
        known = shorten(kind.__name__ for kind in KINDS)
        raise UserError(f"{what} cannot become affine: it is a class of its own, and only {known} are known to compute a x + b")
    if norm.running_mean is None:
        raise UserError(f"{what} cannot become affine: it has no running statistics; build it with track_running_stats=True")


def _replace(module: nn.Module, old: type[Old], make: Callable[[Old], nn.Module]) -> nn.Module:
    """Put `make(m)` for each m of class `old`, wherever it is used: one for each, so that what is shared stays shared."""
    new: dict[nn.Module | None, nn.Module] = {child: make(child) for child in module.modules() if isinstance(child, old)}
    for parent in module.modules():
        parent._modules.update({name: new[child] for name, child in parent._modules.items() if child in new})
    return new.get(module, module)


def _affine(norm: _BatchNorm) -> AffineNorm:
    state = norm.state_dict()
    new = AffineNorm(norm.num_features, kind=type(norm), eps=norm.eps, momentum=norm.momentum, implied=_but(state))
    new.to(state.get("weight", state["running_mean"])).load_state_dict(state)
    return _keep(new, norm)


def _batchnorm(affine: AffineNorm) -> _BatchNorm:
    new = affine.kind(affine.num_features, eps=affine.eps, momentum=affine.momentum).to(affine.weight)
    load_either(new, affine.state_dict())
    return _keep(new, affine)


def _keep(new: New, old: nn.Module) -> New:
    """`new` with the mode of `old`, and each parameter training or not as in `old`."""
    for name, parameter in old.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    return new.train(old.training)


def _but(names: Collection[str]) -> tuple[str, ...]:
    """Those of weight and bias that are not among `names`."""
    return tuple(name for name in ("weight", "bias") if name not in names)


def _fold(state: Mapping[str, Tensor], eps: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The a and b of a BatchNorm's state, computed in float64; weight 1 and bias 0 where the state has none."""
    device = state["running_mean"].device
    where = device if device.type == "meta" else "cpu"  # the CPU has float64 whatever the accelerator has
    wide = {key: value.detach().to(where, torch.float64) for key, value in state.items()}
    a = wide.get("weight", torch.ones(())) / torch.sqrt(wide["running_var"] + eps)
    b = wide.get("bias", torch.zeros(())) - wide["running_mean"] * a
    return {"weight": a.to(device, dtype), "bias": b.to(device, dtype)}
